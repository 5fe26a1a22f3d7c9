"""Metrics of filled holes: pixels on [0, 1], one value per image, then averaged."""

from __future__ import annotations

import torch
from torch import Tensor

# A perfect fill has infinite PSNR, which would make every average infinite: 100 dB replaces it.
_MIN_SQUARED_ERROR = 1e-10

#: Contrast on [0, 1] below which a hole is flat: 2 of 255 levels. Its mean colour fills such a hole
#: with more than 42 dB, so that one of them outweighs several others in an average of PSNR.
FLAT_CONTRAST = 2 / 255


def to_unit(image: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], clamped, float32."""
    return image.float().add(1).div(2).clamp(0, 1)


def psnr_from_squared_error(squared_error: Tensor) -> Tensor:
    """PSNR in dB of a mean squared error on [0, 1]; at most 100 dB."""
    return -10 * torch.log10(squared_error.clamp(min=_MIN_SQUARED_ERROR))


def hole_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(B, C, H, W)`` over the masked pixels of each image, ``(B,)``; NaN if none."""
    masked = torch.where(mask, value, 0).sum((1, 2, 3))
    return masked / (mask.sum((1, 2, 3)) * value.shape[1])


def hole_contrast(original: Tensor, mask: Tensor) -> Tensor:
    """RMS contrast within the hole of each image (Peli 1990), over the colours.

    Args:
        original: ``(B, 3, H, W)`` on [0, 1].
        mask: bool ``(B, 1, H, W)``, True in the hole.

    Returns:
        ``(B,)``: the root of the mean squared deviation from the mean colour of the hole, which is
        the error of the best fill with one colour; NaN for an image with an empty mask.
    """
    kept = mask.sum((1, 2, 3)).view(-1, 1, 1, 1)
    mean = torch.where(mask, original, 0).sum((2, 3), keepdim=True) / kept
    return hole_mean((original - mean).square(), mask).sqrt()


def hole_metrics(output: Tensor, original: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """L1, L2, PSNR and SSIM within the hole of each image.

    Args:
        output: ``(B, 3, H, W)`` on [0, 1], the filled image; outside the hole it is ignored, and
            the SSIM window sees the original there.
        original: ``(B, 3, H, W)`` on [0, 1].
        mask: bool ``(B, 1, H, W)``, True in the hole.

    Returns:
        ``l1``, ``l2``, ``psnr`` (dB) and ``ssim`` (Gaussian window of 11 pixels, sigma 1.5, its
        map averaged over the hole), each ``(B,)``; NaN for an image with an empty mask.
    """
    # Imported here: it takes as long as everything else that filling an image needs beside torch.
    from torchmetrics.functional.image import structural_similarity_index_measure

    difference = output - original
    squared = hole_mean(difference.square(), mask)
    pasted = torch.where(mask, output, original)
    _, similarity = structural_similarity_index_measure(
        pasted, original, data_range=1.0, reduction="none", return_full_image=True
    )
    return {
        "l1": hole_mean(difference.abs(), mask),
        "l2": squared,
        "psnr": psnr_from_squared_error(squared),
        "ssim": hole_mean(similarity, mask),
    }


def context_mean(image: Tensor, mask: Tensor) -> Tensor:
    """The mean colour of the known pixels, ``(B, 3, 1, 1)``; 0 if all are missing."""
    kept = (~mask).sum((1, 2, 3), keepdim=True).clamp(min=1)
    return torch.where(mask, 0, image).sum((2, 3), keepdim=True) / kept
