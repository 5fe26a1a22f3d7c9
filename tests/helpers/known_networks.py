"""Networks with a known output, for exact checks of results."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from context_encoder import Inpainter

GREY = (0.0, 0.0, 0.0)
# Exact in 8 and in 16 bits, and part of the tests' palettes.
COLOR = (255, 51, 0)


class Constant(nn.Module):
    """Predicts one colour everywhere, and records its inputs."""

    def __init__(self, size=32, color=COLOR, region=None):
        super().__init__()
        self.image_size = size
        self.output_region = region or (0, 0, size, size)
        self.register_buffer("color", torch.tensor(color) / 127.5 - 1)
        self.seen = []

    def forward(self, x):
        assert x.shape[1:] == (3, self.image_size, self.image_size)
        assert x.dtype == torch.float32
        self.seen.append(x.clone())
        return self.color.view(1, 3, 1, 1).expand(len(x), 3, *self.output_region[2:]).clone()


def constant(*, blend=False, **options):
    return Inpainter(Constant(**options), fill_color=GREY, blend=blend)


def noise(*shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def box_mask(height, width, *boxes):
    mask = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


SHAPE = box_mask(8, 10, (1, 2, 4, 9), (6, 0, 7, 1))
