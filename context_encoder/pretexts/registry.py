"""What a network learns from, by name: everything that differs between them in training."""

from __future__ import annotations

from context_encoder.pretexts.base import Learner, Part, Pretext, Samples
from context_encoder.pretexts.inpainting import Inpainting
from context_encoder.pretexts.reconstruction import Autoencoder, DenoisingAutoencoder
from context_encoder.pretexts.relative_patch import PatchNetwork, RelativePatch

__all__ = [
    "PRETEXTS",
    "Autoencoder",
    "DenoisingAutoencoder",
    "Inpainting",
    "Learner",
    "Part",
    "PatchNetwork",
    "Pretext",
    "RelativePatch",
    "Samples",
]

PRETEXTS: dict[str, type[Pretext]] = {
    "inpainting": Inpainting,
    "autoencoder": Autoencoder,
    "denoising": DenoisingAutoencoder,
    "relative-patch": RelativePatch,
}
