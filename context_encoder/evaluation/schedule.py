"""The time that an evaluation takes: announced beforehand from the first images, then shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

__all__ = ["Work", "announcement", "in_time", "measure", "work_bar"]

# Images that are measured twice for the estimate; one of fewer than _WORTH images.
_TRIAL, _WORTH = 4, 16
# Seconds per image from which a method is slow.
_SLOW = 0.5
# Of these, the slowest ones that are named.
_NAMED = 3


@dataclass
class Work:
    """One method on one group of images."""

    label: str
    images: int
    #: Fills and measures the first images.
    trial: Callable[[int], object]
    #: Seconds per image, from :func:`measure`.
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Seconds for all images."""
        return self.seconds * self.images


def measure(works: Sequence[Work]) -> None:
    """Measure the seconds per image of each on its first images."""
    started: set[str] = set()
    bar = tqdm(works, desc="measuring the first images", leave=False, dynamic_ncols=True)
    for work in bar:
        if work.label not in started:
            # What a method loads or compiles on its first call happens once.
            work.trial(1)
            started.add(work.label)
        count = 1 if work.images < _WORTH else _TRIAL
        start = time.perf_counter()
        work.trial(count)
        work.seconds = (time.perf_counter() - start) / count


def announcement(works: Sequence[Work]) -> str:
    """A sentence on the time, and on the methods that take most of it."""
    totals: dict[str, float] = {}
    images: dict[str, int] = {}
    for work in works:
        totals[work.label] = totals.get(work.label, 0.0) + work.total
        images[work.label] = images.get(work.label, 0) + work.images
    whole = sum(totals.values())
    text = f"about {in_time(whole)} for {sum(images.values())} fills"
    slow = sorted(
        (label for label in totals if totals[label] >= _SLOW * images[label]),
        key=lambda label: -totals[label],
    )
    if slow:
        told = ", ".join(
            f"{label} {in_time(totals[label])} ({totals[label] / images[label]:.1f} s per image)"
            for label in slow[:_NAMED]
        )
        text += f"; slow: {told}" + (f" and {len(slow) - _NAMED} more" if slow[_NAMED:] else "")
    return text


def work_bar(works: Sequence[Work]) -> tqdm[Any]:
    """A progress bar in predicted seconds, so that the time left is right for unequal methods."""
    return tqdm(
        total=sum(work.total for work in works) or None,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
        smoothing=0.1,
        dynamic_ncols=True,
    )


def in_time(seconds: float) -> str:
    """A duration in words, rounded to what an estimate can promise."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
