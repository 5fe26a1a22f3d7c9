"""The page in Chromium: marking, filling, comparing, downloading, errors, and no other request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.context_encoder.demo.conftest import Server
from tests.context_encoder.demo.test_demo_command import image, png
from tests.context_encoder.demo.test_shapes import distance_to_polyline
from tests.helpers.browser import open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, open. In the end it must have asked nobody else, and reported no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(120_000)
    opened = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda text: problems.append(text.text) if text.type == "error" else 0)
    opened.goto(server.url)
    opened.wait_for_selector("#examples:not([hidden])")
    yield opened
    context.close()
    assert len(asked) > 4
    assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []
    # What the server refuses is an answer, which Chromium reports as an error.
    assert [text for text in problems if "status of 400" not in text] == []


def open_image(page: Any, data: bytes, name: str) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    page.set_input_files("#file-input", file)
    page.wait_for_function("name => document.getElementById('name').textContent === name", arg=name)
    page.wait_for_selector("#stage[data-state=open]")


def to_stage(page: Any, width: int, height: int, x: float, y: float) -> tuple[float, float]:
    """From pixels of the image to those of the window: the image is centred."""
    stage = page.locator("#canvas").bounding_box()
    scale = float(page.locator("#zoom-text").inner_text().removesuffix(" %")) / 100
    return (
        stage["x"] + stage["width"] / 2 + (x - width / 2) * scale,
        stage["y"] + stage["height"] / 2 + (y - height / 2) * scale,
    )


def drag(page: Any, points: list[tuple[float, float]]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def fill(page: Any) -> None:
    page.click("#fill")
    page.wait_for_function(
        "() => document.querySelector('#fill span').textContent === 'Fill'"
        " && !document.getElementById('download').disabled"
    )


def downloaded(page: Any, button: str) -> tuple[str, np.ndarray]:
    with page.expect_download() as download:
        page.click(button)
    data = Path(download.value.path()).read_bytes()
    return download.value.suggested_filename, np.asarray(Image.open(io.BytesIO(data)))


def color_at(page: Any, x: float, y: float) -> list[int]:
    """What the stage shows at a point of the window."""
    script = """([x, y]) => new Promise((done) => requestAnimationFrame(() => {
        const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
        const pixel = [x - box.left, y - box.top].map((v) => Math.round(v * devicePixelRatio));
        done([...canvas.getContext("2d").getImageData(...pixel, 1, 1).data].slice(0, 3));
    }))"""
    return list(page.evaluate(script, [x, y]))


def test_brush_fill_compare_and_download(page: Any) -> None:
    pixels = image()
    pixels[40:50, 50:70] = (255, 0, 0)  # what is to be removed
    open_image(page, png(pixels), "red.png")
    assert page.locator("#facts").inner_text() == "120 \u00d7 90 px"
    width = 24
    while int(page.locator("#size-text").inner_text().split()[0]) < width:
        page.keyboard.press("]")
    width = int(page.locator("#size-text").inner_text().split()[0])
    stroke = [(52.0, 45.0), (68.0, 45.0)]
    points = [to_stage(page, 120, 90, *point) for point in stroke]
    drag(page, points)
    fill(page)

    name, result = downloaded(page, "#download")
    assert name == "red-filled.png"
    distance = distance_to_polyline(stroke, 120, 90)
    outside = distance > width / 2 + 1  # by half a pixel of the window, and of the stroke's end
    np.testing.assert_array_equal(result[outside], pixels[outside])
    inside = distance < width / 2 - 1
    assert (result[inside] != pixels[inside]).any(1).mean() > 0.95
    red = np.abs(result.astype(int) - (255, 0, 0)).sum(2) < 60
    assert not red.any()

    # The boundary shows the image to its left and the result to its right.
    x, y = to_stage(page, 120, 90, 60, 45)
    divider = page.locator("#divider")
    divider.focus()
    page.keyboard.press("End")
    np.testing.assert_allclose(color_at(page, x, y), (255, 0, 0), atol=25)
    page.keyboard.press("Home")
    np.testing.assert_allclose(color_at(page, x, y), result[45, 60], atol=40)
    box = divider.bounding_box()
    drag(page, [(box["x"] + 16, 300), (x + 60, 300)])
    np.testing.assert_allclose(color_at(page, x, y), (255, 0, 0), atol=25)

    assert "hole 1 of 1" in page.locator("#lines").inner_text()
    captions = page.locator("#closeups figcaption").all_inner_texts()
    assert captions[:2] == ["Original", "Filled"]
    if page.locator("#opencv").input_value() != "off":
        assert captions[2].startswith("OpenCV")
        assert page.locator("#modes [data-mode=opencv]").is_visible()
    page.screenshot()


def test_sixteen_bits_undo_and_masks(page: Any) -> None:
    deep = np.random.default_rng(5).integers(0, 65536, (90, 120)).astype(np.uint16)
    open_image(page, png(deep), "deep.png")
    assert "16 bits" in page.locator("#facts").inner_text()
    mask = np.zeros((90, 120), np.uint8)
    mask[20:40, 30:60] = 255
    file = {"name": "mask.png", "mimeType": "image/png", "buffer": png(mask)}
    page.set_input_files("#mask-input", file)
    page.wait_for_function("() => !document.getElementById('undo').disabled")
    saved, again = downloaded(page, "#save-mask")
    assert saved == "deep-mask.png"
    np.testing.assert_array_equal(again, mask)

    # A lasso around the rest of the image, taken back; then a box taken away.
    page.click("[data-tool=lasso]")
    corners = [(5, 50), (110, 50), (110, 80), (5, 80)]
    drag(page, [to_stage(page, 120, 90, *corner) for corner in corners])
    more = downloaded(page, "#save-mask")[1]
    assert more[55:75, 15:100].all()
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(downloaded(page, "#save-mask")[1], mask)
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(downloaded(page, "#save-mask")[1], more)
    page.click("#undo")
    page.click("[data-tool=box]")
    page.click("#erase")
    drag(page, [to_stage(page, 120, 90, *corner) for corner in [(45, 10), (70, 50)]])
    less = downloaded(page, "#save-mask")[1]
    assert less[20:40, 30:44].all()
    assert not less[:, 46:].any()

    page.uncheck("#texture-on")
    page.fill("#grow", "2")
    page.select_option("#opencv", "off")
    fill(page)
    _, result = downloaded(page, "#download")
    assert result.dtype == np.uint16
    changed = np.argwhere(result != deep)
    assert changed.min(0).tolist() == [18, 28]
    assert changed.max(0)[0] == 41
    assert changed.max(0)[1] == pytest.approx(46, abs=1)


def test_errors_are_sentences_and_the_page_goes_on(page: Any) -> None:
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.set_input_files("#file-input", text)
    page.wait_for_selector("#error:not([hidden])")
    assert (
        page.locator("#error span").inner_text().startswith("Notes.txt: not an image in a format")
    )
    page.click("#error button")
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(1 + (1 << 20))}
    page.set_input_files("#file-input", large)
    page.wait_for_selector("#error:not([hidden])")
    assert "larger than the 1 MiB" in page.locator("#error span").inner_text()
    page.click("#error button")
    open_image(page, png(image()), "waves.png")
    wrong = {"name": "m.png", "mimeType": "image/png", "buffer": png(np.zeros((4, 5), np.uint8))}
    page.set_input_files("#mask-input", wrong)
    page.wait_for_selector("#error:not([hidden])")
    assert "m.png is 5x4 pixels, the image 120x90" in page.locator("#error span").inner_text()
    assert page.locator("#fill").is_disabled()
