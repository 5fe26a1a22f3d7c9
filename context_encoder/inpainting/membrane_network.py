"""The network whose weights are part of the package: its prediction for the holes of an image."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.models.membrane_unet import MembraneUNet

__all__ = ["included_network", "predict_holes"]

_WEIGHTS = Path(__file__).parent / "weights" / "membrane-unet-64.safetensors"


@functools.cache
def included_network() -> MembraneUNet:
    """The network with the weights of the package, on the CPU, in evaluation mode."""
    with safe_open(_WEIGHTS, "pt") as file:
        network = MembraneUNet(int(file.metadata()["image_size"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    halves = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    network.load_state_dict(halves)
    return network.eval()


def predict_holes(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill holes with the membrane and the network's correction of it.

    Args:
        image: float32 ``(H, W, 3)``, RGB, 0 to 255; values in the hole have no effect.
        mask: bool ``(H, W)``, True in the hole. Some pixels must be known.

    Returns:
        float32 ``(H, W, 3)``, 0 to 255; outside the hole it is ``image``.
    """
    predicted = _inpainter().predict(image / np.float32(127.5) - 1, mask)
    levels = np.clip((predicted + 1) * np.float32(127.5), 0, 255)
    return np.where(mask[..., None], levels, image)


@functools.cache
def _inpainter() -> Inpainter:
    # The network sees no colour of holes.
    return Inpainter(included_network(), fill_color=(0, 0, 0))
