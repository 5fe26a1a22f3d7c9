"""The network that a configuration describes."""

from __future__ import annotations

from context_encoder.config.train_config import TrainConfig
from context_encoder.models import MODELS, ContextEncoder, build_model


def build_context_encoder(config: TrainConfig) -> ContextEncoder:
    """The context encoder of a resolved configuration, with fresh weights."""
    options = config.options(MODELS[config.model].train_options)
    return build_model(config.model, image_size=config.size, **options.model_dump())
