"""The crops that a run is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from context_encoder.config import TrainConfig
from context_encoder.data import Crops, ImageFile, find_images, load_crops
from context_encoder.runs import Photos

__all__ = [
    "held_out_crops",
    "training_crops",
]


def held_out_crops(
    config: TrainConfig,
    folder: Path | None,
    *,
    samples: int | None = None,
    crop_scale: tuple[float, float] | None = None,
) -> Crops:
    """Crops to evaluate a run on, cut as in its training.

    Args:
        config: the run's configuration, resolved.
        folder: photographs, see :func:`find_images`; None: those that the run held out.
        samples: see :func:`load_crops`. None: one per photograph in ``folder``, or the crops
            that the run was validated on.
        crop_scale: replaces that of the run.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: the folder has no photographs.
    """
    paths: Sequence[ImageFile]
    if folder is not None:
        found = find_images(folder)
        paths, root = found, found.root
    else:
        photos = Photos.from_config(config, instead="data")
        paths, root = photos.val, photos.val_root
        samples = samples or config.val_samples
    return _load(config, paths, root, samples, crop_scale, "reading photographs")


def training_crops(
    config: TrainConfig,
    folder: Path | None,
    *,
    samples: int,
    crop_scale: tuple[float, float] | None = None,
) -> Crops:
    """Crops of the photographs in ``folder``, or of those a run was trained on.

    Arguments and errors as in :func:`held_out_crops`.
    """
    paths: Sequence[ImageFile]
    if folder is not None:
        found = find_images(folder)
        paths, root = found, found.root
    else:
        photos = Photos.from_config(config, instead="candidates")
        paths, root = photos.train, photos.train_root
    return _load(config, paths, root, samples, crop_scale, "reading candidates")


def _load(
    config: TrainConfig,
    paths: Sequence[ImageFile],
    root: Path,
    samples: int | None,
    crop_scale: tuple[float, float] | None,
    description: str,
) -> Crops:
    assert config.size is not None
    assert config.resize is not None
    return load_crops(
        paths,
        root,
        size=config.size,
        resize=config.resize,
        crop_scale=crop_scale or config.crop_scale,
        samples=samples,
        description=description,
    )
