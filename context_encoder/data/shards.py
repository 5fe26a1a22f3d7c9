"""Images in tar shards of the WebDataset format, read by number.

A shard is a tar file in which the files of a sample follow each other and share their name up to
the first dot of its last part: ``cats/1.jpg``, ``cats/1.cls``. An index gives the place of every
image, so that any of them can be read with one request, in any order, through fsspec. It lies
beside its shard (``shard-000000.index.json``) if :mod:`context_encoder.data.pack` wrote the shard;
for other shards it is made on first use and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, PlainValidator, model_validator
from tqdm import tqdm

from context_encoder.data.listing import ImageList, is_folder
from context_encoder.data.storage import is_transient, patient
from context_encoder.utils.files import make_folder, write_file
from context_encoder.utils.text import check_regular, read_bytes, read_text, shortened

__all__ = [
    "ORIGINAL_NAME",
    "ImageFile",
    "ShardImage",
    "ShardImages",
    "ShardIndex",
    "are_shards",
    "identity",
    "index_file",
    "list_shards",
    "open_source",
    "size_of",
]

log = logging.getLogger(__name__)

#: The pax header in which a shard of ours keeps the name of an image, where that of its member
#: had to differ.
ORIGINAL_NAME = "CONTEXT_ENCODER.name"
#: The file that :mod:`context_encoder.data.pack` puts beside its shards.
PACK_FILE = "pack.json"

_SUFFIX = ".tar"
_INDEX_SUFFIX = ".index.json"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
# WebDataset's rule for keys.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class ShardImage:
    """An image in a shard; functions that read images take it in place of a path."""

    #: Path or URL of the shard.
    shard: str
    #: Name of the image relative to the shards' folder, as reports show it.
    name: str
    offset: int
    #: Bytes.
    size: int
    #: CRC-32 of the bytes; None if the index does not have it.
    crc32: int | None
    #: The contents of the sample's ``.cls`` file, or None.
    label: str | None

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read_bytes(self) -> bytes:
        """The bytes of the image's file.

        Raises:
            OSError: the shard cannot be read.
            ValueError: it is damaged.
        """
        where = os.path.basename(self.shard)
        end = self.offset + self.size
        data: bytes = _ask(
            self.shard,
            lambda system, path: _regular(system, path).cat_file(path, start=self.offset, end=end),
        )
        if len(data) > self.size:
            raise ValueError(
                f"the server of {where} sends whole files instead of the parts that are asked for "
                "(HTTP ranges); use another one, or copy the shards to a disk"
            )
        if len(data) != self.size:
            raise ValueError(f"{where} is damaged: it ends before the end of the image")
        if self.crc32 is not None and zlib.crc32(data) != self.crc32:
            raise ValueError(f"{where} is damaged: the checksum of the image differs")
        return data

    def is_reachable(self) -> bool:
        """Whether the place of the shard answers."""
        try:
            found = _ask(os.path.dirname(self.shard), lambda system, path: system.ls(path))
        except FileNotFoundError:
            return "://" in self.shard  # the answer of a server
        except OSError as error:
            return not is_transient(error)
        return bool(found)


#: A file, or an image in a shard.
ImageFile = Path | ShardImage


def size_of(image: ImageFile) -> int:
    """Bytes of an image's file."""
    return image.size if isinstance(image, ShardImage) else image.stat().st_size


def identity(image: ImageFile) -> str:
    """What changes when an image's file is replaced by another one."""
    if isinstance(image, ShardImage):
        return f"{image.shard}\0{image.offset}\0{image.size}\0{image.crc32}"
    status = image.stat()
    return f"{image.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


@contextlib.contextmanager
def open_source(image: str | os.PathLike[str] | ShardImage) -> Iterator[BinaryIO]:
    """Open the file of an image for reading.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty or not a regular file, or its shard is damaged.
    """
    if isinstance(image, ShardImage):
        yield io.BytesIO(image.read_bytes())
        return
    status = os.stat(image)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")  # opening a pipe would block
    if status.st_size == 0:
        raise ValueError("the file is empty")
    with open(image, "rb") as file:
        yield file


# --- file systems -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _filesystem(location: str, process: int) -> tuple[Any, str]:
    """fsspec's file system and the path on it. Its connections do not survive a fork."""
    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:  # an unknown protocol, or its package is missing
        raise ValueError(f"{location} cannot be opened: {error}") from error
    return system, path


