"""Memory with red zones, a record of what was written, and the order of accesses.

Global memory is an arena inside this process: pointers that kernels get are real addresses in it, so
that host code and tensors use the same memory. Freed parts are not used again before ``reset``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]

POISON = 0xFF  # the bytes of memory that was not written: NaN in every floating-point format
_ALLOCATED, _WRITTEN = 1, 3  # states of a byte; 0: outside of every allocation
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class GpuFault(Exception):
    """An access or an order of accesses that a GPU would trap on or leave undefined."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Bytes:
    """Bytes with the state of each: outside of every allocation, allocated, or written."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.size = data.size
        self.state = np.zeros(data.size, np.uint8)
        self.data = {n: data.view(t) for n, t in _UNSIGNED.items()}
        self._states = {n: self.state.view(t) for n, t in _UNSIGNED.items()}

    def check(self, index: Index, size: int, read: bool, where: Any) -> bool:
        """Raise for a misaligned or an out-of-bounds access; True if all bytes were written."""
        if (index & (size - 1)).any():
            raise GpuFault("misaligned", f"{size} bytes at {where}")
        if index.size and (int(index.min()) < 0 or int(index.max()) > self.size - size):
            raise GpuFault("out of bounds", str(where))
        width = min(size, 8)
        every = np.uint64(0x0101010101010101 & ((1 << 8 * width) - 1)).astype(_UNSIGNED[width])
        written = True
        for part in range(0, size, width):
            state = self._states[width].take((index + part) // width)
            if (state == every * every.dtype.type(_WRITTEN)).all():
                continue
            if ((state & every) != every).any():
                raise GpuFault("out of bounds", str(where))
            written = False
        return written or not read

    def gather(self, index: Index, size: int, count: int) -> list[Any]:
        data, first = self.data[size], index // size
        return [data.take(first + i) for i in range(count)]

    def scatter(self, index: Index, size: int, values: Sequence[Any]) -> None:
        first = index // size
        written = _UNSIGNED[size](0x0303030303030303 & ((1 << 8 * size) - 1))
        for i, value in enumerate(values):
            self.data[size][first + i] = value
            self._states[size][first + i] = written


# --- the order of accesses ------------------------------------------------------------------------

# A thread at a time is an int64: block << 32 | interval between barriers << 12 | thread. Intervals
# are counted from 1, so that 0 is nobody.
INTERVAL = 1 << 12
ATOMIC, MANY = 4094, 4095  # in place of a thread: atomic operations; several threads
_ALL_BLOCKS = 1 << 62  # in place of a thread at a time: threads of several blocks


class Order:
    """The last writer and the readers of each granule of memory during a launch.

    Two accesses are ordered if they are of one thread, or of one block with a barrier between; for
    global memory nothing orders two blocks. Two unordered accesses, one of which writes, are a race.
    """

    def __init__(self, size: int, granule: int) -> None:
        self.granule = granule
        self.writer = np.zeros(-(-size // granule), np.int64)
        self.reader = np.zeros(-(-size // granule), np.int64)

    def _granules(self, index: Index, me: Index, size: int) -> tuple[Index, Index]:
        first, count = index // self.granule, size // self.granule
        if count == 1:
            return first, me
        return (first[:, None] + np.arange(count)).ravel(), np.repeat(me, count)

    @staticmethod
    def _unordered(other: Index, me: Index) -> NDArray[np.bool_]:
        same_interval = (other >> 12) == (me >> 12)
        other_block = (other >> 32) != (me >> 32)
        found: NDArray[np.bool_] = (other > 0) & (other != me) & (same_interval | other_block)
        return found

    def _check(self, other: Index, me: Index, what: str, where: Any) -> None:
        bad = self._unordered(other, me)
        if bad.any():
            between = " between blocks" if ((other >> 32) != (me >> 32))[bad].any() else ""
            raise GpuFault("race", f"{what}{between}, the second at {where}")

    def read(self, index: Index, me: Index, size: int, where: Any) -> None:
        at, me = self._granules(index, me, size)
        self._check(self.writer[at], me, "write and read", where)
        old = self.reader[at]
        same_interval = (old >> 12) == (me >> 12)
        now = np.where(same_interval & (old != me), me | MANY, me)
        now = np.where((old > 0) & ((old >> 32) != (me >> 32)), _ALL_BLOCKS, now)
        self.reader[at] = now
        kept = self.reader[at]  # of lanes that read the same granule, one
        other = kept != now
        if other.any():
            at, now, kept = at[other], now[other], kept[other]
            self.reader[at] = np.where((now >> 32) == (kept >> 32), now | MANY, _ALL_BLOCKS)

    def write(
        self, index: Index, me: Index, size: int, where: Any
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which of the accesses write where another thread wrote, with nothing between.

        Earlier, and in the same instruction. Both are races unless the values are equal: compilers
        let several threads store the same.
        """
        at, me = self._granules(index, me, size)
        self._check(self.reader[at], me, "read and write", where)
        earlier = self._unordered(self.writer[at], me)
        self.writer[at] = me
        together = self.writer[at] != me
        shape = len(index), size // self.granule
        return earlier.reshape(shape).any(1), together.reshape(shape).any(1)

    def atomic(self, index: Index, me: Index, size: int, where: Any) -> None:
        """Atomic operations are not ordered with other accesses, but do not race with each other."""
        at, me = self._granules(index, me, size)
        me = (me & -INTERVAL) | ATOMIC
        other = self.writer[at]
        self._check(np.where(other & (INTERVAL - 1) == ATOMIC, 0, other), me,
                    "write and atomic operation", where)  # fmt: skip
        self._check(self.reader[at], me, "read and atomic operation", where)
        self.writer[at] = me


