"""What to install for OpenCV and its modules."""

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types

import pytest

from context_encoder.utils.opencv import why_not


def test_an_opencv_with_contrib_has_nothing_missing() -> None:
    pytest.importorskip("cv2.xphoto")
    assert why_not() is None
    assert why_not("xphoto") is None
    assert why_not("ximgproc") is None


def test_an_opencv_without_contrib_is_named_with_the_commands_to_replace_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both distributions are ``cv2``: installing the second over the first mixes them."""
    bare = types.ModuleType("cv2")
    bare.__spec__ = importlib.machinery.ModuleSpec("cv2", None)
    monkeypatch.setitem(sys.modules, "cv2", bare)
    installed = {"opencv-python-headless"}

    def version(name: str) -> str:
        if name in installed:
            return "5.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert why_not() is None
    message = why_not("xphoto")
    assert message is not None
    assert "(opencv-python-headless) lacks the module xphoto of opencv-contrib" in message
    assert message.endswith(
        "pip uninstall opencv-python-headless; pip install opencv-contrib-python-headless"
    )
    installed.clear()  # built from source
    message = why_not("ximgproc")
    assert message is not None
    assert "uninstall" not in message


def test_no_opencv_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert "cannot be loaded: libGL.so.1" in (why_not() or "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert why_not() == "OpenCV is needed: pip install opencv-contrib-python-headless"
    assert why_not("xphoto") == why_not()
