"""How much of a hole is filled, shown on a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["hole_bar"]


def hole_bar(pixels: int, *, show: bool) -> tqdm[Any]:
    """A progress bar of pixels on standard error; it appears when the work exceeds a second.

    Args:
        pixels: of the hole.
        show: False: never. A stream that is not a terminal shows none either.
    """
    return tqdm(
        total=pixels,
        unit="px",
        unit_scale=True,
        delay=1,
        leave=False,
        disable=None if show else True,
        dynamic_ncols=True,
    )
