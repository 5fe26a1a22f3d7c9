"""The network of the relative-patch pretext: one encoder for two patches, and a head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from context_encoder.models.base import Backbone

#: Steps (down, right) from the first patch to the second, by label: row by row.
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


class PatchNetwork(Backbone):
    """The encoder of a context encoder, shared by two patches, and a head for their positions.

    It uses late fusion: a fully-connected layer with shared weights is applied to the map of each
    patch, another to both results together, and a third gives 8 scores. ReLU and batch
    normalisation follow the first two layers.

    Args:
        image_size: S, side in pixels of the square images that :meth:`features` takes.
        encoder: the encoder; it is fully convolutional and takes patches as well.
        patch: side of the patches in pixels.
    """

    def __init__(self, image_size: int, encoder: nn.Sequential, patch: int) -> None:
        super().__init__(image_size, encoder)
        self.patch = patch
        channels, side = patch_map(copy.deepcopy(encoder).to("meta"), patch)
        units = 4 * channels
        self.head = nn.ModuleDict(
            {
                "each": nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(channels * side**2, units, bias=False),
                    nn.BatchNorm1d(units),
                    nn.ReLU(inplace=True),
                ),
                "both": nn.Sequential(
                    nn.Linear(2 * units, units, bias=False),
                    nn.BatchNorm1d(units),
                    nn.ReLU(inplace=True),
                    nn.Linear(units, len(DIRECTIONS)),
                ),
            }
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Scores of the eight positions, ``(B, 8)``, for patches ``(B, 2, 3, p, p)``."""
        expected = (2, 3, self.patch, self.patch)
        if patches.dim() != 5 or tuple(patches.shape[1:]) != expected:
            raise ValueError(
                f"PatchNetwork takes (B, {', '.join(map(str, expected))}), "
                f"got {tuple(patches.shape)}"
            )
        each = self.head["each"](self.encoder(patches.flatten(0, 1)))
        scores: Tensor = self.head["both"](each.view(len(patches), -1))
        return scores


def patch_map(shapes_only: nn.Sequential, patch: int) -> tuple[int, int]:
    """Channels and side of the feature map of a patch; side 0 if the patch is too small.

    Args:
        shapes_only: the encoder on the device "meta", where nothing is computed.
        patch: side of the patch in pixels.
    """
    try:
        picture = torch.empty(1, 3, patch, patch, device="meta")
        shape = shapes_only.eval()(picture).shape
    except RuntimeError:  # a kernel larger than its input
        return 0, 0
    return int(shape[1]), int(shape[3])
