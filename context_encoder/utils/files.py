"""Atomic writing of files and folders.

A file is written under a temporary name in the same folder, flushed to the disk and then renamed,
so that an error, a power cut or a second writer does not leave a partial file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from context_encoder.utils.text import check_regular, read_text

__all__ = [
    "WriteError",
    "check_new_file",
    "check_regular",
    "check_writable",
    "file_digest",
    "is_temporary",
    "make_folder",
    "point",
    "pointed_at",
    "read_text",
    "remove_folder",
    "remove_unfinished",
    "rename_folder",
    "reported",
    "save_tensors",
    "scratch_folder",
    "write_file",
    "write_folder",
]

#: Text (UTF-8), bytes, or a function that writes to the path that it is given.
Content = str | bytes | Callable[[Path], object]

_ADVICE = {
    errno.ENOSPC: "free some, or write elsewhere",
    errno.EDQUOT: "free some, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "change its permissions, or write elsewhere",
    errno.EPERM: "change its permissions, or write elsewhere",
    errno.ENOENT: "make its folder first",
}
# safetensors reports operating-system errors as text only.
_SAFETENSORS_CODE = re.compile(r"(?:code:|os error) (\d+)")
# Leaves room for the suffix of a temporary name within the 255 bytes of a file name.
_LONGEST_STEM = 40
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.new")
# What os.symlink reports on file systems without symbolic links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


class WriteError(OSError):
    """A file or folder cannot be written; ``filename`` is its path, ``errno`` the cause."""

    errno: int
    strerror: str
    filename: str

    def __init__(self, code: int, reason: str, path: str) -> None:
        super().__init__(code, reason, path)

    @classmethod
    def of(cls, error: OSError, path: str | os.PathLike[str]) -> WriteError:
        """The error of writing to ``path`` for an error of the operating system."""
        return cls(error.errno or errno.EIO, error.strerror or str(error), os.fspath(path))

    def __str__(self) -> str:
        reason = self.strerror[:1].lower() + self.strerror[1:]
        advice = _ADVICE.get(self.errno, "")
        return f"cannot write {self.filename}: {reason}" + (advice and f"; {advice}")


def write_file(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file completely or not at all.

    Links are followed. A replaced file keeps its permissions; a new one gets those that the
    umask allows.

    Args:
        path: the file; its folder must exist.
        content: see :data:`Content`. Errors of a function are passed on, an OSError as WriteError.

    Raises:
        WriteError: the file cannot be written; gives path and cause. An old file is kept, and no
            temporary file is left.
    """
    target = Path(os.path.realpath(path))
    with reported(path), _temporary(target) as new:
        if callable(content):
            content(new)
        else:
            # File names that are not valid UTF-8 appear in texts as lone surrogates.
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
    """Write contiguous CPU tensors as a safetensors file; see :func:`write_file`."""

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
    """Write a new folder completely or not at all.

    It is filled under a temporary name, flushed to the disk and then renamed. After a crash, only
    a folder with the temporary name can remain: see :func:`remove_unfinished`.

    Args:
        folder: the folder, which must not exist; its parents are created.
        fill: called with an empty folder; writes its files with this module's functions.

    Raises:
        WriteError: the folder exists or cannot be written; gives path and cause.
    """
    with reported(folder):
        if os.path.lexists(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.makedirs(folder.parent, exist_ok=True)
        new = _temporary_name(folder)
        os.mkdir(new)
        try:
            fill(new)
            # Flushed before the rename: otherwise a power cut could leave the name without the
            # files.
            _sync_folder(new)
            os.rename(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _sync_folder(folder.parent)


def point(pointer: Path, name: str) -> None:
    """Let a symbolic link point at a file or folder beside it, in one step.

    Where the file system has no symbolic links, a file with the name replaces the link.

    Args:
        pointer: the link; an old link or file of this name is replaced.
        name: name of an entry of the same folder.

    Raises:
        WriteError: the link cannot be written; the old one is kept.
    """
    new = _temporary_name(pointer)
    with reported(pointer):
        try:
            os.symlink(name, new)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_file(pointer, f"{name}\n")
            return
        try:
            os.replace(new, pointer)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        _sync_folder(pointer.parent)


def pointed_at(pointer: Path) -> Path | None:
    """The entry that :func:`point` made a pointer for; None without a pointer.

    Existence of the entry is not checked. A folder that has the pointer's name stands for itself.
    """
    if pointer.is_symlink():
        return pointer.parent / os.readlink(pointer)
    if pointer.is_file():
        return pointer.parent / (read_text(pointer, most=4096).strip() or "?")
    return pointer if pointer.is_dir() else None


def remove_unfinished(folder: Path) -> None:
    """Remove what functions of this module left under temporary names when they were killed."""
    for entry in folder.glob(".*.new"):
        if is_temporary(entry):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()


def rename_folder(folder: Path, name: str) -> Path:
    """Rename a folder; WriteError if it cannot be renamed."""
    target = folder.with_name(name)
    with reported(folder):
        os.rename(folder, target)
    return target


def remove_folder(folder: Path) -> None:
    """Remove a folder; a crash leaves it whole, or what :func:`remove_unfinished` removes.

    Raises:
        WriteError: it cannot be removed.
    """
    gone = _temporary_name(folder)
    with reported(folder):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed during the work only, removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def is_temporary(path: Path) -> bool:
    """Whether a name is one of those that are used until a file or folder is complete."""
    return _TEMPORARY.fullmatch(path.name) is not None


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a regular file, in hexadecimal digits; OSError as :func:`read_text`."""
    check_regular(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Create a folder and its parents if missing; WriteError if they cannot be created."""
    with reported(folder):
        os.makedirs(folder, exist_ok=True)


def check_new_file(
    path: Path, suffixes: Sequence[str], *, overwrite: bool, name: str = "out"
) -> None:
    """Check the file that a command will write before the work begins.

    Args:
        path: the file; its parents will be created.
        suffixes: the allowed suffixes.
        overwrite: whether the file may already exist.
        name: the parameter that names it.

    Raises:
        ValueError: another suffix.
        FileExistsError: the file exists.
        WriteError: the file cannot be written.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"`{name}` {path} must end in {' or '.join(suffixes)}")
    check_writable(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is already there; replace it with `overwrite`")


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """WriteError if a file cannot be written; for checks before long work.

    A file is created and removed in the nearest existing parent folder; nothing else is created.

    Args:
        path: the file, whose missing parents will be created.
        folder: whether ``path`` is a folder that files will be written in.
    """
    target = Path(os.path.realpath(path))
    with reported(path):
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
    """A new empty file in the folder of ``target``; removed at the end if still there."""
    new = _temporary_name(target)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield new
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def _temporary_name(target: Path) -> Path:
    # With this suffix it is not mistaken for an image or a result.
    return target.with_name(f".{target.name[:_LONGEST_STEM]}.{secrets.token_hex(6)}.new")


@contextlib.contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an OSError as a WriteError for ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError.of(error, path) from error


def _mode_of_old(target: Path) -> int | None:
    """The permissions of the file to replace, or None; OSError if it must not be replaced.

    A rename alone would also replace a device or a file without write permission.
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
    """Wait until a folder's entries are on the disk, where the file system supports it."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
