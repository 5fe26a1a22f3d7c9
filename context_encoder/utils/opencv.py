"""OpenCV: which one is installed, what to install where a module is missing, and its fills.

Four distributions install a package ``cv2``: opencv-python and opencv-contrib-python, and each with
the suffix -headless. Only those with "contrib" have xphoto and ximgproc. One at a time: they write
into the same folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTRIB", "OPENCV", "RADIUS", "OpenCVName", "fill_by_opencv", "missing_for", "why_not"]

#: The distribution to install: all modules, no windows.
CONTRIB = "opencv-contrib-python-headless"
_WITHOUT_CONTRIB = ("opencv-python", "opencv-python-headless")

OpenCVName = Literal["telea", "navier-stokes", "fsr", "shiftmap"]
OPENCV: tuple[OpenCVName, ...] = get_args(OpenCVName)
_XPHOTO = ("fsr", "shiftmap")

#: Radius, in pixels, of the neighbourhood of Telea and Navier-Stokes, as in OpenCV's examples.
RADIUS = 3


def why_not(module: str | None = None) -> str | None:
    """Why OpenCV, or one of its modules, cannot be used, with the command that helps.

    Args:
        module: a module of opencv-contrib, such as "xphoto"; None: OpenCV alone.

    Returns:
        A sentence without a full stop; None if it can be used.
    """
    if importlib.util.find_spec("cv2") is None:
        return f"OpenCV is needed: pip install {CONTRIB}"
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        return f"OpenCV is installed, but cannot be loaded: {error}"
    if module is None or hasattr(cv2, module):
        return None
    found = [name for name in _WITHOUT_CONTRIB if _installed(name)]
    remove = f"pip uninstall {' '.join(found)}; " if found else ""
    return (
        f"the OpenCV that is installed ({' and '.join(found) or 'cv2'}) lacks the module {module} "
        f"of opencv-contrib: {remove}pip install {CONTRIB}"
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing_for(name: OpenCVName) -> str | None:
    """Why a method cannot run, and what to install; None if it can."""
    return why_not("xphoto" if name in _XPHOTO else None)


def fill_by_opencv(
    name: OpenCVName, image: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Fill the hole of an image.

    - telea: Telea 2004; navier-stokes: Bertalmio et al. 2001; both with a radius of 3 pixels.
    - fsr: frequency selective reconstruction, xphoto's FSR_FAST (Genser et al. 2018).
    - shiftmap: patches by shift maps, xphoto's SHIFTMAP (after He and Sun 2012).

    All give the same result on every call, whatever the number of threads.

    Args:
        name: the method.
        image: uint8 ``(H, W, 3)``, RGB.
        mask: bool ``(H, W)``, True in the hole.

    Returns:
        uint8 ``(H, W, 3)``. The conversion of colours in shiftmap changes known pixels by a
        level or so; use the hole only.
    """
    cv2: Any = importlib.import_module("cv2")
    image = np.ascontiguousarray(image)
    if name not in _XPHOTO:
        flag = cv2.INPAINT_TELEA if name == "telea" else cv2.INPAINT_NS
        return np.asarray(cv2.inpaint(image, mask.astype(np.uint8), RADIUS, flag))
    # xphoto takes 0 for missing. Its documentation asks for Lab in shiftmap; FSR takes BGR.
    there, back, method = (
        (cv2.COLOR_RGB2BGR, cv2.COLOR_BGR2RGB, cv2.xphoto.INPAINT_FSR_FAST)
        if name == "fsr"
        else (cv2.COLOR_RGB2Lab, cv2.COLOR_Lab2RGB, cv2.xphoto.INPAINT_SHIFTMAP)
    )
    given = cv2.cvtColor(image, there)
    filled = np.zeros_like(given)
    cv2.xphoto.inpaint(given, np.uint8(255) * ~mask, filled, method)
    return np.asarray(cv2.cvtColor(filled, back))
