"""Masks from a folder of images."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from cekernels import random_below
from context_encoder.data.images import UnreadableImage, list_images
from context_encoder.data.mask_images import whiteness
from context_encoder.masks.base import MaskSampler
from context_encoder.masks.registry import register_mask
from context_encoder.utils.option_groups import OptionGroup

log = logging.getLogger(__name__)

# Smallest part that a reduction keeps, as a fraction of a pixel of the reduced mask.
_LEAST_COVER = 1e-3


class FolderOptions(OptionGroup):
    """Options of masks from users' images."""

    free_on_resume: ClassVar[frozenset[str]] = frozenset({"mask_folder"})

    mask_folder: Path = Field(description="Folder of mask images, white = missing.")


@register_mask("folder", summary="your mask images (`--mask-folder`)", options=FolderOptions)
class FolderMasks(MaskSampler):
    """Masks drawn by users: one image of the folder per sample, flipped at random.

    White means missing, black and transparent mean kept; the threshold is half of the luminance.
    Every image is stretched to S x S by :func:`reduce_mask`, which keeps thin scratches. Images
    in which everything or nothing is missing at that size, and files that cannot be read, are
    skipped and named in the log and in ``skipped``. The log also says how many masks the
    reduction has enlarged, and how many have lost parts.
    """

    masks: Tensor
    areas: Tensor

    def __init__(self, size: int, seed: int, mask_folder: str | os.PathLike[str]) -> None:
        """
        Args:
            size, seed: see :class:`MaskSampler`.
            mask_folder: folder of images, searched with its subfolders; formats as for photographs.

        Raises:
            FileNotFoundError, NotADirectoryError: there is no such folder, or no image in it.
            ValueError: no image in it can be used as a mask, or a number is out of its range.
        """
        super().__init__(size, seed)
        masks: list[Tensor] = []
        #: Skipped files, and the reasons.
        self.skipped: list[tuple[Path, str]] = []
        #: The reductions of the masks, in order.
        self.reductions: list[Reduction] = []
        paths = list_images(mask_folder)
        for path in paths:
            try:
                reduced = reduce_mask(whiteness(path) >= 0.5, size)
            except UnreadableImage as error:
                self.skipped.append((path, error.reason))
                continue
            mask = reduced.mask
            if mask.any() and not mask.all():
                masks.append(torch.from_numpy(mask))
                self.reductions.append(reduced)
            else:
                missing = "everything" if mask.any() else "nothing"
                if reduced.lost:
                    missing = f"nothing that covers {_LEAST_COVER:.1%} of a pixel"
                self.skipped.append((path, f"{missing} is white at {size} x {size} pixels"))
        for path, reason in self.skipped:
            log.warning("skipped mask %s: %s", path, reason)
        for line in _report(self.reductions, size):
            log.info("%s", line)
        if not masks:
            path, reason = self.skipped[0]
            raise ValueError(
                f"none of the {len(paths)} images in {mask_folder} can be used as a mask "
                f"(white = missing, black = kept); the first, {path}: {reason}"
            )
        stack = torch.stack(masks)[:, None]
        self.register_buffer("masks", stack, persistent=False)
        self.register_buffer("areas", stack.sum((1, 2, 3)), persistent=False)

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        choice, horizontal, vertical = self.words(epoch, index, 3).unbind(1)
        chosen = random_below(choice, self.masks.shape[0])
        mask = self.masks[chosen]
        for word, axis in ((horizontal, 3), (vertical, 2)):
            flipped = (random_below(word, 2) == 1)[:, None, None, None]
            mask = torch.where(flipped, mask.flip(axis), mask)
        return mask, self.areas[chosen]


@dataclass(frozen=True)
class Reduction:
    """A mask at the size of the network; see :func:`reduce_mask`."""

    #: bool ``(S, S)``, True where the image is missing.
    mask: NDArray[np.bool_]
    #: Missing fraction of the area before the reduction, in [0, 1].
    fraction: float
    #: Whether parts were thinner than a pixel, and are now a pixel wide.
    thickened: bool
    #: Missing pixels of the original mask, about, that were too small to keep.
    lost: int


