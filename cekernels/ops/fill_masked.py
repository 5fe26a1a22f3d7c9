"""Images filled with a constant where a mask is set."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import Impl
from cekernels._interop import record
from cekernels._register import Formula, Op, Sharding
from cekernels._selfcheck import (
    CHANNELS_LAST,
    CONTIGUOUS,
    Kind,
    SelfTest,
    layout_of,
    numbers,
)
from cekernels.reference.layout import dense_format


def fill_masked(
    image: Tensor,
    mask: Tensor,
    value: float | Sequence[float] | Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Fill an image with a constant where the mask is set.

    Args:
        image: ``(B, C, H, W)``, any dtype except complex.
        mask: ``(B, 1, H, W)`` or ``(B, C, H, W)``, bool, integer or floating point; set where not
            0.
        value: one number, or one per channel as a sequence or a tensor ``(C,)``. On a GPU, pass a
            tensor on that device: a sequence is copied in every call. An integer image requires
            whole numbers, or an integer tensor. A number that the image's dtype cannot hold is an
            error; the values of a tensor on a GPU, or in a compiled graph, are not checked.
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        ``(B, C, H, W)``; in channels_last if the image is, else contiguous. The image has a
        gradient: 0 where the mask is set.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a mask or
            value that requires a gradient.
        ImplementationError: the forced implementation cannot handle the call.
    """
    op = "fill_masked"
    if not _checks.tensors(op, ("image", "mask"), image, mask):
        return record(fill_masked, image, mask, value, impl=impl)  # type: ignore[no-any-return]
    check_image(op, image)
    mask = _checks.mask(op, mask, "image", image)
    filled: Tensor = FILL.kernel(impl, image)(image, mask, fill_value(op, image, value))
    return filled


# --- checks -----------------------------------------------------------------------------------


def check_image(op: str, image: Tensor) -> None:
    _checks.dims(op, "image", image, (4,), "(B, C, H, W)")
    if image.is_complex():
        raise TypeError(f"{op}: image must be real, got a {_checks.describe(image)}")
    if image.dtype.itemsize > 8 or image.is_quantized:
        raise TypeError(f"{op}: image has an unsupported dtype, got a {_checks.describe(image)}")


def fill_value(op: str, image: Tensor, value: float | Sequence[float] | Tensor) -> Tensor:
    """``value`` as a tensor ``(C,)`` of the image's dtype."""
    channels = image.shape[1]
    if not isinstance(value, Tensor):
        try:
            value = _numbers(image, value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise _does_not_fit(op, image, value) from error
    else:
        _checks.tensor(op, "value", value)
        if value.dtype != image.dtype:
            fraction = value.is_floating_point() and not image.is_floating_point()
            if fraction or value.is_complex() or not _all_fit(image, value):
                raise _does_not_fit(op, image, value)
    if value.dim() == 0:
        value = value.expand(channels)
    _checks.shape(op, "value", value, (channels,), "one number per channel")
    _checks.same_device(op, "value", value, "image", image)
    _checks.no_gradient(op, "value", value)
    return value if value.dtype == image.dtype else value.to(image.dtype)


def _numbers(image: Tensor, value: float | Sequence[float]) -> Tensor:
    one = isinstance(value, int | float | Real | torch.SymInt | torch.SymFloat)
    numbers = (value,) if one else value
    for number in numbers:  # type: ignore[union-attr]
        if not _fits(image.dtype, number):
            raise ValueError("it would be changed")
    if one:
        return image.new_full((image.shape[1],), value)  # type: ignore[arg-type]
    if type(image) in _checks.PLAIN:
        return torch.tensor(value, dtype=image.dtype, device=image.device)
    # of the image's own class: a DTensor does not mix with plain tensors
    return torch.stack([image.new_full((), number) for number in value])  # type: ignore[union-attr]


def _fits(dtype: torch.dtype, number: Any) -> bool:
    """Whether a number keeps its value in ``dtype``, apart from the rounding of a fraction."""
    if isinstance(number, torch.SymInt | torch.SymFloat):
        return True
    if dtype.is_floating_point:
        number = float(number)
        # not the infinity that it would round to
        return not math.isfinite(number) or abs(number) <= torch.finfo(dtype).max
    whole = operator.index(number) if hasattr(number, "__index__") else float(number)
    if not math.isfinite(whole) or whole != int(whole):
        return False
    if dtype == torch.bool:  # True where it is not 0
        return True
    limits = torch.iinfo(dtype)
    return limits.min <= whole <= limits.max


def _all_fit(image: Tensor, value: Tensor) -> bool:
    """Whether all numbers of a tensor fit, as far as they can be read."""
    if not _checks.readable(value) or value.numel() > image.shape[1]:
        return True
    return all(_fits(image.dtype, number) for number in value.flatten().tolist())


def _does_not_fit(op: str, image: Tensor, value: object) -> TypeError:
    return TypeError(
        f"{op}: value must be a number, or one per channel, that fits an image of "
        f"{image.dtype}, got {_checks.describe(value)}"
    )


# --- the op and its derivative ----------------------------------------------------------------


def _fake(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(image, memory_format=dense_format(image))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, value = inputs
    ctx.save_for_backward(mask, torch.zeros_like(value))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return outside(ctx, grad), None, None


def outside(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient of the image: ``grad`` outside the mask, 0 where it was filled."""
    mask, zero = ctx.saved_tensors
    outside: Tensor = FILL.kernel(ctx.impl, grad)(grad, mask, zero)
    return outside


def _kind(image: Tensor, mask: Tensor, value: Tensor) -> Kind:
    masks = torch.bool if mask.dtype == torch.uint8 else mask.dtype
    return Kind(image.dtype, layout_of(image, mask), masks)


def usual_kinds(dtypes: Sequence[torch.dtype], *_: Any) -> Iterator[Kind]:
    """Images of floating point and of bytes."""
    for dtype in dict.fromkeys((*dtypes, torch.uint8)):
        for layout in (CONTIGUOUS, CHANNELS_LAST):
            yield Kind(dtype, layout)


def image_and_value(dtype: torch.dtype, *size: int) -> tuple[Tensor, Tensor]:
    """For a self-test."""
    image, value = numbers(2, 3, *size), torch.tensor([2.0, -3.0, 4.0])
    if not dtype.is_signed:
        image, value = image.abs(), value.abs()
    return image.to(dtype), value.to(dtype)


def _cases(kind: Kind) -> list[tuple[Any, ...]]:
    """Single pixels; and vectors of 16 bytes, in more than one block."""
    found = []
    for size in ((17, 18), (40, 32)):
        image, value = image_and_value(kind.dtype, *size)
        mask = (torch.ones(2, 1, *size).tril(2) > 0).to(kind.mask)
        found.append((image, mask, value))
    return found


def _sharding(image: Any, mask: Any, value: Any) -> list[Sharding]:
    mask_channels = 1 if mask.shape[1] > 1 else "whole"
    return [([0], [0, 0, "whole"]), ([1], [1, mask_channels, 0])]


FILL = Op(
    reference.fill_masked,
    fake=_fake,
    formula=Formula(_context, _backward),
    check=SelfTest(_cases, _kind, usual_kinds),
    decomposition=reference.fill_masked,
    sharding=_sharding,
)
