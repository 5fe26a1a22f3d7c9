"""Errors of the system and of libraries in one line."""

from __future__ import annotations

import os
import re

import torch
from torch.distributed import DistError

__all__ = ["is_connection_error", "lacks_temporary", "os_reason", "outside_reason"]

_ALLOCATION = re.compile(
    r"can't allocate memory|not enough memory|Cannot allocate memory|std::bad_alloc"
    r"|can't start new thread|unable to mmap|unable to open shared memory|pthread_create"
)
_CONNECTION = r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Timed out waiting|process group"
_LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ?(.*)", re.DOTALL)
_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process")


def os_reason(error: OSError) -> str:
    """The message of an OSError, with its file, without a number."""
    if lacks_temporary(error):
        return (
            "no space left, or no permission, in any of the folders for temporary files "
            "(/tmp and others); free some, or name one with TMPDIR"
        )
    plain = type(error).__str__ is OSError.__str__
    if plain and error.errno and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
    return str(error)


def lacks_temporary(error: OSError) -> bool:
    """Whether Python found no folder for temporary files, as when every disk is full."""
    return str(error.strerror).startswith("No usable temporary directory")


def outside_reason(error: BaseException) -> str | None:
    """One line for an error that has its cause outside the program; None for other errors.

    These are errors of the operating system, too little memory, and data processes that failed.
    """
    text = str(error)
    inside = _IN_WORKER.match(text)
    if inside is not None and inside[1] in ("ValueError", "UnreadableImage"):
        last = text.strip().splitlines()[-1]
        return last.partition(": ")[2] or last
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory; lower `batch_size` or the image size"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and _ALLOCATION.search(text)
    ):
        return "out of memory; lower `batch_size`, `workers` or the image size"
    lost = _LOST_WORKER.match(text) if isinstance(error, RuntimeError) else None
    if lost is not None:
        how = "ended by the signal" if "killed by signal" in lost[2] else "ended"
        named = re.search(r"killed by signal: ([\w ]+)", lost[2])
        return (
            f"data process {lost[1]} was {how}{f' {named[1].lower()}' if named else ''}, which "
            "happens when the memory or the shared memory (/dev/shm) is full; lower `workers` or "
            "`batch_size`"
        )
    if isinstance(error, OSError):
        return os_reason(error) if inside is None else text.strip().splitlines()[-1]
    return None


def is_connection_error(error: RuntimeError) -> bool:
    """Whether an operation between processes failed, rather than a computation."""
    return isinstance(error, DistError) or re.search(_CONNECTION, str(error)) is not None
