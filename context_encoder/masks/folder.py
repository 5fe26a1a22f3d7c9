"""Masks from a folder of images."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import ClassVar

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


class FolderOptions(OptionGroup):
    """Options of masks from users' images."""

    free_on_resume: ClassVar[frozenset[str]] = frozenset({"mask_folder"})

    mask_folder: Path = Field(description="Folder of mask images, white = missing.")


@register_mask("folder", summary="your mask images (`--mask-folder`)", options=FolderOptions)
class FolderMasks(MaskSampler):
    """Masks drawn by users: one image of the folder per sample, flipped at random.

    White means missing, black and transparent mean kept; the threshold is half of the luminance.
    Every image is stretched to S x S; a pixel is missing if at least half of it was white. Images
    in which everything or nothing is missing at that size, and files that cannot be read, are
    skipped and named in the log and in ``skipped``.
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
        paths = list_images(mask_folder)
        for path in paths:
            try:
                mask = _resized(whiteness(path) >= 0.5, size)
            except UnreadableImage as error:
                self.skipped.append((path, error.reason))
                continue
            if mask.any() and not mask.all():
                masks.append(torch.from_numpy(mask))
            else:
                missing = "everything" if mask.any() else "nothing"
                self.skipped.append((path, f"{missing} is white at {size} x {size} pixels"))
        for path, reason in self.skipped:
            log.warning("skipped mask %s: %s", path, reason)
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


def _resized(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    white = Image.fromarray(mask.astype(np.uint8) * 255)
    small = np.asarray(white.resize((size, size), Image.Resampling.BOX))
    result: NDArray[np.bool_] = small >= 128
    return result
