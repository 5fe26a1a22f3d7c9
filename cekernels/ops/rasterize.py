"""Masks from polygons and boxes, and filling an image where a mask is set.

Coordinates are int32 in fixed point, 1/256 pixel, (x, y) with x to the right and y down; the
exact rule is written in :mod:`cekernels.reference.rasterize`, and every implementation agrees
with it to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cekernels import _checks, _dispatch
from cekernels._dispatch import Impl
from cekernels._library import call_op, define, run_op, transformed
from cekernels.masked_loss import check_mask
from cekernels.reference.rasterize import COORDINATE_LIMIT, SUBPIXELS

FillRule = Literal["nonzero", "evenodd"]
_FILL_RULES = ("nonzero", "evenodd")


def to_fixed_point(pixels: Tensor) -> Tensor:
    """Coordinates in pixels to int32 in 1/256 pixel.

    Args:
        pixels: any shape; floating point (finite) or integer.

    Returns:
        the same shape; rounded to nearest, ties to even, and clamped to +-2**20 pixels as the
        rasterizers would.

    Raises:
        TypeError: not a tensor, or neither floating point nor integer.
    """
    op = "to_fixed_point"
    _checks.tensor(op, "pixels", pixels)
    if pixels.is_complex() or pixels.dtype == torch.bool:
        raise TypeError(f"{op}: pixels must be real numbers, got a {_checks.describe(pixels)}")
    # float16 ends short of 256 pixels
    wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    limit = COORDINATE_LIMIT // SUBPIXELS
    return (wide.clamp(-limit, limit) * SUBPIXELS).round().to(torch.int32)


def rasterize_polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    *,
    fill_rule: FillRule = "nonzero",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Rasterize a batch of polygons, each sample any number of closed contours.

    Args:
        vertices: int32 ``(V, 2)``, (x, y) in 1/256 pixel; see :func:`to_fixed_point`. They may
            lie outside the image; beyond +-2**20 pixels they are clamped.
        contour_offsets: int64 ``(K + 1,)``, non-decreasing: contour k has the vertices
            ``contour_offsets[k]`` to ``contour_offsets[k + 1]`` and closes by itself.
        sample_offsets: int64 ``(B + 1,)``, non-decreasing: sample b has the contours
            ``sample_offsets[b]`` to ``sample_offsets[b + 1]``.
        height, width: size of the masks in pixels.
        fill_rule: "nonzero" (contours of one orientation unite, opposite ones cut holes) or
            "evenodd" (any contour inside another cuts a hole), over all contours of a sample.
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        mask, bool ``(B, 1, height, width)``, True inside; area, int64 ``(B,)``, its pixels.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; on the CPU
            also offsets that decrease or leave their range. On a GPU the offsets' values are not
            looked at (that would wait for the GPU): wrong ones give a wrong mask, never a read
            out of bounds.
        ImplementationError: the forced implementation cannot serve the call.
    """
    op = "rasterize_polygons"
    _check_polygons(op, vertices, contour_offsets, sample_offsets, fill_rule, impl)
    _check_size(op, height, width)
    result: tuple[Tensor, Tensor] = run_op(
        op, impl, vertices, contour_offsets, sample_offsets, height, width, fill_rule
    )
    return result