def _regular(system: Any, path: str) -> Any:
    """The file system, after a check that reading a local file does not wait for ever."""
    if isinstance(system, LocalFileSystem):
        check_regular(path)
    return system


def _ask(location: str, question: Callable[[Any, str], Any]) -> Any:
    """Call a function with a file system and a path; every error is an OSError.

    Other libraries raise errors of their own when a server fails, which count as EIO.
    """
    try:
        return question(*_filesystem(location, os.getpid()))
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, shortened(f"{type(error).__name__}: {error}"), location) from error


# --- the index of a shard ---------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is not text")
    return value


#: Text that may hold bytes which are not UTF-8, as Python keeps them in file names; pydantic's
#: own check of text refuses it.
_Name = Annotated[str, PlainValidator(_text)]


class ShardIndex(BaseModel):
    """The images of a shard, in the order of the tar file; all lists have one entry per image."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    #: Bytes of the tar file.
    length: int
    #: Names of the images.
    names: list[_Name]
    #: Places of their bytes in the tar file.
    offsets: list[int]
    sizes: list[int]
    crc32: list[int] | None = None
    #: Contents of the .cls files, or None.
    labels: list[_Name | None] | None = None
    #: Why the end of the shard could not be read, if so.
    damage: str | None = None
    #: Names and reasons of images that were left out when the shard was written.
    skipped: list[tuple[_Name, _Name]] = []

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardIndex:
        """The index in a file; ValueError if it is damaged."""
        try:
            return cls.model_validate(json.loads(text))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    def to_json(self) -> str:
        """The contents of a file, in ASCII."""
        return json.dumps(self.model_dump())

    @model_validator(mode="after")
    def _consistent(self) -> ShardIndex:
        count = len(self.names)
        for column in (self.offsets, self.sizes, self.crc32, self.labels):
            if column is not None and len(column) != count:
                raise ValueError("the lists have different lengths")
        for offset, size in zip(self.offsets, self.sizes, strict=True):
            if not (offset >= 0 and 0 <= size <= self.length - offset):
                raise ValueError("an image lies outside the shard")
        if self.length >= 1 << 63 or any(not 0 <= crc < 1 << 32 for crc in self.crc32 or ()):
            raise ValueError("a number is out of range")
        return self


def index_file(shard: str) -> str:
    """The index beside a shard."""
    return shard.removesuffix(_SUFFIX) + _INDEX_SUFFIX


def make_index(file: Any, suffixes: tuple[str, ...], size: int) -> ShardIndex:
    """Read the index of a tar file that is open for reading; up to the place of a damage.

    One image is taken per sample: the first whose extension is that of an image; for names with
    several dots, such as ``holiday.2019.jpg``, every image.

    Raises:
        ValueError: the file is not an uncompressed tar file.
    """
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    labels: dict[str, str] = {}
    damage = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            try:
                for member in archive:
                    match = _KEY.match(member.name)
                    if match is None or not member.isfile():
                        continue
                    if member.offset_data + member.size > size:
                        damage = f"it ends within {member.name}"
                        break
                    key, extension = match.groups()
                    if extension.lower() == "cls" and member.size < 1000:
                        content = archive.extractfile(member)
                        assert content is not None
                        labels[key] = content.read().decode("utf-8", "replace").strip()
                    elif f".{extension.lower()}".endswith(suffixes):
                        samples.setdefault(key, []).append((f".{extension.lower()}", member))
            except tarfile.TarError as error:
                damage = str(error)
    except tarfile.TarError as error:
        raise ValueError(f"it is not an uncompressed tar file ({error})") from error
    images: list[tuple[str | None, tarfile.TarInfo]] = []
    for key, found in samples.items():
        plain = [member for extension, member in found if extension in suffixes]
        images += [(labels.get(key), m) for m in plain[:1] or [member for _, member in found]]
    return ShardIndex(
        length=size,
        names=[member.pax_headers.get(ORIGINAL_NAME, member.name) for _, member in images],
        offsets=[member.offset_data for _, member in images],
        sizes=[member.size for _, member in images],
        labels=[label for label, _ in images] if labels else None,
        damage=damage,
    )


def _cached_index(shard: str, size: int, suffixes: tuple[str, ...]) -> ShardIndex:
    """The index of a shard that has none, from the user's cache or made now."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    version = _ask(shard, lambda system, path: str(system.ukey(path)))
    key = hashlib.sha256(f"1\0{shard}\0{size}\0{version}".encode()).hexdigest()[:32]
    kept = Path(home, "context-encoder", "shards", f"{key}.json")
    with contextlib.suppress(OSError, ValueError):
        return ShardIndex.from_json(read_bytes(kept))

    def scan(system: Any, path: str) -> ShardIndex:
        with _regular(system, path).open(path, "rb") as file:
            return make_index(file, suffixes, size)

    index: ShardIndex = _read_shard(shard, scan)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        make_folder(kept.parent)
        write_file(kept, index.to_json())
    return index


