"""Fills without a network that validation compares with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from context_encoder.models import membrane
from context_encoder.utils.metrics import context_mean
from context_encoder.utils.opencv import fill_by_opencv, missing_for

__all__ = ["fills_without_network"]

# Cycles after which the membrane is right to a hundredth of a level of 255.
_EXACT = 16


def fills_without_network(original: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Fills of holes, by name.

    Args:
        original: float32 ``(B, 3, H, W)``, RGB on [0, 1]; the hole is not looked at.
        mask: bool ``(B, 1, H, W)``, True in the hole.

    Returns:
        float32 ``(B, 3, H, W)``, or a size that expands to it, on [0, 1]: "membrane"; "telea"
        (Telea 2004), where OpenCV is installed; "context_mean_fill", the mean colour of the known
        pixels.
    """
    fills = {"membrane": membrane(original, mask, cycles=_EXACT)}
    if missing_for("telea") is None:
        fills["telea"] = _telea(original, mask)
    return {**fills, "context_mean_fill": context_mean(original, mask)}


def _telea(original: Tensor, mask: Tensor) -> Tensor:
    known = torch.where(mask, 0, original).cpu()
    pictures = known.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    filled = [
        fill_by_opencv("telea", picture, hole)
        for picture, hole in zip(pictures, mask[:, 0].cpu().numpy(), strict=True)
    ]
    result = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2)
    return result.to(original.device).float().div(255)
