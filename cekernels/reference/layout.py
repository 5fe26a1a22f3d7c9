"""The layout of results in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_format(image: Tensor) -> torch.memory_format:
    """The layout of a result: channels_last for an image in that layout, else contiguous.

    From the strides of ``(B, C, H, W)``, which a transform of torch.func knows too.
    """
    if image.dim() != 4 or image.is_contiguous():
        return torch.contiguous_format
    expected = 1
    for d in (1, 3, 2, 0):
        if image.shape[d] != 1:
            if image.stride(d) != expected:
                return torch.contiguous_format
            expected *= image.shape[d]
    return torch.channels_last
