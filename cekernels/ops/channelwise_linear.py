"""Channel-wise fully-connected layer (Pathak et al. 2016, section 3.1).

Connects every location of a feature map with every location of the same map, and with no other map:
m maps of n x n need m n^4 weights, where a fully-connected layer would need m^2 n^4. The paper's
authors implement it as a convolution with a kernel of the map's size and one group per channel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cekernels import _checks, reference
from cekernels._backends import IMPLS, Impl
from cekernels._interop import overrides, record
from cekernels._precision import float32_products
from cekernels._register import Formula, Op, Sharding, autocast_dtype
from cekernels._selfcheck import CONTIGUOUS, OTHER, Kind, SelfTest, layout_of, numbers

Activation = Literal["relu"]
_NAMES = ("input", "weight", "bias")
_LARGEST = (1 << 63) - 1


def channelwise_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Apply one linear map to each channel: ``act(sum_i weight[c,o,i] input[b,c,i] + bias[c,o])``.

    Args:
        input: ``(B, C, N_in)``, or maps ``(B, C, H, W)`` with ``H * W = N_in``; floating point.
        weight: ``(C, N_out, N_in)``, the input's dtype and device.
        bias: ``(C, N_out)`` or None.
        activation: None, or "relu" (its gradient at 0 is 0).
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        ``(B, C, N_out)``, contiguous; for maps with ``N_out = N_in``, ``(B, C, H, W)``.
        Under autocast, inputs are cast to the autocast dtype, as for ``torch.nn.Linear``
        (except float64).
        Differentiable any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        ImplementationError: the forced implementation cannot handle the call.
    """
    op = "channelwise_linear"
    if not (
        _checks.tensors(op, _NAMES, input, weight)
        if bias is None
        else _checks.tensors(op, _NAMES, input, weight, bias)
    ):
        call = functools.partial(record, channelwise_linear, input, weight, bias)
        return call(activation=activation, impl=impl)  # type: ignore[no-any-return]
    if input.dtype not in _checks.FLOATING:
        _checks.dtypes(op, "input", input, _checks.FLOATING)
    cast = autocast_dtype(input.device.type)
    if cast is not None:
        input, weight = _autocast(input, cast), _autocast(weight, cast)
        bias = bias if bias is None else _autocast(bias, cast)

    # Conditions first: calls of the checks would be a large part of the time of a small call.
    if input.dim() != 3:
        _checks.dims(op, "input", input, (3, 4), "(B, C, N) or (B, C, H, W)")
    if weight.dim() != 3:
        _checks.dims(op, "weight", weight, (3,), "(C, N_out, N_in)")
    if weight.dtype != input.dtype:
        _checks.same_dtype(op, "weight", weight, "input", input)
    if weight.device != input.device:
        _checks.same_device(op, "weight", weight, "input", input)
    if activation is not None:
        _checks.choice(op, "activation", activation, (None, "relu"))
    maps = input.shape[2:]
    flat = input if input.dim() == 3 else input.flatten(2)
    channels, n_out, n_in = weight.shape
    if flat.shape[1] != channels or flat.shape[2] != n_in:
        raise ValueError(
            f"{op}: weight (C, N_out, N_in) = {tuple(weight.shape)} needs an input of {channels} "
            f"channels with {n_in} locations, got a {_checks.describe(input)}"
        )
    if bias is not None:
        _checks.shape(op, "bias", bias, (channels, n_out), "(C, N_out) of weight")
        if bias.dtype != input.dtype:
            _checks.same_dtype(op, "bias", bias, "input", input)
        if bias.device != input.device:
            _checks.same_device(op, "bias", bias, "input", input)

    kernel = LINEAR.kernel(impl, flat, weight, bias)
    output: Tensor = kernel(flat, weight, bias, activation == "relu")
    return output.unflatten(2, maps) if len(maps) == 2 and n_out == n_in else output


def _autocast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """PyTorch's autocast rule: cast floating-point tensors to ``dtype``, except float64."""
    if value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


