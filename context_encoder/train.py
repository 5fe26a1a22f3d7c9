"""``python -m context_encoder.train``: training of a context encoder or another pretext.

Without arguments: the network that corrects the membrane, on the packaged photographs, in two to
three minutes on two CPU cores.
Several GPUs: ``torchrun --nproc-per-node N -m context_encoder.train ...``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from context_encoder.config import TrainConfig
from context_encoder.training.loop import NonFiniteError, TrainingError
from context_encoder.training.options import parse_training
from context_encoder.training.run import run_training
from context_encoder.utils.cli import DONE, FAILED, run_command, stopped_by


def parse(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, Path | None]:
    """See :func:`parse_training`."""
    return parse_training("python -m context_encoder.train", arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("train", parse_training, _train, arguments, needs_console=False)


def _train(options: tuple[TrainConfig, Path | None]) -> int:
    try:
        ended = run_training(*options)
    except (NonFiniteError, TrainingError):  # the first process has logged it
        return FAILED
    return stopped_by(signal.Signals[ended.signal or "SIGINT"]) if ended.interrupted else DONE


if __name__ == "__main__":
    sys.exit(main())
