"""The configuration of a training run, its presets, and the network built from it."""

from context_encoder.config.build import build_feature_network, build_network
from context_encoder.config.open_config import OpenConfig, in_words, refusal
from context_encoder.config.presets import PRESETS, PresetName, default_preset
from context_encoder.config.pretexts import PRETEXTS, PretextName, PretextSpec
from context_encoder.config.train_config import (
    FILL_COLORS,
    TrainConfig,
    fill_color,
    idle_options,
    preset,
)
from context_encoder.masks.registry import MaskName
from context_encoder.models.registry import ModelName

__all__ = [
    "FILL_COLORS",
    "PRESETS",
    "PRETEXTS",
    "MaskName",
    "ModelName",
    "OpenConfig",
    "PresetName",
    "PretextName",
    "PretextSpec",
    "TrainConfig",
    "build_feature_network",
    "build_network",
    "default_preset",
    "fill_color",
    "idle_options",
    "in_words",
    "preset",
    "refusal",
]
