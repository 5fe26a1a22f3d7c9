"""Lock of a run folder, so that two trainings cannot write into it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from context_encoder.runs.checkpoint import RunError
from context_encoder.utils.files import WriteError, check_regular

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("context_encoder")

LOCK_FILE = ".lock"


class Lock:
    """An exclusive lock of a folder: a record lock of the file ``.lock`` in it.

    The system releases it when the process ends, however it ends. Child processes do not inherit
    it. It works over NFS; on a file system without locks there is a warning and no lock.

    Args:
        folder: the folder.
        who: what writes into it, for the message.

    Raises:
        RunError: another process holds it.
        WriteError: the file cannot be made.
    """

    def __init__(self, folder: Path, who: str = "training") -> None:
        file = folder / LOCK_FILE
        self._descriptor: int | None = None
        try:
            if file.exists():
                check_regular(file)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise WriteError.of(error, file) from error
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise RunError(
                    f"another {who} writes into {folder}"
                    f"{f' ({holder})' if holder else ''}; wait for its end or stop it, or name "
                    "another place with `out`"
                ) from None
            log.warning("%s cannot be locked: %s", folder, error.strerror)
            return
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # a full disk: the text is for people only
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
