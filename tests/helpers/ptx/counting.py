"""Costs of accesses to memory, per warp instruction.

- A global access takes as many **sectors** of 32 bytes as it touches, and as many wavefronts as
  there are **lines** of 128 bytes among them.
- A shared access takes as many **wavefronts** as the busiest of the 32 banks has different 4-byte
  words; its ideal is the number of different words / 32, rounded up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Columns of a cost.
INSTRUCTIONS, BYTES, SECTORS, WAVEFRONTS, IDEAL = range(5)


def _distinct(values: Any) -> Any:
    """Which entries of the rows of a sorted array are the first of their value, and not -1."""
    first = np.ones(values.shape, bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    return first & (values >= 0)


def cost(space: str, index: Any, lanes: Any | None, size: int) -> NDArray[np.int64]:
    """Cost of an access of ``size`` bytes per lane at ``index`` (warps, 32)."""
    if lanes is not None:
        active = np.broadcast_to(lanes, lanes.shape).reshape(-1, 32)
        index = np.where(active, index, -1)[active.any(1)]
    warps = index.shape[0]
    total = np.zeros(5, np.int64)
    if warps == 0:
        return total
    total[INSTRUCTIONS] = warps
    total[BYTES] = int((index >= 0).sum()) * size
    if space == "global":
        total[SECTORS] = int(_distinct(np.sort(index >> 5, 1)).sum())
        total[WAVEFRONTS] = total[IDEAL] = int(_distinct(np.sort(index >> 7, 1)).sum())
        return total
    words = index >> 2
    if size > 4:
        spread = np.where(words >= 0, words, -size)[:, :, None] + np.arange(size // 4)
        words = np.where(spread >= 0, spread, -1).reshape(warps, -1)
    words = np.sort(words, 1)
    first = _distinct(words)
    warp = np.broadcast_to(np.arange(warps)[:, None], words.shape)
    banks = np.bincount((warp * 32 + words % 32)[first], minlength=32 * warps).reshape(warps, 32)
    total[WAVEFRONTS] = int(banks.max(1).sum())
    total[IDEAL] = int((-(-first.sum(1) // 32)).sum())
    return total
