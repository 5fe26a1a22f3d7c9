"""Optimization: precision, gradients, weight updates and learning rates."""

from context_encoder.optimization.averaging import moving_average
from context_encoder.optimization.learner import Learner
from context_encoder.optimization.schedules import step_decay, warmup_and_decay

__all__ = ["Learner", "moving_average", "step_decay", "warmup_and_decay"]
