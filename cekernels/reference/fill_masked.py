"""Images filled with a constant where a mask is set, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_masked(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """``value`` ``(C,)`` where the mask is not 0, the image ``(B, C, H, W)`` elsewhere."""
    return torch.where(mask != 0, value.to(image.dtype).view(1, -1, 1, 1), image).contiguous()
