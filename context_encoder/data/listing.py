"""Lists of image files: a folder, or a text file that names them.

Lists may have millions of entries, so they hold names only, and make paths on demand.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from context_encoder.data.storage import is_transient, patient
from context_encoder.utils.text import read_lines

__all__ = ["FileList", "ImageList", "list_folder", "read_manifest", "relative_names"]

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741
L = TypeVar("L", bound="ImageList[Any]")


class ImageList(Sequence[I], Generic[I]):
    """Images in a fixed order, made on access, with their names.

    Attributes:
        root: the folder that names are relative to.
        names: with forward slashes and in NFC, equal on all systems.
    """

    root: Path
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> I: ...
    @overload
    def __getitem__(self: L, index: slice) -> L: ...
    def __getitem__(self, index: int | slice) -> I | ImageList[I]:
        if isinstance(index, slice):
            return self.chosen(range(len(self))[index])
        return self.image(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[I]) -> list[I]:
        return [*self, *other]

    @abstractmethod
    def image(self, number: int) -> I:
        """The image with a number in ``range(len(self))``."""

    @abstractmethod
    def chosen(self: L, numbers: Iterable[int]) -> L:
        """The list of some of the images."""


class FileList(ImageList[Path]):
    """Files in a folder.

    Args:
        root: the folder.
        files: their paths relative to it, as the system has them.
    """

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        named = sorted((_normalized(file), file) for file in files)
        self.root = root
        self.names = [name for name, _ in named]
        raw = [file for _, file in named]
        #: The names as the system has them.
        self.files = self.names if raw == self.names else raw

    def image(self, number: int) -> Path:
        return self.root / self.files[number]

    def chosen(self, numbers: Iterable[int]) -> FileList:
        numbers = list(numbers)
        some = object.__new__(type(self))
        some.root = self.root
        some.names = [self.names[i] for i in numbers]
        same = self.files is self.names
        some.files = some.names if same else [self.files[i] for i in numbers]
        return some


def _normalized(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def relative_names(paths: Sequence[Any], root: str | os.PathLike[str]) -> list[str]:
    """The names of images relative to ``root``, as :class:`ImageList` has them."""
    if isinstance(paths, ImageList) and paths.root == Path(root):
        return paths.names
    return [
        _normalized(path.relative_to(root).as_posix() if isinstance(path, Path) else path.name)
        for path in (Path(p) if isinstance(p, str) else p for p in paths)
    ]


def list_folder(root: Path, suffixes: tuple[str, ...]) -> FileList:
    """The files in a folder and its subfolders with one of the suffixes (lower case).

    Names that begin with a dot and ``__MACOSX`` folders are skipped. Links are followed, each
    folder once. Subfolders that cannot be listed are named in the log.

    Raises:
        StorageError: a folder is out of reach.
        OSError: ``root`` cannot be listed.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()  # folders by device and inode: links may form loops
    waiting = [""]
    while waiting:
        where = waiting.pop()
        folder = root / where if where else root
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders, files = _entries(folder)
        except OSError as error:
            if not where:
                raise
            log.warning("images in %s are left out: %s", folder, error.strerror)
            continue
        prefix = f"{where}/" if where else ""
        found += [prefix + name for name in files if name.lower().endswith(suffixes)]
        inner = sorted((name for name in folders if name != "__MACOSX"), reverse=True)
        waiting += [prefix + name for name in inner]
    return FileList(root, found)


@patient
def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the other entries in a folder, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if is_folder(entry) else files).append(entry.name)
    return folders, files


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link that leads nowhere, or to itself, is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if is_transient(error):
            raise
        return False


def read_manifest(file: Path) -> FileList:
    """The images that a text file names, one per line.

    Paths are relative to the folder of the file; where any is absolute or leaves that folder, the
    deepest common folder of all becomes the root. Whether the images exist is not checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text, it names no image, or the same one twice.
    """
    files = read_lines(file)
    if not files:
        raise ValueError(f"{file} names no image; expected one path per line")
    root = file.parent
    if any(name.startswith(("/", "../", "./")) or "/../" in name for name in files):
        absolute = [os.path.normpath(os.path.join(os.path.abspath(root), name)) for name in files]
        root = Path(os.path.commonpath([os.path.dirname(name) for name in absolute]))
        if all(name.startswith(f"{os.path.abspath(file.parent)}/") for name in absolute):
            root = file.parent
        at = len(os.path.abspath(root).rstrip("/")) + 1
        files = [name[at:] for name in absolute]
    listed = FileList(root, files)
    for name, following in zip(listed.files, listed.files[1:], strict=False):
        if name == following:
            raise ValueError(f"{file} names {name} twice; name every image once")
    return listed
