"""Memory with red zones, a record of what was written, and the order of accesses.

Global memory is an arena inside this process: pointers that kernels get are real addresses in it,
so that host code and tensors use the same memory. Freed parts are not used again before ``reset``.
"""

from __future__ import annotations

import math
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


class GpuError(Exception):
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
            raise GpuError("misaligned", f"{size} bytes at {where}")
        if index.size and (int(index.min()) < 0 or int(index.max()) > self.size - size):
            raise GpuError("out of bounds", str(where))
        width = min(size, 8)
        every = np.uint64(0x0101010101010101 & ((1 << 8 * width) - 1)).astype(_UNSIGNED[width])
        written = True
        for part in range(0, size, width):
            state = self._states[width].take((index + part) // width)
            if (state == every * every.dtype.type(_WRITTEN)).all():
                continue
            if ((state & every) != every).any():
                raise GpuError("out of bounds", str(where))
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

# A thread at a time is an int64: block << 44 | interval between barriers << 28 | interval between
# barriers of its warp << 12 | thread. Intervals of blocks are counted from 1, so that 0 is nobody.
BLOCK, INTERVAL, WARP_INTERVAL, THREAD = 44, 1 << 28, 1 << 12, 4095
SOME_OF_WARP, ATOMIC, MANY = 2048, 4094, 4095  # in place of a thread: 2048 + warp, ...
_ALL_BLOCKS = 1 << 62  # in place of a thread at a time: threads of several blocks


def _warp(me: Index) -> Index:
    """The warp of a thread, or of several of one warp; ATOMIC and MANY are none."""
    thread = me & THREAD
    return np.where(thread < SOME_OF_WARP, thread >> 5, thread - SOME_OF_WARP)


def _same_warp_interval(a: Index, b: Index) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (a | THREAD) == (b | THREAD)
    return found


class Order:
    """The last writer and the readers of each granule of memory during a launch.

    Two accesses are ordered if they are of one thread, of one block with a barrier between, or of
    one warp with a barrier of the warp between. Two blocks are ordered by a fence, an atomic
    operation of the one, a later one of the other at the same place, and a fence. Two unordered
    accesses, one of which writes, are a race.
    """

    def __init__(self, size: int, granule: int, blocks: int = 0) -> None:
        self.granule = granule
        self.blocks = blocks
        # By the place of an atomic operation: the times at which threads published their writes.
        self.published: dict[int, list[int]] = {}
        # By block: the thread at a time that learnt what others published, and per block until
        # which thread at a time.
        self.learnt: dict[int, tuple[int, Index]] = {}
        self.writer = np.zeros(-(-size // granule), np.int64)
        self.reader = np.zeros(-(-size // granule), np.int64)

    def _granules(self, index: Index, me: Index, size: int) -> tuple[Index, Index]:
        first, count = index // self.granule, max(size // self.granule, 1)
        if count == 1:
            return first, me
        return (first[:, None] + np.arange(count)).ravel(), np.repeat(me, count)

    def learn(self, me: int, times: Sequence[int]) -> None:
        """``me`` executes a fence after an atomic operation that follows these."""
        first, known = self.learnt.get(me >> BLOCK, (me, np.zeros(self.blocks, np.int64)))
        for time in times:
            known[time >> BLOCK] = max(known[time >> BLOCK], time)
        # Of several times the last: what was learnt before counts as learnt then.
        self.learnt[me >> BLOCK] = max(first, me), known

    def _published(self, other: Index, me: Index) -> NDArray[np.bool_]:
        """Which accesses of ``other``, of other blocks, those of ``me`` have learnt of."""
        found = np.zeros(len(me), bool)
        for block, (since, known) in self.learnt.items():
            some = (me >> BLOCK == block) & (other >> BLOCK < self.blocks)
            now, before = me[some], other[some]
            until = known[before >> BLOCK]
            later = (now >= since) & ((now ^ since) & THREAD == 0)
            later |= now // INTERVAL > since // INTERVAL
            earlier = (before <= until) & ((before ^ until) & THREAD == 0)
            found[some] = later & (earlier | (before // INTERVAL < until // INTERVAL))
        return found

    def _unordered(self, other: Index, me: Index) -> NDArray[np.bool_]:
        """Which accesses of ``other`` are not ordered before those of ``me``, which follow them."""
        found: NDArray[np.bool_] = (other > 0) & (other != me)
        found &= ((other ^ me) < INTERVAL) | ((other >> BLOCK) != (me >> BLOCK))
        if found.any():
            other, me = other[found], me[found]
            same_thread = ((other ^ me) & THREAD == 0) & (me & THREAD < SOME_OF_WARP)
            synced = (_warp(other) == _warp(me)) & ~_same_warp_interval(other, me)
            same_block = (other >> BLOCK) == (me >> BLOCK)
            ordered = same_block & (same_thread | synced)
            if self.learnt:
                ordered |= ~same_block & self._published(other, me)
            found[found] = ~ordered
        return found

    def _check(self, other: Index, me: Index, what: str, where: Any) -> None:
        bad = self._unordered(other, me)
        if bad.any():
            between = " between blocks" if ((other >> BLOCK) != (me >> BLOCK))[bad].any() else ""
            raise GpuError("race", f"{what}{between}, the second at {where}")

    def read(self, index: Index, me: Index, size: int, where: Any) -> None:
        at, me = self._granules(index, me, size)
        self._check(self.writer[at], me, "write and read", where)
        old = self.reader[at]
        self.reader[at] = now = self._readers(old, me)
        kept = self.reader[at]  # of lanes that read the same granule, one
        other = kept != now
        if other.any():
            self.reader[at[other]] = self._readers(kept[other], now[other])
            now, kept = self.reader[at[other]], self._readers(kept[other], now[other])
            if (now != kept).any():  # more than two: of several warps or blocks
                blocks = (now >> BLOCK) != (kept >> BLOCK)
                self.reader[at[other]] = np.where(
                    now == kept, now, np.where(blocks, _ALL_BLOCKS, now | MANY)
                )

    def _readers(self, old: Index, me: Index) -> Index:
        """Both readers as one, where neither is ordered before the other."""
        both = self._unordered(old, me)
        if not both.any():
            return me
        joined = np.where(
            (_warp(old) == _warp(me)) & _same_warp_interval(old, me),
            (me & ~THREAD) | (SOME_OF_WARP + _warp(me)),
            me | MANY,
        )
        joined = np.where((old >> BLOCK) != (me >> BLOCK), _ALL_BLOCKS, joined)
        return np.where(both, joined, me)

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
        shape = len(index), max(size // self.granule, 1)
        return earlier.reshape(shape).any(1), together.reshape(shape).any(1)

    def atomic(self, index: Index, me: Index, size: int, where: Any) -> None:
        """Atomic operations are not ordered, but do not race with each other."""
        at, me = self._granules(index, me, size)
        me = (me & -INTERVAL) | ATOMIC
        other = self.writer[at]
        self._check(np.where(other & THREAD == ATOMIC, 0, other), me,
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
        return (
            self._torch[first : first + size].view(dtype).as_strided(tuple(shape), tuple(strides))
        )

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that counts as written; its memory is not touched. For counts of large ops."""
        strides = torch.empty(tuple(shape), device="meta").stride()
        size = math.prod(shape) * dtype.itemsize
        first = -(-self.top // self.ALIGNMENT) * self.ALIGNMENT
        assert first + size + self.RED_ZONE <= self.bytes.size, "too large for the machine's memory"
        self.top = first + size + self.RED_ZONE
        self.bytes.state[first : first + size] = _WRITTEN
        return self._torch[first : first + size].view(dtype).as_strided(tuple(shape), strides)

    def place(self, tensor: Tensor) -> Tensor:
        """A copy in this memory: same strides, same distance from the start of its storage.

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
