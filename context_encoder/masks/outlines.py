"""Outlines of silhouettes: tracing, and properties of an outline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from context_encoder.masks.region import UNIT, VERTICES, clearance_needed

FloatArray = NDArray[np.float64]


def trace_outline(
    mask: NDArray[np.bool_], smoothing: Sequence[float] = (0.025, 0.05, 0.1)
) -> NDArray[np.int16] | None:
    """Trace the outline of a mask's largest part, with holes filled.

    The mask is blurred. Its contour at one half is traced, cut into 96 edges of equal
    length along the contour, and scaled and shifted to area ``UNIT**2`` around its centroid.

    Args:
        mask: bool ``(H, W)``.
        smoothing: widths of the blur to try in turn, in square roots of the mask's area.

    Returns:
        int16 ``(96, 2)``, (x, y), positive orientation; None if no width gives an outline that
        stays simple when deformed, or the mask is empty.

    Raises:
        ImportError: contourpy is not installed.
    """
    from scipy.ndimage import gaussian_filter

    try:
        from contourpy import contour_generator
    except ImportError as error:
        raise ImportError(
            "tracing outlines needs the package contourpy: pip install contourpy"
        ) from error

    if not mask.any():
        return None
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for width in smoothing:
        sigma = width * float(np.sqrt(mask.sum()))
        # Shapes that are cut off by the image are closed along its edge.
        field = gaussian_filter(np.pad(mask, int(4 * sigma) + 2).astype(np.float64), sigma)
        lines = (
            np.asarray(line, np.float64)[:-1] for line in contour_generator(z=field).lines(0.5)
        )
        contours = [line for line in lines if len(line) >= 3]
        if not contours:
            continue
        outline = normalized(max(contours, key=lambda line: abs(signed_area(line))))
        if outline is not None and clearance(outline / UNIT) >= clearance_needed(
            longest_edge(outline / UNIT)
        ):
            return outline
    return None


def normalized(polygon: FloatArray) -> NDArray[np.int16] | None:
    """A polygon of any number of vertices as an outline; None if it is too long for int16."""
    closed = np.concatenate((polygon, polygon[:1]))
    along = np.concatenate(([0], np.hypot(*np.diff(closed, axis=0).T).cumsum()))
    at = np.linspace(0, along[-1], VERTICES, endpoint=False)
    points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    area = signed_area(points)
    if area == 0:
        return None
    if area < 0:
        points = points[::-1]
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    centroid = ((points + following) * cross[:, None]).sum(0) / (3 * cross.sum())
    scaled = np.rint((points - centroid) * UNIT / np.sqrt(abs(area)))
    return scaled.astype(np.int16) if np.abs(scaled).max() <= 8 * UNIT - 1 else None


def signed_area(polygon: FloatArray) -> float:
    """The area by the shoelace sum; positive for the orientation from x towards y."""
    x, y = polygon.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def longest_edge(polygon: FloatArray) -> float:
    return float(np.hypot(*(np.roll(polygon, -1, axis=0) - polygon).T).max())


def clearance(polygon: FloatArray) -> float:
    """The smallest distance between two edges without a common vertex; 0 if they cross."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    edge = end - start
    count = len(polygon)
    first, second = np.triu_indices(count, 2)
    apart = (first > 0) | (second < count - 1)  # the last edge ends where the first begins
    first, second = first[apart], second[apart]

    def side(of: NDArray[np.intp], points: FloatArray) -> FloatArray:
        offset = points - start[of]
        result: FloatArray = edge[of, 0] * offset[:, 1] - edge[of, 1] * offset[:, 0]
        return result

    def distance(points: FloatArray, to: NDArray[np.intp]) -> FloatArray:
        offset = points - start[to]
        squared = np.maximum((edge[to] ** 2).sum(1), 1e-300)
        share = np.clip((offset * edge[to]).sum(1) / squared, 0, 1)
        result: FloatArray = np.hypot(*(offset - share[:, None] * edge[to]).T)
        return result

    crossing = (side(first, start[second]) * side(first, end[second]) <= 0) & (
        side(second, start[first]) * side(second, end[first]) <= 0
    )
    if (crossing & _boxes_meet(start, end, first, second)).any():
        return 0.0
    return float(
        min(
            distance(start[second], first).min(),
            distance(end[second], first).min(),
            distance(start[first], second).min(),
            distance(end[first], second).min(),
        )
    )


def _boxes_meet(
    start: FloatArray, end: FloatArray, first: NDArray[np.intp], second: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether the edges' bounding boxes meet, without which collinear edges do not cross."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    meet = (low[first] <= high[second]) & (low[second] <= high[first])
    result: NDArray[np.bool_] = meet[:, 0] & meet[:, 1]
    return result
