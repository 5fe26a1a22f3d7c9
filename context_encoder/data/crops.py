"""Fixed crops of photographs in memory, for validation and evaluation."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from context_encoder.data.folder import PhotoFolder
from context_encoder.data.images import to_input
from context_encoder.data.shards import ImageFile, size_of

__all__ = ["Crops", "contents", "load_crops"]


@dataclass(frozen=True, eq=False)
class Crops:
    """Square crops of photographs, in memory."""

    #: uint8 ``(N, 3, S, S)``, RGB.
    images: Tensor
    #: The file of each crop, and its name relative to the folder.
    paths: tuple[ImageFile, ...]
    names: tuple[str, ...]
    #: Index of each crop among the crops of its file.
    numbers: tuple[int, ...]
    #: Names of the photographs that are smaller than S pixels and were enlarged.
    upsampled: tuple[str, ...]
    #: Names and reasons of the files that could not be read.
    unreadable: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def photographs(self) -> int:
        """Number of files that the crops come from."""
        return len(set(self.paths))

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the pixels and of the files that the crops come from."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update("\0".join(map(contents, self.paths)).encode())
        return digest.hexdigest()

    def floats(self, index: Tensor | slice) -> Tensor:
        """Selected crops as network input, float32 ``(n, 3, S, S)`` in [-1, 1]."""
        return to_input(self.images[index])


def load_crops(
    paths: Sequence[ImageFile],
    root: Path,
    *,
    size: int,
    resize: int,
    crop_scale: tuple[float, float],
    samples: int | None = None,
    description: str = "reading",
) -> Crops:
    """Read fixed crops, which are the same for every seed.

    Args:
        paths, root, size, resize, crop_scale: see :class:`PhotoFolder`.
        samples: number of crops. With more crops than files, files give several crops; with
            fewer, evenly spaced files give one each, and others take the place of those that
            cannot be read. None: one per file.
        description: label of the progress bar.

    Raises:
        DataError: none of the files can be read.
        StorageError: the files cannot be reached.
        ValueError: an argument is out of its range.
    """
    chosen = chosen_crops(len(paths), samples)
    each = 1 + max(crop for _, crop in chosen)
    data = PhotoFolder(
        paths,
        root=root,
        size=size,
        resize=resize,
        crop_scale=crop_scale,
        flip=False,
        seed=0,
        train=False,
        crops_per_image=each,
    )
    order = [photo * each + crop for photo, crop in chosen]
    images: list[Tensor] = []
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    upsampled: set[str] = set()
    # The others take the place of unreadable files.
    spare = sorted(set(range(len(paths))) - {photo for photo, _ in chosen})
    order += [i * each for i in spare]
    wanted = len(chosen)
    with tqdm(total=wanted, desc=description, unit="crop", leave=False, dynamic_ncols=True) as bar:
        for index in order:
            if len(kept) == wanted:
                break
            sample = data[0, index]
            unreadable.update(sample["unreadable"])
            bar.update()
            source = index // each
            if sample["source"] != source:
                continue  # the replacement of an unreadable file would count twice
            images.append(sample["image"])
            kept.append(index)
            if sample["upsampled"]:
                upsampled.add(data.names[source])
    return Crops(
        torch.stack(images),
        tuple(paths[index // each] for index in kept),
        tuple(data.names[index // each] for index in kept),
        tuple(index % each for index in kept),
        tuple(sorted(upsampled)),
        tuple(unreadable.items()),
    )


def chosen_crops(photographs: int, samples: int | None) -> list[tuple[int, int]]:
    """The number of a photograph, and that of one of its crops, for each of ``samples`` crops.

    With more crops than photographs, these give several crops; with fewer, evenly spaced ones give
    one each. None: one each.
    """
    samples = photographs if samples is None else samples
    each = -(-samples // photographs)
    # Crop 0 of every photograph first, then crop 1, so that the first rows of a sheet differ.
    # Evenly spaced photographs represent all folders, by which the list is sorted.
    count = min(photographs, samples)
    chosen = [i * photographs // count for i in range(count)]
    return [(photo, crop) for crop in range(each) for photo in chosen][:samples]


@functools.cache
def contents(path: ImageFile) -> str:
    """A digest of a file's bytes, which identifies copies under other names."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_contents(paths: Iterable[ImageFile], others: Iterable[ImageFile]) -> list[ImageFile]:
    """The ``paths`` that have a copy among ``others``. Unreadable files match none."""
    wanted: dict[int, list[ImageFile]] = {}
    for path in paths:
        wanted.setdefault(size_of(path), []).append(path)
    found: set[ImageFile] = set()
    for other in others:
        try:  # only files of the right length are read, as there may be a million files
            candidates = wanted.get(size_of(other), [])
            found.update(path for path in candidates if contents(path) == contents(other))
        except OSError:
            continue
    return sorted(found, key=str)
