"""Rasterization and filling in exact integers, in one launch.

The rule is that of :mod:`cekernels.reference.rasterize`. A program processes a tile of pixels of
one sample. Of polygons, each thread takes an edge: where it crosses a row of centres, it adds the
change of the winding number to the tile's part of a working memory; the column advances from row to
row by an exact quotient and rest. Boxes are compared with every pixel. The image is read only where
it is kept.
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

# Pixels and warps of a program, of polygons and of boxes: up to WIDEST columns, and as many rows as
# then fit.
TILE, WARPS = 4096, 8
BOX_TILE, BOX_WARPS = 1024, 4
WIDEST = 256
EDGES = 32 * WARPS  # that a program processes at a time
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
def _divide(number, by, inverse):
    """Quotient, rounded down, and rest; ``inverse``: of ``by``. Exact for quotients below 2**50."""
    quotient = (number.to(tl.float64) * inverse).to(tl.int64)
    rest = number - quotient * by
    less = rest < 0
    more = rest >= by
    quotient += more.to(tl.int64) - less.to(tl.int64)
    rest += tl.where(less, by, 0) - tl.where(more, by, 0)
    return quotient, rest


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
    turns,
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
    EDGES: tl.constexpr,
):
    """A tile: edges change the winding numbers in memory, prefix sums along the rows give them."""
    sample, row, column = _tile(height, width, ROWS, COLUMNS)
    top = tl.min(row, 0)
    bottom = tl.minimum(top + ROWS, height)
    left = tl.min(column, 0)
    # Changes of the winding number at the pixels of the tile.
    turns += tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    pixel = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(turns + pixel, tl.zeros((ROWS, COLUMNS), tl.int32))
    tl.debug_barrier()

    # Clamped: offsets are not checked on a GPU, and must not cause out-of-bounds reads.
    first_contour = _clamp(tl.load(sample_offsets + sample), 0, contour_count)
    last_contour = _clamp(tl.load(sample_offsets + sample + 1), first_contour, contour_count)
    first = _clamp(tl.load(contour_offsets + first_contour), 0, vertex_count)
    last = _clamp(tl.load(contour_offsets + last_contour), 0, vertex_count)
    for block in range(first, last, EDGES):
        vertex = block + tl.arange(0, EDGES)
        exists = vertex < last
        # The contour of each vertex: the last one that starts at or before it.
        contour = tl.zeros((EDGES,), tl.int64) + first_contour
        step = tl.zeros((), tl.int64) + 1
        while step < last_contour - first_contour:
            step *= 2
        while step > 0:
            later = contour + step
            begins = tl.load(contour_offsets + later, mask=later < last_contour, other=last)
            contour = tl.where((later < last_contour) & (begins <= vertex), later, contour)
            step //= 2
        begin = _clamp(tl.load(contour_offsets + contour), 0, vertex_count)
        end = _clamp(tl.load(contour_offsets + contour + 1, mask=exists, other=0), 0, vertex_count)
        exists = exists & (vertex >= begin) & (vertex < end)
        following = tl.where(vertex + 1 < end, vertex + 1, begin)
        from_x = _coordinate(vertices + 2 * vertex, exists)
        from_y = _coordinate(vertices + 2 * vertex + 1, exists)
        to_x = _coordinate(vertices + 2 * following, exists)
        to_y = _coordinate(vertices + 2 * following + 1, exists)

        # From the upper end (x0, y0) to the lower one; y0 <= centre of the row < y1.
        downward = to_y > from_y
        x0 = tl.where(downward, from_x, to_x)
        x1 = tl.where(downward, to_x, from_x)
        y0 = tl.minimum(from_y, to_y)
        y1 = tl.maximum(from_y, to_y)
        turn = tl.where(downward, 1, -1)
        here = tl.maximum((y0 + (_HALF - 1)) // _SUBPIXELS, top).to(tl.int32)
        stop = tl.minimum((y1 + (_HALF - 1)) // _SUBPIXELS, bottom).to(tl.int32)
        rise = tl.maximum(y1 - y0, 1)
        # The first pixel at or to the right of the edge in this row: the quotient, rounded up.
        centre = here.to(tl.int64) * _SUBPIXELS + _HALF
        numerator = (x0 - _HALF) * rise + (centre - y0) * (x1 - x0)
        divisor = rise * _SUBPIXELS
        inverse = 1.0 / divisor.to(tl.float64)
        quotient, rest = _divide(numerator - 1, divisor, inverse)
        slope, slope_rest = _divide((x1 - x0) * _SUBPIXELS, divisor, inverse)
        rows = tl.max(tl.where(exists, stop - here, 0), 0)
        for _ in range(rows):
            at = tl.maximum(quotient + 1 - left, 0)
            changed = exists & (here < stop) & (at < COLUMNS)
            tl.atomic_add(turns + (here - top) * COLUMNS + at, turn, mask=changed, sem="relaxed")
            here += 1
            rest += slope_rest
            quotient += slope + (rest >= divisor).to(tl.int64)
            rest = tl.where(rest >= divisor, rest - divisor, rest)
    tl.debug_barrier()
    winding = tl.cumsum(tl.load(turns + pixel), 1)
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
    if kernel is polygons_kernel:
        rows = min(TILE // columns, max(power_of_two(height), 1))
    else:
        rows = BOX_TILE // columns
    programs = samples * cdiv(height, rows) * cdiv(width, columns)
    if kernel is polygons_kernel:
        # 32 bits: winding numbers have no bound, and there are no atomic additions of fewer.
        turns = torch.empty(programs * rows * columns, dtype=torch.int32, device=device)
        shapes = shapes | {"turns": turns, "EDGES": EDGES}
    launch(
        kernel,
        (programs,),
        device,
        num_warps=WARPS if kernel is polygons_kernel else BOX_WARPS,
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
