"""Batches of training and evaluation photographs."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
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
    "end_workers",
    "make_loader",
    "sample_loader",
    "start_worker",
]


log = logging.getLogger(__name__)

# Seconds without a batch after which there is a warning.
_LONG_WAIT = 30.0


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


class _Reported(Dataset[Any]):
    """Samples, or the error that ends the work, so that it crosses from a worker as it is."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.data[key]
        except (DataError, StorageError) as error:
            return error


def _collated(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    return errors[0] if errors else collate(samples)


class _Loader(DataLoader[Any]):
    """Raises the errors of :class:`_Reported` in place of their batch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        others = set(multiprocessing.active_children())
        batches = super().__iter__()  # starts the workers at once
        started = [p for p in multiprocessing.active_children() if p not in others]
        return _raising(batches, started)


def _raising(batches: Iterator[Any], workers: Sequence[BaseProcess]) -> Iterator[Any]:
    with _Wait(workers) as wait:
        while True:
            wait.begin()
            batch = next(batches, None)
            wait.end()
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _Wait:
    """Warns when no batch comes for 30 seconds, and names workers that are stopped (SIGSTOP)."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self._workers = workers
        self._begun: float | None = None
        self._over = threading.Event()

    def __enter__(self) -> _Wait:
        if self._workers:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def begin(self) -> None:
        self._begun = time.monotonic()

    def end(self) -> None:
        self._begun = None

    def _watch(self) -> None:
        warned = None
        while not self._over.wait(_LONG_WAIT / 10):
            begun = self._begun
            if begun is None or begun == warned or time.monotonic() - begun < _LONG_WAIT:
                continue
            warned = begun
            stopped = [str(w.pid) for w in self._workers if _is_stopped(w.pid)]
            which = f": data process {', '.join(stopped)} is stopped" if stopped else ""
            log.warning("no batch for %.0f s%s", time.monotonic() - begun, which)


def _is_stopped(pid: int | None) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # ended, or not Linux
        return False
    return status.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def end_workers(workers: Iterable[BaseProcess] | None = None, patience: float = 3.0) -> None:
    """End data processes: those that do not obey within ``patience`` seconds are killed.

    Args:
        workers: the processes; None for all daemons that this process has started.
        patience: seconds for all of them together.
    """
    if workers is None:
        workers = [child for child in multiprocessing.active_children() if child.daemon]
    workers = list(workers)
    for worker in workers:
        worker.terminate()
    until = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
        if worker.is_alive():  # stopped, or in a call of the system that does not return
            worker.kill()


@functools.cache
def _end_workers_at_exit() -> None:
    """Python itself would wait without limit for a worker that is stopped."""
    atexit.register(end_workers)


def sample_loader(
    data: Dataset[Any],
    *,
    batch_size: int,
    sampler: Iterable[Any],
    collate: Callable[[list[Any]], Any],
    workers: int,
    **options: Any,
) -> DataLoader[Any]:
    """A loader of samples by key, whose workers end with this process, see :func:`start_worker`.

    Torch's global random state is neither read nor advanced.

    Args:
        data: the samples.
        batch_size: samples per batch.
        sampler: the keys.
        collate: makes a batch from samples.
        workers: processes that read, with one thread each; 0: this process does it.
        options: further arguments of torch's DataLoader.

    Raises:
        DataError, StorageError: in the iteration, in place of a batch with such a sample.
    """
    if workers:
        _end_workers_at_exit()
    return _Loader(
        _Reported(data),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=functools.partial(_collated, collate),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # otherwise each iterator draws from the global one
        **options,
    )


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
    return sample_loader(
        photos,
        batch_size=stream.local_batch_size,
        sampler=stream
        if photos.train
        else [(0, index) for index in range(rank, len(photos), world_size)],
        collate=collate,
        workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=context if workers else None,
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
