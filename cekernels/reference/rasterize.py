"""Rasterization of polygons and boxes in plain PyTorch: exact integer arithmetic.

Rule. Coordinates are int32 in fixed point, in units of 1/256 pixel, x to the right and y down, and
are clamped to +-2**28. Pixel (row i, column j) is sampled at its centre (256 j + 128, 256 i + 128).
An edge from (x0, y0) to (x1, y1), ordered so that y0 < y1, crosses the row of centres at y if
y0 <= y < y1, at the point x0 + (y - y0) (x1 - x0) / (y1 - y0). The winding number of a pixel is the
sum over the edges that cross its row at or to the left of its centre: +1 per edge that runs down,
-1 per edge that runs up. Hence a centre on a left or top boundary is inside and one on a right or
bottom boundary is outside, and shapes that share an edge neither overlap nor leave a gap. All
products stay below 2**61.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels.reference.fill_masked import fill_masked

COORDINATE_LIMIT = 2**28
SUBPIXELS = 256
# Edges times rows per step: limits the memory to a few tens of MB.
_CHUNK = 1 << 20


def _validate(op: str, name: str, offsets: Tensor, limit: int, what: str) -> None:
    """Raise ValueError for invalid offsets on the CPU, where reading their values costs little."""
    if offsets.device.type != "cpu":
        return
    values = offsets.tolist()  # for a few numbers several times faster than tensor ops
    if values[0] != 0 or values[-1] != limit or values != sorted(values):
        raise ValueError(
            f"{op}: {name} must be non-decreasing within 0..{limit}, the number of {what}, and "
            f"run from the one to the other, got {values if len(values) <= 16 else '...'} "
            f"(first {values[0]}, last {values[-1]})"
        )


def _validate_polygons(
    op: str, vertices: Tensor, contour_offsets: Tensor, sample_offsets: Tensor
) -> None:
    _validate(op, "contour_offsets", contour_offsets, vertices.shape[0], "vertices")
    _validate(op, "sample_offsets", sample_offsets, contour_offsets.shape[0] - 1, "contours")


def _owners(offsets: Tensor, count: int, owners: int) -> tuple[Tensor, Tensor]:
    """For each of ``count`` elements its segment of ``offsets``, and whether it has one."""
    index = torch.arange(count, device=offsets.device)
    owner = torch.searchsorted(offsets.contiguous(), index, right=True) - 1
    return owner.clamp(0, max(owners - 1, 0)), (owner >= 0) & (owner < owners)


def _first_pixel(x: Tensor) -> Tensor:
    """The first column whose centre is at or to the right of ``x``, given in fixed point."""
    return -torch.div(SUBPIXELS // 2 - x, SUBPIXELS, rounding_mode="floor")


def _winding(
    vertices: Tensor, contour_offsets: Tensor, sample_offsets: Tensor, height: int, width: int
) -> Tensor:
    """Winding number of every pixel, int32 ``(B, H, W)``."""
    device = vertices.device
    samples, contours = sample_offsets.numel() - 1, contour_offsets.numel() - 1
    steps = torch.zeros(samples, height, width + 1, dtype=torch.int32, device=device)
    if min(samples, contours, height, width, vertices.shape[0]) == 0:
        return steps[:, :, :width]

    start = vertices.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).long()
    contour, in_contour = _owners(contour_offsets, vertices.shape[0], contours)
    sample_of_contour, in_sample = _owners(sample_offsets, contours, samples)
    following = torch.arange(1, vertices.shape[0] + 1, device=device)
    following = torch.where(
        following == contour_offsets[contour + 1], contour_offsets[contour], following
    )
    end = start[following.clamp(0, vertices.shape[0] - 1)]
    sample = sample_of_contour[contour]
    exists = in_contour & in_sample[contour]

    downward = end[:, 1] > start[:, 1]
    upper = torch.where(downward[:, None], start, end)
    lower = torch.where(downward[:, None], end, start)
    direction = torch.where(downward, 1, -1).int()
    centres = torch.arange(height, device=device) * SUBPIXELS + SUBPIXELS // 2

    chunk = max(_CHUNK // height, 1)
    for first in range(0, vertices.shape[0], chunk):
        part = slice(first, first + chunk)
        (x0, y0), (x1, y1) = upper[part].unbind(1), lower[part].unbind(1)
        meets = (y0[:, None] <= centres) & (centres < y1[:, None]) & exists[part, None]
        rise = (y1 - y0).clamp(min=1)[:, None]
        # column >= (x0 - 128 + (y - y0) (x1 - x0) / rise) / 256, rounded up, all in integers
        numerator = (x0[:, None] - SUBPIXELS // 2) * rise
        numerator = numerator + (centres - y0[:, None]) * (x1 - x0)[:, None]
        column = -torch.div(-numerator, SUBPIXELS * rise, rounding_mode="floor")
        row = torch.arange(height, device=device).expand_as(column)
        target = (sample[part, None] * height + row) * (width + 1) + column.clamp(0, width)
        amount = torch.where(meets, direction[part, None], 0)
        steps.view(-1).index_add_(0, target.reshape(-1), amount.reshape(-1))
    return steps[:, :, :width].cumsum(2, dtype=torch.int32)


def _area(mask: Tensor) -> Tensor:
    return mask.sum((1, 2, 3), dtype=torch.int64)


def rasterize_polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
) -> tuple[Tensor, Tensor]:
    """Masks, bool ``(B, 1, H, W)``, and their areas in pixels, int64 ``(B,)``.

    Raises:
        ValueError: on the CPU, offsets that decrease or do not run from 0 to the total.
    """
    _validate_polygons("rasterize_polygons", vertices, contour_offsets, sample_offsets)
    return _polygons(vertices, contour_offsets, sample_offsets, height, width, fill_rule)


def _polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
) -> tuple[Tensor, Tensor]:
    winding = _winding(vertices, contour_offsets, sample_offsets, height, width)
    inside = winding != 0 if fill_rule == "nonzero" else winding % 2 != 0
    mask = inside.unsqueeze(1).contiguous()
    return mask, _area(mask)


def rasterize_boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Union of the boxes per sample, bool ``(B, 1, H, W)``, and its area, int64 ``(B,)``.

    Raises:
        ValueError: on the CPU, offsets that decrease or do not run from 0 to the total.
    """
    _validate("rasterize_boxes", "sample_offsets", sample_offsets, boxes.shape[0], "boxes")
    return _boxes(boxes, sample_offsets, height, width)


