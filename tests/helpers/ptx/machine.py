"""A GPU that executes PTX on a CPU: blocks of threads in step, checked and counted.

Many blocks run at once. The threads at the same place in the code are executed together, those
furthest behind first; threads that took different branches meet again where their paths do. Each
instruction is one numpy operation on all of them (``translate.py``).

Checked, and reported as :class:`GpuError`: alignment, bounds, reads of global memory that was not
written, races between threads of a block (no barrier between two accesses, one of which writes) and
between blocks (nor fences around atomic operations), barriers and warp-wide instructions that some
threads do not reach, asynchronous copies that are used before they are waited for. Not modelled:
flags in memory other than by atomic operations, and time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.ptx import arithmetic, counting, tensor_cores
from tests.helpers.ptx.fences import Fences
from tests.helpers.ptx.memory import (
    BLOCK,
    INTERVAL,
    MANY,
    THREAD,
    WARP_INTERVAL,
    Bytes,
    GpuError,
    Memory,
    Order,
)
from tests.helpers.ptx.parse import RED_ZONE, Instruction, Kernel, size_of
from tests.helpers.ptx.translate import Translated

WARP = 32
LANES = 16384  # threads that run at once, about

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SHARED_WRITTEN, _SHARED_ALLOCATED = 3, 1


@dataclass
class Report:
    """What a launch executed."""

    kernel: Translated
    grid: int  # blocks of the launch
    threads: int
    shared: int  # bytes per block
    blocks: int = 0  # that were executed
    warps: int = 0
    executed: Counter[int] = field(default_factory=Counter)  # warp executions per basic block
    accesses: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # per site
    # Instructions that read shared memory which was not written. Kernels may do so on purpose, in
    # padding; the values are NaN, so that a result that depends on them shows.
    unwritten: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.kernel.kernel.name

    def instructions(self) -> int:
        """Warp instructions, without loads of parameters, which are operands of others."""
        blocks = self.kernel.kernel.blocks
        sizes = {
            n: sum(not (i.parts[0] == "ld" and i.space == "param") for i in blocks[n].instructions)
            for n in self.executed
        }
        return sum(times * sizes[n] for n, times in self.executed.items())

    def cost(self, space: str, kind: str = "") -> NDArray[np.int64]:
        """Costs (``counting.py``) of the accesses to a space, or only of its "ld" or "st"."""
        total = np.zeros(5, np.int64)
        for site, cost in self.accesses.items():
            if site < 0:  # the source of an asynchronous copy
                name, its_space = "ld", "global"
            else:
                instruction = self.kernel.sites[site]
                name, its_space = instruction.parts[0], instruction.space
                if name in ("cp", "ldmatrix", "stmatrix"):
                    name, its_space = "ld" if name == "ldmatrix" else "st", "shared"
            if its_space == space and kind in ("", name):
                total += cost
        return total


class Machine:
    """Executes kernels on a memory.

    ``check``: whether races are looked for, which doubles the time. ``count``: whether the costs of
    accesses to memory are counted.
    """

    def __init__(self, memory: Memory, check: bool = True, count: bool = False) -> None:
        self.memory = memory
        self.check = check
        self.count = count

    def launch(
        self,
        kernel: Translated,
        grid: Sequence[int],
        threads: int,
        parameters: bytes,
        dynamic_shared: int = 0,
        blocks: Iterable[int] | None = None,
    ) -> Report:
        """Run all blocks of the grid, or those with the given numbers (x varies fastest).

        A launch of some blocks, and those after it, may read what the others would have written.
        """
        grid = (*grid, 1, 1)[:3]
        shared = kernel.kernel.shared_bytes + dynamic_shared
        report = Report(kernel, int(np.prod(grid)), threads, shared)
        order = None
        if self.check:
            granule = _granule(kernel.kernel, "global")
            order = Order(self.memory.top, granule, report.grid) if granule else None
        numbers = np.fromiter(range(int(np.prod(grid))) if blocks is None else blocks, np.int64)
        at_once = max(1, LANES // threads)
        with np.errstate(all="ignore"):
            for first in range(0, len(numbers), at_once):
                batch = numbers[first : first + at_once]
                running = _Batch(
                    self, kernel, grid, threads, parameters, dynamic_shared, batch, order, report
                )
                running.partial = blocks is not None
                running.run()
        return report


def _granule(kernel: Kernel, space: str) -> int:
    """Bytes of the smallest access to a space of memory; 0 if there is none."""
    sizes = []
    for instruction in kernel.instructions:
        kind = instruction.parts[0]
        if kind in ("ld", "st", "atom", "red") and instruction.space == space:
            sizes.append(size_of(instruction.type))
        copies = kind == "cp" and len(instruction.operands) > 2
        if copies or (kind in ("ldmatrix", "stmatrix", "wgmma") and space == "shared"):
            sizes.append(4)
    return min(sizes, default=0)


@dataclass
class _Copy:
    """An asynchronous copy to shared memory that was started and not waited for."""

    index: NDArray[np.int64]
    me: NDArray[np.int64]  # the threads that started it
    lanes: NDArray[np.int64]
    values: NDArray[np.uint8]
    where: Instruction


class _Batch:
    """Some blocks of a launch, run together. Arrays have the shape (blocks, threads)."""

    def __init__(
        self, machine: Machine, kernel: Translated, grid: Sequence[int], threads: int,
        parameters: bytes, dynamic: int, numbers: NDArray[np.int64], order: Order | None,
        report: Report,
    ) -> None:  # fmt: skip
        assert threads % WARP == 0, f"{threads} threads are no whole warps"
        assert len(parameters) == kernel.kernel.parameter_bytes
        self.machine, self.kernel, self.report, self.grid = machine, kernel, report, grid
        self.shape = (len(numbers), threads)
        self.partial = False
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.numbers = numbers
        thread = np.arange(threads, dtype=np.uint32)[None, :]
        block = numbers.astype(np.uint32)[:, None]
        sizes = [np.uint32(n) for n in grid]
        self.special: dict[str, Any] = {
            "%tid.x": thread, "%tid.y": np.uint32(0), "%tid.z": np.uint32(0),
            "%ntid.x": np.uint32(threads), "%ntid.y": np.uint32(1), "%ntid.z": np.uint32(1),
            "%ctaid.x": block % sizes[0], "%ctaid.y": block // sizes[0] % sizes[1],
            "%ctaid.z": block // (sizes[0] * sizes[1]), "%nctaid.x": sizes[0],
            "%nctaid.y": sizes[1], "%nctaid.z": sizes[2], "%laneid": thread % WARP,
            "%warpid": thread // WARP,
        }  # fmt: skip
        self.me = (
            (numbers[:, None] << BLOCK) + INTERVAL + np.arange(threads)
        )  # memory.Order's thread at a time
        self.orders: dict[str, Order | None] = {"global": order, "shared": None}
        self._shared_memory(dynamic)
        # Asynchronous copies: started, and groups of them that were committed.
        self.copies: list[_Copy] = []
        self.groups: list[list[_Copy]] = []
        self.between_blocks = Fences(order, self.shape)
        self.fences = np.zeros(self.shape, np.int32)  # proxy fences that each thread has executed
        self.products: list[tuple[Any, ...]] = []  # reads of shared memory by wgmma, not waited for
        self.product_groups: list[list[tuple[Any, ...]]] = []

    def _shared_memory(self, dynamic: int) -> None:
        kernel = self.kernel.kernel
        bounds = list(kernel.shared_bounds)
        if kernel.dynamic and dynamic:
            assert not bounds, "static and dynamic shared memory in one kernel"
            bounds = [(0, dynamic)]
        last = bounds[-1][1] if bounds else 0
        self.shared_size = -(-(last + RED_ZONE) // 1024) * 1024
        self.shared_start = (np.arange(len(self.numbers)) * self.shared_size)[:, None]
        size = self.shape[0] * self.shared_size
        self.shared = Bytes(np.full(size, 0xFF, np.uint8))
        states = self.shared.state.reshape(self.shape[0], -1)
        for first, end in bounds:
            states[:, first:end] = _SHARED_ALLOCATED
        granule = _granule(kernel, "shared")
        if self.machine.check and granule and bounds:
            self.orders["shared"] = Order(size, granule)
        self.pending = np.zeros(size // 4, bool)  # destinations of copies that are not waited for
        self.stamps = np.zeros(size // 4, np.int32)  # proxy fences of the writer, when it wrote

    # --- control ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Execute the blocks to their end."""
        kernel = self.kernel.kernel
        registers = self.kernel.initial_registers()
        everyone = np.ones(self.shape, bool)
        ready: dict[int, Any] = {0: everyone}
        waiting: dict[int, Any] = {}
        exited = np.zeros(self.shape, bool)
        self.report.blocks += self.shape[0]
        self.report.warps += self.shape[0] * self.shape[1] // WARP
        end = len(kernel.blocks)
        while ready or waiting:
            if not ready:
                ready = self._release(waiting, exited)
                waiting = {}
            number = min(ready)
            lanes = ready.pop(number)
            if number == end:
                exited |= lanes
                continue
            full = bool(lanes.all())
            self.report.executed[number] += (
                lanes.size // WARP if full else int(lanes.reshape(-1, WARP).any(1).sum())
            )
            taken = self.kernel.functions[number](self, registers, None if full else lanes)
            last = kernel.blocks[number].instructions[-1]
            kind = last.parts[0]
            if kind == "bar" and last.parts[1] == "warp":
                self._whole_warps(lanes, last)
                self.me = self.me + WARP_INTERVAL * lanes
                _join(ready, number + 1, lanes)
                continue
            if kind in ("bar", "barrier"):
                if taken is not None or last.operands[0] != "0" or len(last.operands) > 1:
                    raise NotImplementedError(f"{kernel.name}: {last}")
                _join(waiting, number + 1, lanes)
                continue
            if kind not in ("bra", "ret", "exit"):
                _join(ready, number + 1, lanes)
                continue
            target = kernel.labels[last.operands[0]] if kind == "bra" else end
            if taken is None:
                _join(ready, target, lanes)
                continue
            goes = lanes & taken
            stays = lanes & ~taken
            if goes.any():
                _join(ready, target, goes)
            if stays.any():
                _join(ready, number + 1, stays)
        if self.copies or self.groups:
            raise GpuError("copy not waited for", f"{kernel.name} ends before its copies do")

    def _release(self, waiting: dict[int, Any], exited: Any) -> dict[int, Any]:
        """All threads of each block have reached a barrier: they continue."""
        arrived = np.stack([lanes.any(1) for lanes in waiting.values()])
        block = arrived.any(0)
        together = arrived.sum(0) <= 1
        if not together.all() or exited[block].any():
            raise GpuError(
                "divergent barrier", f"{self.kernel.kernel.name}: some threads wait, others do not"
            )
        self.me = self.me + INTERVAL * block[:, None]
        return waiting

    def _whole_warps(self, lanes: Any | None, where: Instruction) -> None:
        if lanes is None:
            return
        active = lanes.reshape(-1, WARP).sum(1)
        if ((active != 0) & (active != WARP)).any():
            raise GpuError("divergent instruction", str(where))

    def _by_warp(self, value: Any) -> Any:
        """A value of all threads as (warps, 32)."""
        return np.broadcast_to(value, self.shape).reshape(-1, WARP)

    def _flat(self, value: Any, chosen: Any | None) -> Any:
        """The values of the chosen threads, in one dimension."""
        whole = np.broadcast_to(value, self.shape)
        return whole.reshape(-1) if chosen is None else whole[chosen]

    def both(self, lanes: Any | None, guard: Any) -> Any:
        """The lanes where ``guard`` is true, among ``lanes`` (all where it is None)."""
        return np.broadcast_to(guard, self.shape) if lanes is None else lanes & guard

    # --- memory -----------------------------------------------------------------------------------

    def parameter(self, offset: Any, dtype: Any, lanes: Any | None) -> Any:
        size = np.dtype(dtype).itemsize
        if isinstance(offset, int):
            return self.parameters[offset : offset + size].view(dtype)[0]
        index = np.broadcast_to(offset, self.shape)
        index = np.where(lanes, index, 0) if lanes is not None else index
        parts = [self.parameters.take(index + i) for i in range(size)]
        return np.stack(parts, -1).view(dtype)[..., 0]

    def _index(self, space: str, address: Any) -> Any:
        if space == "global":
            return address - np.int64(self.machine.memory.base)
        if space != "shared":
            raise NotImplementedError(f"{self.kernel.kernel.name}: {space} memory")
        if np.any((address < 0) | (address >= self.shared_size)):
            # Of inactive lanes too; wrapped so that they cannot reach the memory of another block.
            address = np.where(
                (address < 0) | (address >= self.shared_size), self.shared_size - 1, address
            )
        return address + self.shared_start

    def _bytes(self, space: str) -> Bytes:
        return self.machine.memory.bytes if space == "global" else self.shared

    def _not_written(self, where: Instruction) -> None:
        if not self.partial:  # else perhaps by a block that was not run
            raise GpuError("not written", str(where))

    def _observe(
        self, space: str, access: str, index: Any, lanes: Any | None, size: int, site: int
    ) -> None:
        """Look for races and count the costs of an access."""
        where = self.kernel.sites[site]
        if self.machine.count:
            cost = counting.cost(space, self._by_warp(index), lanes, size)
            if where.parts[0] == "cp":  # one instruction with an access to each space
                site = site if space == "shared" else -1 - site
            if site in self.report.accesses:
                self.report.accesses[site] += cost
            else:
                self.report.accesses[site] = cost
        if not self.machine.check:
            return
        flat = self._flat(index, lanes)
        if space == "shared":
            if self.groups or self.copies:
                self._check_pending(flat, size, where)
            if access != "read":
                for part in range(0, size, 4):
                    self.stamps[(flat + part) // 4] = self._flat(self.fences, lanes)
        order = self.orders[space]
        if order is not None and access != "write":
            getattr(order, access)(flat, self._flat(self.me, lanes), size, where)

    def _write(
        self, space: str, index: Any, me: Any, size: int, values: Sequence[Any], where: Instruction
    ) -> None:
        """Write to memory; two threads may write to one place only if they write the same."""
        memory, order = self._bytes(space), self.orders[space]
        if order is None:
            memory.scatter(index, size, values)
            return
        earlier, together = order.write(index, me, size * len(values), where)
        before = memory.gather(index[earlier], size, len(values))
        memory.scatter(index, size, values)
        if not (earlier.any() or together.any()):
            return
        after = memory.gather(index[together], size, len(values))
        for value, old, new in zip(values, before, after, strict=True):
            if (old != value[earlier]).any() or (new != value[together]).any():
                raise GpuError("race", f"two writes, the second at {where}")

    def load(
        self, space: str, address: Any, lanes: Any | None, size: int, count: int, site: int
    ) -> list[Any]:
        index = self._index(space, address)
        chosen = np.asarray(index) if lanes is None else np.broadcast_to(index, self.shape)[lanes]
        memory, where = self._bytes(space), self.kernel.sites[site]
        if not memory.check(chosen, size * count, True, where):
            if space == "global":
                self._not_written(where)
            else:
                self.report.unwritten.add(str(where))
        if self.machine.check or self.machine.count:
            self._observe(space, "read", index, lanes, size * count, site)
        values = memory.gather(chosen, size, count)
        if lanes is None:
            return values
        whole = []
        for value in values:
            filled = np.zeros(self.shape, _UNSIGNED[size])
            filled[lanes] = value
            whole.append(filled)
        return whole

    def store(
        self, space: str, address: Any, lanes: Any | None, size: int, values: Sequence[Any],
        site: int,
    ) -> None:  # fmt: skip
        index = self._index(space, address)
        chosen = self._flat(index, lanes)
        memory = self._bytes(space)
        memory.check(chosen, size * len(values), False, self.kernel.sites[site])
        if self.machine.check or self.machine.count:
            self._observe(space, "write", index, lanes, size * len(values), site)
        self._write(
            space, chosen, self._flat(self.me, lanes), size,
            [self._flat(v, lanes) for v in values], self.kernel.sites[site],
        )  # fmt: skip

    def atomic(
        self, space: str, operation: str, address: Any, lanes: Any | None, value: Any, site: int,
        releases: bool = False, acquires: bool = False,
    ) -> Any:  # fmt: skip
        """The old values; lanes with the same address take effect one after the other."""
        index = self._index(space, address)
        size = value.dtype.itemsize
        chosen = self._flat(index, lanes)
        memory, where = self._bytes(space), self.kernel.sites[site]
        if not memory.check(chosen, size, True, where):
            self._not_written(where)
        if self.machine.check or self.machine.count:
            self._observe(space, "atomic", index, lanes, size, site)
        data = memory.data[size].view(value.dtype)
        old = np.zeros(self.shape, value.dtype)
        flat = chosen // size
        operands = self._flat(value, lanes)
        before = np.empty_like(operands)
        function = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(operation)
        if space == "global":
            self.between_blocks.atomics(flat * size, self.me, lanes, releases, acquires)
        for i, (at, operand) in enumerate(zip(flat.tolist(), operands, strict=True)):
            before[i] = data[at]
            data[at] = operand if function is None else function(data[at], operand)
        old[lanes if lanes is not None else ...] = (
            before.reshape(self.shape) if lanes is None else before
        )
        return old

    # --- asynchronous copies ----------------------------------------------------------------------

    def _check_pending(self, flat: Any, size: int, where: Instruction) -> None:
        for part in range(0, size, 4):
            if self.pending[(flat + part) // 4].any():
                raise GpuError("copy not waited for", str(where))

    def copy(self, to: Any, of: Any, lanes: Any | None, size: int, count: Any, site: int) -> None:
        """cp.async: ``count`` of ``size`` bytes, the others zeros. Takes effect when waited for.

        Accesses of other threads race with both ends of that time.
        """
        where = self.kernel.sites[site]
        everyone = np.ones(self.shape, bool) if lanes is None else lanes
        if not everyone.any():
            return
        destination = self._index("shared", to)
        to_flat = self._flat(destination, everyone)
        counts = self._flat(count, everyone).astype(np.int64)
        source = self._flat(self._index("global", of), everyone)
        self.shared.check(to_flat, size, False, where)
        reads = counts > 0
        memory = self.machine.memory.bytes
        if (source[reads] & (size - 1)).any():
            raise GpuError("misaligned", f"{size} bytes at {where}")
        values = np.zeros((len(to_flat), size), np.uint8)
        for n in np.unique(counts[reads]):
            some = counts == n
            index = source[some]
            if index.min() < 0 or index.max() > memory.size - size:
                raise GpuError("out of bounds", str(where))
            span = index[:, None] + np.arange(n)
            states = memory.state[span]
            if (states == 0).any():
                raise GpuError("out of bounds", str(where))
            if (states != _SHARED_WRITTEN).any():
                self._not_written(where)
            values[some, :n] = memory.data[1][span]
        if self.machine.count or self.machine.check:
            reading = everyone & (np.broadcast_to(count, self.shape) > 0)
            self._observe("shared", "write", destination, everyone, size, site)
            if reading.any():
                at = np.broadcast_to(self._index("global", of), self.shape)
                self._observe("global", "read", at, reading, size, site)
        for part in range(0, size, 4):
            self.pending[(to_flat + part) // 4] = True
        me = self._flat(self.me, everyone)
        order = self.orders["shared"]
        if order is not None:  # it may be written at once, while others still read
            order.write(to_flat, me, size, where)
        self.copies.append(_Copy(to_flat, me, np.flatnonzero(everyone), values, where))

    def commit_copies(self, lanes: Any | None) -> None:
        self.groups.append(self.copies)
        self.copies = []

    def wait_copies(self, pending: int, lanes: Any | None) -> None:
        """All but the last ``pending`` groups have arrived."""
        if lanes is not None and not lanes.reshape(self.shape).all(1)[lanes.any(1)].all():
            raise GpuError("divergent instruction", f"{self.kernel.kernel.name}: cp.async wait")
        while len(self.groups) > pending:
            for copy in self.groups.pop(0):
                size = copy.values.shape[1]
                words = copy.values.view(np.uint32)
                for part in range(0, size, 4):
                    self.pending[(copy.index + part) // 4] = False
                me = self.me.reshape(-1)[copy.lanes]  # written now, by the thread that waits
                parts = [words[:, i] for i in range(size // 4)]
                self._write("shared", copy.index, me, 4, parts, copy.where)

    # --- between lanes ----------------------------------------------------------------------------

    def shuffle(
        self, mode: str, value: Any, by: Any, clamp: Any, members: Any, lanes: Any | None, site: int
    ) -> tuple[Any, Any]:
        self._whole_warps(lanes, self.kernel.sites[site])
        if (self._flat(members, lanes) != 0xFFFFFFFF).any():
            raise NotImplementedError(f"shuffle of some lanes: {self.kernel.sites[site]}")
        lane = np.arange(WARP)
        value, by, clamp = (self._by_warp(v) for v in (value, by, clamp))
        by, clamp = by.astype(np.int64), clamp.astype(np.int64)
        segment = (clamp >> 8) & 31
        last = (lane & segment) | (clamp & 31 & ~segment)
        first = lane & segment
        source = {
            "up": lane - by,
            "down": lane + by,
            "bfly": lane ^ by,
            "idx": first | (by & ~segment & 31),
        }[mode]
        valid = source >= last if mode == "up" else source <= last
        moved = np.take_along_axis(value, np.where(valid, source, lane), 1)
        return moved.reshape(self.shape), valid.reshape(self.shape)

    def reduce(self, operation: str, value: Any, members: Any, lanes: Any | None, site: int) -> Any:
        self._whole_warps(lanes, self.kernel.sites[site])
        if (self._flat(members, lanes) != 0xFFFFFFFF).any():
            raise NotImplementedError(f"reduction of some lanes: {self.kernel.sites[site]}")
        functions = {
            "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
            "or": np.bitwise_or,
        }  # fmt: skip
        value = self._by_warp(value)
        result = functions[operation].reduce(value, axis=1, keepdims=True, dtype=value.dtype)
        return np.broadcast_to(result, (result.shape[0], WARP)).reshape(self.shape)

    def load_matrices(
        self, address: Any, count: int, transposed: bool, lanes: Any | None, site: int
    ) -> list[Any]:
        """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 m + r holds the address of row r."""
        where = self.kernel.sites[site]
        self._whole_warps(lanes, where)
        index = np.broadcast_to(self._index("shared", address), self.shape)
        addressing = np.arange(self.shape[1]) % WARP < 8 * count
        addressing = np.broadcast_to(
            addressing if lanes is None else addressing & lanes, self.shape
        )
        if not self.shared.check(index[addressing], 16, True, where):
            self.report.unwritten.add(str(where))
        if self.machine.check or self.machine.count:
            self._observe("shared", "read", index, addressing, 16, site)
        index = np.where(addressing, index, 0).reshape(-1, WARP)
        halves = self.shared.data[2]
        lane = np.arange(WARP)
        group, rest = lane // 4, lane % 4
        found = []
        for matrix in range(count):
            rows = index[:, 8 * matrix : 8 * matrix + 8] // 2
            if transposed:
                low = halves.take(rows[:, 2 * rest] + group)
                high = halves.take(rows[:, 2 * rest + 1] + group)
            else:
                low = halves.take(rows[:, group] + 2 * rest)
                high = halves.take(rows[:, group] + 2 * rest + 1)
            found.append(arithmetic.join((low, high), np.uint32).reshape(self.shape))
        return found

    def store_matrices(
        self, address: Any, values: Sequence[Any], lanes: Any | None, site: int
    ) -> None:
        """stmatrix, the reverse of ldmatrix."""
        where = self.kernel.sites[site]
        self._whole_warps(lanes, where)
        index = np.broadcast_to(self._index("shared", address), self.shape)
        addressing = np.arange(self.shape[1]) % WARP < 8 * len(values)
        addressing = np.broadcast_to(
            addressing if lanes is None else addressing & lanes, self.shape
        )
        self.shared.check(index[addressing], 16, False, where)
        if self.machine.check or self.machine.count:
            self._observe("shared", "write", index, addressing, 16, site)
        active = np.ones(self.shape, bool) if lanes is None else lanes
        lane = np.arange(WARP)
        for matrix, value in enumerate(values):
            rows = index.reshape(-1, WARP)[:, 8 * matrix + lane // 4] + 4 * (lane % 4)
            rows = rows.reshape(self.shape)[active]
            self._write("shared", rows, self.me[active], 4, [self._flat(value, active)], where)

    def multiply(
        self, shape: str, kind: str, a: Sequence[Any], b: Sequence[Any], c: Sequence[Any],
        lanes: Any | None, site: int,
    ) -> list[Any]:  # fmt: skip
        """mma.sync; the sum is rounded once."""
        self._whole_warps(lanes, self.kernel.sites[site])
        a, b, c = ([self._by_warp(v) for v in operand] for operand in (a, b, c))
        product = tensor_cores.matrix_a(kind, a) @ tensor_cores.matrix_b(kind, b)
        return [d.reshape(self.shape) for d in tensor_cores.add_to(c, product)]

    def multiply_group(
        self, shape: str, kind: str, a: Sequence[Any], a_descriptor: Any | None, b_descriptor: Any,
        c: Sequence[Any], accumulate: Any, transposed: Any, lanes: Any | None, site: int,
    ) -> list[Any]:  # fmt: skip
        """wgmma: four warps multiply; a from registers or shared memory, b from shared memory."""
        where = self.kernel.sites[site]
        if (
            lanes is not None
            and not lanes.reshape(-1, 4 * WARP).all(1)[lanes.reshape(-1, 4 * WARP).any(1)].all()
        ):
            raise GpuError("divergent instruction", str(where))
        columns = int(shape.split("n")[1].split("k")[0])
        depth = 32 // (4 if kind == "tf32" else 2)
        turned = tuple(transposed) if transposed else ()
        turned = tuple(flag == "1" for flag in turned)
        turned = (False,) * (2 - len(turned)) + turned  # of a, of b
        groups = self.shape[0] * self.shape[1] // (4 * WARP)
        start = np.repeat(self.shared_start[:, 0], self.shape[1] // (4 * WARP))

        def from_shared(descriptor: Any, rows: int, flipped: bool) -> Any:
            first = np.broadcast_to(descriptor, self.shape).reshape(groups, -1)[:, 0]
            index = tensor_cores.descriptor_index(first, rows, depth, kind, flipped)
            index = index + start[:, None, None]
            active = np.ones(groups, bool)
            if lanes is not None:
                active = lanes.reshape(groups, -1)[:, 0]
                index = np.where(active[:, None, None], index, start[:, None, None])
            self._products_read(index[active], 4 if kind == "tf32" else 2, active, where)
            raw = self.shared.data[4 if kind == "tf32" else 2].take(
                index // (4 if kind == "tf32" else 2)
            )
            return tensor_cores.widened(kind, raw)

        right = from_shared(b_descriptor, columns, turned[1])  # (groups, columns, depth)
        if a_descriptor is None:
            left = tensor_cores.matrix_a(kind, [self._by_warp(v) for v in a])
            left = left.reshape(groups, 64, depth)
        else:
            left = from_shared(a_descriptor, 64, turned[0])
        product = left @ right.transpose(0, 2, 1)
        kept = self._by_warp(accumulate)
        c = [np.where(kept, self._by_warp(v), np.float32(0)) for v in c]
        product = product.reshape(4 * groups, 16, columns)
        return [d.reshape(self.shape) for d in tensor_cores.add_to(c, product)]

    def _products_read(self, index: Any, size: int, active: Any, where: Instruction) -> None:
        if index.size == 0:
            return
        flat = index.reshape(-1)
        if not self.shared.check(flat, size, True, where):
            self.report.unwritten.add(str(where))
        if not self.machine.check:
            return
        self._check_pending(flat, size, where)
        order = self.orders["shared"]
        assert order is not None
        writer = order.writer[flat // order.granule]
        written = writer > 0
        block = np.searchsorted(self.numbers, writer[written] >> BLOCK)
        fences = self.fences[block, writer[written] & THREAD]
        if (fences <= self.stamps[flat[written] // 4]).any():
            raise GpuError("no proxy fence", f"between writes of shared memory and {where}")
        leaders = self.me.reshape(-1, 4 * WARP)[active, 0]
        leaders = np.repeat(leaders, flat.size // len(leaders)) | MANY
        order.read(flat, leaders, size, where)
        self.products.append((flat, active, size, where))

    def commit_products(self) -> None:
        self.product_groups.append(self.products)
        self.products = []

    def wait_products(self, pending: int) -> None:
        while len(self.product_groups) > pending:
            for flat, active, size, where in self.product_groups.pop(0):
                if (order := self.orders["shared"]) is not None:  # reads may have lasted until now
                    leaders = self.me.reshape(-1, 4 * WARP)[active, 0]
                    leaders = np.repeat(leaders, flat.size // len(leaders)) | MANY
                    order.read(flat, leaders, size, where)

    def fence_proxy(self, lanes: Any | None) -> None:
        self.fences += 1 if lanes is None else lanes.astype(np.int32)


def _join(places: dict[int, Any], number: int, lanes: Any) -> None:
    places[number] = places[number] | lanes if number in places else lanes
