"""What the processes of a training tell each other, apart from gradients.

It goes through gloo and the CPU, so that a step does not wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from context_encoder.utils.device import Processes

__all__ = ["Agreement"]

#: The first process validates and writes while the others wait. A process that has died or stands
#: still is noticed much earlier, see :mod:`context_encoder.training.watch`.
LONGEST_WAIT = timedelta(hours=12)


class Agreement:
    """Common decisions of the processes that train together; with one process, its own.

    Every process must make the same calls in the same order.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._group: Any = None
        self._flags = torch.zeros(0)
        self._pending: Any = None
        if processes.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Whether a flag was set in any process, at this call or the one before.

        With several processes the result is that of the flags of the last call, which arrived
        while the step was computed; at the first call, of those of this one.
        """
        if self._group is None:
            return list(flags)
        if self._pending is None:
            self._send(flags)
        self._pending.wait()
        decided = [bool(flag) for flag in self._flags.tolist()]
        self._send(flags)
        return decided

    def _send(self, flags: Sequence[bool]) -> None:
        self._flags = torch.tensor([float(flag) for flag in flags])
        self._pending = dist.all_reduce(
            self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True
        )

    def finish(self) -> None:
        """Wait for the flags that are still on their way."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._processes.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of the first process."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]
