"""PASCAL VOC's development kit: layout and reading.

VOCdevkit/VOC2007/
  JPEGImages/000001.jpg
  Annotations/000001.xml
  ImageSets/Main/trainval.txt, test.txt           one image name per line
  ImageSets/Segmentation/train.txt, val.txt
  SegmentationClass/000001.png                    palette index = class, 255 = void
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_encoder.utils.text import check_regular, decode_text, read_bytes, read_lines

CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor".split()
)
VOID = 255
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: as ImageSets lists it.
        image: the file.
        boxes: ``(M, 4)``, pixels counted from 0, see :mod:`context_encoder.transfer.boxes`.
        labels: ``(M,)`` class numbers, from 0.
        difficult: ``(M,)``.
        segmentation: the file of pixel classes, for segmentation only.
    """

    name: str
    image: Path
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    segmentation: Path | None = None

    def presence(self, classes: int) -> NDArray[np.int64]:
        """``(K,)``: 1 if a class is present, -1 if only as difficult objects, otherwise 0."""
        result = np.zeros(classes, np.int64)
        result[self.labels[self.difficult]] = -1
        result[self.labels[~self.difficult]] = 1
        return result


def voc_folder(root: Path, year: str) -> Path:
    """The folder of a year: ``root/year``, or ``root`` itself if it has the layout.

    Raises:
        FileNotFoundError: there is no such folder, or it does not have VOC's layout.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"VOCdevkit folder {root} does not exist")
    base = root / year if (root / year).is_dir() else root
    missing = [name for name in ("ImageSets", "JPEGImages") if not (base / name).is_dir()]
    if missing:
        found = ", ".join(sorted(p.name for p in base.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{root} does not look like a VOCdevkit: expected {year}/{missing[0]} in it, "
            f"found {found}"
        )
    return base


def read_split(
    root: Path,
    year: str,
    split: str,
    kind: Literal["Main", "Segmentation"],
    classes: Sequence[str] = CLASSES,
) -> list[Item]:
    """Read the images of a split, and read and check their annotations.

    Raises:
        FileNotFoundError: the folder, the split, or files that it lists are missing.
        ValueError: the split is empty, an annotation is damaged, or a class is unknown.
    """
    base = voc_folder(root, year)
    listing = base / "ImageSets" / kind / f"{split}.txt"
    if not listing.is_file():
        there = sorted(p.stem for p in listing.parent.glob("*.txt") if "_" not in p.stem)
        raise FileNotFoundError(
            f"split {split!r} is missing: no {listing}; there is {', '.join(there) or 'none'}"
        )
    names = [line.split()[0] for line in read_lines(listing)]
    if not names:
        raise ValueError(f"{listing} lists no image")
    images = {p.stem: p for p in (base / "JPEGImages").iterdir() if p.suffix.lower() in _SUFFIXES}
    _check_there(listing, "JPEGImages", names, [n for n in names if n not in images])
    if kind == "Segmentation":
        masks = {name: base / "SegmentationClass" / f"{name}.png" for name in names}
        absent = [name for name in names if not masks[name].is_file()]
        _check_there(listing, "SegmentationClass", names, absent)
        none = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
        return [Item(name, images[name], *none, masks[name]) for name in names]
    notes = {name: base / "Annotations" / f"{name}.xml" for name in names}
    absent = [name for name in names if not notes[name].is_file()]
    _check_there(listing, "Annotations", names, absent)
    number = {name: i for i, name in enumerate(classes)}
    return [Item(name, images[name], *_read_annotation(notes[name], number)) for name in names]


def _check_there(listing: Path, folder: str, names: Sequence[str], absent: Sequence[str]) -> None:
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(names)} images listed in {listing} are not in {folder}, "
            f"the first: {absent[0]}"
        )


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, whatever encoding an editor has saved it in."""
    data = read_bytes(path)
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError:  # an editor changed the encoding, but not its declaration
        return ElementTree.fromstring(decode_text(data, str(path)))


def _read_annotation(
    path: Path, number: dict[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    boxes, labels, difficult = [], [], []
    try:
        for entry in _parse_xml(path).iter("object"):
            name = (entry.findtext("name") or "").strip()
            if name not in number:
                raise ValueError(
                    f"{path} has an object of class {name!r}, which is none of "
                    f"{', '.join(number)}; name the classes with `classes`"
                )
            box = entry.find("bndbox")
            if box is None:
                raise ValueError(f"{path} has an object without bndbox")
            given = [box.findtext(k) or "nan" for k in ("xmin", "ymin", "xmax", "ymax")]
            try:
                corners = [float(corner) for corner in given]
            except ValueError:
                raise ValueError(f"{path} has a box {given} that is none") from None
            if not (corners[0] <= corners[2] and corners[1] <= corners[3]):
                raise ValueError(f"{path} has a box {corners} that is none")
            boxes.append(corners)
            labels.append(number[name])
            difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not valid XML: {error}") from error
    # VOC counts pixels from 1.
    return (
        np.array(boxes, np.float64).reshape(-1, 4) - 1,
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def check_classes(split: str, items: Sequence[Item], classes: Sequence[str]) -> None:
    """ValueError unless every class has an object that is not difficult."""
    counts = Counter(label for item in items for label in item.labels[~item.difficult].tolist())
    absent = [name for i, name in enumerate(classes) if not counts[i]]
    if absent:
        raise ValueError(
            f"no object (but difficult ones) of class {', '.join(absent)} in split {split!r}"
        )


def read_labels(item: Item, classes: int) -> NDArray[np.int64]:
    """The classes of an image's pixels ``(H, W)``: 0 background, 255 void.

    Raises:
        ValueError: the file is not a palette image, is unreadable, or has a class above
            ``classes``.
    """
    assert item.segmentation is not None
    try:
        check_regular(item.segmentation)
        with Image.open(item.segmentation) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{item.segmentation} cannot be read: {error}") from error
    if mode not in ("P", "L"):
        raise ValueError(
            f"{item.segmentation} has mode {mode}, not a palette: was it converted to colours?"
        )
    highest = int(labels[labels != VOID].max(initial=0))
    if highest > classes:
        raise ValueError(
            f"{item.segmentation} has class {highest}; there are {classes} (and 0, background); "
            "name the classes with `classes`"
        )
    return labels.astype(np.int64)
