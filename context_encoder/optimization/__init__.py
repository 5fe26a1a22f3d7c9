"""Optimization: precision, gradients, weight updates and learning rates."""

from context_encoder.optimization.averaging import MovingAverage
from context_encoder.optimization.batch_statistics import without_running_statistics
from context_encoder.optimization.learner import Learner
from context_encoder.optimization.schedules import step_decay, warmup_and_decay

__all__ = [
    "Learner",
    "MovingAverage",
    "step_decay",
    "warmup_and_decay",
    "without_running_statistics",
]
