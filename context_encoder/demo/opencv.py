"""OpenCV's inpainting, to compare with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["METHODS", "OpenCVName", "available_methods", "fill_by_opencv"]

OpenCVName = Literal["fsr", "telea", "navier-stokes"]
METHODS: dict[OpenCVName, str] = {
    "fsr": "OpenCV FSR",
    "telea": "OpenCV Telea",
    "navier-stokes": "OpenCV Navier-Stokes",
}
#: Radius, in pixels, of the neighbourhood of Telea and Navier-Stokes, as in OpenCV's examples.
_RADIUS = 3


@functools.cache
def available_methods() -> dict[OpenCVName, str]:
    """The methods that can run here with their labels, the best first. FSR needs OpenCV contrib."""
    if importlib.util.find_spec("cv2") is None:
        return {}
    cv2: Any = importlib.import_module("cv2")
    if not hasattr(cv2, "inpaint"):
        return {}
    fsr = hasattr(cv2, "xphoto") and hasattr(cv2.xphoto, "INPAINT_FSR_FAST")
    return {name: label for name, label in METHODS.items() if fsr or name != "fsr"}


def fill_by_opencv(
    name: OpenCVName, image: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Fill the hole of an image.

    Args:
        name: fsr is frequency selective reconstruction, xphoto's FSR_FAST (Genser et al. 2018);
            the others are Telea 2004 and Bertalmio et al. 2001.
        image: uint8 ``(H, W, 3)``, RGB.
        mask: bool ``(H, W)``, True in the hole.

    Returns:
        uint8 ``(H, W, 3)``; outside the hole it is ``image``.
    """
    cv2: Any = importlib.import_module("cv2")
    image = np.ascontiguousarray(image)
    if name == "fsr":  # takes BGR, and 0 for missing
        filled = np.zeros_like(image)
        known = np.uint8(255) * ~mask
        cv2.xphoto.inpaint(image[..., ::-1].copy(), known, filled, cv2.xphoto.INPAINT_FSR_FAST)
        filled = filled[..., ::-1]
    else:
        flag = cv2.INPAINT_TELEA if name == "telea" else cv2.INPAINT_NS
        filled = cv2.inpaint(image, mask.astype(np.uint8), _RADIUS, flag)
    return np.where(mask[..., None], filled, image)
