"""Seam removal: adapting a filled hole to its surroundings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cekernels import remove_seam as remove_seam_from_batch

__all__ = ["remove_seam"]

Mask = NDArray[np.bool_]


def remove_seam(image: NDArray[np.float32], hole: Mask) -> NDArray[np.float32]:
    """Add the smoothest correction to a hole that fits its edge to the known pixels.

    The correction is a membrane: at the hole's edge it is the difference between known pixel and
    prediction, within the hole it is harmonic (Laplace's equation with 4 neighbours). The
    structure of the prediction is kept; brightness and colour are adapted. This is
    gradient-domain blending (Pérez, Gangnet, Blake 2003: Poisson image editing) with the
    gradient across the edge set to 0. Measured with three networks of 64 pixels, it
    gains 0.9 to 1.4 dB for square holes of 32 pixels and 3 to 4 dB for 8 pixels, always more
    than with the gradient of the prediction, which is hardly trained at known pixels.

    Args:
        image: float32 ``(H, W, C)``, with the prediction in the hole.
        hole: bool ``(H, W)``, the pixels to correct. The others are known. The edge of the image
            imposes no condition.

    Returns:
        float32 ``(H, W, C)``; only pixels of the hole differ from ``image``.
    """
    given = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    corrected = remove_seam_from_batch(given, torch.from_numpy(hole)[None, None])
    return corrected[0].permute(1, 2, 0).contiguous().numpy()