@patient
def _read_shard(shard: str, question: Callable[[Any, str], Any]) -> Any:
    try:
        return question(*_filesystem(shard, os.getpid()))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, shortened(f"{type(error).__name__}: {error}"), shard) from error


# --- lists of shards --------------------------------------------------------------------------


class ShardImages(ImageList[ShardImage]):
    """The images of several shards, one shard after the other."""

    def __init__(self, root: Path, shards: Sequence[str], indexes: Sequence[ShardIndex]) -> None:
        self.root = root
        self.names = [name for index in indexes for name in index.names]
        self._shards = list(shards)
        counts = [len(index.names) for index in indexes]
        # Columns, as there may be millions of images.
        self._shard = np.repeat(np.arange(len(indexes)), counts)
        self._offset = np.concatenate([np.array(i.offsets, np.int64) for i in indexes])
        self._size = np.concatenate([np.array(i.sizes, np.int64) for i in indexes])
        self._crc32 = np.concatenate(
            [np.array(i.crc32 or [-1] * len(i.names), np.int64) for i in indexes]
        )
        self._labels: list[str | None] | None = None
        if any(index.labels for index in indexes):
            self._labels = [la for i in indexes for la in i.labels or [None] * len(i.names)]
        if len(set(self.names)) < len(self.names):  # every shard has names of its own
            stems = [os.path.basename(shard).removesuffix(_SUFFIX) for shard in shards]
            places = zip(self._shard.tolist(), self.names, strict=True)
            self.names = [f"{stems[shard]}/{name}" for shard, name in places]

    def image(self, number: int) -> ShardImage:
        crc32 = int(self._crc32[number])
        return ShardImage(
            self._shards[self._shard[number]],
            self.names[number],
            int(self._offset[number]),
            int(self._size[number]),
            None if crc32 < 0 else crc32,
            None if self._labels is None else self._labels[number],
        )

    def chosen(self, numbers: Iterable[int]) -> ShardImages:
        rows = np.fromiter(numbers, np.int64)
        some = object.__new__(type(self))
        some.root, some._shards = self.root, self._shards
        some.names = [self.names[i] for i in rows]
        for column in ("_shard", "_offset", "_size", "_crc32"):
            setattr(some, column, getattr(self, column)[rows])
        some._labels = None if self._labels is None else [self._labels[i] for i in rows]
        return some


