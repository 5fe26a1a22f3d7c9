"""The membrane of a picture of any size, and the corrections that a network makes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.windows import Window, reflect_indices
from context_encoder.models.membrane_unet import MembraneUNet

__all__ = ["corrected_membrane", "membrane_corrections"]

Mask = NDArray[np.bool_]


def corrected_membrane(
    network: MembraneUNet,
    image: NDArray[np.float32],
    missing: Mask,
    windows: Sequence[Window],
    *,
    batch_size: int = 16,
    progress: Callable[[float], object] | None = None,
) -> NDArray[np.float32]:
    """Fill the holes of a picture with the membrane and a network's correction of it.

    Args:
        network, missing, windows, batch_size, progress: see :func:`membrane_corrections`.
        image: float32 ``(H, W, 3)``, RGB in [-1, 1]; values in the hole have no effect.

    Returns:
        float32 ``(H, W, 3)``, not clamped; outside the hole it is ``image``.
    """
    # The seam of a hole of zeros removed: the harmonic continuation of its surroundings.
    membrane = remove_seam(np.where(missing[..., None], np.float32(0), image), missing)
    corrections = membrane_corrections(
        network, membrane, missing, windows, batch_size=batch_size, progress=progress
    )
    return np.where(missing[..., None], membrane + corrections, image)


@torch.inference_mode()
def membrane_corrections(
    network: MembraneUNet,
    filled: NDArray[np.float32],
    missing: Mask,
    windows: Sequence[Window],
    *,
    batch_size: int = 16,
    progress: Callable[[float], object] | None = None,
) -> NDArray[np.float32]:
    """What to add to a picture whose holes the membrane fills.

    Each window is scaled to the network's input, and its correction back: the membrane itself
    stays at the picture's resolution, and keeps the hole's edge without a seam.

    Args:
        network: in eval mode.
        filled: float32 ``(H, W, 3)``, RGB in [-1, 1], with the membrane in the holes.
        missing: bool ``(H, W)``, True in the holes.
        windows: from :func:`context_encoder.inpainting.windows.plan_windows`; each gives the
            correction of its own pixels.
        batch_size: windows at a time.
        progress: called with pixels done; they add up to those of the windows.

    Returns:
        float32 ``(H, W, 3)``, 0 outside the windows' pixels.
    """
    device = next(network.parameters()).device
    corrections = np.zeros_like(filled)
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        seen = [_look(filled, missing, window, network.image_size) for window in batch]
        image, mask = (torch.cat(parts).to(device) for parts in zip(*seen, strict=True))
        # Outside the hole nothing was learned, and nothing of it may leak in by scaling.
        predicted = network.correction(image, mask) * mask
        for window, result in zip(batch, predicted.cpu(), strict=True):
            if window.side != network.image_size:
                result = F.interpolate(result[None], (window.side, window.side), mode="bilinear")[0]
            top, left, bottom, right = window.box
            part = result[
                :, top - window.top : bottom - window.top, left - window.left : right - window.left
            ]
            values = part.permute(1, 2, 0).numpy()
            corrections[top:bottom, left:right][window.pixels] = values[window.pixels]
            if progress is not None:
                progress(float(window.pixels.sum()))
    return corrections


def _look(
    filled: NDArray[np.float32], missing: Mask, window: Window, size: int
) -> tuple[Tensor, Tensor]:
    """A window at the network's size: ``(1, 3, S, S)``, and bool ``(1, 1, S, S)``."""
    height, width = missing.shape
    grid = np.ix_(
        reflect_indices(window.top, window.side, height),
        reflect_indices(window.left, window.side, width),
    )
    image = torch.from_numpy(filled[grid]).permute(2, 0, 1)[None]
    mask = torch.from_numpy(missing[grid])[None, None]
    if window.side == size:
        return image, mask
    both = F.interpolate(
        torch.cat((image, mask.float()), 1), (size, size), mode="bilinear", antialias=True
    )
    # A pixel is missing where most of it is.
    return both[:, :3], both[:, 3:] > 0.5
