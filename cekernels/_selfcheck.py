"""What an implementation has to show on a GPU before ``impl="auto"`` takes it there.

Kernels for a GPU depend on more than this package: the driver, Triton's compiler and the C
compiler that it calls, the architectures that a library was built for. So before its first use on
a device each op runs once on small inputs and must give, bit for bit, what the reference gives in
float64 on the CPU: the inputs are small integers, whose sums every dtype holds exactly. This
takes one wait for the device and the time that Triton needs to compile; a forced implementation
is taken at its word.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cekernels import reference
from cekernels.reference.masked_loss import accumulation_dtype

# Elsewhere the tests that come with the package have run on what users run.
DEVICES = ("cuda",)

Arguments = tuple[Any, ...]
_outcomes: dict[tuple[str, str, torch.device], str | None] = {}


def failure(op: str, name: str, module: ModuleType, device: torch.device) -> str | None:
    """Why ``module``, implementation ``name``, may not serve ``op`` on ``device``; None if it may.

    The answer is remembered, and warned of once if it is a reason.
    """
    if device.type not in DEVICES or module is reference:
        return None
    key = (op, name, device)
    if key not in _outcomes:
        if device.type == "cuda" and _capturing():
            return "not checked yet, and while a CUDA graph is captured it cannot be"
        reason = _outcomes[key] = _check(op, module, device)
        if reason is not None:
            warnings.warn(
                f'cekernels: impl="auto" does without {name} for {op} on {device}: {reason}',
                RuntimeWarning,
                stacklevel=2,
            )
    return _outcomes[key]


def _capturing() -> bool:
    return bool(torch.cuda.is_current_stream_capturing())


@contextlib.contextmanager
def _waiting_allowed(device: torch.device) -> Iterator[None]:
    """Whatever ``torch.cuda.set_sync_debug_mode`` forbids the program that this runs in."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _check(op: str, module: ModuleType, device: torch.device) -> str | None:
    try:
        with torch.no_grad(), _waiting_allowed(device):
            dtypes = (torch.float32, torch.bfloat16)
            for case, dtype in itertools.product((_CASES[op], *_MORE_CASES.get(op, ())), dtypes):
                arguments = case()
                truth = _results(reference, op, [_to(a, torch.float64) for a in arguments])
                given = [_to(a, dtype, device) for a in arguments]
                if module.unsupported(op, *given) is not None:
                    continue
                for ours, exact in zip(_results(module, op, given), truth, strict=True):
                    if not torch.equal(ours.cpu().to(exact.dtype), exact):
                        return f"it gives wrong results in {str(dtype).removeprefix('torch.')}"
    except torch.OutOfMemoryError:
        raise  # says nothing of the implementation: checked again when there is memory
    except Exception as error:  # a compiler that is missing, a launch that fails: anything
        return f"{type(error).__name__}: {error}"
    return None


