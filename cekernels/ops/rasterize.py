"""Masks from polygons and boxes, and images filled where such a mask is set.

Coordinates are int32 in fixed point, 1/256 pixel per unit, (x, y) with x to the right and y down.
The exact rule is specified in :mod:`cekernels.reference.rasterize`; every implementation follows it
bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import Impl
from cekernels._interop import record
from cekernels._register import Formula, Op
from cekernels._selfcheck import Kind, SelfTest, layout_of
from cekernels._torch_internals import transforms_active
from cekernels.ops.fill_masked import (
    check_image,
    fill_masked,
    fill_value,
    image_and_value,
    outside,
    usual_kinds,
)
from cekernels.reference.rasterize import COORDINATE_LIMIT, SUBPIXELS

FillRule = Literal["nonzero", "evenodd"]
_FILL_RULES = ("nonzero", "evenodd")
_POLYGONS = ("vertices", "contour_offsets", "sample_offsets")
_BOXES = ("boxes", "sample_offsets")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_LARGEST_SIDE = (1 << 31) - 1


def to_fixed_point(pixels: Tensor) -> Tensor:
    """Convert coordinates in pixels to int32 in units of 1/256 pixel.

    Args:
        pixels: any shape; floating point or integer. NaN and infinities are an error on the CPU.
            On a GPU and in compiled graphs they are not looked for: an infinity is clamped like any
            number beyond the limit, and NaN gives an arbitrary coordinate.

    Returns:
        int32 of the same shape; rounded to nearest, ties to even, and clamped to +-2**20 pixels
        as in the rasterizers.

    Raises:
        TypeError: not a tensor, or neither floating point nor integer.
        ValueError: NaN or infinite coordinates, on the CPU.
    """
    op = "to_fixed_point"
    if not _checks.tensors(op, ("pixels",), pixels):
        return record(to_fixed_point, pixels)  # type: ignore[no-any-return]
    floating = pixels.is_floating_point()
    if pixels.dtype not in (_checks.FLOATING if floating else _INTEGERS):
        raise TypeError(f"{op}: pixels must be real numbers, got a {_checks.describe(pixels)}")
    if floating and _checks.readable(pixels) and not (finite := pixels.isfinite()).all():
        count = pixels.numel() - int(finite.sum())
        first = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{op}: pixels must be finite, got {count} NaN or infinite of {pixels.numel()}, the "
            f"first at index {first}"
        )
    # the result would overflow float16 from 256 pixels on
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
    """Rasterize a batch of polygons, with any number of closed contours per sample.

    :func:`pack_polygons` makes the first three arguments from a list of contours per image.

    Args:
        vertices: int32 ``(V, 2)``, (x, y) in 1/256 pixel; see :func:`to_fixed_point`. They may
            lie outside the image; beyond +-2**20 pixels they are clamped.
        contour_offsets: int64 ``(K + 1,)``, non-decreasing, from 0 to V: contour k has the vertices
            ``contour_offsets[k]`` to ``contour_offsets[k + 1]`` (exclusive) and is closed
            automatically.
        sample_offsets: int64 ``(B + 1,)``, non-decreasing, from 0 to K: sample b has the contours
            ``sample_offsets[b]`` to ``sample_offsets[b + 1]`` (exclusive).
        height, width: size of the masks in pixels, below 2**31.
        fill_rule: "nonzero" (contours of the same orientation form a union, opposite ones cut
            holes) or "evenodd" (any contour inside another cuts a hole), over all contours of a
            sample.
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        mask, bool ``(B, 1, height, width)``, True inside; area, int64 ``(B,)``, in pixels.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; on the CPU
            also offsets that decrease or do not run from 0 to the total. On a GPU the values of the
            offsets are not checked (that would synchronize with the GPU): invalid offsets give a
            wrong mask, never an out-of-bounds access.
        RuntimeError: not enough memory for the mask.
        ImplementationError: the forced implementation cannot handle the call.
    """
    op = "rasterize_polygons"
    if not _checks.tensors(op, _POLYGONS, vertices, contour_offsets, sample_offsets):
        shapes = vertices, contour_offsets, sample_offsets
        call = functools.partial(record, rasterize_polygons, *shapes, height, width)
        return call(fill_rule=fill_rule, impl=impl)  # type: ignore[no-any-return]
    _check_polygons(op, vertices, contour_offsets, sample_offsets, fill_rule)
    height = _checks.integer(op, "height", height, 0, _LARGEST_SIDE)
    width = _checks.integer(op, "width", width, 0, _LARGEST_SIDE)
    kernel = POLYGONS.kernel(impl)
    mask, area = kernel(vertices, contour_offsets, sample_offsets, height, width, fill_rule)
    return mask, area


def rasterize_boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int, *, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Rasterize a batch of axis-parallel boxes: the mask of a sample is the union of its boxes.

    :func:`pack_boxes` makes the first two arguments from a list of boxes per image.

    Args:
        boxes: int32 ``(K, 4)``, (x0, y0, x1, y1) in 1/256 pixel; a pixel is inside when its
            centre has x0 <= x < x1 and y0 <= y < y1. A box with x1 <= x0 or y1 <= y0 is empty.
        sample_offsets: int64 ``(B + 1,)``, non-decreasing, from 0 to K: sample b has the boxes
            ``sample_offsets[b]`` to ``sample_offsets[b + 1]`` (exclusive).
        height, width: size of the masks in pixels, below 2**31.
        impl: as for :func:`rasterize_polygons`.

    Returns:
        mask, bool ``(B, 1, height, width)``, True inside; area, int64 ``(B,)``, in pixels.

    Raises:
        TypeError, ValueError, ImplementationError: as for :func:`rasterize_polygons`.
    """
    op = "rasterize_boxes"
    if not _checks.tensors(op, _BOXES, boxes, sample_offsets):
        call = functools.partial(record, rasterize_boxes, boxes, sample_offsets, height, width)
        return call(impl=impl)  # type: ignore[no-any-return]
    _check_boxes(op, boxes, sample_offsets)
    height = _checks.integer(op, "height", height, 0, _LARGEST_SIDE)
    width = _checks.integer(op, "width", width, 0, _LARGEST_SIDE)
    mask, area = BOXES.kernel(impl)(boxes, sample_offsets, height, width)
    return mask, area


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

    Args:
        image: ``(B, C, H, W)``, as for :func:`fill_masked`.
        value: as for :func:`fill_masked`.
        vertices, contour_offsets, sample_offsets, fill_rule, impl: as for
            :func:`rasterize_polygons`.

    Returns:
        the filled image ``(B, C, H, W)``; its mask, bool ``(B, 1, H, W)``; the area of the mask,
        int64 ``(B,)``, in pixels. The image has a gradient: 0 where the mask is set.

    Raises:
        TypeError, ValueError, ImplementationError: as for the two functions.
    """
    op = "fill_polygons"
    shapes = vertices, contour_offsets, sample_offsets
    if not _checks.tensors(op, ("image", *_POLYGONS), image, *shapes):
        call = functools.partial(record, fill_polygons, image, value, *shapes)
        return call(fill_rule=fill_rule, impl=impl)  # type: ignore[no-any-return]
    check_image(op, image)
    _check_polygons(op, vertices, contour_offsets, sample_offsets, fill_rule)
    _check_batch(op, image, sample_offsets)
    if transforms_active():
        mask, area = rasterize_polygons(
            vertices,
            contour_offsets,
            sample_offsets,
            *image.shape[2:],
            fill_rule=fill_rule,
            impl=impl,
        )
        return fill_masked(image, mask, value, impl=impl), mask, area
    kernel = FILL_POLYGONS.kernel(impl, image)
    filled, mask, area = kernel(
        image, fill_value(op, image, value), vertices, contour_offsets, sample_offsets, fill_rule
    )
    return filled, mask, area


def fill_boxes(
    image: Tensor,
    value: float | Sequence[float] | Tensor,
    boxes: Tensor,
    sample_offsets: Tensor,
    *,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`rasterize_boxes` at the image's size and :func:`fill_masked` in one call.

    Args:
        image: ``(B, C, H, W)``, as for :func:`fill_masked`.
        value: as for :func:`fill_masked`.
        boxes, sample_offsets, impl: as for :func:`rasterize_boxes`.

    Returns:
        the filled image, its mask and the area of the mask, as for :func:`fill_polygons`.

    Raises:
        TypeError, ValueError, ImplementationError: as for the two functions.
    """
    op = "fill_boxes"
    if not _checks.tensors(op, ("image", *_BOXES), image, boxes, sample_offsets):
        call = functools.partial(record, fill_boxes, image, value, boxes, sample_offsets)
        return call(impl=impl)  # type: ignore[no-any-return]
    check_image(op, image)
    _check_boxes(op, boxes, sample_offsets)
    _check_batch(op, image, sample_offsets)
    if transforms_active():
        mask, area = rasterize_boxes(boxes, sample_offsets, *image.shape[2:], impl=impl)
        return fill_masked(image, mask, value, impl=impl), mask, area
    kernel = FILL_BOXES.kernel(impl, image)
    filled, mask, area = kernel(image, fill_value(op, image, value), boxes, sample_offsets)
    return filled, mask, area


