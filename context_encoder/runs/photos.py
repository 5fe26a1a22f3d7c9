"""The training photographs and the held-out photographs of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_encoder.config import TrainConfig
from context_encoder.data import ImageFile, ShardImage, embedded_photos, find_images, split_photos
from context_encoder.data.listing import FileList, ImageList, relative_names
from context_encoder.data.storage import patient
from context_encoder.utils.files import check_regular


@dataclass(frozen=True)
class Photos:
    """The training images and the held-out images: files, or members of shards."""

    train: Sequence[ImageFile]
    train_root: Path
    val: Sequence[ImageFile]
    val_root: Path

    @classmethod
    def from_config(cls, config: TrainConfig, *, instead: str | None = None) -> Photos:
        """List and split the images of a configuration.

        Args:
            config: the configuration.
            instead: the option that names other images, for the message if these are gone.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: a folder cannot be used; the
                message says why.
            StorageError: it is out of reach.
        """
        try:
            return cls._listed(config)
        except FileNotFoundError as error:
            if instead is None:
                raise
            raise FileNotFoundError(
                f"{error}; the run was trained on it: name its new place, or other photographs, "
                f"with `{instead}`"
            ) from error

    @classmethod
    def _listed(cls, config: TrainConfig) -> Photos:
        location = embedded_photos() if config.data is None else config.data
        files = find_images(location)
        if config.val_data is not None:
            held_out = find_images(config.val_data)
            files = _outside(files, held_out, Path(config.val_data).is_dir())
            if not files:
                raise ValueError(f"no photograph in `data` {location} lies outside `val_data`")
            return cls(files, files.root, held_out, held_out.root)
        train, val = split_photos(files, files.root, config.val_fraction)
        return cls(train, files.root, val, files.root)

    def digest(self) -> str:
        """A digest of the names of the training files, which determine the stream of samples."""
        train = self.train
        names = (
            train.files if isinstance(train, FileList) else relative_names(train, self.train_root)
        )
        return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()

    def contents_digest(self) -> str:
        """:func:`contents_digest` of the training files."""
        return contents_digest(self.train)


def contents_digest(files: Sequence[ImageFile], most: int = 4096) -> str:
    """A digest of sizes and first bytes of files, whose contents may have been exchanged.

    Args:
        files: the files, of which there may be a million; or images in shards, whose sizes and
            checksums are in the index.
        most: number of files that are read, evenly spaced.
    """
    count = min(len(files), most)
    digest = hashlib.sha256()
    for i in range(count):
        digest.update(_beginning(files[i * len(files) // count]))
    return digest.hexdigest()


def _beginning(image: ImageFile, length: int = 1 << 14) -> bytes:
    """Size and first bytes of a file; a mark for one that cannot be read."""
    if isinstance(image, ShardImage):
        return f"{image.size}:{image.crc32}".encode()
    try:
        return _read_beginning(image, length)
    except OSError:
        return b"-"


@patient
def _read_beginning(path: Path, length: int) -> bytes:
    check_regular(path)
    with path.open("rb") as file:
        return b"%d:" % path.stat().st_size + hashlib.sha256(file.read(length)).digest()


def _outside(files: ImageList[Any], held_out: ImageList[Any], is_folder: bool) -> ImageList[Any]:
    """The images that are not held out: outside that folder, those shards or that list."""
    if isinstance(files, FileList) and isinstance(held_out, FileList):
        folder = held_out.root.resolve()
        listed = set() if is_folder else {path.resolve() for path in held_out}
        real: dict[str, Path] = {}  # the folders, of which there are fewer than files

        def is_held_out(path: Path) -> bool:
            parent = os.path.dirname(path)
            if parent not in real:
                real[parent] = Path(parent).resolve()
            place = path.resolve() if path.is_symlink() else real[parent] / path.name
            return folder in place.parents if is_folder else place in listed

        return files.chosen([i for i, path in enumerate(files) if not is_held_out(path)])
    shards = {getattr(image, "shard", None) for image in held_out} - {None}
    kept = [i for i, image in enumerate(files) if getattr(image, "shard", None) not in shards]
    return files.chosen(kept)
