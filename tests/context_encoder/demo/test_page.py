"""The page in Chromium: marking, filling, comparing, downloading, errors, and no other request."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    with opened_page(browser, server, width=1200, height=800) as opened:
        yield opened


@pytest.fixture
def phone(browser: Any, server: Server) -> Iterator[Any]:
    options = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with opened_page(browser, server, width=390, height=844, **options) as opened:
        yield opened


@contextmanager
def opened_page(
    browser: Any, server: Server, width: int, height: int, **options: Any
) -> Iterator[Any]:
    """The page, open. In the end it must have asked nobody else, and reported no error."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
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
    refused = ("status of 400", "status of 404")
    assert [text for text in problems if not any(word in text for word in refused)] == []


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
        page.locator("#error span").inner_text().startswith("notes.txt: not an image in a format")
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
    black = {"name": "b.png", "mimeType": "image/png", "buffer": png(np.zeros((90, 120), np.uint8))}
    page.set_input_files("#mask-input", black)
    page.wait_for_function("() => document.getElementById('error').textContent.includes('b.png')")
    said = page.locator("#error span").inner_text()
    assert "b.png is nowhere white" in said
    assert "`" not in said  # the options of the command are not those of the page


def drop(page: Any, *paths: Path, at: tuple[float, float] = (300, 300)) -> None:
    """Files, or text if there are none, as dropped from another program."""
    items = [] if paths else [{"mimeType": "text/plain", "data": "hello"}]
    data = {"items": items, "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": at[0], "y": at[1], "data": data}
        session.send("Input.dispatchDragEvent", event)
        if kind == "dragOver":
            page.wait_for_selector("#drop:not([hidden])")
    assert page.locator("#drop").is_hidden()


def error_of(page: Any) -> str:
    page.wait_for_selector("#error:not([hidden])")
    text = str(page.locator("#error span").inner_text())
    page.click("#error button")
    return text


