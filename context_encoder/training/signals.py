"""Signals that end a training run with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

#: Sent by Ctrl-C; by batch systems, timeout and torchrun; by a terminal that is closed; by Slurm
#: before the time limit (``--signal``).
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


class Stoppable(Protocol):
    """A training loop that checks ``stop_requested`` after every step."""

    stop_requested: bool
    stop_reason: str

    def interrupt(self) -> None:
        """Called after a stop request; may raise an exception to leave what takes long."""


@contextlib.contextmanager
def stop_on_signal(trainer: Stoppable) -> Iterator[None]:
    """A signal ends the run after the current step; a second SIGINT ends it at once.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. In a thread other than the
    main one, signals are left as they are, since Python cannot handle them there.
    """

    def request(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        # No logging here: the loop may hold the log's lock, or be writing a line.
        trainer.stop_requested = True
        trainer.stop_reason = trainer.stop_reason or signal.Signals(number).name
        trainer.interrupt()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