class ChannelwiseLinear(nn.Module):
    """:func:`channelwise_linear` as a module with its parameters.

    Args:
        channels: C, the number of maps.
        in_size: locations per input map: N_in, or ``(H, W)``.
        out_size: locations per output map: N_out, or ``(H, W)``; None for ``in_size``.
        bias: True to learn one bias per location of each output map.
        activation: None or "relu".
        impl: as for :func:`channelwise_linear`.
        device, dtype: of the parameters, as for ``torch.nn.Linear``.

    Shape:
        ``(B, C, N_in)`` to ``(B, C, N_out)``; ``(B, C, H, W)`` to ``(B, C, H_out, W_out)`` where
        ``out_size`` gives both, to ``(B, C, H, W)`` where N_out = N_in, else to ``(B, C, N_out)``.

    Weights and biases are initialised uniformly in +-1/sqrt(N_in), as in ``torch.nn.Linear``.

    Raises:
        TypeError, ValueError: a size that is not positive or not one or two integers (NumPy's are
            taken); on a call, maps of another size than an ``in_size`` ``(H, W)``, and the errors
            of :func:`channelwise_linear`.
        RuntimeError: not enough memory for the parameters.
    """

    def __init__(
        self,
        channels: int,
        in_size: int | Sequence[int],
        out_size: int | Sequence[int] | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "ChannelwiseLinear"
        self.channels = _positive(op, "channels", "a positive integer", channels)
        _checks.choice(op, "activation", activation, (None, "relu"))
        _checks.choice(op, "impl", impl, IMPLS)
        self.in_size, n_in = _map_size(op, "in_size", in_size)
        self.out_size, n_out = _map_size(op, "out_size", in_size if out_size is None else out_size)
        self.activation: Activation | None = activation
        self.impl: Impl = impl

        def parameter(name: str, *shape: int) -> nn.Parameter:
            return nn.Parameter(_checks.allocate(op, name, shape, device=device, dtype=dtype))

        self.weight = parameter("weight (channels, out_size, in_size)", self.channels, n_out, n_in)
        if bias:
            self.bias = parameter("bias (channels, out_size)", self.channels, n_out)
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        if overrides(input):
            settings = self.in_size, self.out_size, self.activation, self.impl
            return record(channelwise_linear_layer, input, self.weight, self.bias, *settings)  # type: ignore[no-any-return]
        return channelwise_linear_layer(
            input,
            self.weight,
            self.bias,
            self.in_size,
            self.out_size,
            self.activation,
            self.impl,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, in_size={self.in_size}, out_size={self.out_size}, "
            f"bias={self.bias is not None}, activation={self.activation!r}, impl={self.impl!r}"
        )


def channelwise_linear_layer(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_size: int | tuple[int, int],
    out_size: int | tuple[int, int],
    activation: Activation | None,
    impl: Impl,
) -> Tensor:
    """The layer as one function, which is one node in a graph of ``torch.fx.symbolic_trace``."""
    op = "ChannelwiseLinear"
    _checks.tensor(op, "input", input)
    maps = input.dim() == 4
    if maps and isinstance(in_size, tuple):
        _checks.shape(op, "input", input, (*input.shape[:2], *in_size), "maps of in_size")
    output = channelwise_linear(input, weight, bias, activation=activation, impl=impl)
    if maps and isinstance(out_size, tuple):
        return output.reshape(*output.shape[:2], *out_size)
    return output


def _map_size(op: str, name: str, value: int | Sequence[int]) -> tuple[int | tuple[int, int], int]:
    """The size of a map as the module stores it, and its number of locations."""
    many = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    sides: tuple[Any, ...] = tuple(value) if many else (value,)  # type: ignore[arg-type]
    expected = "a positive integer or two (H, W)"
    if len(sides) not in (1, 2):
        raise ValueError(f"{op}: {name} must be {expected}, got {value!r}")
    sizes = [_positive(op, name, expected, side, value) for side in sides]
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1]), math.prod(sizes)


