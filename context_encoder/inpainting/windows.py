"""Planning of the square windows that fill the holes of an image of any size.

A network takes squares of S x S pixels and was trained with at most about a quarter of them
missing. :func:`plan_windows` covers a mask with such windows:

* Each connected part of the mask (8-neighbourhood) is a hole; small ones that fit one window
  together are filled together.
* A hole that fits gets one window of S x S pixels of the image, the native resolution.
* A larger hole gets a larger window, which is scaled down to S x S and the prediction up again:
  coarse, but with enough context. If the hole is thin (a scratch, a line of text), several smaller
  windows have enough context too; they are used if they at least double the resolution.
* A window that extends beyond the image is shifted inside. Where the image is smaller than
  the window, or the network fills the centre of its window only, the image is continued by
  reflection.
* Other missing pixels in a window count as missing. Where no window has enough context, the
  smallest of the nearly best ones is used; :attr:`Window.missing` gives its missing fraction.

Every pixel of the mask belongs to exactly one window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Box", "PlannedHole", "Window", "WindowGeometry", "plan_windows", "reflect_indices"]

#: top, left, bottom, right in pixels of the image; bottom and right are exclusive.
Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]

# Largest side of a hole, and of a tile of a larger hole, as a fraction of its window's. Measured
# with two networks of 64 pixels on 48 and 120 photographs: squares are filled best in windows of
# 2.3 to 3 times their side (1/9 to 1/5 of the area); at 2 times they lose 0.1 to 1.2 dB, at 5
# times 0.2 to 0.6 dB. Elongated holes are filled best in windows of 1.3 to 1.6 times their length.
# Reflection at the edges of a small image costs up to 0.1 dB: a window that is preferred for its
# context alone stays within the image.
_SPAN, _TILE_SPAN = 3 / 4, 1 / 2
# Windows are enlarged for more context in these steps, at most so many times.
_GROWTH, _MOST = 1.25, 4
# If no window has enough context, one with this fraction of the largest context is accepted.
_NEARLY = 0.9
_EIGHT = np.ones((3, 3), np.int8)


@dataclass(frozen=True)
class WindowGeometry:
    """The pixels of its window that a network can fill.

    ``region`` is the whole window for networks trained with holes anywhere, else the part
    (top, left, height, width) that they were trained to fill.
    """

    size: int
    region: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        top, left, height, width = self.region
        if (
            self.size < 1
            or min(top, left) < 0
            or min(height, width) < 1
            or max(top + height, left + width) > self.size
        ):
            raise ValueError(
                f"region (top, left, height, width) must lie in a square of {self.size}, "
                f"got {self.region}"
            )

    @property
    def anywhere(self) -> bool:
        """Whether the network fills holes anywhere in its window."""
        return self.region == (0, 0, self.size, self.size)

    @property
    def good_missing(self) -> float:
        """The preferred upper limit of a window's missing fraction."""
        return 1 / 6 if self.anywhere else 1 / 10

    @property
    def max_missing(self) -> float:
        """The largest missing fraction of a window in the network's training.

        For a network that fills a region, both limits count missing pixels outside of it.
        """
        return 1 / 4 if self.anywhere else 1 / 10

    def inside(self, side: int) -> Box:
        """The pixels of a window of ``side`` that lie completely in the region."""
        top, left, height, width = self.region
        return (
            -(-top * side // self.size),
            -(-left * side // self.size),
            (top + height) * side // self.size,
            (left + width) * side // self.size,
        )


@dataclass(frozen=True, eq=False)
class Window:
    """A square, which may extend beyond the image, and the pixels that it fills."""

    top: int
    left: int
    side: int
    #: Box around the pixels that this window fills.
    box: Box
    #: The pixels that this window fills: bool, of the box's height and width.
    pixels: Mask
    #: Part of the window that is missing (see :attr:`WindowGeometry.max_missing`), 0 to 1.
    missing: float


@dataclass(frozen=True, eq=False)
class PlannedHole:
    """Connected parts of the mask that are filled together."""

    box: Box
    #: Number of connected parts.
    parts: int
    windows: tuple[Window, ...]


def plan_windows(mask: Mask, geometry: WindowGeometry) -> list[PlannedHole]:
    """Choose the windows that fill a mask.

    Args:
        mask: bool ``(H, W)``, True where the image is missing.
        geometry: window geometry of the network.

    Returns:
        The holes, ordered by their upper edge; the ``pixels`` of all their windows together are
        the mask, each pixel once. All windows of a hole have the same side, at least S.
    """
    labels, count = ndimage.label(mask, _EIGHT, output=np.int32)
    if count == 0:
        return []
    found = ndimage.find_objects(labels)
    boxes = np.array([[r.start, c.start, r.stop, c.stop] for r, c in found])
    groups = _group(boxes, geometry)
    number = np.empty(count + 1, np.int32)
    number[0] = -1
    for index, members in enumerate(groups):
        number[1 + members] = index
    labels = number[labels]

    planner = _Planner(mask, geometry)
    holes = []
    for index, members in enumerate(groups):
        top, left = boxes[members, :2].min(0).tolist()
        bottom, right = boxes[members, 2:].max(0).tolist()
        pixels = labels[top:bottom, left:right] == index
        windows = planner.choose(pixels, top, left)
        holes.append(PlannedHole((top, left, bottom, right), len(members), tuple(windows)))
    return sorted(holes, key=lambda hole: hole.box)


def reflect_indices(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Indices of ``count`` pixels from ``start`` on, mirrored at both ends of ``length``.

    The pixels at the ends are repeated: for length 3, -2 to 4 are 1 0 0 1 2 2 1.
    """
    index = np.arange(start, start + count) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def _group(boxes: NDArray[np.int_], geometry: WindowGeometry) -> list[NDArray[np.int_]]:
    """Indices of the boxes that share a window: small ones that are close to each other."""
    top, left, bottom, right = geometry.inside(geometry.size)
    part = _TILE_SPAN if geometry.anywhere else 1
    height, width = int((bottom - top) * part), int((right - left) * part)

    order = np.lexsort((boxes[:, 1], boxes[:, 0]))
    tops, lefts, bottoms, rights = boxes[order].T
    ends = np.searchsorted(tops, tops + height)
    free = np.ones(len(order), bool)
    groups = []
    for i in range(len(order)):
        if not free[i]:
            continue
        # A square with the top of the first box, and horizontally centred on it.
        x = lefts[i] - (width - (rights[i] - lefts[i])) // 2
        near = slice(i, int(ends[i]))
        fits = (
            free[near]
            & (bottoms[near] <= tops[i] + height)
            & (lefts[near] >= x)
            & (rights[near] <= x + width)
        )
        fits[:1] = True  # also if it is too large
        members = i + np.flatnonzero(fits)
        free[members] = False
        groups.append(order[members])
    return groups


class _Planner:
    """Chooses the windows of one hole at a time."""

    def __init__(self, mask: Mask, geometry: WindowGeometry) -> None:
        self.geometry = geometry
        self.height, self.width = int(mask.shape[0]), int(mask.shape[1])
        # Larger windows extend beyond the image.
        self._whole = min(self.height, self.width)
        self.sums = np.zeros((self.height + 1, self.width + 1), np.int64)
        np.cumsum(np.cumsum(mask, 0, dtype=np.int64), 1, out=self.sums[1:, 1:])

    def choose(self, pixels: Mask, top: int, left: int) -> list[Window]:
        """The windows for the given pixels, whose upper left corner is at ``(top, left)``."""
        options = []
        for side, cell in self._sides(pixels):
            windows = [
                self._window(pixels[part], top + part[0].start, left + part[1].start, side)
                for part in _split(pixels, *cell)
            ]
            worst = max(window.missing for window in windows)
            geometry = self.geometry
            if worst <= (geometry.max_missing if side >= self._whole else geometry.good_missing):
                return windows
            options.append((worst, windows))
        most_known = 1 - min(worst for worst, _ in options)
        return next(windows for worst, windows in options if 1 - worst >= _NEARLY * most_known)

    def _sides(self, pixels: Mask) -> Iterator[tuple[int, tuple[int, int]]]:
        """Sides of windows to try, ascending, each with the height and width of its tiles."""
        size = self.geometry.size
        whole = self._side_for_whole(pixels)
        side = size
        while 2 * side <= whole:
            top, left, bottom, right = self.geometry.inside(side)
            part = _TILE_SPAN if self.geometry.anywhere else 1
            yield side, (max(1, int((bottom - top) * part)), max(1, int((right - left) * part)))
            side *= 2
        side = whole
        while True:
            yield side, (pixels.shape[0], pixels.shape[1])
            # A larger one would add no context, or fill a small hole beside a large one coarsely.
            if side >= min(_MOST * whole, 2 * max(self.height, self.width)):
                return
            side = math.ceil(side * _GROWTH)

    def _side_for_whole(self, pixels: Mask) -> int:
        """Side of the smallest window for these pixels in one piece, if nothing else is missing."""
        size = self.geometry.size
        height, width = int(pixels.shape[0]), int(pixels.shape[1])
        if self.geometry.anywhere:
            area = np.count_nonzero(pixels)
            least = math.ceil(math.sqrt(area / self.geometry.max_missing))
            good = math.ceil(math.sqrt(area / self.geometry.good_missing))
            context = min(good, max(least, self._whole))
            # A hole from edge to edge of the image leaves no context to add.
            rows = min(math.ceil(height / _SPAN), self.height)
            columns = min(math.ceil(width / _SPAN), self.width)
            return max(size, rows, columns, context)
        _, _, rows, columns = self.geometry.region
        side = max(size, -(-height * size // rows), -(-width * size // columns))
        while True:
            top, left, bottom, right = self.geometry.inside(side)
            if bottom - top >= height and right - left >= width:
                return side
            side += 1

    def _window(self, pixels: Mask, top: int, left: int, side: int) -> Window:
        """A window of this side for the given pixels, placed to cover most of the image."""
        height, width = pixels.shape
        inside = self.geometry.inside(side)
        y = _place(top, height, side, inside[0], inside[2], self.height)
        x = _place(left, width, side, inside[1], inside[3], self.width)
        missing = self._count(y, x, y + side, x + side)
        if not self.geometry.anywhere:
            missing -= self._count(y + inside[0], x + inside[1], y + inside[2], x + inside[3])
        box = (top, left, top + height, left + width)
        return Window(y, x, side, box, pixels, missing / side**2)

    def _count(self, top: int, left: int, bottom: int, right: int) -> int:
        """Missing pixels in a box, also where the image is continued by reflection."""
        tops, bottoms = _reflected(top, bottom, self.height)
        lefts, rights = _reflected(left, right, self.width)
        above = self.sums[np.ix_(tops, rights)] - self.sums[np.ix_(tops, lefts)]
        below = self.sums[np.ix_(bottoms, rights)] - self.sums[np.ix_(bottoms, lefts)]
        return int((below - above).sum())


def _reflected(start: int, stop: int, length: int) -> tuple[list[int], list[int]]:
    """The parts of ``length`` that :func:`reflect_indices` maps a range to: starts and stops."""
    starts, stops = [], []
    while start < stop:
        period, a = divmod(start, length)
        b = min(stop - period * length, length)
        starts.append(length - b if period % 2 else a)
        stops.append(length - a if period % 2 else b)
        start = (period + 1) * length
    return starts, stops


def _split(pixels: Mask, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Tight boxes around the pixels in each cell of a grid of at most height x width."""
    rows = _cuts(pixels.shape[0], height)
    columns = _cuts(pixels.shape[1], width)
    for r in rows:
        for c in columns:
            cell = pixels[r, c]
            used_rows, used_columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
            if len(used_rows):
                yield (
                    slice(r.start + int(used_rows[0]), r.start + int(used_rows[-1]) + 1),
                    slice(c.start + int(used_columns[0]), c.start + int(used_columns[-1]) + 1),
                )


def _cuts(length: int, most: int) -> list[slice]:
    """Even parts of ``length``, none longer than ``most``."""
    parts = -(-length // most)
    edges = [length * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _place(start: int, count: int, side: int, first: int, last: int, length: int) -> int:
    """The start of a window along one axis.

    Pixels ``start`` to ``start + count`` must lie in the part ``first`` to ``last`` of the window.
    Within that, the window lies in the image, or the image in the middle of the window, and
    within that the pixels lie in its middle.
    """
    middle = start + count // 2 - side // 2
    middle = -((side - length) // 2) if side > length else min(max(middle, 0), length - side)
    return min(max(middle, start + count - last), start - first)
