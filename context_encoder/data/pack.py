"""Packing of images into tar shards of the WebDataset format, with an index beside each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from context_encoder.data.folder import shrink
from context_encoder.data.images import SUFFIXES, UnreadableImage, find_images, read_image
from context_encoder.data.listing import ImageList
from context_encoder.data.replacing import DataError
from context_encoder.data.shards import (
    ORIGINAL_NAME,
    PACK_FILE,
    ImageFile,
    ShardIndex,
    index_file,
    open_source,
)
from context_encoder.data.storage import patient
from context_encoder.utils.files import check_writable, make_folder, read_text, write_file
from context_encoder.utils.text import read_bytes

__all__ = ["Encoding", "PackReport", "pack"]

Encoding = Literal["keep", "jpeg", "png", "webp"]

_SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_READ_AHEAD = 64


@dataclass(frozen=True)
class PackReport:
    """What :func:`pack` has written."""

    #: Number of shards, and how many of them were there already.
    shards: int
    found: int
    #: Number of images in the shards, and their bytes.
    images: int
    bytes: int
    #: Names and reasons of the images that were left out.
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class _Packed:
    """An image as it goes into a shard."""

    name: str
    member: str
    content: bytes
    label: str | None


def pack(
    source: str | os.PathLike[str],
    out: Path,
    *,
    images_per_shard: int = 1000,
    resize: int | None = None,
    encode: Encoding = "keep",
    quality: int = 95,
    labels: bool = False,
    workers: int | None = None,
) -> PackReport:
    """Write the images of a folder to shards, in the order in which training lists them.

    Every image is decoded, and left out if that fails. If the work is interrupted, the same call
    goes on after the last complete shard; the shards are the same then, to the byte.

    Args:
        source: see :func:`~context_encoder.data.find_images`.
        out: folder of the shards; new, or left by an interrupted call with the same arguments.
        images_per_shard: images of the source per shard.
        resize: largest short side in pixels; larger images are shrunk to it.
        encode: "keep" copies the files; others encode the upright 8-bit RGB image anew.
        quality: of JPEG and WebP, 1 to 100; JPEG does not subsample colours from 90 on.
        labels: write the number of an image's first folder, in the order of their names, as .cls.
        workers: threads that decode; None: one per CPU.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError, StorageError: the source cannot be used;
            or ``out`` holds something else.
        DataError: none of the images can be read.
        WriteError: ``out`` cannot be written.
    """
    if images_per_shard < 1 or (resize is not None and resize < 1) or not 1 <= quality <= 100:
        raise ValueError(
            "`images_per_shard` and `resize` must be at least 1, and `quality` 1 to 100; got "
            f"{images_per_shard}, {resize} and {quality}"
        )
    if resize is not None and encode == "keep":
        raise ValueError("`resize` changes the images; say how to store them with `encode`")
    images = find_images(source)
    classes = _classes(images) if labels else {}
    count = -(-len(images) // images_per_shard)
    names = hashlib.sha256("\0".join(images.names).encode("utf-8", "surrogateescape"))
    settings = {
        "version": 1,
        "shards": count,
        "images_per_shard": images_per_shard,
        "resize": resize,
        "encode": encode,
        "quality": None if encode in ("keep", "png") else quality,
        "classes": list(classes) if labels else None,
        "images": len(images),
        "names": names.hexdigest(),
    }
    check_writable(out, folder=True)
    _begin(out, settings)

    def prepare(number: int) -> _Packed | tuple[str, str]:
        name = images.names[number]
        try:
            content, suffix = _content(images[number], resize, encode, quality)
        except UnreadableImage as error:
            return name, error.reason
        label = str(classes[_first_folder(name)]) if labels else None
        return _Packed(name, _stem(name) + (suffix or _suffix(name)), content, label)

    found = total = length = 0
    skipped: list[tuple[str, str]] = []
    bar = tqdm(total=len(images), unit="image", desc="packing", dynamic_ncols=True)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads, bar:
        for number in range(count):
            shard = out / f"shard-{number:06d}.tar"
            numbers = range(len(images))[number * images_per_shard :][:images_per_shard]
            index = _complete(shard)
            if index is None:
                index = _write_shard(shard, _ahead(threads, prepare, numbers, bar))
            else:
                found += 1
                bar.update(len(numbers))
            total += len(index.names)
            length += sum(index.sizes)
            skipped += index.skipped
    if not total:
        raise DataError(
            f"none of the {len(images)} images in {source} can be read; the first is "
            f"{': '.join(skipped[0])}"
        )
    return PackReport(count, found, total, length, skipped)


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings; ValueError if the folder holds something else."""
    file = out / PACK_FILE
    if not file.exists():
        if out.exists() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise ValueError(f"{out} is not empty; name a new folder for the shards")
        make_folder(out)
        write_file(file, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = json.loads(read_text(file))
        different = [name for name in settings if before.get(name) != settings[name]]
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{file} is damaged; name a new folder for the shards") from None
    if different:
        raise ValueError(
            f"{out} holds shards of other images or with other options "
            f"({', '.join(different)} differ); name a new folder"
        )


def _complete(shard: Path) -> ShardIndex | None:
    """The index of a shard that is written completely; it is written after the shard."""
    try:
        index = ShardIndex.from_json(read_bytes(index_file(str(shard))))
        return index if shard.stat().st_size == index.length else None
    except (OSError, ValueError):
        return None


def _ahead(
    threads: ThreadPoolExecutor,
    prepare: Callable[[int], _Packed | tuple[str, str]],
    numbers: Sequence[int],
    bar: Any,
) -> Iterator[_Packed | tuple[str, str]]:
    """Results in order, with a bounded number of images in memory."""
    for start in range(0, len(numbers), _READ_AHEAD):
        for result in threads.map(prepare, numbers[start : start + _READ_AHEAD]):
            bar.update()
            yield result


def _write_shard(shard: Path, images: Iterator[_Packed | tuple[str, str]]) -> ShardIndex:
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    crcs: list[int] = []
    labels: list[str | None] = []
    skipped: list[tuple[str, str]] = []
    taken: set[str] = set()

    def write(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for image in images:
                if isinstance(image, tuple):
                    skipped.append(image)
                    continue
                member = _free(image.member, taken)
                original = {} if member == image.name else {ORIGINAL_NAME: image.name}
                _add(archive, member, image.content, original)
                names.append(image.name)
                offsets.append(archive.offset - _padded(len(image.content)))
                sizes.append(len(image.content))
                crcs.append(zlib.crc32(image.content))
                labels.append(image.label)
                if image.label is not None:
                    key = member[: member.rindex(".")]
                    _add(archive, f"{key}.cls", image.label.encode(), {})

    write_file(shard, write)
    index = ShardIndex(
        length=shard.stat().st_size,
        names=names,
        offsets=offsets,
        sizes=sizes,
        crc32=crcs,
        labels=labels if any(label is not None for label in labels) else None,
        skipped=skipped,
    )
    write_file(index_file(str(shard)), index.to_json() + "\n")
    return index


def _add(archive: tarfile.TarFile, name: str, content: bytes, headers: dict[str, str]) -> None:
    entry = tarfile.TarInfo(name)  # without time and owner, so that a shard is always the same
    entry.size = len(content)
    entry.pax_headers = headers
    archive.addfile(entry, io.BytesIO(content))


def _padded(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@patient
def _content(
    image: ImageFile, resize: int | None, encode: Encoding, quality: int
) -> tuple[bytes, str | None]:
    """The bytes to store and their suffix, None for that of the file.

    Raises:
        UnreadableImage: the image cannot be decoded.
    """
    photo = read_image(image, min_side=resize)
    if encode == "keep":
        with open_source(image) as file:
            return file.read(), None
    if resize is not None:
        photo = shrink(photo, resize)
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if encode == "png" else {"quality": quality}
    if encode == "jpeg" and quality >= 90:
        options["subsampling"] = 0
    photo.save(buffer, encode.upper(), **options)
    return buffer.getvalue(), _SUFFIX_OF[encode]


def _suffix(name: str) -> str:
    """The suffix of an image's name in lower case; formats decide by contents, readers by it."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in SUFFIXES else ".jpg"


def _stem(name: str) -> str:
    """A name without suffix and without dots in its last part, which would end its key."""
    folder, _, last = name.rpartition("/")
    stem = os.path.splitext(last)[0].replace(".", "_") or "_"
    return f"{folder}/{stem}" if folder else stem


def _free(member: str, taken: set[str]) -> str:
    """A member's name whose key no other sample of the shard has."""
    stem, suffix = os.path.splitext(member)
    key, number = stem, 1
    while key in taken:
        number += 1
        key = f"{stem}-{number}"
    taken.add(key)
    return key + suffix


def _first_folder(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _classes(images: ImageList[Any]) -> dict[str, int]:
    """Numbers of the first folders, in the order of their names; ValueError without folders."""
    names = sorted({_first_folder(name) for name in images.names})
    if "" in names:
        outside = next(name for name in images.names if "/" not in name)
        raise ValueError(
            f"`labels` needs every image in a folder of its class, {outside} is in none"
        )
    return {name: number for number, name in enumerate(names)}
