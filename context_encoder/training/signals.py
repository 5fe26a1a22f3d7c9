"""Signals that end a training run after its current step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """A training loop that checks ``stop_requested`` after every step."""

    stop_requested: bool
    stop_reason: str


@contextlib.contextmanager
def stop_on_signal(trainer: Stoppable) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the current step; a second SIGINT ends it at once."""

    def request(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        # No logging here: the loop may hold the log's lock, or be writing a line.
        trainer.stop_requested = True
        trainer.stop_reason = signal.Signals(number).name

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
