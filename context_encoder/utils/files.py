"""Atomic writing of files and folders: what is there is old or new, never half of either.

A file is written beside its place under a name of its own, flushed to the disk and then renamed,
so that neither an error, nor a power cut, nor a second writer leaves a part of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "WriteError",
    "check_new_file",
    "check_writable",
    "make_folder",
    "save_tensors",
    "write_file",
    "write_folder",
]

#: Text (UTF-8), bytes, or a function that writes to the path that it is called with.
Content = str | bytes | Callable[[Path], object]

_ADVICE = {
    errno.ENOSPC: "free some, or write elsewhere",
    errno.EDQUOT: "free some, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "change its permissions, or write elsewhere",
    errno.EPERM: "change its permissions, or write elsewhere",
    errno.ENOENT: "make its folder first",
}
# safetensors reports errors of the system as text only.
_SAFETENSORS_CODE = re.compile(r"code: (\d+)")
# Room for the suffix of a temporary name within the 255 bytes of a file name.
_LONGEST_STEM = 40


class WriteError(OSError):
    """A file or folder that cannot be written; ``filename`` says which, ``errno`` why."""

    errno: int
    strerror: str
    filename: str

    def __init__(self, code: int, reason: str, path: str) -> None:
        super().__init__(code, reason, path)

    def __str__(self) -> str:
        reason = self.strerror[:1].lower() + self.strerror[1:]
        advice = _ADVICE.get(self.errno, "")
        return f"cannot write {self.filename}: {reason}" + (advice and f"; {advice}")


def write_file(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file whole or not at all.

    A link is followed. A file that is replaced passes its permissions on; a new one gets those
    that the umask leaves.

    Args:
        path: the file; its folder must be there.
        content: see :data:`Content`. What a function raises is passed on, an OSError as WriteError.

    Raises:
        WriteError: the path and the cause. The old file is then still there, if there was one, and
            no temporary file is left.
    """
    target = Path(os.path.realpath(path))
    with _reported(path), _temporary(target) as new:
        if callable(content):
            content(new)
        else:
            # Names of files that are no valid UTF-8 reach texts as lone surrogates.
            if isinstance(content, str):
                content = content.encode("utf-8", "backslashreplace")
            new.write_bytes(content)
        old = _mode_of_old(target)
        if old is not None and old != stat.S_IMODE(os.stat(new).st_mode):
            os.chmod(new, old)
        _sync(new)
        os.replace(new, target)
        _sync_folder(target.parent)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write contiguous tensors on the CPU as a safetensors file, as :func:`write_file` does."""

    def save(new: Path) -> None:
        mode = stat.S_IMODE(os.stat(new).st_mode)
        try:
            save_file(dict(tensors), new, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            code = _SAFETENSORS_CODE.search(str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(new)) from error
        os.chmod(new, mode)

    write_file(path, save)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder beside its place, then put it there.

    A folder cannot be replaced in one step: cut off between two renames, the one before lies at
    ``.NAME.old``.

    Args:
        folder: its parents are made.
        fill: called with an empty folder; files in it are written by this module's functions.

    Raises:
        WriteError: the path and the cause.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    with _reported(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        fill(new)
        # On the disk before it takes the other's place, or a power cut could leave neither.
        _sync_folder(new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and its parents, unless it is there; WriteError if that cannot be."""
    with _reported(folder):
        os.makedirs(folder, exist_ok=True)


def check_new_file(path: Path, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Check a file that a command is to write, the parameter ``out``, before the work begins.

    Args:
        path: the file; its parents will be made.
        suffixes: what its name may end in.
        overwrite: whether it may be there already.

    Raises:
        ValueError: another suffix.
        FileExistsError: it is there.
        WriteError: it cannot be written.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"`out` {path} must end in {' or '.join(suffixes)}")
    check_writable(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is already there; replace it with `overwrite`")


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """WriteError if a file cannot be written, so that it is told before long work and not after.

    A file is made and removed in the nearest folder above that is there; nothing else is made.

    Args:
        path: the file, whose missing parents will be made.
        folder: whether ``path`` is a folder that files will be written in.
    """
    target = Path(os.path.realpath(path))
    with _reported(path):
        if not folder:
            _mode_of_old(target)
            target = target.parent
        while not target.exists() and target != target.parent:
            target = target.parent
        if not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{target} is a file, not a folder")
        with _temporary(target / "check"):
            pass


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """An empty file beside ``target`` that nobody else has; removed at the end if still there."""
    # The suffix keeps it from being taken for an image or a result.
    new = target.with_name(f".{target.name[:_LONGEST_STEM]}.{secrets.token_hex(6)}.new")
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield new
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


@contextlib.contextmanager
def _reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an OSError as a WriteError of ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        code = error.errno or errno.EIO
        raise WriteError(code, error.strerror or str(error), os.fspath(path)) from error


def _mode_of_old(target: Path) -> int | None:
    """The permissions of the file that is to be replaced, None without one; OSError if it may not.

    A rename would replace a device or a file without write permission, too.
    """
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe; name a file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk, where the file system can say so."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
