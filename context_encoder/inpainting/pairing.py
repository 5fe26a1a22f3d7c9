"""Which mask of a folder belongs to which image, by their names.

An image ``x.jpg`` takes from the same sub-folder of the masks, in this order:

1. masks that say so: ``x_mask.png``, ``x.mask.png``, ``x-mask.tif``, ``mask_x.png``, and numbered
   ones: ``x_mask001.png``; each of several gives a result of its own;
2. a mask of the same name: ``x.png``.

The image's suffix may be part of the mask's name (``x.jpg.png``, ``x.jpg_mask.png``): that decides
between ``x.jpg`` and ``x.png``. Upper and lower case count, unless nothing pairs otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["pair_masks"]

_MARKED = (
    re.compile(r"(?P<base>.+?)[ ._-]+mask[ ._-]*\(?\d*\)?", re.I),
    re.compile(r"mask[ ._-]+(?P<base>.+)", re.I),
)


def pair_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, list[str]]:
    """The masks of each image; an empty list where there is none.

    Args:
        images, masks: names relative to their folders, with forward slashes. A name that is in
            both is a mask if its name says so, and an image otherwise.
    """
    pairs = _pair(images, masks, fold=False)
    again = [image for image, found in pairs.items() if not found]
    if again:
        used = {mask for found in pairs.values() for mask in found}
        left = [mask for mask in masks if mask not in used]
        pairs |= _pair(again, left, fold=True)
    return pairs


def _pair(images: Sequence[str], masks: Sequence[str], *, fold: bool) -> dict[str, list[str]]:
    def key(name: str) -> str:
        return name.casefold() if fold else name

    taken = {key(_stem(image)) for image in images}
    marked: dict[str, list[str]] = defaultdict(list)
    same: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        stem = key(_stem(mask))
        same[stem].append(mask)
        base = _base(mask)
        # What has the whole name of an image belongs to it.
        if base is not None and stem not in taken:
            marked[key(base)].append(mask)
    return {
        image: next(
            (
                found
                for name in (image, _stem(image))
                for kind in (marked, same)
                if (found := kind.get(key(name), []))
            ),
            [],
        )
        for image in images
    }


def _base(mask: str) -> str | None:
    """The name of the image that a mask's name speaks of; None if it speaks of none."""
    folder, slash, name = _stem(mask).rpartition("/")
    for pattern in _MARKED:
        found = pattern.fullmatch(name)
        if found:
            return folder + slash + found["base"]
    return None


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