def reduce_mask(mask: NDArray[np.bool_], size: int) -> Reduction:
    """Stretch a mask to ``size`` x ``size`` pixels by coverage, so that thin parts stay.

    A pixel is missing if at least half of its area was, or if it is needed to keep a thinner part:
    every missing part has a missing pixel within one pixel of it, and what was connected stays
    connected. So a scratch thinner than a pixel becomes an unbroken line, one pixel wide. A part
    that covers less than a thousandth of every pixel is left out, and counted.

    Args:
        mask: bool ``(H, W)``, True where the image is missing.
        size: S.
    """
    cover = np.asarray(
        Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    )
    core = cover >= 0.5 - 1e-6  # the mean of the area is rounded
    touched = cover >= _LEAST_COVER
    result = _thinned(touched, core, cover)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(result, 1), (3, 3)).any((2, 3))
    lost = round(float(cover[~near].sum()) * mask.size / size**2)
    return Reduction(result, float(mask.mean()), bool((result & ~core).any()), lost)


# The pixels around a pixel, clockwise, as (row, column).
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _thinned(
    touched: NDArray[np.bool_], core: NDArray[np.bool_], cover: NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    """``touched`` without the pixels outside ``core`` that are not needed, faintest first.

    A pixel is needed if its neighbours are connected through it only, if it is the last one within
    a pixel of another touched one, or if it ends a line and is not much fainter than the line.
    """
    width = touched.shape[1] + 2
    around = [width * row + column for row, column in _RING]
    there = np.pad(touched, 1).ravel().tolist()
    wanted = list(there)
    block = np.lib.stride_tricks.sliding_window_view(np.pad(touched, 2), (3, 3))
    kept_near = block.sum((2, 3)).ravel().tolist()  # kept pixels within one pixel of each
    connected = _connected_rings()
    covers = np.pad(cover, 1).ravel().tolist()
    rows, columns = np.nonzero(touched & ~core)
    order = np.argsort(cover[rows, columns], kind="stable")
    for at in ((rows[order] + 1) * width + columns[order] + 1).tolist():
        ring = sum(there[at + step] << bit for bit, step in enumerate(around))
        near = [at, *(at + step for step in around)]
        is_end = kept_near[at] == 2 and covers[at] >= 0.5 * max(covers[n] for n in near if there[n])
        if connected[ring] and not is_end and all(kept_near[n] > 1 for n in near if wanted[n]):
            there[at] = False
            for n in near:
                kept_near[n] -= 1
    return np.array(there).reshape(-1, width)[1:-1, 1:-1]


@functools.cache
def _connected_rings() -> list[bool]:
    """For each set of neighbours (bits as in ``_RING``), whether they are connected and not none.

    Neighbours touch if they differ by at most one row and one column.
    """
    result = []
    for ring in range(256):
        left = [place for bit, place in enumerate(_RING) if ring >> bit & 1]
        found = left[:1]
        for row, column in found:
            touching = [p for p in left if max(abs(p[0] - row), abs(p[1] - column)) <= 1]
            found += [p for p in touching if p not in found]
        result.append(len(found) == len(left) > 0)
    return result


def _report(reductions: Sequence[Reduction], size: int) -> Iterator[str]:
    """What the reductions have changed, one sentence each."""
    every = f"of {len(reductions)} masks"
    thickened = [found for found in reductions if found.thickened]
    if thickened:
        before = np.mean([found.fraction for found in thickened])
        after = np.mean([found.mask.mean() for found in thickened])
        yield (
            f"{len(thickened)} {every} have parts thinner than a pixel at {size} x {size} pixels; "
            f"these are a pixel wide, so {after:.2%} of the area is missing instead of {before:.2%}"
        )
    lost = [found.lost for found in reductions if found.lost]
    if lost:
        yield (
            f"{len(lost)} {every} have specks that cover less than {_LEAST_COVER:.1%} of a pixel "
            f"at {size} x {size} pixels; these are left out, about {sum(lost)} pixels in all"
        )