def test_a_dropped_file_opens(page: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    first.write_bytes(png(image()))
    second.write_bytes(png(image(1)[:80]))
    drop(page, first)
    page.wait_for_selector("#stage[data-state=open]")
    assert page.locator("#name").inner_text() == "first.png"
    drop(page, first, second)
    assert error_of(page) == "Drop one image at a time, not 2."
    drop(page, tmp_path)
    assert "a folder" in error_of(page)
    drop(page)
    assert "not a file" in error_of(page)
    assert page.locator("#name").inner_text() == "first.png"
    drop(page, second)
    page.wait_for_function("() => document.getElementById('name').textContent === 'second.png'")
    assert page.locator("#facts").inner_text() == "120 \u00d7 80 px"


def test_a_click_marks_and_work_goes_on_from_the_result(page: Any, tmp_path: Path) -> None:
    pixels = image()
    pixels[43:47, 58:62] = (255, 0, 0)
    open_image(page, png(pixels), "spots.png")
    while int(page.locator("#size-text").inner_text().split()[0]) < 16:
        page.keyboard.press("]")
    x, y = to_stage(page, 120, 90, 60, 45)
    page.mouse.click(x, y)
    page.mouse.move(5, 5)
    beside = to_stage(page, 120, 90, 60, 51)  # in the brush, not in the spot
    shown, plain = color_at(page, *beside), pixels[51, 60]
    assert np.abs(np.subtract(shown, plain.astype(int))).max() > 40, "the mark is not visible"
    fill(page)
    assert page.locator("#changed").is_hidden()
    page.click("[data-mode=filled]")
    page.wait_for_selector("#divider", state="hidden")
    _, result = downloaded(page, "#download")
    np.testing.assert_allclose(color_at(page, x, y), result[45, 60], atol=40)
    page.click("[data-mode=mark]")
    page.click("#undo")
    assert page.locator("#changed").is_visible()
    assert page.locator("#fill").inner_text() == "Fill"

    page.click("#go-on")
    page.wait_for_function("name => document.getElementById('name').textContent === name",
                           arg="spots-filled.png")  # fmt: skip
    mask = tmp_path / "mask.png"
    inside = np.zeros((90, 120), np.uint8)
    inside[10:30, 20:40] = 255
    mask.write_bytes(png(inside))
    box = page.locator("#hole").bounding_box()
    drop(page, mask, at=(box["x"] + 20, box["y"] + 8))
    page.wait_for_function("() => !document.getElementById('undo').disabled")
    fill(page)
    name, second = downloaded(page, "#download")
    assert name == "spots-filled.png"
    np.testing.assert_array_equal(second[inside == 0], result[inside == 0])
    assert (second[inside > 0] != result[inside > 0]).any()


class Fingers:
    """Touches of a page, in pixels of the window."""

    def __init__(self, page: Any) -> None:
        self._session = page.context.new_cdp_session(page)

    def _send(self, kind: str, points: list[tuple[float, float]]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def drag(self, *paths: list[tuple[float, float]]) -> None:
        """Fingers that come one after the other, move at the same time, and leave together."""
        for count in range(1, len(paths) + 1):
            self._send("touchStart", [path[0] for path in paths[:count]])
        for points in zip(*paths, strict=True):
            self._send("touchMove", list(points))
        self._send("touchEnd", [])


def test_a_phone(phone: Any) -> None:
    pixels = image()
    open_image(phone, png(pixels), "waves.png")
    inside = "e => { const b = e.getBoundingClientRect(); return b.left >= 0 && b.right <= 390; }"
    for name in ("#tools", "#zoom", "#fill", "#load-mask"):
        assert phone.locator(name).evaluate(inside), name
    assert phone.evaluate("document.documentElement.scrollWidth") == 390

    scale = float(phone.locator("#zoom-text").inner_text().removesuffix(" %")) / 100
    tools, zoom = (phone.locator(name).bounding_box() for name in ("#tools", "#zoom"))
    top, bottom = tools["y"] + tools["height"], zoom["y"]
    middle = 195.0, (top + bottom) / 2
    fingers = Fingers(phone)
    stroke = [(middle[0] + 3 * step - 30, middle[1]) for step in range(21)]
    fingers.drag(stroke)
    marked = downloaded(phone, "#save-mask")[1] > 0
    y, x = np.nonzero(marked)
    width = int(phone.locator("#size-text").inner_text().split()[0])
    assert x.mean() == pytest.approx(60, abs=1)
    assert np.ptp(x) + 1 == pytest.approx(60 / scale + width, abs=2)
    assert np.ptp(y) + 1 == pytest.approx(width, abs=2)
    assert 20 < y.mean() < 70

    # Two fingers zoom and move, and three do no more; none of it marks.
    left = [(middle[0] - 20 - 2 * step, middle[1]) for step in range(21)]
    right = [(middle[0] + 20 + 2 * step, middle[1]) for step in range(21)]
    fingers.drag(left, right)
    zoomed = float(phone.locator("#zoom-text").inner_text().removesuffix(" %")) / 100
    assert zoomed == pytest.approx(3 * scale, rel=0.05)
    fingers.drag(left[::-1], right[::-1], [(middle[0], middle[1] + step) for step in range(21)])
    np.testing.assert_array_equal(downloaded(phone, "#save-mask")[1] > 0, marked)

    phone.locator("#texture-on").uncheck()
    phone.locator("#fill").tap()
    phone.wait_for_selector("#result:not([hidden])")
    assert phone.evaluate("scrollY") == 0  # at the image
    divider = phone.locator("#divider")
    at = divider.bounding_box()
    start = at["x"] + at["width"] / 2
    before = int(divider.get_attribute("aria-valuenow"))
    fingers.drag([(start - 4 * step, middle[1] + 20) for step in range(11)])
    assert int(divider.get_attribute("aria-valuenow")) < before
    _, result = downloaded(phone, "#download")
    np.testing.assert_array_equal(result[~marked], pixels[~marked])
    assert (result[marked] != pixels[marked]).any()


def test_keys_alone_suffice(page: Any) -> None:
    pixels = image()
    open_image(page, png(pixels), "waves.png")
    page.focus("#canvas")
    page.keyboard.press("r")
    page.keyboard.press("Enter")  # a box from the middle of the image
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("b")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")  # this stroke is not wanted
    scale = float(page.locator("#zoom-text").inner_text().removesuffix(" %")) / 100
    marked = downloaded(page, "#save-mask")[1] > 0
    y, x = np.nonzero(marked)
    box = [60, 60 + 48 / scale, 45, 45 + 40 / scale]
    assert [x.min(), x.max() + 1, y.min(), y.max() + 1] == pytest.approx(box, abs=0.6)

    # By the tab key to the button, as everything else.
    page.focus("#canvas")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "fill":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    _, result = downloaded(page, "#download")
    np.testing.assert_array_equal(result[~marked], pixels[~marked])

    # What a screen reader says is computed by the browser.
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = {"application", "button", "slider", "spinbutton", "combobox", "checkbox"}
    found = [node for node in tree if node["role"]["value"].lower() in controls]
    assert {node["role"]["value"].lower() for node in found} == controls
    unnamed = [node for node in found if not node.get("name", {}).get("value")]
    assert unnamed == []


def wide(seed: int) -> np.ndarray:
    return np.tile(image(seed) // 64 * 64, (6, 6, 1))


def cpu_seconds(server: Server) -> float:
    """What the server has used so far; the time of day depends on what else this machine does."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_long_fill(page: Any) -> None:
    """Of a hole that takes 12 s of CPU time or more, in the image ``wide``."""
    page.click("[data-tool=box]")
    drag(page, [to_stage(page, 720, 540, *corner) for corner in [(60, 60), (660, 480)]])
    page.click("#fill", click_count=2, delay=20)  # the second click changes nothing
    page.wait_for_function(
        "() => document.getElementById('right-label').textContent.includes('draft')"
    )
    assert page.locator("#fill").inner_text() == "Stop"


def test_a_fill_is_stopped_and_the_result_before_kept(page: Any) -> None:
    open_image(page, png(wide(0)), "wide.png")
    page.click("[data-tool=box]")
    drag(page, [to_stage(page, 720, 540, *corner) for corner in [(40, 30), (50, 40)]])
    fill(page)
    _, first = downloaded(page, "#download")
    page.click("[data-mode=mark]")
    start_long_fill(page)
    page.wait_for_timeout(600)  # not a double click
    page.click("#fill")
    page.wait_for_function("() => document.getElementById('status').textContent === 'Stopped.'")
    np.testing.assert_array_equal(downloaded(page, "#download")[1], first)


def test_a_closed_tab_ends_its_work(browser: Any, server: Server) -> None:
    with opened_page(browser, server, width=1200, height=800) as page:
        keys: list[str] = []
        page.on("request", lambda request: keys.append(request.url))
        open_image(page, png(wide(0)), "wide.png")
        start_long_fill(page)
        key = next(url for url in keys if url.endswith("/fill")).split("/")[-2]
        before = cpu_seconds(server)
        page.close(run_before_unload=False)
        assert server.request(f"api/pictures/{key}/shown/display")[0] == 404
    other = server.post("api/pictures?name=waves.png", png(image()))["key"]
    events: list[dict[str, Any]] = []
    hole = {"kind": "area", "points": [[40, 30], [60, 30], [60, 50], [40, 50]]}
    work = threading.Thread(
        target=lambda: events.extend(server.fill(other, shapes=[hole], texture=0))
    )
    work.start()
    work.join(60)
    assert events
    assert cpu_seconds(server) - before < 8
    assert [event["event"] for event in events][-1] == "end"
    assert list(server.folder.iterdir()) == []


def test_images_that_the_server_forgot_are_sent_again(page: Any, server: Server) -> None:
    open_image(page, png(image()), "waves.png")
    mask = np.zeros((90, 120), np.uint8)
    mask[20:40, 30:60] = 255
    file = {"name": "mask.png", "mimeType": "image/png", "buffer": png(mask)}
    page.set_input_files("#mask-input", file)
    page.wait_for_function("() => !document.getElementById('undo').disabled")
    for seed in range(4):  # in other tabs
        server.post("api/pictures?name=other.png", png(image(seed)))
    np.testing.assert_array_equal(downloaded(page, "#save-mask")[1], mask)
    for seed in range(4):
        server.post("api/pictures?name=other.png", png(image(seed)))
    page.select_option("#opencv", "off")
    fill(page)
    _, result = downloaded(page, "#download")
    np.testing.assert_array_equal(result[mask == 0], image()[mask == 0])
    for seed in range(4):
        server.post("api/pictures?name=other.png", png(image(seed)))
    page.click("#download")
    assert error_of(page).endswith("fill again.")
