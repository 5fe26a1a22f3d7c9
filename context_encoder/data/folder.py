"""Data set of square crops from a folder of photographs, and its split in two."""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from context_encoder.data.decoded import DecodedCache
from context_encoder.data.images import read_image
from context_encoder.data.listing import ImageList, relative_names
from context_encoder.data.replacing import Readable
from context_encoder.data.shards import ImageFile

__all__ = ["DEFAULT_CACHE_BYTES", "PhotoFolder", "Sample", "embedded_photos", "split_photos"]

#: Memory for decoded images, per process that creates a loader, divided among its workers.
DEFAULT_CACHE_BYTES = 512 * 2**20

I = TypeVar("I")  # noqa: E741 - an image

# Pillow widens both filters when it shrinks, which prevents aliasing. Hamming is nearly as sharp
# as bicubic when shrinking, in two thirds of the time.
_SHRINK = Image.Resampling.HAMMING
_TO_SIZE = Image.Resampling.BICUBIC
_BYTES_PER_PIXEL = 4  # Pillow pads RGB

# Separates the draws for crops from those for the order of samples, keyed (seed, epoch).
_CROP = 1

# Steps of an additive recurrence that fills the unit cube evenly from any start: powers of 1/g,
# where g is the real root of x^4 = x + 1.
_SPREAD = tuple(1.2207440846057596**-k for k in (1, 2, 3))


class Sample(TypedDict):
    """One item of a :class:`PhotoFolder`."""

    image: torch.Tensor  #: uint8, (3, S, S), RGB
    epoch: int
    index: int  #: the requested sample; with ``epoch``, the key of every random draw
    source: int  #: number of the file that was read; differs from ``index`` if that is unreadable
    upsampled: bool  #: the file's short side is below S
    unreadable: list[tuple[str, str]]  #: (name, reason) of files found unreadable just now


