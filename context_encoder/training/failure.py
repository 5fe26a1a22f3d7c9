"""Errors that end a run, with the command that continues it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from context_encoder.runs import RunError, find_checkpoint
from context_encoder.training.loop import NonFiniteError, TrainingError
from context_encoder.utils.errors import outside_reason


@contextlib.contextmanager
def with_advice(out: Path, command: str) -> Iterator[None]:
    """Raise an error from outside the program as a TrainingError that says how to go on.

    Args:
        out: the run folder.
        command: the module that continues the run, such as "train".
    """
    try:
        yield
    except NonFiniteError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, TrainingError) else outside_reason(error)
        if reason is None:
            raise
        raise TrainingError(f"{reason}; {_advice(out, command)}") from error


def _advice(out: Path, command: str) -> str:
    try:
        find_checkpoint(out, "last")
    except (RunError, OSError):
        return f"there is no checkpoint in {out} yet, start again"
    return f"go on with: python -m context_encoder.{command} --resume {out}"
