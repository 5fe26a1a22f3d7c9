"""Training on a folder of photographs, whatever the pretext."""

from context_encoder.training.resolve import resolve
from context_encoder.training.run import run_training
from context_encoder.training.signals import Stoppable, stop_on_signal
from context_encoder.training.trainer import NonFiniteError, Outcome, Trainer

__all__ = [
    "NonFiniteError",
    "Outcome",
    "Stoppable",
    "Trainer",
    "resolve",
    "run_training",
    "stop_on_signal",
]
