from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def included(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The included network for images of 64 pixels, 8-bit weights, as ONNX."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from context_encoder.export import main

    file = tmp_path_factory.mktemp("onnx") / "membrane-unet-64-int8.onnx"
    assert main(["--to", "onnx", "--out", str(file), "--precision", "int8"]) == 0
    return file
