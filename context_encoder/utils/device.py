"""The device of a process, and the process group of distributed training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes in training, as set by torchrun."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        return cls(
            int(os.environ.get("RANK", 0)),
            int(os.environ.get("LOCAL_RANK", 0)),
            int(os.environ.get("WORLD_SIZE", 1)),
        )

    @property
    def first(self) -> bool:
        return self.rank == 0


def choose_device(name: str, processes: Processes) -> torch.device:
    """The device of this process; ValueError if it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:N, got {name!r}")
    if processes.world_size > 1 and ":" in name:
        raise ValueError(
            f"`device` {name} names one device for {processes.world_size} processes; "
            "use `device` cuda"
        )
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"`device` {name}: this torch finds no CUDA device; use `device` cpu")
        if ":" not in name:
            device = torch.device("cuda", processes.local_rank)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"`device` {device}: there are only {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[None]:
    if processes.world_size == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    # Not after an error: it would wait for the other processes.
    dist.destroy_process_group()
