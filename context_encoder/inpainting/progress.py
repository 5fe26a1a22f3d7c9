"""How much of a hole is filled: shown on a terminal, or reported to a function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from tqdm import tqdm

__all__ = ["Progress", "hole_bar"]

#: True: a bar on the terminal; False: none; or called with pixels done, which add up to those of
#: the hole. Whatever the function raises ends the work.
Progress = bool | Callable[[float], object]


class _Bar(Protocol):
    @property
    def update(self) -> Callable[[float], object]: ...


class _Reported(NamedTuple):
    update: Callable[[float], object]


def hole_bar(pixels: int, *, show: Progress) -> AbstractContextManager[_Bar]:
    """A progress bar of pixels on standard error; it appears when the work exceeds a second.

    Args:
        pixels: of the hole.
        show: False: never. A stream that is not a terminal shows none either. A function: it is
            called in place of the bar.
    """
    if callable(show):
        return nullcontext(_Reported(show))
    bar: AbstractContextManager[_Bar] = tqdm(
        total=pixels,
        unit="px",
        unit_scale=True,
        delay=1,
        leave=False,
        disable=None if show else True,
        dynamic_ncols=True,
    )
    return bar
