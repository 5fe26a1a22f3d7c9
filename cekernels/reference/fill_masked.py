"""Images filled with a constant where a mask is set, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels.reference.layout import dense_format


def fill_masked(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """``value`` ``(C,)`` where the mask is not 0, the image ``(B, C, H, W)`` elsewhere."""
    filled = torch.where(mask != 0, value.to(image.dtype).view(1, -1, 1, 1), image)
    return filled.contiguous(memory_format=dense_format(image))