def _to(value: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """A copy of a tensor, those of floating point in ``dtype``, scalars in what it is summed in."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        dtype = value.dtype
    elif value.dim() == 0:
        dtype = accumulation_dtype(dtype)
    return value.to(device, dtype, copy=True)


def _results(module: ModuleType, op: str, arguments: list[Any]) -> tuple[Tensor, ...]:
    if op == "scale_gradient_":  # in place
        module.scale_gradient_(*arguments)
        return (arguments[0],)
    if op == "masked_loss_and_gradient" and module is reference:
        prediction, target, mask, _, power, _ = arguments
        loss, scale = reference.masked_loss(*arguments)
        one = torch.ones_like(loss)
        grad = reference.masked_loss_backward(one, scale, prediction, target, mask, power)
        return loss, scale, grad
    result = getattr(module, op)(*arguments)
    return (result,) if isinstance(result, Tensor) else tuple(result)


# --- small integers -------------------------------------------------------------------------------


def _numbers(*shape: int, start: int = 0) -> Tensor:
    """-1, 0 and 1 in no simple order."""
    count = torch.arange(start, start + torch.Size(shape).numel())
    return ((count * count + count // 3 + count // 7) % 3 - 1).double().view(shape)


def _linear() -> Arguments:
    """More rows than a tile has: the batch is split, and its sums are put together."""
    return _numbers(70, 3, 36), _numbers(3, 36, 36, start=1), _numbers(3, 36, start=2), True


def _linear_backward() -> Arguments:
    input, weight, bias, relu = _linear()
    output = reference.channelwise_linear(input, weight, bias, relu)
    return _numbers(70, 3, 36, start=4), input, weight, output, (True, True, True)


# Pixels one at a time; and by 16 bytes, in more than one block.
_ODD, _ALIGNED = (9, 7), (40, 32)


def _mask(size: tuple[int, int]) -> Tensor:
    """Two samples; together 32 pixels are masked, so that a mean is exact."""
    mask = torch.zeros(2, 1, *size, dtype=torch.bool)
    mask[0, 0, 2:6, 1:6] = True
    mask[1, 0, -4:-2, -6:] = True
    return mask


def _loss(size: tuple[int, int] = _ODD) -> Arguments:
    mask = _mask(size)
    prediction, target = _numbers(2, 4, *size), _numbers(2, 4, *size, start=5)
    prediction[0, 0, 0, 0] = float("nan")  # outside the mask: takes no part
    return prediction, target, mask, mask.sum((1, 2, 3)), 2, "mask"


def _loss_backward(size: tuple[int, int] = _ODD) -> Arguments:
    prediction, target, mask, _, power, _ = _loss(size)
    one, scale = torch.ones((), dtype=torch.float64), torch.full((), 1 / 128, dtype=torch.float64)
    return one, scale, prediction, target, mask, power


def _scale_gradient(size: tuple[int, int] = _ODD) -> Arguments:
    mask = _mask(size)
    gradient = _numbers(2, 4, *size) * mask  # as the loss makes it: 0 outside the mask
    return gradient, torch.full((), 0.5, dtype=torch.float64), mask


def _fill(size: tuple[int, int] = (17, 18)) -> Arguments:
    mask = torch.ones(2, 1, *size).tril(2) > 0
    return _numbers(2, 3, *size), mask, torch.tensor([2.0, -3.0, 4.0])


def _polygons() -> Arguments:
    """A quadrangle with a hole and a triangle that leaves the picture; a sample without any."""
    contours = [
        [(300, 200), (4000, 700), (3300, 3900), (100, 2500)],
        [(900, 900), (1000, 2300), (2600, 2000)],
        [(2000, -500), (6000, 5000), (-900, 3000)],
    ]
    vertices = torch.tensor([v for contour in contours for v in contour], dtype=torch.int32)
    return vertices, torch.tensor([0, 4, 7, 10]), torch.tensor([0, 3, 3])


def _boxes() -> Arguments:
    boxes = [[100, 200, 1900, 3000], [1500, 1024, 9000, 2000], [-700, 3000, 800, 3500]]
    return torch.tensor(boxes, dtype=torch.int32), torch.tensor([0, 3, 3])


def _image() -> Arguments:
    return _numbers(2, 3, 17, 18), torch.tensor([2.0, -3.0, 4.0])


_CASES: dict[str, Callable[[], Arguments]] = {
    "channelwise_linear": _linear,
    "channelwise_linear_backward": _linear_backward,
    "masked_loss": _loss,
    "masked_loss_and_gradient": _loss,
    "masked_loss_backward": _loss_backward,
    "scale_gradient_": _scale_gradient,
    "philox4x32": lambda: (*(torch.arange(5) - n for n in range(4)), 7, 2**32 - 1),
    "rasterize_polygons": lambda: (*_polygons(), 17, 18, "nonzero"),
    "rasterize_boxes": lambda: (*_boxes(), 17, 18),
    "fill_masked": _fill,
    "fill_polygons": lambda: (*_image(), *_polygons(), "evenodd"),
    "fill_boxes": lambda: (*_image(), *_boxes()),
}
OPS = tuple(_CASES)

_MORE_CASES: dict[str, tuple[Callable[[], Arguments], ...]] = {
    "masked_loss": (lambda: _loss(_ALIGNED),),
    "masked_loss_and_gradient": (lambda: _loss(_ALIGNED),),
    "masked_loss_backward": (lambda: _loss_backward(_ALIGNED),),
    "scale_gradient_": (lambda: _scale_gradient(_ALIGNED),),
    "fill_masked": (lambda: _fill(_ALIGNED),),
}
