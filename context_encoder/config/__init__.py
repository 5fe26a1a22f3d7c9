"""The configuration of a training run, its presets, and what is built from it."""

from context_encoder.config.build import build_context_encoder, masks_from_config
from context_encoder.config.presets import MODEL_PRESETS, PRESETS, default_preset
from context_encoder.config.train_config import (
    FILL_COLORS,
    MaskName,
    ModelName,
    PresetName,
    PretextName,
    TrainConfig,
    idle_options,
    preset,
    refusal,
)

__all__ = [
    "FILL_COLORS",
    "MODEL_PRESETS",
    "PRESETS",
    "MaskName",
    "ModelName",
    "PresetName",
    "PretextName",
    "TrainConfig",
    "build_context_encoder",
    "default_preset",
    "idle_options",
    "masks_from_config",
    "preset",
    "refusal",
]