def rasterize_boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int, *, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Rasterize a batch of axis-parallel boxes: each sample's mask is the union of its boxes.

    Args:
        boxes: int32 ``(K, 4)``, (x0, y0, x1, y1) in 1/256 pixel; a pixel is inside when its
            centre has x0 <= x < x1 and y0 <= y < y1. A box with x1 <= x0 or y1 <= y0 is empty.
        sample_offsets: int64 ``(B + 1,)``, non-decreasing: sample b has the boxes
            ``sample_offsets[b]`` to ``sample_offsets[b + 1]``.
        height, width: size of the masks in pixels.
        impl: as for :func:`rasterize_polygons`.

    Returns:
        mask, bool ``(B, 1, height, width)``; area, int64 ``(B,)``.

    Raises:
        As :func:`rasterize_polygons`.
    """
    op = "rasterize_boxes"
    _check_boxes(op, boxes, sample_offsets, impl)
    _check_size(op, height, width)
    result: tuple[Tensor, Tensor] = run_op(op, impl, boxes, sample_offsets, height, width)
    return result


def fill_masked(
    image: Tensor,
    mask: Tensor,
    value: float | Sequence[float] | Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Put a constant where the mask is set.

    Args:
        image: ``(B, C, H, W)``, any dtype but complex.
        mask: ``(B, 1, H, W)`` or ``(B, C, H, W)``, bool, uint8 or floating point; set where not 0.
        value: one number, or one for each channel as a sequence or a tensor ``(C,)`` (on a GPU
            keep it there as a tensor: a sequence is copied at each call). An image of integers
            takes whole numbers, and no floating-point tensor.
        impl: as for :func:`rasterize_polygons`.

    Returns:
        ``(B, C, H, W)``, contiguous. The gradient is the image's, 0 where the mask is set.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a mask or
            value that requires a gradient.
        ImplementationError: the forced implementation cannot serve the call.
    """
    op = "fill_masked"
    _checks.tensor(op, "mask", mask)
    _check_image(op, image)
    _checks.choice(op, "impl", impl, _dispatch.IMPLS)
    check_mask(op, mask, "image", image)
    result: Tensor = call_op(op, impl, image, mask, _value(op, image, value))
    return result


