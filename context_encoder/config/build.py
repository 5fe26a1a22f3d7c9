"""Networks and masks that a configuration describes."""

from __future__ import annotations

from typing import Any

from context_encoder.config.train_config import TrainConfig
from context_encoder.masks import MaskSampler, build_mask_sampler
from context_encoder.models import ContextEncoder, build_model


def build_context_encoder(config: TrainConfig) -> ContextEncoder:
    """The context encoder of a resolved configuration, with fresh weights."""
    options: dict[str, Any] = {}
    if config.model.startswith("alexnet"):
        options = {"dropout": config.dropout, "norm": config.norm}
    return build_model(config.model, image_size=config.size, **options)


def masks_from_config(config: TrainConfig, output_side: int) -> MaskSampler:
    """The mask sampler of a resolved configuration.

    The hole of a network that predicts its central region only leaves room for the overlap band.
    """
    assert config.size is not None
    hole = None
    if output_side < config.size:
        hole = output_side - 2 * config.overlap
        if hole < 1:
            raise ValueError(f"--overlap {config.overlap} leaves no hole in {output_side} pixels")
    return build_mask_sampler(
        config.mask,
        config.size,
        config.seed,
        hole=hole,
        folder=config.mask_folder,
        voc_root=config.voc_root,
    )
