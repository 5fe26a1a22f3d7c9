"""The example page in Chromium, from the file system: an exported network in onnxruntime-web."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.context_encoder.exporting.test_export import in_onnxruntime, photographs
from tests.helpers.browser import open_browser

PAGE = Path(__file__).parents[3] / "examples" / "browser" / "index.html"
#: The folder dist of the npm package onnxruntime-web.
RUNTIME = os.environ.get("CONTEXT_ENCODER_ONNXRUNTIME_WEB")


@pytest.fixture
def page() -> Iterator[Any]:
    if not RUNTIME:
        pytest.skip("CONTEXT_ENCODER_ONNXRUNTIME_WEB names no folder with onnxruntime-web")
    with open_browser() as browser:
        context = browser.new_context(viewport={"width": 1000, "height": 900})
        asked: list[str] = []
        problems: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        opened = context.new_page()
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(PAGE.as_uri())
        yield opened
        context.close()
    assert [url for url in asked if not url.startswith((PAGE.as_uri(), "blob:"))] == []
    assert problems == []


def test_an_exported_network_fills_in_the_page(page: Any, included: Path, tmp_path: Path) -> None:
    pixels = (photographs(1, 64)[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    page.set_input_files("#image", str(tmp_path / "image.png"))
    names = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
    page.set_input_files("#runtime", [str(Path(str(RUNTIME)) / name) for name in names])
    page.set_input_files("#model", str(included))
    page.wait_for_function("() => !document.getElementById('fill').disabled", timeout=60_000)
    assert "64 x 64" in page.locator("#status").inner_text()
    page.click("#fill")
    page.wait_for_function("() => document.getElementById('status').dataset.kind === 'error'")
    assert "Nothing is marked" in page.locator("#status").inner_text()

    box = page.locator("#marks").bounding_box()
    page.fill("#brush", "12")
    page.mouse.move(box["x"] + 25, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 35, box["y"] + 30, steps=4)
    page.mouse.up()
    marked = page.evaluate(
        "() => Array.from(marks.getImageData(0, 0, 64, 64).data).filter((_, i) => i % 4 === 3)"
    )
    mask = np.array(marked, np.float32).reshape(64, 64) > 127
    assert 150 < mask.sum() < 300  # a window of the network's size
    page.click("#fill")
    page.wait_for_function(
        "() => document.getElementById('status').textContent.startsWith('Filled 1 hole')",
        timeout=60_000,
    )
    with page.expect_download() as download:
        page.click("#save")
    data = Path(download.value.path()).read_bytes()
    found = np.asarray(Image.open(io.BytesIO(data)))[..., :3]
    image = pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    (expected,) = in_onnxruntime(included, image=image, mask=mask[None, None].astype(np.float32))
    np.testing.assert_array_equal(found[~mask], pixels[~mask])
    difference = found[mask] - 255 * expected[0].transpose(1, 2, 0)[mask]
    assert np.abs(difference).max() <= 1