def _boxes(boxes: Tensor, sample_offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    samples = sample_offsets.numel() - 1
    steps = torch.zeros(samples, height + 1, width + 1, dtype=torch.int32, device=boxes.device)
    if samples and boxes.shape[0]:
        sample, exists = _owners(sample_offsets, boxes.shape[0], samples)
        corners = boxes.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).long()
        x0, y0, x1, y1 = _first_pixel(corners).unbind(1)
        amount = (exists & (x1 > x0) & (y1 > y0)).int()
        x0, x1 = x0.clamp(0, width), x1.clamp(0, width)
        y0, y1 = y0.clamp(0, height), y1.clamp(0, height)
        for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
            steps.index_put_((sample, y, x), sign * amount, accumulate=True)
    count = steps.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    mask = (count[:, :height, :width] > 0).unsqueeze(1).contiguous()
    return mask, _area(mask)


def fill_polygons(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The filled image, the mask and its area; errors as for :func:`rasterize_polygons`."""
    _validate_polygons("fill_polygons", vertices, contour_offsets, sample_offsets)
    mask, area = _polygons(
        vertices, contour_offsets, sample_offsets, image.shape[2], image.shape[3], fill_rule
    )
    return fill_masked(image, mask, value), mask, area


def fill_boxes(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The filled image, the mask and its area; errors as for :func:`rasterize_boxes`."""
    _validate("fill_boxes", "sample_offsets", sample_offsets, boxes.shape[0], "boxes")
    mask, area = _boxes(boxes, sample_offsets, image.shape[2], image.shape[3])
    return fill_masked(image, mask, value), mask, area
