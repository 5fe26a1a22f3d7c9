"""Photographs that a network was trained on among those that it is evaluated on.

Copies with the same bytes are found by their contents; copies in another encoding or size, or
cropped a little, by a perceptual hash: pHash of the library ImageHash (Zauner 2010), 256 bits.

The threshold was measured on 889 different photographs, 394,716 pairs: the nearest pair is 76 bits
apart. Copies of them were at most 18 bits away from the original as JPEG of quality 30, halved,
quartered or scaled to a square, and at most 60 bits if up to 7 % of the width and height were cut
off at any of the edges; with 10 % cut off, a quarter was missed. Mirrored copies are not found, nor
all of images without detail, whose hash is mostly noise.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from context_encoder.data import ImageFile, UnreadableImage, read_image, same_contents

__all__ = ["HASH_MISSING", "SIMILAR", "Copies", "find_copies", "hash_available", "perceptual_hash"]

HASH_MISSING = "perceptual hashes need ImageHash: pip install 'context-encoder[evaluation]'"

#: Photographs whose hashes differ in at most so many of 256 bits count as copies.
SIMILAR = 64

# pHash takes the lowest 16 x 16 frequencies of an image scaled to 64 x 64.
_HASH_SIDE = 16
# Parts of this image are hashed: the reduction to 64 pixels must still average over some.
_THUMBNAIL = 160
# Cut off on each axis in the parts that stand for cropped copies.
_CUT = 0.05

# Standard deviation of grey levels below which an image shows nothing.
_FLAT = 2.0

Hashes = NDArray[np.uint8]


@dataclass(frozen=True)
class Copies:
    """What :func:`find_copies` found."""

    #: Files with the same bytes.
    same: tuple[ImageFile, ...]
    #: Other files that look the same, the training photograph, and the bits that differ.
    similar: tuple[tuple[ImageFile, ImageFile, int], ...]
    #: Number of training photographs that were compared by their look.
    compared: int
    trained_on: int


def hash_available() -> bool:
    """Whether ImageHash is installed."""
    return importlib.util.find_spec("imagehash") is not None


def perceptual_hash(image: Image.Image) -> Hashes:
    """pHash of an image, packed uint8 ``(32,)``."""
    import imagehash

    return np.packbits(imagehash.phash(image, hash_size=_HASH_SIDE).hash.ravel())


def find_copies(
    paths: Iterable[ImageFile],
    trained_on: Sequence[ImageFile],
    *,
    most: int,
    description: str = "looking for copies",
) -> Copies:
    """The files among ``paths`` that are copies of photographs in ``trained_on``.

    Args:
        paths: the photographs to check.
        trained_on: the training photographs.
        most: compare the look of at most so many of them, evenly spaced, since each must be
            decoded; 0, or ImageHash is not installed: compare bytes only.
        description: label of the progress bar.
    """
    paths = sorted(set(paths), key=str)
    same = same_contents(paths, trained_on)
    count = min(most, len(trained_on)) if hash_available() else 0
    chosen = [trained_on[i * len(trained_on) // count] for i in range(count)]
    others = [path for path in paths if path not in set(same)]
    similar: list[tuple[ImageFile, ImageFile, int]] = []
    compared = 0
    if chosen and others:
        asked = {path: found[0] for path in others if (found := _hashes(path)) is not None}
        codes = np.array(list(asked.values())).reshape(-1, 1, _HASH_SIDE**2 // 8)
        nearest: list[tuple[int, ImageFile]] = [(SIMILAR + 1, Path())] * len(asked)
        for other in tqdm(chosen, desc=description, unit="image", leave=False, dynamic_ncols=True):
            known = _hashes(other)
            if known is None:
                continue
            compared += 1
            bits = np.unpackbits(codes ^ known, axis=2).sum(2, dtype=np.int64).min(1)
            for i in np.flatnonzero(bits <= SIMILAR).tolist():
                if bits[i] < nearest[i][0]:
                    nearest[i] = (int(bits[i]), other)
        similar = [
            (path, other, least)
            for path, (least, other) in zip(asked, nearest, strict=True)
            if least <= SIMILAR
        ]
    return Copies(tuple(same), tuple(similar), compared, len(trained_on))


@functools.cache
def _hashes(path: ImageFile) -> Hashes | None:
    """Hashes of a photograph and of its parts, uint8 ``(6, 32)``.

    None: it cannot be read, or it is one colour, whose hash says nothing.
    """
    try:
        photo = read_image(path, min_side=_THUMBNAIL)
    except UnreadableImage:
        return None
    small = photo.convert("L").resize(
        (_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    if np.asarray(small).std() < _FLAT:
        return None
    cut = round(_CUT * _THUMBNAIL)
    side = _THUMBNAIL - cut
    places = ((cut // 2, cut // 2), (0, 0), (cut, 0), (0, cut), (cut, cut))
    parts = [small, *(small.crop((x, y, x + side, y + side)) for x, y in places)]
    return np.stack([perceptual_hash(part) for part in parts])
