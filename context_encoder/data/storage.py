"""Reading from storage that fails for a while, as network file systems do.

A file that cannot be read is one of two things: damaged, which stays so, or on storage that does
not answer. The latter is tried again, and ends the work if it lasts.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["PATIENCE", "StorageError", "is_transient", "patient"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds for which a read is tried again before the storage counts as out of reach.
PATIENCE = 60.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
# From this pause on, a wait is worth a line in the log.
_LONG_PAUSE = 1.0

# What storage answers when it is not well; a damaged or forbidden file has other errors.
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EIO ESTALE EREMOTEIO ETIMEDOUT EAGAIN EBUSY EINTR ENXIO ENODEV ENOLINK ECOMM ENOTCONN "
        "ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH "
        "ENETRESET EPIPE ESHUTDOWN EMFILE ENFILE ENOMEM ENOBUFS"
    ).split()
    if hasattr(errno, name)
}
_GONE = {errno.ENOENT, errno.ENOTDIR}


class StorageError(OSError):
    """Files that were there cannot be reached any more; the message says which and why."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[StorageError], tuple[str]]:
        return type(self), (str(self),)


def _os_error(error: BaseException) -> OSError | None:
    """The error of the operating system that caused another one; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (cause.errno or isinstance(cause, _NETWORK)):
            return cause
        cause = cause.__cause__
    return None


_NETWORK = (TimeoutError, ConnectionError)  # raised by libraries without a number


def is_transient(error: BaseException) -> bool:
    """Whether the storage caused an error, and not the file."""
    cause = _os_error(error)
    return cause is not None and (cause.errno in _TRANSIENT or isinstance(cause, _NETWORK))


def _is_gone(error: BaseException) -> bool:
    cause = _os_error(error)
    return cause is not None and cause.errno in _GONE


def _reachable(source: Any) -> bool:
    """Whether the folder of a file, or what holds a member of an archive, can be used."""
    own = getattr(source, "is_reachable", None)
    if own is not None:
        return bool(own())
    try:
        with os.scandir(os.path.dirname(os.path.abspath(source))) as entries:
            return next(entries, None) is not None  # the place of a file system may be empty
    except OSError:
        return False


def patient(read: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Make a function that reads a file try again while the storage fails.

    It waits for :data:`PATIENCE` seconds in all, with pauses that double from 0.05 to 5 seconds.
    A file that cannot be read then, while its folder can, raises its own error. A missing file is
    not waited for, unless its folder is missing or empty too.

    Args:
        read: takes the file as its first argument, and may raise any error.

    Returns:
        The function; it also raises StorageError if the storage is out of reach.
    """

    @functools.wraps(read)
    def reading(source: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        pause, end = _FIRST_PAUSE, time.monotonic() + PATIENCE
        while True:
            try:
                return read(source, *args, **kwargs)
            except StorageError:
                raise
            except Exception as error:
                if not (is_transient(error) or (_is_gone(error) and not _reachable(source))):
                    raise
                left = end - time.monotonic()
                if left <= 0:
                    if _reachable(source):
                        raise
                    cause = _os_error(error)
                    reason = (cause and cause.strerror) or str(cause)
                    raise StorageError(
                        f"the storage of {source} has not answered for {PATIENCE:g} s: {reason}"
                    ) from error
                if pause >= _LONG_PAUSE:
                    log.warning("%s; trying again for %.0f s", error, left)
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)

    return reading
