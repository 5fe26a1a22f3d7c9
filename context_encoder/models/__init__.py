"""Networks by name: ``build_model("alexnet")``."""

from context_encoder.models.alexnet import AlexNetContextEncoder
from context_encoder.models.base import Backbone, ContextEncoder, InpaintingNetwork, Network
from context_encoder.models.dcgan import DCGANContextEncoder, Discriminator, build_discriminator
from context_encoder.models.membrane import membrane, without_seam
from context_encoder.models.membrane_unet import MembraneUNet
from context_encoder.models.patch import DIRECTIONS, PatchNetwork, patch_map
from context_encoder.models.registry import (
    MODELS,
    ModelName,
    ModelSpec,
    build_context_encoder,
    build_model,
    check_image_size,
    default_features_model,
    default_image_size,
    register_model,
)
from context_encoder.models.small import SmallContextEncoder
from context_encoder.utils.option_groups import OptionGroup, Preset

__all__ = [
    "DIRECTIONS",
    "MODELS",
    "AlexNetContextEncoder",
    "Backbone",
    "ContextEncoder",
    "DCGANContextEncoder",
    "Discriminator",
    "InpaintingNetwork",
    "MembraneUNet",
    "ModelName",
    "ModelSpec",
    "Network",
    "OptionGroup",
    "PatchNetwork",
    "Preset",
    "SmallContextEncoder",
    "build_context_encoder",
    "build_discriminator",
    "build_model",
    "check_image_size",
    "default_features_model",
    "default_image_size",
    "membrane",
    "patch_map",
    "register_model",
    "without_seam",
]
