"""A cache of decoded images on disk, shared by processes and runs.

The folder holds segments: ``N.pixels`` with the bytes of images (RGB, row by row), and ``N.index``
with one record per image. A process that adds images locks a segment of its own and appends to it:
first the pixels, then the record. Nothing else is ever written, so readers need no lock, and a
process that is killed leaves at most an incomplete end, which is passed over.

Pixels are read and not mapped: where a file is cut off or its storage fails, reading is an error
that can be handled, and access to mapped memory a signal that ends the process. Either way the
system keeps one copy in memory for all processes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from context_encoder.data.shards import ImageFile, ShardImage

try:
    import fcntl
except ImportError:  # not on Windows, where each process gets new segments
    fcntl = None  # type: ignore[assignment]

__all__ = ["DecodedCache"]

log = logging.getLogger(__name__)

_VERSION = 1
# Key, offset, width, height, CRC-32 of the pixels, CRC-32 of the record before it.
_RECORD = struct.Struct("<16sQIIII")
_SIDE = 1 << 20
_NO_WAIT = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_NOT_OURS = (errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO)
# New records are sorted into the table when there are so many, or this part of it.
_PENDING, _PART = 4096, 8


@dataclass
class _Segment:
    pixels: int
    index: int
    writable: bool
    #: Records that have been read.
    known: int = 0


class DecodedCache:
    """Decoded and shrunk images in a folder, by the file that they come from.

    An image is found again by the path, size and time of change of its file (of an image in a
    shard: its place and checksum), the side that it was shrunk to and Pillow's version; a file
    that has changed is decoded again. All methods may be called in several processes at a time,
    also after a fork. Problems with the folder are logged once per process, and cost time only.
    """

    def __init__(self, folder: str | os.PathLike[str], most_bytes: int) -> None:
        """Make the folder, if it is missing.

        Args:
            folder: may hold images of other data sets and sizes.
            most_bytes: when the pixels in the folder come to so many, no more are added; each
                process may exceed it by one image.

        Raises:
            ValueError: ``most_bytes`` is negative.
            OSError: the folder cannot be made, or is a file.
        """
        if most_bytes < 0:
            raise ValueError(f"most_bytes must be at least 0, got {most_bytes}")
        self.folder = Path(folder).absolute()
        self.most_bytes = most_bytes
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "no folder, as a cache of decoded images must be", str(self.folder)
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start()

    def _start(self) -> None:
        """The state of a process that has not looked into the folder."""
        self._process = os.getpid()
        self._segments: dict[str, _Segment] = {}
        self._keys = np.zeros(0, np.uint64)
        self._places = np.zeros(0, np.int64)
        self._pending: dict[int, int] = {}
        self._checked: set[int] = set()
        self._own: str | None = None
        self._writable = True

    def __getstate__(self) -> tuple[Path, int]:
        return self.folder, self.most_bytes

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self.folder, self.most_bytes = state
        self._start()

    def key(self, image: ImageFile | str | os.PathLike[str], side: int) -> bytes | None:
        """What an image is found by; None if it cannot be told whether its file has changed.

        Args:
            image: the file, or the image in a shard.
            side: the short side in pixels that it is shrunk to.
        """
        if isinstance(image, ShardImage):
            if image.crc32 is None:
                return None
            parts = [image.shard, image.offset, image.size, image.crc32]
        else:
            try:
                found = os.stat(image)
            except (OSError, ValueError):
                return None  # reading the file will say why
            parts = [os.path.abspath(image), found.st_size, found.st_mtime_ns]
        text = repr([_VERSION, PIL.__version__, side, *parts])
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16).digest()

    def get(self, key: bytes) -> Image.Image | None:
        """The image of a key, 8-bit RGB; None if it is not there or damaged."""
        self._after_fork()
        try:
            place = self._find(key)
            if place is None:
                self._read_new_records()
                place = self._find(key)
            return None if place is None else self._read(key, place)
        except OSError as error:
            self._give_up(error, "read")
            return None

    def put(self, key: bytes, image: Image.Image) -> None:
        """Add an image, 8-bit RGB, unless the cache is full or cannot be written."""
        self._after_fork()
        if not self._writable:
            return
        try:
            self._append(key, image)
        except OSError as error:
            self._give_up(error, "write")

    # --- reading ------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            self._start()

    def _names(self) -> Iterator[str]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name, _, kind = entry.name.rpartition(".")
                if kind == "index" and name.isdecimal():
                    yield name

    def _open(self, name: str) -> _Segment | None:
        """A segment; None if its files are not there, not files, or not ours to read."""
        opened: list[int] = []
        for mode in (os.O_RDWR, os.O_RDONLY):  # of another user, or on a disk that is read-only
            try:
                for kind in ("pixels", "index"):
                    path = self.folder / f"{name}.{kind}"
                    opened.append(os.open(path, mode | _NO_WAIT))
            except OSError as error:
                for file in opened:
                    os.close(file)
                opened.clear()
                if error.errno not in _NOT_OURS:
                    raise
                continue
            if all(stat.S_ISREG(os.fstat(file).st_mode) for file in opened):
                return _Segment(opened[0], opened[1], mode == os.O_RDWR)
            for file in opened:
                os.close(file)
            break
        return None

    def _read_new_records(self) -> None:
        for name in self._names():
            segment = self._segments.get(name) or self._open(name)
            if segment is None:
                continue
            self._segments[name] = segment
            new = os.fstat(segment.index).st_size // _RECORD.size - segment.known
            if new <= 0:
                continue
            data = os.pread(segment.index, new * _RECORD.size, segment.known * _RECORD.size)
            for start in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
                place = int(name) << 32 | segment.known
                self._pending[int.from_bytes(data[start : start + 8], "little")] = place
                segment.known += 1
        if len(self._pending) > max(_PENDING, len(self._keys) // _PART):
            keys = np.fromiter(self._pending, np.uint64, len(self._pending))
            places = np.fromiter(self._pending.values(), np.int64, len(self._pending))
            # Of equal keys the last place counts.
            every, positions = np.unique(np.concatenate((keys, self._keys)), return_index=True)
            self._places = np.concatenate((places, self._places))[positions]
            self._keys = every
            self._pending = {}

    def _find(self, key: bytes) -> int | None:
        short = int.from_bytes(key[:8], "little")
        place = self._pending.get(short)
        if place is None and len(self._keys):
            position = int(np.searchsorted(self._keys, np.uint64(short)))
            if position < len(self._keys) and self._keys[position] == short:
                place = int(self._places[position])
        return place

    def _read(self, key: bytes, place: int) -> Image.Image | None:
        name, number = str(place >> 32), place & 0xFFFFFFFF
        segment = self._segments[name]
        record = os.pread(segment.index, _RECORD.size, number * _RECORD.size)
        if len(record) < _RECORD.size:
            return None
        found, offset, width, height, checksum, own = _RECORD.unpack(record)
        if own != zlib.crc32(record[:-4]) or found != key or not width * height > 0:
            return None
        if max(width, height) > _SIDE:
            return None
        data = os.pread(segment.pixels, 3 * width * height, offset)
        if len(data) < 3 * width * height:
            return None
        if place not in self._checked:
            if zlib.crc32(data) != checksum:
                return None
            self._checked.add(place)
        return Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)

    # --- writing ------------------------------------------------------------------------------

    def _append(self, key: bytes, image: Image.Image) -> None:
        data = image.tobytes()
        if self._own is None:
            self._own = self._take()
        segment = self._segments[self._own]
        total = sum(os.fstat(other.pixels).st_size for other in self._segments.values())
        if total + len(data) > self.most_bytes:
            self._writable = False
            log.info("%s is full (%.1f GB); the other images are decoded each time",
                     self.folder, total / 1e9)  # fmt: skip
            return
        offset = os.fstat(segment.pixels).st_size
        _write_all(segment.pixels, data, offset)
        head = _RECORD.pack(key, offset, image.width, image.height, zlib.crc32(data), 0)[:-4]
        # An end that is no whole record, of a process that was killed, is written over.
        number = os.fstat(segment.index).st_size // _RECORD.size
        record = head + struct.pack("<I", zlib.crc32(head))
        _write_all(segment.index, record, number * _RECORD.size)

    def _take(self) -> str:
        """Lock a segment that no process adds to, or begin one."""
        self._read_new_records()
        for name in sorted(self._segments, key=int):
            if fcntl is not None and self._segments[name].writable:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._segments[name].index, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return name
        number = 1 + max(map(int, self._names()), default=0)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        while True:
            try:
                os.close(os.open(self.folder / f"{number}.pixels", flags, 0o666))
                break
            except FileExistsError:  # of another process, or without an index
                number += 1
        os.close(os.open(self.folder / f"{number}.index", flags, 0o666))
        segment = self._open(str(number))
        if segment is None:
            raise FileNotFoundError(errno.ENOENT, "a new file is gone", str(self.folder))
        self._segments[str(number)] = segment
        if fcntl is not None:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(segment.index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return str(number)

    def _give_up(self, error: OSError, what: str) -> None:
        if self._writable:
            log.warning(
                "cannot %s the cache of decoded images %s: %s; images are decoded each time",
                *(what, self.folder, error.strerror or error),
            )
        self._writable = False


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