# --- global memory --------------------------------------------------------------------------------


@dataclass
class Allocation:
    first: int
    size: int


class Memory:
    """Global memory: allocations with red zones between them."""

    ALIGNMENT = 512  # of allocations, as those of torch's CUDA allocator
    RED_ZONE = 512

    def __init__(self, size: int) -> None:
        self._storage = np.zeros(size + 4096, np.uint8)
        skipped = -self._storage.ctypes.data % 4096
        self.bytes = Bytes(self._storage[skipped : skipped + size])
        self.base = int(self.bytes.data[1].ctypes.data)
        self.top = self.RED_ZONE
        self._torch = torch.from_numpy(self.bytes.data[1])

    def reset(self) -> None:
        self.bytes.state[: self.top] = 0
        self.top = self.RED_ZONE

    def allocate(self, size: int, offset: int = 0) -> int:
        """Index of ``size`` new bytes, ``offset`` bytes after an aligned address."""
        first = -(-self.top // self.ALIGNMENT) * self.ALIGNMENT + offset
        if first + size + self.RED_ZONE > self.bytes.size:
            raise MemoryError(f"{size} bytes do not fit into the machine's memory")
        self.top = first + size + self.RED_ZONE
        self.bytes.state[first : first + size] = _ALLOCATED
        self.bytes.data[1][first : first + size] = POISON
        return first

    def contains(self, tensor: Tensor) -> bool:
        return 0 <= tensor.data_ptr() - self.base < self.bytes.size

    def mark_written(self, tensor: Tensor) -> None:
        """Record that the host has written a tensor of this memory."""
        first = tensor.data_ptr() - self.base
        self.bytes.state[first : first + _extent(tensor)] = _WRITTEN

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None,
        offset: int = 0,
    ) -> Tensor:  # fmt: skip
        """A tensor that was not written."""
        if strides is None:
            strides = torch.empty(tuple(shape), device="meta").stride()
        count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = 0 if 0 in shape else count * dtype.itemsize
        first = self.allocate(size, offset)
        return self._torch[first : first + size].view(dtype).as_strided(tuple(shape), tuple(strides))

    def place(self, tensor: Tensor) -> Tensor:
        """A copy in this memory with the strides of ``tensor``, as far from the start of its storage.

        Only the tensor's own elements count as written, whatever lies between them.
        """
        if self.contains(tensor) or tensor.numel() == 0:
            return tensor
        offset = tensor.storage_offset() * tensor.element_size() % self.ALIGNMENT
        copy = self.empty(tensor.shape, tensor.dtype, tensor.stride(), offset)
        first = copy.data_ptr() - self.base
        states = torch.from_numpy(self.bytes.state)[first : first + _extent(copy)]
        if copy.is_contiguous():
            states.fill_(_WRITTEN)
        else:
            bytes_of = [*(s * tensor.element_size() for s in tensor.stride()), 1]
            states.as_strided((*tensor.shape, tensor.element_size()), bytes_of).fill_(_WRITTEN)
        stored = [slice(0, 1) if s == 0 else slice(None) for s in tensor.stride()]
        copy[tuple(stored)].copy_(tensor[tuple(stored)])
        return copy


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
