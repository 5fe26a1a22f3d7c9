"""Pretexts (tasks to learn from) by name: everything in training that depends on the task."""

from context_encoder.pretexts.base import VALIDATION_SEED, Part, Pretext, Samples
from context_encoder.pretexts.inpainting import Inpainting
from context_encoder.pretexts.reconstruction import Autoencoder, DenoisingAutoencoder
from context_encoder.pretexts.registry import PRETEXTS, find_pretext, register_pretext
from context_encoder.pretexts.relative_patch import RelativePatch

__all__ = [
    "PRETEXTS",
    "VALIDATION_SEED",
    "Autoencoder",
    "DenoisingAutoencoder",
    "Inpainting",
    "Part",
    "Pretext",
    "RelativePatch",
    "Samples",
    "find_pretext",
    "register_pretext",
]