def are_shards(location: str | os.PathLike[str]) -> bool:
    """Whether a location names shards: a URL, tar files, or a folder of tar files without images
    or folders beside them."""
    text = os.fspath(location)
    if "://" in text or text.endswith((_SUFFIX, *_COMPRESSED)):
        return True
    try:
        with os.scandir(text) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return False
    tars = [entry for entry in found if entry.name.endswith((_SUFFIX, *_COMPRESSED))]
    return bool(tars) and not any(is_folder(entry) for entry in found)


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for: ``{000..127}``, ``{a,b}``."""
    count = 1
    for inside in _BRACES.findall(pattern):
        bounds = _RANGE.fullmatch(inside)
        many = abs(int(bounds[2]) - int(bounds[1])) if bounds else inside.count(",")
        count *= many + 1
    if count > _MOST_SHARDS:
        raise ValueError(f"{pattern} stands for {count} shards; at most {_MOST_SHARDS} can be used")
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    bounds = _RANGE.fullmatch(found[1])
    if bounds is None:
        parts = found[1].split(",")
    else:
        first, last = int(bounds[1]), int(bounds[2])
        step = 1 if first <= last else -1
        parts = [str(n).zfill(len(bounds[1])) for n in range(first, last + step, step)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for part in parts for name in expand(before + part + after)]


def _find(location: str) -> list[tuple[str, int | None]]:
    """Shards and their sizes; None for one that is missing.

    Raises:
        FileNotFoundError: there are none.
        OSError, ValueError: they cannot be used.
    """
    found: list[tuple[str, int | None]] = []
    for name in expand(location):

        def details(system: Any, path: str, name: str = name) -> list[tuple[str, int | None]]:
            if any(c in path for c in "*?["):
                infos = list(system.glob(path, detail=True).values())
            else:
                try:
                    info = system.info(path)
                except FileNotFoundError as error:
                    if is_transient(error):  # fsspec reports a server that is not there so
                        raise
                    return [(name, None)] if name.endswith(_SUFFIX) else []
                page = str(info.get("mimetype", "")).startswith("text/html")  # may list files
                if info["type"] != "directory" and not page:
                    return [(name, info["size"])]
                infos = system.ls(path, detail=True)
            files = {i["name"]: i["size"] for i in infos if i["name"].endswith(_SUFFIX)}
            for file in [file for file, size in files.items() if size is None]:
                files[file] = system.info(file)["size"]
            for other in (i["name"] for i in infos if i["name"].endswith(_INDEX_SUFFIX)):
                files.setdefault(other.removesuffix(_INDEX_SUFFIX) + _SUFFIX, None)
            local = "://" not in name
            return [
                (file if local else str(system.unstrip_protocol(file)), files[file])
                for file in sorted(files)
            ]

        if name.endswith(_COMPRESSED):
            raise ValueError(
                f"{name} is compressed, so its images cannot be read one by one; unpack it to .tar"
            )
        found += _read_shard(name, details)
    if not any(size is not None for _, size in found):
        raise FileNotFoundError(
            f"no shard at {location}: expected .tar files, as a folder, a URL or a pattern such as "
            "shard-{000000..000127}.tar"
        )
    return found


def list_shards(location: str | os.PathLike[str], suffixes: tuple[str, ...]) -> ShardImages:
    """The images of shards, in the order of the shards and of their tar files.

    A shard that is missing or damaged is named in the log. The images that its index lists stay in
    the list, so that the list does not depend on the damage; those that cannot be read are
    replaced in training. A shard without an index gives the images up to its damage.

    Args:
        location: a folder, a tar file, or a pattern with braces or ``*``; local, or a URL that
            fsspec opens.
        suffixes: extensions of images, lower case, with their dots.

    Raises:
        FileNotFoundError: there is no shard.
        StorageError: they cannot be reached.
        ValueError: none of them can be used, or they are not complete yet.
    """
    text = os.fspath(location)
    found = _find(text)
    _check_complete(text, found)
    names, indexes, broken = [], [], []
    for shard, size in tqdm(found, "reading indexes", unit="shard", leave=False, delay=2):
        try:
            index = _index(shard, size, suffixes)
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            broken.append(f"{shard}: {reason}")
            log.warning("shard %s is passed over: %s", shard, reason)
            continue
        names.append(shard)
        indexes.append(index)
    if not any(index.names for index in indexes):
        example = f", such as {broken[0]}" if broken else ""
        raise ValueError(f"no image in the {len(found)} shards at {text}{example}")
    return ShardImages(Path(text), names, indexes)


def _index(shard: str, size: int | None, suffixes: tuple[str, ...]) -> ShardIndex:
    try:
        beside = _read_shard(
            index_file(shard), lambda system, path: _regular(system, path).cat_file(path)
        )
    except FileNotFoundError:
        if size is None:
            raise
        index = _cached_index(shard, size, suffixes)
    else:
        try:
            index = ShardIndex.from_json(beside)
        except ValueError as error:
            raise ValueError(f"its index {index_file(shard)} is damaged; delete it") from error
        if size is None:
            log.warning("shard %s is missing; its %d images are lost", shard, len(index.names))
        elif size != index.length:
            ends = [a + n for a, n in zip(index.offsets, index.sizes, strict=True)]
            log.warning(
                "shard %s is damaged: it has %d bytes instead of %d; %d of its %d images are lost",
                *(shard, size, index.length, sum(end > size for end in ends), len(ends)),
            )
    if index.damage:
        log.warning(
            "shard %s is damaged: %s; %d images before that are used",
            *(shard, index.damage, len(index.names)),
        )
    return index


def _check_complete(location: str, found: Sequence[tuple[str, int | None]]) -> None:
    """ValueError if a folder of shards is not packed to the end."""
    wanted = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        wanted = int(json.loads(read_text(Path(location, PACK_FILE)))["shards"])
    if len(found) < wanted:
        raise ValueError(
            f"{location} has {len(found)} of {wanted} shards; pack the folder again, which goes on "
            "where it stopped, or name the shards to use by a pattern"
        )