# --- checks -----------------------------------------------------------------------------------


def _check_offsets(op: str, name: str, offsets: Tensor, other_name: str, other: Tensor) -> None:
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
) -> None:
    _checks.dims(op, "vertices", vertices, (2,), "(V, 2)")
    _checks.shape(op, "vertices", vertices, (vertices.shape[0], 2), "(V, 2): x and y")
    _checks.dtypes(op, "vertices", vertices, (torch.int32,))
    _check_offsets(op, "contour_offsets", contour_offsets, "vertices", vertices)
    _check_offsets(op, "sample_offsets", sample_offsets, "vertices", vertices)
    _checks.choice(op, "fill_rule", fill_rule, _FILL_RULES)


def _check_boxes(op: str, boxes: Tensor, sample_offsets: Tensor) -> None:
    _checks.dims(op, "boxes", boxes, (2,), "(K, 4)")
    _checks.shape(op, "boxes", boxes, (boxes.shape[0], 4), "(K, 4): x0, y0, x1, y1")
    _checks.dtypes(op, "boxes", boxes, (torch.int32,))
    _check_offsets(op, "sample_offsets", sample_offsets, "boxes", boxes)


def _check_batch(op: str, image: Tensor, sample_offsets: Tensor) -> None:
    _checks.same_device(op, "image", image, "sample_offsets", sample_offsets)
    if sample_offsets.shape[0] != image.shape[0] + 1:
        raise ValueError(
            f"{op}: sample_offsets must have B + 1 = {image.shape[0] + 1} elements for a batch of "
            f"{image.shape[0]} images, got {sample_offsets.shape[0]}"
        )