def fill_polygons(
    image: Tensor,
    value: float | Sequence[float] | Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    *,
    fill_rule: FillRule = "nonzero",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`rasterize_polygons` at the image's size and :func:`fill_masked` in one call.

    Returns:
        the filled image ``(B, C, H, W)``, the mask bool ``(B, 1, H, W)``, the area int64 ``(B,)``.
        The gradient of the filled image reaches the image.
    """
    op = "fill_polygons"
    _check_image(op, image)
    _check_polygons(op, vertices, contour_offsets, sample_offsets, fill_rule, impl)
    _check_batch(op, image, sample_offsets)
    if transformed():
        mask, area = rasterize_polygons(
            vertices,
            contour_offsets,
            sample_offsets,
            *image.shape[2:],
            fill_rule=fill_rule,
            impl=impl,
        )
        return fill_masked(image, mask, value, impl=impl), mask, area
    result: tuple[Tensor, Tensor, Tensor] = run_op(
        op,
        impl,
        image,
        _value(op, image, value),
        vertices,
        contour_offsets,
        sample_offsets,
        fill_rule,
    )
    return result


def fill_boxes(
    image: Tensor,
    value: float | Sequence[float] | Tensor,
    boxes: Tensor,
    sample_offsets: Tensor,
    *,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`rasterize_boxes` at the image's size and :func:`fill_masked` in one call.

    Returns:
        as :func:`fill_polygons`.
    """
    op = "fill_boxes"
    _check_image(op, image)
    _check_boxes(op, boxes, sample_offsets, impl)
    _check_batch(op, image, sample_offsets)
    if transformed():
        mask, area = rasterize_boxes(boxes, sample_offsets, *image.shape[2:], impl=impl)
        return fill_masked(image, mask, value, impl=impl), mask, area
    result: tuple[Tensor, Tensor, Tensor] = run_op(
        op, impl, image, _value(op, image, value), boxes, sample_offsets
    )
    return result


# --- checks -----------------------------------------------------------------------------------


def _check_size(op: str, height: int, width: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if not _checks.is_integer(value):
            raise TypeError(f"{op}: {name} must be an integer, got {_checks.describe(value)}")
        if value < 0:
            raise ValueError(f"{op}: {name} must not be negative, got {value}")


def _check_offsets(op: str, name: str, offsets: Tensor, other_name: str, other: Tensor) -> None:
    _checks.tensor(op, name, offsets)
    _checks.dims(op, name, offsets, (1,), "1-dimensional")
    _checks.dtypes(op, name, offsets, (torch.int64,))
    _checks.same_device(op, name, offsets, other_name, other)
    if offsets.shape[0] < 1:
        raise ValueError(f"{op}: {name} must have at least one element, got none")


def _check_polygons(
    op: str,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
    impl: str,
) -> None:
    _checks.tensor(op, "vertices", vertices)
    _checks.dims(op, "vertices", vertices, (2,), "(V, 2)")
    _checks.shape(op, "vertices", vertices, (vertices.shape[0], 2), "(V, 2): x and y")
    _checks.dtypes(op, "vertices", vertices, (torch.int32,))
    _check_offsets(op, "contour_offsets", contour_offsets, "vertices", vertices)
    _check_offsets(op, "sample_offsets", sample_offsets, "vertices", vertices)
    _checks.choice(op, "fill_rule", fill_rule, _FILL_RULES)
    _checks.choice(op, "impl", impl, _dispatch.IMPLS)


def _check_boxes(op: str, boxes: Tensor, sample_offsets: Tensor, impl: str) -> None:
    _checks.tensor(op, "boxes", boxes)
    _checks.dims(op, "boxes", boxes, (2,), "(K, 4)")
    _checks.shape(op, "boxes", boxes, (boxes.shape[0], 4), "(K, 4): x0, y0, x1, y1")
    _checks.dtypes(op, "boxes", boxes, (torch.int32,))
    _check_offsets(op, "sample_offsets", sample_offsets, "boxes", boxes)
    _checks.choice(op, "impl", impl, _dispatch.IMPLS)


def _check_image(op: str, image: Tensor) -> None:
    _checks.tensor(op, "image", image)
    _checks.dims(op, "image", image, (4,), "(B, C, H, W)")
    if image.is_complex():
        raise TypeError(f"{op}: image must be real, got a {_checks.describe(image)}")


def _check_batch(op: str, image: Tensor, sample_offsets: Tensor) -> None:
    _checks.same_device(op, "image", image, "sample_offsets", sample_offsets)
    if sample_offsets.shape[0] != image.shape[0] + 1:
        raise ValueError(
            f"{op}: sample_offsets must have B + 1 = {image.shape[0] + 1} elements for a batch of "
            f"{image.shape[0]} images, got {sample_offsets.shape[0]}"
        )


def _value(op: str, image: Tensor, value: float | Sequence[float] | Tensor) -> Tensor:
    """``value`` as a tensor ``(C,)`` of the image's dtype."""
    channels = image.shape[1]
    if not isinstance(value, Tensor):
        try:
            value = _numbers(image, value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _does_not_fit(op, image, value) from error
    elif value.is_floating_point() and not image.is_floating_point():
        raise _does_not_fit(op, image, value)
    if value.dim() == 0:
        value = value.expand(channels)
    _checks.shape(op, "value", value, (channels,), "one number a channel")
    _checks.same_device(op, "value", value, "image", image)
    _checks.no_gradient(op, "value", value)
    return value.to(image.dtype)


def _numbers(image: Tensor, value: float | Sequence[float]) -> Tensor:
    numbers = (value,) if isinstance(value, int | float) else value
    if not image.is_floating_point():
        for number in numbers:
            if not (_checks.is_integer(number) or float(number).is_integer()):
                raise TypeError("a fraction would be cut off")
    if isinstance(value, int | float):
        return image.new_full((image.shape[1],), value)
    return torch.tensor(value, dtype=image.dtype, device=image.device)


def _does_not_fit(op: str, image: Tensor, value: object) -> TypeError:
    return TypeError(
        f"{op}: value must be a number, or one for each channel, that fits an image of "
        f"{image.dtype}, got {_checks.describe(value)}"
    )


def _validate(op: str, name: str, offsets: Tensor, limit: int, what: str) -> None:
    """On the CPU, where looking costs little, refuse offsets that no shape can have."""
    if offsets.device.type != "cpu":
        return
    values = offsets.tolist()  # at once: for a few numbers several times faster than tensor ops
    if values[0] < 0 or values[-1] > limit or values != sorted(values):
        raise ValueError(
            f"{op}: {name} must be non-decreasing within 0..{limit}, the number of {what}, "
            f"got {values if len(values) <= 16 else '...'} "
            f"(first {values[0]}, last {values[-1]})"
        )


# --- registration -----------------------------------------------------------------------------


def _validate_polygons(
    op: str, vertices: Tensor, contour_offsets: Tensor, sample_offsets: Tensor
) -> None:
    _validate(op, "contour_offsets", contour_offsets, vertices.shape[0], "vertices")
    _validate(op, "sample_offsets", sample_offsets, contour_offsets.shape[0] - 1, "contours")


def _polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    op = "rasterize_polygons"
    _validate_polygons(op, vertices, contour_offsets, sample_offsets)
    result: tuple[Tensor, Tensor] = _dispatch.call(
        op, impl, vertices, contour_offsets, sample_offsets, height, width, fill_rule
    )
    return result


def _polygons_fake(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return _masks_fake(sample_offsets, height, width)


def _masks_fake(sample_offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    samples = sample_offsets.shape[0] - 1
    mask = sample_offsets.new_empty((samples, 1, height, width), dtype=torch.bool)
    return mask, sample_offsets.new_empty((samples,))


def _boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int, impl: str
) -> tuple[Tensor, Tensor]:
    op = "rasterize_boxes"
    _validate(op, "sample_offsets", sample_offsets, boxes.shape[0], "boxes")
    result: tuple[Tensor, Tensor] = _dispatch.call(op, impl, boxes, sample_offsets, height, width)
    return result


def _boxes_fake(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int, impl: str
) -> tuple[Tensor, Tensor]:
    return _masks_fake(sample_offsets, height, width)


def _fill(image: Tensor, mask: Tensor, value: Tensor, impl: str) -> Tensor:
    filled: Tensor = _dispatch.call("fill_masked", impl, image, mask, value)
    return filled


def _fill_fake(image: Tensor, mask: Tensor, value: Tensor, impl: str) -> Tensor:
    return image.new_empty(image.shape)


def _fill_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, value, ctx.impl = inputs
    ctx.save_for_backward(mask, torch.zeros_like(value))


def _fill_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask, zero = ctx.saved_tensors
    return run_op("fill_masked", ctx.impl, grad, mask, zero), None, None, None


def _fill_polygons(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "fill_polygons"
    _validate_polygons(op, vertices, contour_offsets, sample_offsets)
    result: tuple[Tensor, Tensor, Tensor] = _dispatch.call(
        op, impl, image, value, vertices, contour_offsets, sample_offsets, fill_rule
    )
    return result


def _fill_polygons_fake(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    mask, area = _masks_fake(sample_offsets, image.shape[2], image.shape[3])
    return image.new_empty(image.shape), mask, area


def _fill_boxes(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    op = "fill_boxes"
    _validate(op, "sample_offsets", sample_offsets, boxes.shape[0], "boxes")
    result: tuple[Tensor, Tensor, Tensor] = _dispatch.call(
        op, impl, image, value, boxes, sample_offsets
    )
    return result


def _fill_boxes_fake(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    mask, area = _masks_fake(sample_offsets, image.shape[2], image.shape[3])
    return image.new_empty(image.shape), mask, area


def _fill_shapes_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, mask, area = output
    ctx.save_for_backward(mask, torch.zeros_like(inputs[1]))
    ctx.impl = inputs[-1]
    ctx.arguments = len(inputs)
    ctx.mark_non_differentiable(mask, area)


def _fill_shapes_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    mask, zero = ctx.saved_tensors
    filled = run_op("fill_masked", ctx.impl, grad, mask, zero)
    return filled, *(None,) * (ctx.arguments - 1)


define(
    "rasterize_polygons(Tensor vertices, Tensor contour_offsets, Tensor sample_offsets,"
    " SymInt height, SymInt width, str fill_rule, str impl) -> (Tensor, Tensor)",
    _polygons,
    fake=_polygons_fake,
)
define(
    "rasterize_boxes(Tensor boxes, Tensor sample_offsets, SymInt height, SymInt width, str impl)"
    " -> (Tensor, Tensor)",
    _boxes,
    fake=_boxes_fake,
)
define(
    "fill_masked(Tensor image, Tensor mask, Tensor value, str impl) -> Tensor",
    _fill,
    fake=_fill_fake,
    setup_context=_fill_context,
    backward=_fill_backward,
)
define(
    "fill_polygons(Tensor image, Tensor value, Tensor vertices, Tensor contour_offsets,"
    " Tensor sample_offsets, str fill_rule, str impl) -> (Tensor, Tensor, Tensor)",
    _fill_polygons,
    fake=_fill_polygons_fake,
    setup_context=_fill_shapes_context,
    backward=_fill_shapes_backward,
)
define(
    "fill_boxes(Tensor image, Tensor value, Tensor boxes, Tensor sample_offsets, str impl)"
    " -> (Tensor, Tensor, Tensor)",
    _fill_boxes,
    fake=_fill_boxes_fake,
    setup_context=_fill_shapes_context,
    backward=_fill_shapes_backward,
)
