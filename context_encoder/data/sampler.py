"""The endless stream of training samples, which resumes from a step number alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

__all__ = ["SampleStream"]


class SampleStream(Sampler[tuple[int, int]]):
    """Keys ``(epoch, index)`` of the samples of all batches from ``start_step`` on.

    Sample number ``n = step * batch_size + position`` belongs to epoch ``n // length`` and is
    the entry ``n % length`` of that epoch's permutation, a function of ``(seed, epoch)``. So
    each index occurs once per epoch, a batch may span epochs, and there is no state.

    With several processes, each takes ``batch_size / world_size`` consecutive samples of every
    batch: concatenated in the order of ranks they are the stream of a single process.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        num_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            length: number of samples per epoch.
            seed: seed of the permutations, at least 0.
            batch_size: samples per step, over all processes together.
            start_step: first step to yield.
            num_steps: number of steps to yield; ``None``: without end.
            rank: this process, in ``range(world_size)``.
            world_size: number of processes; divides ``batch_size``.

        Raises:
            ValueError: an argument is out of its range.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1 sample, got {length}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if start_step < 0 or (num_steps is not None and num_steps < 0):
            raise ValueError(
                "start_step and num_steps must be at least 0, "
                f"got start_step={start_step}, num_steps={num_steps}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in range({world_size}), got {rank}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size must be a positive multiple of the number of processes "
                f"({world_size}), got {batch_size}"
            )
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.start_step = start_step
        self.num_steps = num_steps
        self.rank = rank
        self.world_size = world_size

    @property
    def local_batch_size(self) -> int:
        """Samples per step in this process."""
        return self.batch_size // self.world_size

    def __len__(self) -> int:
        """Number of samples for this process; TypeError if the stream has no end."""
        if self.num_steps is None:
            raise TypeError("a stream without num_steps has no length")
        return self.num_steps * self.local_batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        current, order = -1, np.empty(0, np.int64)
        steps = itertools.count(self.start_step)
        for step in itertools.islice(steps, self.num_steps):
            first = step * self.batch_size + self.rank * self.local_batch_size
            for n in range(first, first + self.local_batch_size):
                epoch, position = divmod(n, self.length)
                if epoch != current:
                    current, order = epoch, self._permutation(epoch)
                yield epoch, int(order[position])

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy keeps the raw output of its bit generators fixed between versions, but not the
        # results of Generator.permutation.
        bits = np.random.Philox(np.random.SeedSequence((self.seed, epoch)))
        return np.argsort(bits.random_raw(self.length), kind="stable")
