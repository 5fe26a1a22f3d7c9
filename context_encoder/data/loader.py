"""Batches of training and evaluation photographs."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from context_encoder.data.folder import (
    PhotoFolder,
    Sample,
)
from context_encoder.data.replacing import DataError
from context_encoder.data.sampler import SampleStream
from context_encoder.data.storage import StorageError

__all__ = [
    "Batch",
    "collate",
    "make_loader",
    "start_worker",
]


class Batch(TypedDict):
    """A batch of B samples from :func:`make_loader`."""

    image: torch.Tensor  #: uint8, (B, 3, S, S), RGB
    epoch: torch.Tensor  #: int64, (B,)
    index: torch.Tensor  #: int64, (B,)
    source: torch.Tensor  #: int64, (B,): number of the file that was read
    upsampled: torch.Tensor  #: bool, (B,): the file is smaller than S
    #: (name, reason) of the files found unreadable while this batch was made. Each worker
    #: reports a file once, so several workers may report the same file.
    unreadable: list[tuple[str, str]]


class _Reported(Dataset[Sample]):
    """Samples, or the error that ends the run, so that it crosses from a worker as it is."""

    def __init__(self, photos: PhotoFolder) -> None:
        self.photos = photos

    def __getitem__(self, key: tuple[int, int]) -> Any:
        try:
            return self.photos[key]
        except (DataError, StorageError) as error:
            return error


def _collate(samples: Sequence[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    return errors[0] if errors else collate(samples)


class _Loader(DataLoader[Sample]):
    """Raises the errors of :class:`_Reported` in place of their batch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _raising(super().__iter__())  # starts the workers at once


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a :class:`Batch`."""
    return Batch(
        # In a worker, default_collate stacks straight into shared memory.
        image=default_collate([sample["image"] for sample in samples]),
        epoch=torch.tensor([sample["epoch"] for sample in samples]),
        index=torch.tensor([sample["index"] for sample in samples]),
        source=torch.tensor([sample["source"] for sample in samples]),
        upsampled=torch.tensor([sample["upsampled"] for sample in samples]),
        unreadable=[failure for sample in samples for failure in sample["unreadable"]],
    )


def make_loader(
    photos: PhotoFolder,
    *,
    batch_size: int,
    workers: int = 0,
    start_step: int = 0,
    num_steps: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    context: str | None = None,
) -> DataLoader[Sample]:
    """A loader of :class:`Batch` dictionaries, the same for any number of workers.

    For training photographs it follows the :class:`SampleStream` with the data set's seed:
    create one iterator and take one batch per step. For evaluation photographs it yields every
    sample once, in order (process ``rank`` takes every ``world_size``-th), with a smaller last
    batch if the number is not a multiple.

    Torch's global random state is neither read nor advanced.

    Args:
        photos: the data set.
        batch_size: samples per step, over all processes together.
        workers: processes that read and crop, with one thread each; 0: this process does it.
        start_step: training only: the first step to yield, to resume a run.
        num_steps: training only: number of steps to yield; ``None``: without end.
        rank: this process among those that train together.
        world_size: number of those processes; divides ``batch_size``.
        pin_memory: use pinned memory, for asynchronous copies to a GPU.
        context: start method of the workers: ``"fork"``, ``"spawn"``, ``"forkserver"``; ``None``:
            the default of the system.

    Raises:
        ValueError: an argument is out of its range.
        DataError, StorageError: in the iteration, in place of a batch, see :class:`PhotoFolder`.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    stream = SampleStream(
        len(photos),
        seed=photos.seed,
        batch_size=batch_size,
        start_step=start_step,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
    )
    if not photos.train and (start_step or num_steps is not None):
        raise ValueError("start_step and num_steps are for training; evaluation takes all samples")
    return _Loader(
        _Reported(photos),
        batch_size=stream.local_batch_size,
        sampler=stream
        if photos.train
        else [(0, index) for index in range(rank, len(photos), world_size)],
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=context if workers else None,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # otherwise each iterator draws from the global one
    )


def start_worker(_: int) -> None:
    """The ``worker_init_fn`` of every data loader: sets how a worker handles signals.

    Terminals, Slurm, systemd, timeout and torchrun send signals to every process. A worker ignores
    them, as the main process still needs batches to finish its step. SIGTERM from the main process
    itself, which ends its workers with it after an error, is obeyed at once, and so is its end.
    """
    for number in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_IGN)
    sys.excepthook = _report
    main = multiprocessing.parent_process()  # with forkserver it is not the one of os.getppid
    if main is None:
        return
    if hasattr(signal, "sigwaitinfo"):  # elsewhere any SIGTERM ends the worker, as torch has it
        # Blocked before other threads start, which inherit that, it waits for the one below.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(main.pid,), daemon=True).start()
    threading.Thread(target=_end_after, args=(main.sentinel,), daemon=True).start()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """No traceback for a connection that ended with the main process."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(0)


def _obey(main: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
