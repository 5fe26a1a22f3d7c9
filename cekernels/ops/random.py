"""Counter-based random integers.

Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011) maps a 128-bit counter and a 64-bit key to 128 random bits, without a state. It gives the
same bits on every device, in eager mode, under ``torch.compile`` and in a CUDA graph, and never
synchronizes with a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import Impl, ImplementationError
from cekernels._register import Op
from cekernels._selfcheck import SelfTest

_WORD = 0xFFFFFFFF
_LARGEST = (1 << 63) - 1

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(
    counter: Words, key: tuple[Tensor | int, Tensor | int], *, impl: Impl = "auto"
) -> Words:
    """Four random 32-bit words per counter.

    Args:
        counter: four int64 tensors of shapes that broadcast together, lowest word first; values
            are taken modulo 2**32.
        key: two words, lowest first, as Python integers or int64 tensors that broadcast with the
            counter; also modulo 2**32. Only the reference handles tensors.
        impl: "auto", or the implementation to force: "reference", "triton".

    Returns:
        four int64 tensors of the broadcast shape, values in [0, 2**32), uniform. Different
        counters under one key give different quadruples.

    Raises:
        TypeError: a tensor that is not int64, or another number of words.
        ValueError: words on different devices or of shapes that do not broadcast, an unknown
            ``impl``.
        ImplementationError: the forced implementation cannot handle the call.
    """
    op = "philox4x32"
    if not isinstance(counter, Sequence) or len(counter) != 4:
        raise TypeError(f"{op}: counter must be four tensors, got {_checks.describe(counter)}")
    for word in counter:
        _checks.tensor(op, "counter", word)
        _checks.dtypes(op, "counter", word, (torch.int64,))
    for word in counter[1:]:
        _checks.same_device(op, "counter", word, "counter[0]", counter[0])
    if not isinstance(key, Sequence) or len(key) != 2:
        raise TypeError(f"{op}: key must be two words, got {_checks.describe(key)}")
    operands = [*counter]
    words = []
    for part in key:
        if isinstance(part, Tensor):
            _checks.tensor(op, "key", part)
            _checks.dtypes(op, "key", part, (torch.int64,))
            _checks.same_device(op, "key", part, "counter[0]", counter[0])
            operands.append(part)
        elif type(part) is not int:
            part = _checks.integer(op, "key", part, -_LARGEST - 1, _LARGEST)
        words.append(part)
    _broadcast(op, "counter and key", *operands)
    kernel = PHILOX.kernel(impl)
    if len(operands) == len(counter):
        k0, k1 = (int(part) & _WORD for part in words)
        drawn: Tensor = kernel(*counter, k0, k1)
    else:
        if impl not in ("auto", "reference"):
            raise ImplementationError(
                f"{op}: impl={impl!r} cannot handle this call: only the reference takes tensors "
                "as key"
            )
        drawn = reference.philox4x32(*counter, *words)  # type: ignore[arg-type]
    c0, c1, c2, c3 = drawn.unbind(-1)
    return c0, c1, c2, c3


def random_below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Random integers in [0, bound) from 32-bit words, by multiplication and shift.

    The probabilities of two results differ by at most 2**-32: each result corresponds to
    ``2**32 // bound`` words or to one more.

    Args:
        words: int64, values in [0, 2**32), as returned by :func:`philox4x32`.
        bound: at most 2**31; an integer, or an int64 tensor that broadcasts with ``words``
            (its values are not checked; 0 gives 0).

    Returns:
        int64 of the broadcast shape.

    Raises:
        TypeError: a tensor that is not int64.
        ValueError: an integer ``bound`` outside 1..2**31, or a tensor on another device or of a
            shape that does not broadcast.
    """
    op = "random_below"
    _checks.tensor(op, "words", words)
    _checks.dtypes(op, "words", words, (torch.int64,))
    if not isinstance(bound, Tensor):
        bound = _checks.integer(op, "bound", bound, 1, 1 << 31)
    else:
        _checks.tensor(op, "bound", bound)
        _checks.dtypes(op, "bound", bound, (torch.int64,))
        if bound.dim() or bound.device.type != "cpu":  # as torch's operators do
            _checks.same_device(op, "bound", bound, "words", words)
        _broadcast(op, "words and bound", words, bound)
    return (words * bound) >> 32


def _broadcast(op: str, names: str, *tensors: Tensor) -> None:
    try:
        torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except RuntimeError as error:
        given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"{op}: {names} must broadcast together, got shapes {given}") from error


# --- the op -----------------------------------------------------------------------------------


def _philox_fake(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int) -> Tensor:
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    return c0.new_empty((*shape, 4))


def _philox_check() -> tuple[Any, ...]:
    return *(torch.arange(5) - n for n in range(4)), 7, 2**32 - 1


PHILOX = Op(
    reference.philox4x32,
    fake=_philox_fake,
    compiled=(),
    check=SelfTest(lambda _: [_philox_check()]),
)
