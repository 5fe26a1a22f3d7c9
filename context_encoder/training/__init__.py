"""Training: the loop shared by pretraining and transfer, and pretraining with any pretext."""

from context_encoder.training.loop import NonFiniteError, Outcome, TrainingError, TrainingLoop
from context_encoder.training.resolve import resolve
from context_encoder.training.run import run_training
from context_encoder.training.signals import Stoppable, stop_on_signal
from context_encoder.training.trainer import Trainer

__all__ = [
    "NonFiniteError",
    "Outcome",
    "Stoppable",
    "Trainer",
    "TrainingError",
    "TrainingLoop",
    "resolve",
    "run_training",
    "stop_on_signal",
]
