"""The bounding box of a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "bounding_box"]

#: Rows and columns of an image.
Box = tuple[slice, slice]


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> Box:
    """The smallest box with all that is set, enlarged by a margin within the image.

    Args:
        mask: bool ``(H, W)``.
        margin: in pixels.

    Returns:
        The box; the first pixel if nothing is set.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return slice(0, 1), slice(0, 1)
    return (
        slice(max(0, int(ys[0]) - margin), min(mask.shape[0], int(ys[-1]) + 1 + margin)),
        slice(max(0, int(xs[0]) - margin), min(mask.shape[1], int(xs[-1]) + 1 + margin)),
    )
