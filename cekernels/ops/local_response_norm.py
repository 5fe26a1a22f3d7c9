"""Local response normalisation across channels, as AlexNet has it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from cekernels import _checks, reference
from cekernels._backends import IMPLS, Impl
from cekernels._interop import record
from cekernels._register import Formula, Op, Sharding
from cekernels._selfcheck import SelfTest, numbers
from cekernels.reference.layout import dense_format


def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Divide each channel by a power of the mean square of its neighbours.

    ``input / (k + alpha / size * s) ** beta``, where s is the sum of squares over ``size``
    channels, of which ``size // 2`` lie before the channel; channels that do not exist count as 0.
    The same as :func:`torch.nn.functional.local_response_norm`, in one pass over the input, and
    one over input and gradient for the derivative. Krizhevsky et al. 2012, section 3.3; Caffe
    divides alpha by the size, too, and has k = 1.

    Args:
        input: ``(B, C, H, W)`` or ``(B, C, N)``, floating point.
        size: channels in the window, from 1 to 65536.
        alpha, beta, k: see above. Fastest with a beta of 0.75.
        impl: "auto", or the implementation to force: "reference" or "cpp".

    Returns:
        The shape and dtype of ``input``; in channels_last if the input is, else contiguous.
        Computed in float32, in float64 for float64. Differentiable any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
        ImplementationError: the forced implementation cannot handle the call.
    """
    op = "local_response_norm"
    if not _checks.tensors(op, ("input",), input):
        call = functools.partial(record, local_response_norm, input, size, alpha, beta, k)
        return call(impl=impl)  # type: ignore[no-any-return]
    _checks.dtypes(op, "input", input, _checks.FLOATING)
    _checks.dims(op, "input", input, (3, 4), "(B, C, H, W) or (B, C, N)")
    size = _size(op, size)
    alpha, beta, k = (
        _checks.number(op, name, value)
        for name, value in (("alpha", alpha), ("beta", beta), ("k", k))
    )
    _checks.choice(op, "impl", impl, IMPLS)
    maps = input if input.dim() == 4 else input.unsqueeze(3)
    kernel = LOCAL_RESPONSE_NORM.kernel(impl, maps)
    output: Tensor = kernel(maps, size, alpha, beta, k)
    return output if input.dim() == 4 else output.squeeze(3)


def _size(op: str, size: object) -> int:
    try:
        return _checks.integer(op, "size", size, 1, 1 << 16)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{op}: size must be a positive integer, got {size!r} (at most 65536)"
        ) from error


class LocalResponseNorm(nn.LocalResponseNorm):
    """:func:`local_response_norm` as a module, with the arguments of its base class."""

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)


# --- the op and its derivatives ---------------------------------------------------------------


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=dense_format(input))


def _backward_fake(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _fake(input)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.parameters = inputs[1:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    (input,) = ctx.saved_tensors
    kernel = LOCAL_RESPONSE_NORM_BACKWARD.kernel(ctx.impl, grad_output, input)
    return kernel(grad_output, input, *ctx.parameters), None, None, None, None


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.parameters = inputs[2:]


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """By autograd through the reference: second derivatives are rare."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [t if again else t.detach().requires_grad_() for t in ctx.saved_tensors]
        wanted = [t for t in leaves if t.requires_grad]
        result = reference.local_response_norm_backward(*leaves, *ctx.parameters)
        grads = iter(torch.autograd.grad(result, wanted, grad, create_graph=again))
    return *(next(grads) if t.requires_grad else None for t in leaves), None, None, None, None


def _sharding(input: Any, *_: Any) -> list[Sharding]:
    return [([0], [0, *["whole"] * 4])]


def _backward_sharding(grad_output: Any, input: Any, *_: Any) -> list[Sharding]:
    return [([0], [0, 0, *["whole"] * 4])]


def _check() -> tuple[Any, ...]:
    """Without the squares, and divided by 1: exact."""
    return numbers(2, 7, 3, 5), 5, 0.0, 0.75, 1.0


def _backward_check() -> tuple[Any, ...]:
    return numbers(2, 7, 3, 5, start=3), *_check()


LOCAL_RESPONSE_NORM = Op(
    reference.local_response_norm,
    fake=_fake,
    formula=Formula(_context, _backward),
    compiled=("cpp",),
    check=SelfTest(lambda _: [_check()]),
    decomposition=reference.local_response_norm,
    sharding=_sharding,
)
LOCAL_RESPONSE_NORM_BACKWARD = Op(
    reference.local_response_norm_backward,
    fake=_backward_fake,
    formula=Formula(_backward_context, _backward_backward),
    compiled=("cpp",),
    check=SelfTest(lambda _: [_backward_check()]),
    decomposition=reference.local_response_norm_backward,
    sharding=_backward_sharding,
)