class PhotoFolder(Dataset[Sample]):
    """Square crops of the photographs in a folder, addressed by ``(epoch, index)``.

    Each photograph is first shrunk to the short side ``resize`` (smaller ones stay as they are);
    in that form it is kept in memory while there is room. A crop is a square whose side is a
    fraction of the short side; it is scaled to ``size``, bicubic with antialiasing. Files that
    are smaller than ``size`` are enlarged, and their samples have ``upsampled`` set.

    For training, fraction, place and flip are pseudo-random functions of
    ``(seed, epoch, index)`` alone: every worker, process and resumed run draws the same.

    For evaluation, each photograph gives ``crops_per_image`` fixed crops, the same for every
    seed and epoch: the first is the centre crop at the middle of ``crop_scale``, the others are
    spread evenly over scales and places. ``index`` is ``image * crops_per_image + crop``.

    A file that cannot be read is replaced by the next readable one in order, and named in the
    sample's ``unreadable``, once per process that tries to read it; see
    :class:`~context_encoder.data.replacing.Readable`.
    """

    def __init__(
        self,
        paths: Sequence[ImageFile | str],
        *,
        root: str | os.PathLike[str],
        size: int,
        resize: int,
        crop_scale: tuple[float, float],
        flip: bool,
        seed: int,
        train: bool,
        crops_per_image: int = 1,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        decoded: DecodedCache | None = None,
    ) -> None:
        """Store the arguments; files are read later.

        Args:
            paths: the image files, all inside ``root``; or the images of shards.
            root: files are named relative to this folder in reports.
            size: S, side of the crops in pixels.
            resize: short side in pixels of the image that crops are taken from; at least
                ``size``.
            crop_scale: smallest and largest side of a crop, as fractions of the short side;
                the paper's code crops 128 pixels from 350: ``(128 / 350, 128 / 350)``.
            flip: in training, mirror left and right with probability 1/2.
            seed: seed of the random draws, at least 0.
            train: True for random crops, False for fixed ones.
            crops_per_image: number of fixed crops per image, for evaluation.
            cache_bytes: memory for decoded images, 4 bytes per pixel, shared out evenly among
                the loader's workers; 0 keeps none.
            decoded: cache on disk for those that the memory has no room for.

        Raises:
            ValueError: an argument is out of its range.
        """
        if not paths:
            raise ValueError(f"no image files were given for {root}")
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        if resize < size:
            raise ValueError(f"resize ({resize}) must be at least size ({size}) pixels")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(
                "crop_scale must be two fractions of the short side with "
                f"0 < smallest <= largest <= 1, got {crop_scale}"
            )
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if crops_per_image < 1 or (train and crops_per_image != 1):
            raise ValueError(
                "crops_per_image must be at least 1, and 1 for training (each epoch takes "
                f"another crop), got {crops_per_image}"
            )
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        self.root = Path(root)
        #: Files relative to ``root``, as reports name them.
        self.names = relative_names(paths, root)
        self.size = size
        self.resize = resize
        self.crop_scale = crop_scale
        self.flip = flip
        self.seed = seed
        self.train = train
        self.crops_per_image = crops_per_image
        self.cache_bytes = cache_bytes
        self.decoded = decoded
        self._paths = paths
        self._cache: dict[int, Image.Image] = {}
        self._cached_bytes = 0
        self._readable = Readable(
            len(paths), self._photo, self.names.__getitem__, f"{len(paths)} image files in {root}"
        )

    def __len__(self) -> int:
        return len(self._paths) * self.crops_per_image

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample for ``(epoch, index)``.

        Raises:
            IndexError: ``index`` is not in ``range(len(self))``.
            DataError: none of the files can be read.
            StorageError: the files cannot be reached.
        """
        epoch, index = key
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set with {len(self)} samples")
        wanted, crop = divmod(index, self.crops_per_image)
        source, photo, unreadable = self._readable(wanted)
        flip = False
        if self.train:
            *draws, coin = _uniform(self.seed, epoch, index, _CROP)
            flip = self.flip and coin < 0.5
        else:
            draws = [(0.5 + crop * step) % 1 for step in _SPREAD]
        square = self._crop(photo, *draws)
        # One copy mirrors, puts the colours first, and gives memory that torch may own.
        pixels = np.asarray(square)[:, :: -1 if flip else 1].transpose(2, 0, 1).copy()
        return Sample(
            image=torch.from_numpy(pixels),
            epoch=epoch,
            index=index,
            source=source,
            upsampled=min(photo.size) < self.size,
            unreadable=unreadable,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker fills its own cache.
        return self.__dict__ | {"_cache": {}, "_cached_bytes": 0}

    def _photo(self, source: int) -> Image.Image:
        """A photograph with a short side of at most ``resize``, from memory or from disk."""
        cached = self._cache.get(source)
        if cached is not None:
            return cached
        photo = self._decoded(self._paths[source])
        needed = photo.width * photo.height * _BYTES_PER_PIXEL
        worker = get_worker_info()
        budget = self.cache_bytes // (worker.num_workers if worker else 1)
        if self._cached_bytes + needed <= budget:
            self._cache[source] = photo
            self._cached_bytes += needed
        return photo

    def _decoded(self, path: ImageFile | str) -> Image.Image:
        """A photograph from the cache on disk, or from its file."""

        def read() -> Image.Image:
            return shrink(read_image(path, min_side=self.resize), self.resize)

        return read() if self.decoded is None else self.decoded.image(path, self.resize, read)

    def _crop(self, photo: Image.Image, scale: float, x: float, y: float) -> Image.Image:
        """The square selected by three numbers in [0, 1), scaled to ``size``."""
        smallest, largest = self.crop_scale
        short = min(photo.size)
        side = max(1, round((smallest + (largest - smallest) * scale) * short))
        left = math.floor(x * (photo.width - side + 1))
        top = math.floor(y * (photo.height - side + 1))
        box = (left, top, left + side, top + side)
        if side == self.size:
            return photo.crop(box)
        return photo.resize((self.size, self.size), _TO_SIZE, box=box)


def shrink(photo: Image.Image, side: int) -> Image.Image:
    """An image whose short side is at most ``side`` pixels; smaller ones stay as they are."""
    short = min(photo.size)
    if short <= side:
        return photo
    width, height = (max(1, round(n * side / short)) for n in photo.size)
    return photo.resize((width, height), _SHRINK, reducing_gap=3.0)


def split_photos(
    paths: Sequence[I],
    root: str | os.PathLike[str],
    val_fraction: float,
    max_val: int = 512,
) -> tuple[Sequence[I], Sequence[I]]:
    """Split files into (training, validation), each in the order given.

    A hash of a file's path relative to ``root`` decides its side. It is the same on every
    system, and does not depend on other files. Exceptions: at most ``max_val`` files, those
    with the smallest hashes, are used for validation; and one file is moved if a side
    would be empty.

    Raises:
        ValueError: fewer than 2 files, ``val_fraction`` outside (0, 1), or ``max_val`` below 1.
    """
    if len(paths) < 2:
        raise ValueError(
            f"at least 2 images are needed, one to train and one to validate; "
            f"{len(paths)} found in {root}"
        )
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    if max_val < 1:
        raise ValueError(f"max_val must be at least 1, got {max_val}")
    place = [_unit_hash(name) for name in relative_names(paths, root)]
    ranked = sorted(range(len(paths)), key=place.__getitem__)
    below = sum(p < val_fraction for p in place)
    held_out = set(ranked[: max(1, min(below, max_val, len(paths) - 1))])
    train = [i for i in range(len(paths)) if i not in held_out]
    sides = (train, sorted(held_out))
    if isinstance(paths, ImageList):
        return paths.chosen(sides[0]), paths.chosen(sides[1])
    return [paths[i] for i in sides[0]], [paths[i] for i in sides[1]]


def embedded_photos() -> Path:
    """The folder of packaged photographs.

    It holds 43 images with a short side of 300 to 512 pixels, all under free licences;
    ``ATTRIBUTION.md`` in the same folder names the author of each.
    """
    return Path(str(importlib.resources.files(__package__) / "photos"))


def _uniform(*key: int) -> list[float]:
    """Four independent uniform numbers in [0, 1), a function of the key alone.

    NumPy guarantees that the output of SeedSequence never changes between versions.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64).tolist()
    return [(word >> 11) * 2.0**-53 for word in words]


def _unit_hash(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
