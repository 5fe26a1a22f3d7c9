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
import re
import stat
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
# A record: key, offset, width, height, CRC-32 of the pixels; then the CRC-32 of these.
_HEAD = struct.Struct("<16sQIII")
_RECORD_BYTES = _HEAD.size + 4
_MOST_SEGMENTS = 1 << 20
_NAME = re.compile(r"([1-9][0-9]*)\.index")
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
    #: A byte per record that is known: whether its pixels have been compared with their checksum.
    checked: bytearray = field(default_factory=bytearray)


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
        self._segments: dict[int, _Segment] = {}
        weakref.finalize(self, _close, self._segments)
        self._keys = np.zeros(0, np.uint64)
        self._places = np.zeros(0, np.int64)
        self._pending: dict[int, int] = {}
        self._own: int | None = None
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

    def image(
        self, file: ImageFile | str | os.PathLike[str], side: int, read: Callable[[], Image.Image]
    ) -> Image.Image:
        """The image of a file, from the cache; or else what ``read`` gives, which is added.

        Args:
            file: the file, or the image in a shard.
            side: the short side in pixels that it is shrunk to.
            read: decodes and shrinks it; its errors are passed on.
        """
        key = self.key(file, side)
        found = None if key is None else self.get(key)
        if found is not None:
            return found
        made = read()
        if key is not None:
            self.put(key, made)
        return made

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

    def _numbers(self) -> Iterator[int]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and int(match[1]) < _MOST_SEGMENTS:
                    yield int(match[1])

    def _open(self, number: int) -> _Segment | None:
        """A segment; None if its files are not there, not files, or not ours to read."""
        opened: list[int] = []
        for mode in (os.O_RDWR, os.O_RDONLY):  # of another user, or on a disk that is read-only
            try:
                for kind in ("pixels", "index"):
                    path = self.folder / f"{number}.{kind}"
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
        for number in self._numbers():
            segment = self._segments.get(number) or self._open(number)
            if segment is None:
                continue
            self._segments[number] = segment
            known = len(segment.checked)
            new = os.fstat(segment.index).st_size // _RECORD_BYTES - known
            if new <= 0:
                continue
            data = os.pread(segment.index, new * _RECORD_BYTES, known * _RECORD_BYTES)
            for record in range(len(data) // _RECORD_BYTES):
                start = record * _RECORD_BYTES
                place = number << 32 | (known + record)
                self._pending[int.from_bytes(data[start : start + 8], "little")] = place
            segment.checked.extend(bytes(len(data) // _RECORD_BYTES))
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
        segment, number = self._segments[place >> 32], place & 0xFFFFFFFF
        record = os.pread(segment.index, _RECORD_BYTES, number * _RECORD_BYTES)
        if len(record) < _RECORD_BYTES or record[-4:] != _sum(record[:-4]):
            return None
        found, offset, width, height, checksum = _HEAD.unpack(record[:-4])
        if found != key or not 0 < min(width, height) <= max(width, height) <= _SIDE:
            return None
        data = os.pread(segment.pixels, 3 * width * height, offset)
        if len(data) < 3 * width * height:
            return None
        if not segment.checked[number]:
            if zlib.crc32(data) != checksum:
                return None
            segment.checked[number] = 1
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
        head = _HEAD.pack(key, offset, image.width, image.height, zlib.crc32(data))
        # An end that is no whole record, of a process that was killed, is written over.
        number = os.fstat(segment.index).st_size // _RECORD_BYTES
        _write_all(segment.index, head + _sum(head), number * _RECORD_BYTES)

    def _take(self) -> int:
        """Lock a segment that no process adds to, or begin one."""
        self._read_new_records()
        for number, segment in sorted(self._segments.items()):
            if segment.writable and _lock(segment):
                return number
        number = max(self._numbers(), default=0)
        while True:
            number += 1
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            try:
                for kind in ("pixels", "index"):
                    os.close(os.open(self.folder / f"{number}.{kind}", flags, 0o666))
            except FileExistsError:  # of another process, or a part of it is missing
                continue
            begun = self._open(number)
            if begun is None:
                raise FileNotFoundError(errno.ENOENT, "a new file is gone", str(self.folder))
            self._segments[number] = begun
            if _lock(begun) is not False:  # another process may have taken it already
                return number

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


def _lock(segment: _Segment) -> bool | None:
    """Whether this process holds the segment from now on; None on file systems without locks."""
    locked = None
    try:
        if fcntl is not None:
            fcntl.flock(segment.index, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
    except BlockingIOError:
        locked = False
    except OSError:
        return None
    return locked


def _sum(head: bytes) -> bytes:
    return zlib.crc32(head).to_bytes(4, "little")


def _close(segments: dict[int, _Segment]) -> None:
    for segment in segments.values():
        for file in (segment.pixels, segment.index):
            with contextlib.suppress(OSError):
                os.close(file)
    segments.clear()
