"""Which OpenCV is installed, and what to install where a module of it is missing.

Four distributions install a package ``cv2``: opencv-python and opencv-contrib-python, and each with
the suffix -headless. Only those with "contrib" have xphoto and ximgproc. One at a time: they write
into the same folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

__all__ = ["CONTRIB", "why_not"]

#: The distribution to install: all modules, no windows.
CONTRIB = "opencv-contrib-python-headless"
_WITHOUT_CONTRIB = ("opencv-python", "opencv-python-headless")


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
