"""Rasterization and filling in exact integers, in one launch.

The rule is that of :mod:`cekernels.reference.rasterize`. A program processes a tile of pixels of
one sample: it loops over the edges of the sample and skips those that cannot cross its rows. The
reference divides to find the column at which an edge crosses a row of centres; the kernel avoids
the division: column j is at or to the right of that point if ``256 rise j >= numerator``. The
image is read only where it is kept.
"""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cekernels.reference.rasterize import COORDINATE_LIMIT, SUBPIXELS
from cekernels.triton._runtime import bits, cdiv, launch, power_of_two, wide
from cekernels.triton.fill_masked import as_integers, sides_unsupported

# Pixels per program: up to WIDEST columns, and as many rows as then fit into TILE.
TILE, WIDEST, WARPS = 1024, 256, 4
_LIMIT = tl.constexpr(COORDINATE_LIMIT)
_SUBPIXELS = tl.constexpr(SUBPIXELS)
_HALF = tl.constexpr(SUBPIXELS // 2)


# --- kernels ----------------------------------------------------------------------------------


@triton.jit
def _clamp(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _coordinate(pointer, mask):
    value = tl.load(pointer, mask=mask, other=0).to(tl.int64)
    return _clamp(value, -_LIMIT, _LIMIT)


@triton.jit
def _tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sample, the rows and the columns of this program."""
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    return sample, row, column


@triton.jit
def _store_tile(
    inside,
    sample,
    row,
    column,
    mask,
    area,
    image,
    value,
    filled,
    height,
    width,
    channels,
    image_stride_b,
    image_stride_c,
    image_stride_h,
    image_stride_w,
    WIDE: tl.constexpr,
):
    """Write the mask, add to its area, and fill the image if there is one."""
    if WIDE:
        sample = sample.to(tl.int64)
        row = row.to(tl.int64)
        column = column.to(tl.int64)
    exists = (row < height)[:, None] & (column < width)[None, :]
    inside = inside & exists
    here = row[:, None] * width + column[None, :]
    tl.store(mask + sample * height * width + here, inside.to(tl.uint8), mask=exists)
    count = tl.sum(tl.sum(inside.to(tl.int32), 1), 0)
    tl.atomic_add(area + sample, count.to(tl.int64), sem="relaxed")
    if image is not None:
        source = row[:, None] * image_stride_h + column[None, :] * image_stride_w
        for channel in range(channels):
            if WIDE:
                channel = tl.cast(channel, tl.int64)
            kept = image + (sample * image_stride_b + channel * image_stride_c) + source
            pixel = tl.load(kept, mask=exists & (inside == 0), other=0)
            pixel = tl.where(inside, tl.load(value + channel), pixel)
            plane = (sample * channels + channel) * height * width
            tl.store(filled + plane + here, pixel, mask=exists)


# No specialization on counts that differ between batches: it would compile nine variants.
@triton.jit(do_not_specialize=["vertex_count", "contour_count"])
def polygons_kernel(
    vertices,
    contour_offsets,
    sample_offsets,
    mask,
    area,
    image,
    value,
    filled,
    vertex_count,
    contour_count,
    height,
    width,
    channels,
    image_stride_b,
    image_stride_c,
    image_stride_h,
    image_stride_w,
    EVEN_ODD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample, row, column = _tile(height, width, ROWS, COLUMNS)
    centre = row.to(tl.int64) * _SUBPIXELS + _HALF
    column64 = column.to(tl.int64)
    top = tl.min(centre, 0)
    bottom = tl.max(centre, 0)
    right = tl.max(column64, 0) * _SUBPIXELS + _HALF
    winding = tl.zeros((ROWS, COLUMNS), tl.int32)

    # Clamped: offsets are not checked on a GPU, and must not cause out-of-bounds reads.
    first_contour = _clamp(tl.load(sample_offsets + sample), 0, contour_count)
    last_contour = _clamp(tl.load(sample_offsets + sample + 1), 0, contour_count)
    for contour in range(first_contour, last_contour):
        first = _clamp(tl.load(contour_offsets + contour), 0, vertex_count)
        last = _clamp(tl.load(contour_offsets + contour + 1), 0, vertex_count)
        from_x = _coordinate(vertices + 2 * (last - 1), first < last)
        from_y = _coordinate(vertices + 2 * (last - 1) + 1, first < last)
        for vertex in range(first, last):
            to_x = _coordinate(vertices + 2 * vertex, True)
            to_y = _coordinate(vertices + 2 * vertex + 1, True)
            y0 = tl.minimum(from_y, to_y)
            y1 = tl.maximum(from_y, to_y)
            if (y0 <= bottom) & (y1 > top) & (tl.minimum(from_x, to_x) <= right):
                downward = to_y > from_y
                x0 = tl.where(downward, from_x, to_x)
                x1 = tl.where(downward, to_x, from_x)
                rise = y1 - y0
                numerator = (x0 - _HALF) * rise + (centre - y0) * (x1 - x0)
                crossed = (column64 * (rise * _SUBPIXELS))[None, :] >= numerator[:, None]
                meets = (y0 <= centre) & (centre < y1)
                winding += tl.where(crossed & meets[:, None], tl.where(downward, 1, -1), 0)
            from_x = to_x
            from_y = to_y
    inside = (winding & 1) != 0 if EVEN_ODD else winding != 0
    _store_tile(
        inside, sample, row, column, mask, area, image, value, filled, height, width, channels,
        image_stride_b, image_stride_c, image_stride_h, image_stride_w, WIDE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["box_count"])
def boxes_kernel(
    boxes,
    sample_offsets,
    mask,
    area,
    image,
    value,
    filled,
    box_count,
    height,
    width,
    channels,
    image_stride_b,
    image_stride_c,
    image_stride_h,
    image_stride_w,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample, row, column = _tile(height, width, ROWS, COLUMNS)
    y = row.to(tl.int64) * _SUBPIXELS + _HALF
    x = column.to(tl.int64) * _SUBPIXELS + _HALF
    count = tl.zeros((ROWS, COLUMNS), tl.int32)
    first = _clamp(tl.load(sample_offsets + sample), 0, box_count)
    last = _clamp(tl.load(sample_offsets + sample + 1), 0, box_count)
    for box in range(first, last):
        x0 = _coordinate(boxes + 4 * box, True)
        y0 = _coordinate(boxes + 4 * box + 1, True)
        x1 = _coordinate(boxes + 4 * box + 2, True)
        y1 = _coordinate(boxes + 4 * box + 3, True)
        within = ((y0 <= y) & (y < y1))[:, None] & ((x0 <= x) & (x < x1))[None, :]
        count += within.to(tl.int32)
    _store_tile(
        count > 0, sample, row, column, mask, area, image, value, filled, height, width, channels,
        image_stride_b, image_stride_c, image_stride_h, image_stride_w, WIDE,
    )  # fmt: skip


# --- ops --------------------------------------------------------------------------------------


def _rasterize(
    kernel: Any,
    shapes: dict[str, Any],
    sample_offsets: Tensor,
    height: int,
    width: int,
    image: Tensor | None = None,
    value: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch a kernel over all tiles; returns mask, area and the filled image (or None)."""
    samples = sample_offsets.numel() - 1
    device = sample_offsets.device
    mask = torch.empty((samples, 1, height, width), dtype=torch.bool, device=device)
    area = torch.zeros(samples, dtype=torch.int64, device=device)
    filled = None
    arguments: dict[str, Any] = {"image": None, "value": None, "filled": None, "channels": 0}
    if image is not None and value is not None:
        filled = torch.empty_like(image, memory_format=torch.contiguous_format)
        arguments = {
            "image": as_integers(image),
            "value": as_integers(value.to(image.dtype).contiguous()),
            "filled": as_integers(filled),
            "channels": image.shape[1],
        }
    strides = (0, 0, 0, 0) if image is None else image.stride()
    columns = min(max(power_of_two(width), 16), WIDEST)
    rows = TILE // columns
    launch(
        kernel,
        (samples * cdiv(height, rows) * cdiv(width, columns),),
        device,
        num_warps=WARPS,
        **shapes,
        **arguments,
        sample_offsets=sample_offsets.contiguous(),
        mask=bits(mask),
        area=area,
        height=height,
        width=width,
        **{f"image_stride_{axis}": s for axis, s in zip("bchw", strides, strict=True)},
        WIDE=wide(mask, image, filled),
        ROWS=rows,
        COLUMNS=columns,
    )
    return mask, area, filled


def _polygons(vertices: Tensor, contour_offsets: Tensor, fill_rule: str) -> dict[str, Any]:
    return {
        "vertices": vertices.contiguous(),
        "contour_offsets": contour_offsets.contiguous(),
        "vertex_count": vertices.shape[0],
        "contour_count": contour_offsets.numel() - 1,
        "EVEN_ODD": fill_rule == "evenodd",
    }


def _boxes(boxes: Tensor) -> dict[str, Any]:
    return {"boxes": boxes.contiguous(), "box_count": boxes.shape[0]}


def unsupported(op: str, *args: Any) -> str | None:
    if op.startswith("fill"):
        return sides_unsupported(*args[0].shape[2:])
    return sides_unsupported(*(args[3:5] if op == "rasterize_polygons" else args[2:4]))


def rasterize_polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
) -> tuple[Tensor, Tensor]:
    shapes = _polygons(vertices, contour_offsets, fill_rule)
    mask, area, _ = _rasterize(polygons_kernel, shapes, sample_offsets, height, width)
    return mask, area


def rasterize_boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    mask, area, _ = _rasterize(boxes_kernel, _boxes(boxes), sample_offsets, height, width)
    return mask, area


def fill_polygons(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = _polygons(vertices, contour_offsets, fill_rule)
    height, width = image.shape[2:]
    mask, area, filled = _rasterize(
        polygons_kernel, shapes, sample_offsets, height, width, image, value
    )
    assert filled is not None
    return filled, mask, area


def fill_boxes(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = image.shape[2:]
    mask, area, filled = _rasterize(
        boxes_kernel, _boxes(boxes), sample_offsets, height, width, image, value
    )
    assert filled is not None
    return filled, mask, area
