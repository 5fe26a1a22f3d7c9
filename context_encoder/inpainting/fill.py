"""Which method fills which hole.

- Small holes, dust and scratches: linear prediction alone. No network and no texture; the cost
  follows the area.
- Larger ones: the mean of a network's prediction and of linear prediction, whose errors differ, and
  the texture of the picture's own patches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from context_encoder.inpainting.linear_prediction import predict_linearly
from context_encoder.inpainting.texture import Settings, add_texture

__all__ = ["SMALL", "fill_holes", "separate_small_holes"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Holes up to so many pixels across are small, however long they are.
SMALL = 12


def separate_small_holes(mask: Mask, across: int = SMALL) -> tuple[Mask, Mask]:
    """The small holes, and the others.

    A hole (8-connected) is small if no square of ``across + 1`` pixels lies in it.
    """
    core = ndimage.minimum_filter(mask, across + 1, mode="constant")
    if not core.any():
        return mask, np.zeros_like(mask)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    large = np.zeros(count + 1, bool)
    large[labels[core]] = True
    return mask & ~large[labels], large[labels]


def fill_holes(
    image: Image,
    mask: Mask,
    network: Callable[[Image, Mask], Image] | None,
    *,
    strength: float = 0.7,
    settings: Settings | None = None,
    seed: int = 0,
    progress: Callable[[float], object] | None = None,
) -> Image:
    """Fill the holes of a picture, each with the method that suits its size.

    Args:
        image: float32 ``(H, W, 3)``, 0 to 255; the hole is not looked at.
        mask: bool ``(H, W)``, True in the hole. Known pixels must be left.
        network: predicts the hole of an image, None: without a network.
        strength, settings, seed: see :func:`context_encoder.inpainting.texture.add_texture`;
            strength 0 does without texture.
        progress: called with pixels done; they add up to those of ``mask``.

    Returns:
        float32 ``(H, W, 3)``, 0 to 255; outside the hole it is ``image``.
    """

    def report(share: float) -> Callable[[float], object] | None:
        return None if progress is None else (lambda pixels: progress(share * pixels))

    small, large = separate_small_holes(mask)
    filled = np.where(mask[..., None], np.float32(0), image)
    if small.any():
        # All that is missing is unknown to each of them.
        predicted = predict_linearly(filled, mask, only=small, progress=report(1.0))
        filled[small] = predicted[small]
    if large.any():
        textured = strength > 0
        guide = predict_linearly(filled, large, progress=report(0.5 if textured else 1.0))
        if network is not None:
            guide += network(filled, large)  # in place: large images need the memory
            guide *= np.float32(0.5)
        if textured:
            filled = add_texture(
                filled,
                large,
                guide,
                strength=strength,
                settings=settings,
                seed=seed,
                progress=report(0.5),
            )
        else:
            filled[large] = guide[large]
    filled[mask] = np.clip(filled[mask], 0, 255)
    return filled
