"""Folders of images with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from context_encoder.data import ImageFile, find_images, list_images
from context_encoder.data.shards import are_shards

_TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Labelled:
    """Files with their class numbers."""

    root: Path
    files: list[ImageFile]
    labels: list[int]

    def subset(self, chosen: Sequence[int]) -> Labelled:
        return Labelled(
            self.root, [self.files[i] for i in chosen], [self.labels[i] for i in chosen]
        )


@dataclass(frozen=True)
class Folders:
    """Contents of the folders; ``test`` is None if the training folder must be split."""

    classes: list[str]
    train: Labelled
    test: Labelled | None


def find_folders(data: Path | None, train: Path | None, test: Path | None) -> Folders:
    """List the images by class.

    Args:
        data: folder with train/ and test/ or val/, or with class folders to split. Each of these
            may be shards instead; their classes are described at :func:`_shard_classes`.
        train, test: the two folders, if ``data`` is None.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is missing or a file.
        ValueError: no class folders, fewer than two, or training and test classes differ.
    """
    if data is None:
        assert train is not None
    else:
        train, test = data, None
        if (data / "train").is_dir():
            train = data / "train"
            there = [name for name in _TEST_FOLDERS if (data / name).is_dir()]
            if not there:
                raise FileNotFoundError(
                    f"{data} has train/ but no {'/, '.join(_TEST_FOLDERS)}/ beside it"
                )
            test = data / there[0]
    classes, list_train = _read(train)
    if test is None:
        return Folders(classes, list_train(), None)
    test_classes, list_test = _read(test)
    if test_classes != classes:
        one, other = set(classes), set(test_classes)
        raise ValueError(
            f"the classes in {train} and {test} differ: "
            f"only in the first: {', '.join(sorted(one - other)) or 'none'}; "
            f"only in the second: {', '.join(sorted(other - one)) or 'none'}"
        )
    return Folders(classes, list_train(), list_test())


def _read(folder: Path) -> tuple[list[str], Callable[[], Labelled]]:
    """The classes, and a function that lists the images with their classes."""
    if are_shards(folder):
        classes, images = _shard_classes(folder)
        return classes, lambda: images
    classes = _class_names(folder)
    return classes, lambda: _list_classes(folder, classes)


def _shard_classes(shards: Path) -> tuple[list[str], Labelled]:
    """The classes of images in shards: their .cls files or, without these, their first folders.

    A class is named after its folder where each has one of its own, and by its number otherwise.
    """
    images = find_images(shards)
    folders = [name.partition("/")[0] if "/" in name else "" for name in images.names]
    numbers = [image.label for image in images]
    given = [number for number in numbers if number is not None]
    if given and len(given) < len(images):
        missing = images.names[numbers.index(None)]
        raise ValueError(f"{shards}: {missing} has no .cls file, others have one")
    pairs = set(zip(given or folders, folders, strict=True))
    if len({label for label, _ in pairs}) == len({folder for _, folder in pairs}) == len(pairs):
        names = folders
    else:
        names = given or folders
    classes = sorted(set(names), key=lambda name: (len(name) if name.isdigit() else 0, name))
    if len(classes) < 2 or "" in classes:
        raise ValueError(
            f"{shards} has no classes: expected .cls files, or names that begin with the folder of "
            "a class"
        )
    number = {name: i for i, name in enumerate(classes)}
    return classes, Labelled(shards, list(images), [number[name] for name in names])


def _class_names(folder: Path) -> list[str]:
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder with one sub-folder per class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise ValueError(
            f"{folder} holds {len(names)} sub-folders; expected one per class and at least 2"
        )
    return names


def _list_classes(folder: Path, classes: Sequence[str]) -> Labelled:
    files: list[ImageFile] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list_images(folder / name)
        files += found
        labels += [label] * len(found)
    return Labelled(folder, files, labels)


def stratified(labels: Sequence[int], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of two sets; the second has the fraction ``part`` (at least one) of each class.

    Raises:
        ValueError: a class has only one member.
    """
    rng = np.random.default_rng(seed)
    first: list[int] = []
    second: list[int] = []
    values = np.asarray(labels)
    for label in np.unique(values):
        members = rng.permutation(np.flatnonzero(values == label))
        if len(members) < 2:
            raise ValueError(f"class {label} has 1 readable image; splitting needs 2 or more")
        count = min(max(1, round(part * len(members))), len(members) - 1)
        second += members[:count].tolist()
        first += members[count:].tolist()
    return sorted(first), sorted(second)