# --- the ops and their derivatives ------------------------------------------------------------


def _masks_fake(sample_offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    samples = sample_offsets.shape[0] - 1
    mask = sample_offsets.new_empty((samples, 1, height, width), dtype=torch.bool)
    return mask, sample_offsets.new_empty((samples,))


def _polygons_fake(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
) -> tuple[Tensor, Tensor]:
    return _masks_fake(sample_offsets, height, width)


def _boxes_fake(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return _masks_fake(sample_offsets, height, width)


def _fill_polygons_fake(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return image.new_empty(image.shape), *_masks_fake(sample_offsets, *image.shape[2:])


def _fill_boxes_fake(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return image.new_empty(image.shape), *_masks_fake(sample_offsets, *image.shape[2:])


def _fill_shapes_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, mask, area = output
    ctx.arguments = len(inputs)
    ctx.save_for_backward(mask, torch.zeros_like(inputs[1]))
    ctx.mark_non_differentiable(mask, area)


def _fill_shapes_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return outside(ctx, grad), *(None,) * (ctx.arguments - 1)


def _fill_kind(image: Tensor, *_: Any) -> Kind:
    return Kind(image.dtype, layout_of(image))


def _polygons_check() -> tuple[Any, ...]:
    """A quadrangle with a hole and a triangle partly outside the image; a sample without shapes."""
    contours = [
        [(300, 200), (4000, 700), (3300, 3900), (100, 2500)],
        [(900, 900), (1000, 2300), (2600, 2000)],
        [(2000, -500), (6000, 5000), (-900, 3000)],
    ]
    vertices = torch.tensor([v for contour in contours for v in contour], dtype=torch.int32)
    return vertices, torch.tensor([0, 4, 7, 10]), torch.tensor([0, 3, 3])


def _boxes_check() -> tuple[Any, ...]:
    boxes = [[100, 200, 1900, 3000], [1500, 1024, 9000, 2000], [-700, 3000, 800, 3500]]
    return torch.tensor(boxes, dtype=torch.int32), torch.tensor([0, 3, 3])


POLYGONS = Op(
    reference.rasterize_polygons,
    fake=_polygons_fake,
    check=SelfTest(lambda _: [(*_polygons_check(), 17, 18, r) for r in _FILL_RULES]),
)
BOXES = Op(
    reference.rasterize_boxes,
    fake=_boxes_fake,
    check=SelfTest(lambda _: [(*_boxes_check(), 17, 18)]),
)
_FILL_SHAPES = Formula(_fill_shapes_context, _fill_shapes_backward)
FILL_POLYGONS = Op(
    reference.fill_polygons,
    fake=_fill_polygons_fake,
    formula=_FILL_SHAPES,
    check=SelfTest(
        lambda kind: [
            (*image_and_value(kind.dtype, 17, 18), *_polygons_check(), r) for r in _FILL_RULES
        ],
        _fill_kind,
        usual_kinds,
    ),
)
FILL_BOXES = Op(
    reference.fill_boxes,
    fake=_fill_boxes_fake,
    formula=_FILL_SHAPES,
    check=SelfTest(
        lambda kind: [(*image_and_value(kind.dtype, 17, 18), *_boxes_check())],
        _fill_kind,
        usual_kinds,
    ),
)
