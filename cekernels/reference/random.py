"""Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011) in plain PyTorch: int64 operations that never overflow."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_WORD = 0xFFFFFFFF


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int) -> Tensor:
    """Four words per counter, int64 ``(*broadcast shape, 4)``; all arguments modulo 2**32.

    If this function is called directly, ``k0`` and ``k1`` may also be int64 tensors that broadcast
    with the counter.
    """
    c0, c1, c2, c3 = (word & _WORD for word in (c0, c1, c2, c3))
    k0, k1 = k0 & _WORD, k1 & _WORD
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32-bit word of the product, which as a whole may overflow int64."""
    low = factor * (word & 0xFFFF)
    high = factor * (word >> 16) + (low >> 16)  # below 2**49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
