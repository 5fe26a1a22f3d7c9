"""OpenCV's inpainting of float images."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

__all__ = ["CV2_RADIUS", "inpaint_telea", "opencv_available"]

#: Radius, in pixels, of the neighbourhood, as in OpenCV's examples.
CV2_RADIUS = 3


def opencv_available() -> bool:
    """Whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def inpaint_telea(image: Tensor, mask: Tensor) -> Tensor:
    """Fill holes by Telea's method (2004) in 8-bit pixels.

    Args:
        image: floating point ``(B, 3, H, W)``, RGB on [0, 1]; what it holds where the mask is set
            makes no difference.
        mask: bool ``(B, 1, H, W)``, True in the hole.

    Returns:
        float32 ``(B, 3, H, W)`` on [0, 1], on the CPU.

    Raises:
        ImportError: OpenCV is not installed.
    """
    import cv2

    known = torch.where(mask, 0, image).cpu()
    pictures = known.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    filled = [
        cv2.inpaint(picture, hole, CV2_RADIUS, cv2.INPAINT_TELEA)
        for picture, hole in zip(pictures, mask[:, 0].cpu().byte().numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().div(255)
