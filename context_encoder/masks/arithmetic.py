"""Integer arithmetic on tensors with identical results on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Steps per full turn, and fractional bits of a sine.
TURN_BITS, SINE_BITS = 12, 14


def integer_sqrt(value: Tensor) -> Tensor:
    """The largest integer whose square is at most ``value``: int64, 0 to 2**62."""
    root = value.double().sqrt().long()  # off by one at most, however the device rounds
    root = root - (root * root > value).long()
    return root + ((root + 1) * (root + 1) <= value).long()


def sine_table() -> Tensor:
    """Sines of a full turn in 4096 steps, int64 ``(4096,)``, times 2**14."""
    turn = 1 << TURN_BITS
    return torch.tensor(
        [round(math.sin(2 * math.pi * k / turn) * (1 << SINE_BITS)) for k in range(turn)]
    )
