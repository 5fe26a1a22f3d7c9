"""What orders accesses of different blocks: fences and atomic operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.helpers.ptx.memory import Order

Threads = NDArray[np.int64]  # the thread at a time of each thread, (blocks, threads)


class Fences:
    """Of blocks that run together, what their atomic operations publish and observe.

    A fence before an atomic operation publishes what its thread has seen and done until then; a
    fence behind one learns what those before it at the same place have published.
    """

    def __init__(self, order: Order | None, shape: tuple[int, int]) -> None:
        self.order = order
        self.fenced = np.zeros(shape, np.int64)  # the thread at a time of the last fence
        self.observed: dict[int, list[int]] = {}  # by thread, since its last fence

    def atomics(
        self,
        places: NDArray[np.int64],
        me: Threads,
        lanes: NDArray[np.bool_] | None,
        releases: bool,
        acquires: bool,
    ) -> None:
        """An operation per chosen thread, one after the other; they may contain a fence."""
        if self.order is None:
            return
        chosen = np.flatnonzero(np.ones(me.shape, bool) if lanes is None else lanes)
        now = me.reshape(-1)[chosen]
        fenced = now if releases else self.fenced.reshape(-1)[chosen]
        for place, time, fence, thread in zip(
            places.tolist(), now.tolist(), fenced.tolist(), chosen.tolist(), strict=True
        ):
            others = self.order.published.setdefault(place, [])
            if others and acquires:
                self.order.learn(time, others)
            elif others:
                self.observed.setdefault(thread, []).extend(others)
            if fence:
                others.append(fence)

    def fence(self, me: Threads, lanes: NDArray[np.bool_] | None) -> None:
        """A fence for all threads of the GPU."""
        if self.order is None:
            return
        everyone = np.ones(me.shape, bool) if lanes is None else lanes
        self.fenced = np.where(everyone, me, self.fenced)
        for thread in [n for n in self.observed if everyone.flat[n]]:
            self.order.learn(int(me.flat[thread]), self.observed.pop(thread))