def _positive(op: str, name: str, expected: str, value: object, whole: object = None) -> int:
    """``value`` as a positive int; ``whole`` is the argument that it is part of."""
    try:
        return _checks.integer(op, name, value, 1, _LARGEST)
    except (TypeError, ValueError) as error:
        given = value if whole is None else whole
        raise ValueError(f"{op}: {name} must be {expected}, got {given!r}") from error


# --- the op and its derivatives ---------------------------------------------------------------


def _forward_fake(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape[0], *weight.shape[:2])


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, relu = inputs
    ctx.save_for_backward(input, weight, output if relu else None)


def _forward_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, output = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    kernel = LINEAR_BACKWARD.kernel(ctx.impl, grad_output, input, weight)
    grads = kernel(grad_output, input, weight, output, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


def _backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, output: Tensor | None, *needs: Any
) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:2])
    return tuple(grad_output.new_empty(s if n else 0) for s, n in zip(shapes, needs, strict=True))


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, input, weight, relu_output, *needs = inputs
    ctx.save_for_backward(grad_output, input, weight, relu_output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(g for g, need in zip(output, needs, strict=True) if not need))


def _backward_backward(
    ctx: Any,
    grad_grad_input: Tensor | None,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Double backward, composed of the two ops and therefore differentiable again."""
    grad_output, input, weight, relu_output = ctx.saved_tensors
    needs_grad, needs_input, needs_weight = ctx.needs_input_grad[:3]
    passes = None if relu_output is None else relu_output > 0

    def forward(x: Tensor, w: Tensor) -> Tensor:
        output: Tensor = LINEAR.kernel(ctx.impl, x, w)(x, w, None, False)
        return output

    def backward(g: Tensor, x: Tensor, w: Tensor, *needs: bool) -> tuple[Tensor, Tensor, Tensor]:
        kernel = LINEAR_BACKWARD.kernel(ctx.impl, g, x, w)
        grads: tuple[Tensor, Tensor, Tensor] = kernel(g, x, w, None, *needs)
        return grads

    grad = grad_output if passes is None else torch.where(passes, grad_output, 0)
    grad_of_grad = grad_of_input = grad_of_weight = None
    terms = []
    if grad_grad_input is not None:
        if needs_grad:
            terms.append(forward(grad_grad_input, weight))
        if needs_weight:
            grad_of_weight = backward(grad, grad_grad_input, weight, False, True, False)[1]
    if grad_grad_weight is not None:
        if needs_grad:
            terms.append(forward(input, grad_grad_weight))
        if needs_input:
            grad_of_input = backward(grad, input, grad_grad_weight, True, False, False)[0]
    if grad_grad_bias is not None and needs_grad:
        terms.append(grad_grad_bias.expand_as(grad_output))
    if terms:
        total = sum(terms[1:], start=terms[0])
        grad_of_grad = total if passes is None else torch.where(passes, total, 0)
    return grad_of_grad, grad_of_input, grad_of_weight, *(None,) * 4


# --- the self-test ----------------------------------------------------------------------------

# Larger maps are computed in tiles or by torch.bmm: one number, in place of all that are multiples
# of 4, and one in place of the others.
_LARGEST_TESTED, _LARGE, _LARGE_ODD = 128, 132, 131


def _tested(locations: int) -> int:
    if locations <= _LARGEST_TESTED:
        return locations
    return _LARGE_ODD if locations % 4 else _LARGE


def _kind(weight: Tensor, *operands: Tensor | None) -> Kind:
    n_out, n_in = weight.shape[1:]
    return Kind(
        dtype=weight.dtype,
        layout=layout_of(weight, *operands),
        locations=(_tested(n_in), _tested(n_out)),
        products=float32_products() if weight.dtype == torch.float32 else "",
    )


def _forward_kind(input: Tensor, weight: Tensor, *_: Any) -> Kind:
    return _kind(weight, input)


def _backward_kind(
    grad_output: Tensor, input: Tensor, weight: Tensor, output: Tensor | None, *_: Any
) -> Kind:
    return _kind(weight, grad_output, input, output)


def _usual_kinds(
    dtypes: Sequence[torch.dtype], locations: Sequence[tuple[int, int]]
) -> Iterator[Kind]:
    for dtype, (n_in, n_out), layout in itertools.product(dtypes, locations, (CONTIGUOUS, OTHER)):
        sizes = (_tested(n_in), _tested(n_out))
        products = float32_products() if dtype == torch.float32 else ""
        yield Kind(dtype, layout, locations=sizes, products=products)


# Samples: more than one tile and slice of the batch, whose sums are then reduced; and fewer.
_SAMPLES = (70, 5)


def _unit(kind: Kind) -> float:
    """Of one operand of each product: of more digits than TF32 where that is not enough."""
    return 1 + 2.0**-12 if kind.products in ("ieee", "tf32x3") else 1


def _operands(kind: Kind, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and gradient of the output, in float64."""
    n_in, n_out = kind.locations
    return (
        numbers(samples, 3, n_in) * _unit(kind),
        numbers(3, n_out, n_in, start=1),
        numbers(3, n_out, start=2),
        numbers(samples, 3, n_out, start=4),
    )


def _forward_cases(kind: Kind) -> list[tuple[Any, ...]]:
    found = []
    for samples, full in zip(_SAMPLES, (True, False), strict=True):
        x, w, b, _ = (t.to(kind.dtype) for t in _operands(kind, samples))
        found.append((x, w, b if full else None, full))
    return found


def _backward_cases(kind: Kind) -> list[tuple[Any, ...]]:
    """The products are those of the gradient with the inputs, and with the weights."""
    found: list[tuple[Any, ...]] = []
    for samples, full in zip(_SAMPLES, (True, False), strict=True):
        x, w, b, g = _operands(kind, samples)
        y = reference.channelwise_linear(x, w, b, True).to(kind.dtype) if full else None
        found.append((*(t.to(kind.dtype) for t in (g, x, w * _unit(kind))), y, True, True, True))
    return found


# --- counts, and placements of DTensors -------------------------------------------------------


def _forward_flops(
    input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any = None
) -> int:
    """One multiplication and one addition per weight and sample, as torch counts products."""
    return 2 * input[0] * math.prod(weight)


def _backward_flops(
    grad_output: Sequence[int],
    input: Sequence[int],
    weight: Sequence[int],
    output: Sequence[int] | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    out_shape: Any = None,
) -> int:
    return _forward_flops(input, weight) * (needs_input + needs_weight)


def _forward_sharding(input: Any, weight: Any, bias: Any, relu: bool) -> list[Sharding]:
    return [
        ([0], [0, "whole", "whole", "whole"]),  # the batch
        ([1], [1, 0, 0, "whole"]),  # the channels
    ]


def _backward_sharding(
    grad_output: Any, input: Any, weight: Any, output: Any, *needs: bool
) -> list[Sharding]:
    def where_needed(*placements: int | str) -> list[int | str]:
        return [p if need else "whole" for p, need in zip(placements, needs, strict=True)]

    whole: list[int | str] = ["whole"] * 3
    return [
        (where_needed(0, "partial", "partial"), [0, 0, "whole", 0, *whole]),
        (where_needed(1, 0, 0), [1, 1, 0, 1, *whole]),
    ]


LINEAR = Op(
    reference.channelwise_linear,
    fake=_forward_fake,
    formula=Formula(_forward_context, _forward_backward),
    check=SelfTest(_forward_cases, _forward_kind, _usual_kinds),
    decomposition=reference.channelwise_linear,
    flops=_forward_flops,
    sharding=_forward_sharding,
)
LINEAR_BACKWARD = Op(
    reference.channelwise_linear_backward,
    fake=_backward_fake,
    formula=Formula(_backward_context, _backward_backward),
    check=SelfTest(_backward_cases, _backward_kind, _usual_kinds),
    decomposition=reference.channelwise_linear_backward,
    flops=_backward_flops,
    sharding=_backward_sharding,
)
