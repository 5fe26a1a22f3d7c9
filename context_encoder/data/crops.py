"""Fixed crops of photographs in memory: what validation and evaluation measure on."""

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
from context_encoder.data.images import relative_name, to_input

__all__ = ["Crops", "contents", "load_crops"]


@dataclass(frozen=True, eq=False)
class Crops:
    """Square crops of photographs, in memory."""

    #: uint8 ``(N, 3, S, S)``, RGB.
    images: Tensor
    #: The file of each crop, and its name relative to the folder.
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    #: Which of its file's crops each one is.
    numbers: tuple[int, ...]
    #: Names of the photographs that are smaller than S pixels and were enlarged.
    upsampled: tuple[str, ...]
    #: Names and reasons of the files that could not be read.
    unreadable: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def photographs(self) -> int:
        """How many files the crops come from."""
        return len(set(self.paths))

    @functools.cached_property
    def digest(self) -> str:
        """Changes when a pixel does, or the file that a crop comes from."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update("\0".join(map(contents, self.paths)).encode())
        return digest.hexdigest()

    def floats(self, index: Tensor | slice) -> Tensor:
        """Some of the crops, float32 ``(n, 3, S, S)`` in [-1, 1], as networks take them."""
        return to_input(self.images[index])


def load_crops(
    paths: Sequence[Path],
    root: Path,
    *,
    size: int,
    resize: int,
    crop_scale: tuple[float, float],
    samples: int | None = None,
    description: str = "reading",
) -> Crops:
    """Read fixed crops, the same ones for every seed.

    Args:
        paths, root, size, resize, crop_scale: see :class:`PhotoFolder`.
        samples: how many crops. More than there are files: several of each. Fewer: one each of
            evenly spaced files. None: one of each file. Files that cannot be read give none.
        description: of the progress bar.

    Raises:
        ValueError: none of the files can be read, or an argument is out of its range.
    """
    samples = len(paths) if samples is None else samples
    each = -(-samples // len(paths))
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
    # Crop 0 of every photograph first, then crop 1, so that the first rows of a sheet differ.
    # Of many photographs, evenly spaced ones: the list is sorted by folder.
    count = min(len(paths), samples)
    chosen = [i * len(paths) // count for i in range(count)]
    order = [i * each + crop for crop in range(each) for i in chosen][:samples]
    images, kept = [], []
    unreadable: dict[str, str] = {}
    upsampled: set[str] = set()
    for index in tqdm(order, desc=description, unit="crop", leave=False, dynamic_ncols=True):
        sample = data[0, index]
        unreadable.update(sample["unreadable"])
        if sample["source"] != index // each:
            continue  # what stands in for a file that cannot be read would count twice
        images.append(sample["image"])
        kept.append(index)
        if sample["upsampled"]:
            upsampled.add(data.names[index // each])
    if not images:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"none of the photographs in {root} can be read; {name}: {reason}")
    return Crops(
        torch.stack(images),
        tuple(paths[index // each] for index in kept),
        tuple(relative_name(paths[index // each], root) for index in kept),
        tuple(index % each for index in kept),
        tuple(sorted(upsampled)),
        tuple(unreadable.items()),
    )


@functools.cache
def contents(path: Path) -> str:
    """A digest of a file's bytes: copies under other names are the same photograph."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_contents(paths: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """The ``paths`` that some file of ``others`` is a copy of. Unreadable files match none."""
    wanted: dict[int, list[Path]] = {}
    for path in paths:
        wanted.setdefault(path.stat().st_size, []).append(path)
    found: set[Path] = set()
    for other in others:
        try:  # of maybe a million files, only those of the right length are read
            candidates = wanted.get(other.stat().st_size, [])
            found.update(path for path in candidates if contents(path) == contents(other))
        except OSError:
            continue
    return sorted(found)
