"""Validation of a pretext on held-out photographs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from context_encoder.config import TrainConfig
from context_encoder.data import Crops, load_crops, to_input
from context_encoder.pretexts import Pretext, Samples
from context_encoder.pretexts.base import Column
from context_encoder.runs import Photos
from context_encoder.training.loop import NonFiniteError
from context_encoder.utils.metrics import FLAT_CONTRAST

_BATCH = 32


@dataclass(frozen=True)
class Validation:
    """What :func:`validate` found."""

    #: Metrics, averaged over the images that are not flat; "psnr_median" and so on; "excluded",
    #: the number of flat images.
    metrics: dict[str, float]
    #: Columns of the sample sheet, on the CPU.
    sheet: list[Column]


def load_held_out(config: TrainConfig, photos: Photos, size: int) -> Crops:
    """The fixed validation crops, uint8 ``(N, 3, size, size)``, and the unreadable files."""
    assert config.resize is not None
    return load_crops(
        photos.val,
        photos.val_root,
        size=size,
        resize=config.resize,
        crop_scale=config.crop_scale,
        samples=config.val_samples,
        description="reading held-out photographs",
    )


@torch.no_grad()
def validate(pretext: Pretext, images: Tensor, device: torch.device, step: int) -> Validation:
    """Evaluate the network in eval mode and return it to training mode.

    Args:
        pretext: with its network, on ``device``.
        images: uint8 ``(N, 3, S, S)`` on the CPU.
        device: where to compute.
        step: the current step, for the error message.

    Raises:
        NonFiniteError: a metric is not finite.
    """
    config = pretext.config
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    pretext.model.eval()
    per_image: dict[str, list[Tensor]] = {}
    shown: dict[str, list[Tensor]] = {}
    for index in torch.arange(len(images)).split(_BATCH):
        keys = index.to(device)
        image = to_input(images[index].to(device), memory_format)
        metrics, columns = pretext.validate(Samples(image, torch.zeros_like(keys), keys))
        for name, values in metrics.items():
            per_image.setdefault(name, []).append(values)
        if index[0] < config.sample_rows:
            for title, column in columns:
                shown.setdefault(title, []).append(column.cpu())
    pretext.model.train()
    every = {name: torch.cat(parts).float().cpu() for name, parts in per_image.items()}
    if not all(bool(found.isfinite().all()) for found in every.values()):
        raise NonFiniteError(
            f"the output for held-out images is not finite at step {step}. Lower `lr`."
        )
    rows = config.sample_rows
    return Validation(
        _summarized(every),
        [(title, torch.cat(parts)[:rows]) for title, parts in shown.items()],
    )


def _summarized(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over the images that are not flat, medians of PSNR, and how many were left out."""
    contrast = values.pop("contrast", None)
    if contrast is None:
        return {name: float(found.mean()) for name, found in values.items()}
    kept = contrast >= FLAT_CONTRAST
    if not bool(kept.any()):
        kept[:] = True
    metrics: dict[str, float] = {}
    for name, found in values.items():
        metrics[name] = float(found[kept].mean())
        if name.startswith("psnr"):
            metrics[f"{name}_median"] = float(found[kept].quantile(0.5))
    return {**metrics, "images": int(kept.sum()), "excluded": int((~kept).sum())}
