"""Outlines of the objects in PASCAL VOC's segmentation masks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from context_encoder.masks.outlines import trace_outline
from context_encoder.masks.region import RegionMasks
from context_encoder.masks.registry import register_mask
from context_encoder.utils.option_groups import OptionGroup
from context_encoder.utils.text import check_regular, read_lines

log = logging.getLogger(__name__)

_VOID = 255
#: Smallest object in pixels; outlines of smaller ones mostly show the pixel grid.
MIN_AREA = 400


class VocOptions(OptionGroup):
    """Options of masks in the shape of PASCAL VOC's objects."""

    free_on_resume: ClassVar[frozenset[str]] = frozenset({"voc_root"})

    voc_root: Path = Field(description="VOCdevkit folder whose object shapes are used.")


@register_mask(
    "voc",
    summary="object shapes of PASCAL VOC, deformed as for `region` (`--voc-root`)",
    options=VocOptions,
)
def voc_masks(size: int, seed: int, voc_root: str | os.PathLike[str]) -> RegionMasks:
    """:class:`RegionMasks` with PASCAL VOC's objects; ``voc_root`` as in :func:`voc_outlines`."""
    return RegionMasks(size, seed, voc_outlines(voc_root))


def voc_outlines(root: str | os.PathLike[str], year: str = "VOC2012") -> Tensor:
    """Trace every object of the segmentation masks for :class:`RegionMasks`.

    It uses the images of ``ImageSets/Segmentation/train.txt``, so that validation images do not
    influence training, or all images if that file is missing. Objects below 400 pixels,
    and objects so thin that no smoothing of their outline survives deformation, are left out.
    It takes about 10 ms per object.

    Args:
        root: the VOCdevkit folder, which holds ``VOC2012/SegmentationObject/*.png``; or the
            VOC2012 folder itself.
        year: data set of the devkit.

    Returns:
        int16 ``(K, 96, 2)``, see :func:`trace_outline`.

    Raises:
        FileNotFoundError: there is no such folder, or it has another layout.
        ValueError: a file is not a palette image, or no object can be used.
        ImportError: contourpy is not installed.
    """
    base = Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"VOCdevkit folder {base} does not exist")
    if (base / year).is_dir():
        base = base / year
    folder = base / "SegmentationObject"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{root} does not look like a VOCdevkit: expected {year}/SegmentationObject/*.png in "
            f"it, found {', '.join(sorted(p.name for p in Path(root).iterdir())[:8]) or 'nothing'}"
        )
    names = base / "ImageSets/Segmentation/train.txt"
    if names.is_file():
        paths = [folder / f"{name}.png" for name in " ".join(read_lines(names)).split()]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(paths)} images listed in {names} are not in {folder}, "
                f"the first: {missing[0].name}"
            )
    else:
        paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no image to take objects from in {folder}")

    outlines, objects = [], 0
    for path in paths:
        check_regular(path)
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"{path} has mode {image.mode}, not a palette: VOC's object masks number the "
                    "objects of an image; was it converted to colours?"
                )
            labels = np.asarray(image)
        areas = np.bincount(labels.ravel(), minlength=256)
        for number in np.flatnonzero(areas[1:_VOID] >= MIN_AREA) + 1:
            objects += 1
            outline = trace_outline(labels == number)
            if outline is not None:
                outlines.append(outline)
    if not outlines:
        raise ValueError(
            f"no object to use in the {len(paths)} images of {folder}: "
            f"{objects} of at least {MIN_AREA} pixels, none with a simple outline"
        )
    log.info("%d outlines of %d objects in %d images", len(outlines), objects, len(paths))
    return torch.from_numpy(np.stack(outlines))
