"""Crops of photographs at their own resolution, with square holes.

Everything is decided by rules, not by hand, and a photograph's crops and holes do not depend on the
others, except for the side of the hole:

- A photograph whose short side exceeds 1.5 times the side of a crop is scaled down to that; others
  stay as they are, and those that are smaller than a crop are left out.
- The first crop is the centre; others are spread evenly.
- Sides take turns: photograph n (from 0, in the order given, without those left out) has side n,
  and its crop k side n + k.
- Places are drawn by SHA-256 of the photograph's base name, at least 1/16 of the crop's side from
  the edges. Several holes of one crop do not touch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from context_encoder.data import Crops, ImageFile, UnreadableImage, read_image
from context_encoder.data.crops import chosen_crops

__all__ = ["by_hash", "check_squares", "draw_squares", "load_native_crops"]

_LONGEST = 1.5
_MARGIN = 1 / 16
# Pixels between holes of one crop.
_GAP = 8
_ATTEMPTS = 1000
# An additive recurrence that fills the square evenly from its centre: powers of 1/g, where g is the
# real root of x^3 = x + 1.
_SPREAD = (0.7548776662466927, 0.5698402909980532)


def by_hash(names: Sequence[str]) -> list[int]:
    """Indices of names in the order of their SHA-256: a choice that nobody made."""
    return sorted(range(len(names)), key=lambda i: _draw(names[i]))


def load_native_crops(
    paths: Sequence[ImageFile], names: Sequence[str], *, size: int, samples: int | None = None
) -> Crops:
    """Read square crops, scaled only if a photograph is much larger than they are.

    Args:
        paths: the photographs.
        names: of the photographs, for reports.
        size: side of the crops in pixels.
        samples: number of crops, see :func:`context_encoder.data.load_crops`.

    Returns:
        Crops of the photographs that can be read and are large enough; the others are in
        ``unreadable``.

    Raises:
        ValueError: none is left.
    """
    order = chosen_crops(len(paths), samples)
    wanted: dict[int, list[int]] = {}
    for photo, crop in order:
        wanted.setdefault(photo, []).append(crop)
    found: dict[tuple[int, int], Tensor] = {}
    unreadable: dict[str, str] = {}
    bar = tqdm(wanted, desc="reading photographs", unit="image", leave=False, dynamic_ncols=True)
    for photo in bar:
        try:
            image = _reduced(read_image(paths[photo]), size)
        except UnreadableImage as error:
            unreadable[names[photo]] = error.reason
            continue
        if min(image.size) < size:
            unreadable[names[photo]] = (
                f"{image.width} x {image.height} pixels are less than a crop of {size}"
            )
            continue
        for crop in wanted[photo]:
            x, y = ((0.5 + crop * step) % 1 for step in _SPREAD)
            left, top = int(x * (image.width - size)), int(y * (image.height - size))
            part = np.asarray(image.crop((left, top, left + size, top + size)))
            found[photo, crop] = torch.from_numpy(part.transpose(2, 0, 1).copy())
    kept = [key for key in order if key in found]
    if not kept:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"no photograph gives a crop of {size} pixels; {name}: {reason}")
    return Crops(
        torch.stack([found[key] for key in kept]),
        tuple(paths[photo] for photo, _ in kept),
        tuple(names[photo] for photo, _ in kept),
        tuple(crop for _, crop in kept),
        (),
        tuple(unreadable.items()),
    )


def check_squares(sides: Sequence[int], size: int) -> None:
    """ValueError unless holes of these sides fit into crops of a size."""
    room = size - 2 * _margin(size)
    wrong = [side for side in sides if not 1 <= side <= room]
    if wrong:
        raise ValueError(
            f"`holes` must be from 1 to {room} pixels, which leaves a margin in a crop of {size}; "
            f"got {wrong[0]}"
        )


def draw_squares(
    crops: Crops, sides: Sequence[int], *, count: int = 1, seed: int = 0
) -> tuple[Tensor, list[int]]:
    """Square holes for crops.

    Args:
        crops: the crops; their photographs count from 0 in the order of their first crops.
        sides: sides of the holes in pixels, in turns.
        count: holes per crop, all of the same side.
        seed: another one gives other places; 0 adds nothing to the name that is hashed.

    Returns:
        Masks, bool ``(N, 1, S, S)``, and the side of each crop's holes.

    Raises:
        ValueError: the holes do not fit.
    """
    size = crops.images.shape[-1]
    check_squares(sides, size)
    photographs = {path: i for i, path in enumerate(dict.fromkeys(crops.paths))}
    masks = torch.zeros(len(crops), 1, size, size, dtype=torch.bool)
    drawn = []
    for i, (path, crop) in enumerate(zip(crops.paths, crops.numbers, strict=True)):
        side = sides[(photographs[path] + crop) % len(sides)]
        key = Path(str(path)).name + (f"#{crop}" if crop else "") + (f"@{seed}" if seed else "")
        for top, left in _places(key, side, size, count):
            masks[i, 0, top : top + side, left : left + side] = True
        drawn.append(side)
    return masks, drawn


def _places(key: str, side: int, size: int, count: int) -> list[tuple[int, int]]:
    """Upper left corners of holes that do not touch."""
    margin = _margin(size)
    room = size - 2 * margin - side + 1
    places: list[tuple[int, int]] = []
    for attempt in range(_ATTEMPTS):
        name = f"{key}+{attempt}" if attempt else key
        y, x = (margin + _draw(f"{name}:{axis}") % room for axis in ("top", "left"))
        if all(max(abs(y - top), abs(x - left)) >= side + _GAP for top, left in places):
            places.append((y, x))
        if len(places) == count:
            return places
    raise ValueError(
        f"{count} holes of {side} pixels do not fit into a crop of {size}; lower `holes_per_crop`"
    )


def _margin(size: int) -> int:
    return int(size * _MARGIN)


def _draw(text: str) -> int:
    """64 bits of a SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def _reduced(image: Image.Image, size: int) -> Image.Image:
    short, longest = min(image.size), round(_LONGEST * size)
    if short <= longest:
        return image
    width, height = (round(n * longest / short) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
