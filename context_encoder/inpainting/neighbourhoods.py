"""The parts of a large image that its holes are filled from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from context_encoder.utils.bounding_box import Box, bounding_box

__all__ = ["neighbourhoods"]

#: Beyond a hole, in pixels and in the hole's longer side: more than linear prediction, texture and
#: the largest window of a network (3.25 sides, 156 pixels) look at.
_MARGIN, _MARGIN_SIDES = 128, 2.25
#: Boxes begin at multiples of this, as the blocks in which texture groups holes do.
_GRID = 16


def neighbourhoods(mask: NDArray[np.bool_]) -> list[Box]:
    """Disjoint boxes with all holes of a mask and what they are filled from.

    Args:
        mask: bool ``(H, W)``, True in the holes.

    Returns:
        The boxes, none for an empty mask. A hole lies in exactly one of them.
    """
    whole = bounding_box(mask)  # labels of a large image take long
    labels, _ = ndimage.label(mask[whole], np.ones((3, 3)))
    boxes = []
    for found_at in ndimage.find_objects(labels):
        hole = [
            slice(s.start + w.start, s.stop + w.start) for s, w in zip(found_at, whole, strict=True)
        ]
        reach = _MARGIN + int(_MARGIN_SIDES * max(s.stop - s.start for s in hole))
        boxes.append(
            [
                edge
                for s, length in zip(hole, mask.shape, strict=True)
                for edge in (
                    max(0, s.start - reach) // _GRID * _GRID,
                    min(length, s.stop + reach),
                )
            ]
        )
    found = np.array(boxes, np.int64).reshape(-1, 4)
    merged: list[NDArray[np.int64]] = []
    for box in found:
        new = box
        while True:
            meeting = [
                m for m in merged
                if m[0] < new[1] and new[0] < m[1] and m[2] < new[3] and new[2] < m[3]
            ]  # fmt: skip
            if not meeting:
                break
            merged = [m for m in merged if not any(m is other for other in meeting)]
            every = np.stack([*meeting, new])
            low, high = every.min(0), every.max(0)
            new = np.array([low[0], high[1], low[2], high[3]])
        merged.append(new)
    return [(slice(int(a), int(b)), slice(int(c), int(d))) for a, b, c, d in merged]
