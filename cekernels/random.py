"""Counter-based random integers as tensor arithmetic.

Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011) turns a 128-bit counter and a 64-bit key into 128 random bits, with no state. Written in
int64 operations that never overflow, it gives the same bits on every device, in eager mode,
under ``torch.compile`` and in a CUDA graph, and never waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import _checks

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor | int, Tensor | int]) -> Words:
    """Four random words of 32 bits for each counter.

    Args:
        counter: four int64 tensors of shapes that broadcast together, lowest word first. Each
            value counts modulo 2**32.
        key: two words, lowest first, int64 tensors that broadcast with the counter, or Python
            integers. Also modulo 2**32.

    Returns:
        four int64 tensors of the broadcast shape, values in [0, 2**32), uniform. Different
        counters under one key give different quadruples.

    Raises:
        TypeError: a tensor that is not int64.
    """
    op = "philox4x32"
    for word in counter:
        _checks.tensor(op, "counter", word)
        _checks.dtypes(op, "counter", word, (torch.int64,))
    for part in key:
        if isinstance(part, Tensor):
            _checks.dtypes(op, "key", part, (torch.int64,))
    c0, c1, c2, c3 = (word & _WORD for word in counter)
    k0, k1 = (word & _WORD for word in key)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def random_below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Random integers in [0, bound) from words of 32 bits, by multiplication and shift.

    The probabilities of two results differ by at most 2**-32: each result belongs to
    ``2**32 // bound`` words or to one more.

    Args:
        words: int64, values in [0, 2**32), as :func:`philox4x32` returns them.
        bound: at most 2**31; an integer, or an int64 tensor that broadcasts with ``words``
            (its values are not looked at; where it is 0, so is the result).

    Returns:
        int64 of the broadcast shape.

    Raises:
        TypeError: a tensor that is not int64.
        ValueError: an integer ``bound`` outside 1..2**31.
    """
    op = "random_below"
    _checks.tensor(op, "words", words)
    _checks.dtypes(op, "words", words, (torch.int64,))
    if isinstance(bound, Tensor):
        _checks.dtypes(op, "bound", bound, (torch.int64,))
    elif not 1 <= bound <= 1 << 31:
        raise ValueError(f"{op}: bound must be in 1..2**31, got {bound}")
    return (words * bound) >> 32


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product, which itself would not fit an int64."""
    low = factor * (word & 0xFFFF)
    high = factor * (word >> 16) + (low >> 16)  # below 2**49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
