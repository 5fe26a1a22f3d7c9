"""Crashes and errors at a chosen file operation of this process.

Python reports every operation on files to audit hooks before it is done, those of libraries that
are written in Python too. A hook cannot be removed, so it is set in forked processes only.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import torch

CRASHED = 9
_CHANGES = {
    "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.truncate",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def at_operation(
    number: int, action: Callable[[], None], *, onward: bool = False
) -> Callable[[], int]:
    """Call ``action`` before the file operation ``number``, from 1; the result counts them.

    With ``onward``, before all later operations too.
    """
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event not in _CHANGES:
            return
        count += 1
        if count == number or (onward and count > number):
            action()

    sys.addaudithook(hook)
    return lambda: count


def crash() -> None:
    """End the process as SIGKILL does: nothing is flushed or cleaned up."""
    os._exit(CRASHED)


def in_fork(work: Callable[[], int]) -> int:
    """The result of ``work``, below 256, in a forked process."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
