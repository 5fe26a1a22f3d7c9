"""The networks, by name: ``build_model("alexnet")``."""

from context_encoder.models.alexnet import AlexNetContextEncoder
from context_encoder.models.base import Backbone, ContextEncoder
from context_encoder.models.dcgan import DCGANContextEncoder, Discriminator
from context_encoder.models.patch import DIRECTIONS, PatchNetwork, patch_map
from context_encoder.models.registry import (
    MODELS,
    ModelSpec,
    build_discriminator,
    build_model,
    check_image_size,
    default_image_size,
)
from context_encoder.models.small import SmallContextEncoder

__all__ = [
    "DIRECTIONS",
    "MODELS",
    "AlexNetContextEncoder",
    "Backbone",
    "ContextEncoder",
    "DCGANContextEncoder",
    "Discriminator",
    "ModelSpec",
    "PatchNetwork",
    "SmallContextEncoder",
    "build_discriminator",
    "build_model",
    "check_image_size",
    "default_image_size",
    "patch_map",
]
