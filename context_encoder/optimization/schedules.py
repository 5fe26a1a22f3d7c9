"""Learning rate schedules: factors of the initial rates as functions of the step."""

from __future__ import annotations

import math


def warmup_and_decay(step: int, steps: int, *, warmup_steps: int, cosine: bool) -> float:
    """A linear rise over ``warmup_steps``, times a cosine decay to 0 over the run or 1.

    Args:
        step: number of the step, from 0.
        steps: length of the run.
        warmup_steps: length of the rise; 0 for none.
        cosine: False for a constant rate after the rise.
    """
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    if not cosine:
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def step_decay(step: int, every: int | None, gamma: float) -> float:
    """``gamma`` to the power of ``step // every``; 1 if ``every`` is None."""
    return 1.0 if every is None else gamma ** (step // every)
