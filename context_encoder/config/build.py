"""The network that a configuration describes."""

from __future__ import annotations

from typing import Any

from context_encoder.config.train_config import TrainConfig
from context_encoder.models import (
    MODELS,
    ContextEncoder,
    InpaintingNetwork,
    build_context_encoder,
    build_model,
)


def build_network(config: TrainConfig) -> InpaintingNetwork:
    """The network of a resolved configuration, with fresh weights."""
    return build_model(config.model, **_arguments(config))


def build_feature_network(config: TrainConfig) -> ContextEncoder:
    """:func:`build_network` for a pretext that trains on complete images.

    Raises:
        ValueError: the network needs a mask.
    """
    return build_context_encoder(config.model, **_arguments(config))


def _arguments(config: TrainConfig) -> dict[str, Any]:
    options = config.options(MODELS[config.model].train_options)
    return {"image_size": config.size, **options.model_dump()}
