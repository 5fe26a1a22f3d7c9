"""Pretexts by name."""

from __future__ import annotations

from context_encoder.pretexts.base import Pretext
from context_encoder.pretexts.inpainting import Inpainting
from context_encoder.pretexts.reconstruction import Autoencoder, DenoisingAutoencoder
from context_encoder.pretexts.relative_patch import RelativePatch

PRETEXTS: dict[str, type[Pretext]] = {
    "inpainting": Inpainting,
    "autoencoder": Autoencoder,
    "denoising": DenoisingAutoencoder,
    "relative-patch": RelativePatch,
}
