"""The command and its server, without a browser."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from context_encoder import HoleFiller, Inpainter
from context_encoder.data.mask_images import InpaintError
from context_encoder.demo.__main__ import main
from context_encoder.demo.filling import (
    Cancelled,
    FillRequest,
    Networks,
    available_methods,
    fill,
)
from context_encoder.demo.pictures import Pictures, encode_png, open_mask, open_picture
from tests.context_encoder.demo.conftest import Server, serving
from tests.helpers.small_runs import save_untrained

BOX = [[40, 30], [70, 30], [70, 55], [40, 55]]
HOLE = {"kind": "area", "points": BOX}


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def image(seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:90, :120]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], 2)
    noise = np.random.default_rng(seed).normal(0, 6, (90, 120, 3))
    return np.clip(128 + 70 * waves + noise, 0, 255).astype(np.uint8)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("texture", [0, 0.7])
def test_the_result_is_that_of_the_library(server: Server, texture: float) -> None:
    pixels = image()
    key = server.post("api/pictures?name=waves.png", png(pixels))["key"]
    events = server.fill(key, shapes=[HOLE], texture=texture, opencv="telea")
    names = [event["event"] for event in events if event["event"] != "progress"]
    compared = ["opencv"] if available_methods() else ["error"]
    assert names == ["draft", "filled", *compared] + (["end"] if available_methods() else [])
    shares = [event["share"] for event in events if event["event"] == "progress"]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.02)

    body = json.dumps({"shapes": [HOLE]}).encode()
    mask = decoded(server.request(f"api/pictures/{key}/mask.png", body)[1]) > 0
    expected = HoleFiller(texture=texture)(pixels, mask)
    _, data, headers = server.request(f"api/pictures/{key}/result.png")
    np.testing.assert_array_equal(decoded(data), np.asarray(expected.image))
    assert "waves-filled.png" in headers["content-disposition"]
    filled = next(event for event in events if event["event"] == "filled")
    assert filled["lines"] == expected.report.lines()
    assert filled["part"] == filled["holes"][0]


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "LA", "P", "RGB"])
def test_pixels_outside_stay_bit_for_bit_at_full_depth(mode: str) -> None:
    random = np.random.default_rng(1)
    if mode == "I;16":
        pixels = random.integers(0, 65536, (90, 120)).astype(np.uint16)
    else:
        pixels = np.asarray(
            Image.fromarray(random.integers(0, 256, (90, 120, 4), np.uint8), "RGBA")
        )
        pixels = np.asarray(Image.fromarray(pixels).convert("L" if mode == "L" else "RGB"))
        if mode in ("RGBA", "LA"):
            pixels = np.asarray(Image.fromarray(random.integers(0, 256, (90, 120, 4), np.uint8)))
            pixels = pixels if mode == "RGBA" else pixels[..., :2]
    source = Image.fromarray(pixels)
    if mode == "P":
        source = source.quantize(64)
        pixels = np.asarray(source.convert("RGB"))
    data = io.BytesIO()
    source.save(data, "PNG", dpi=(300, 300))
    opened = open_picture(data.getvalue(), "noise.png")
    asked = FillRequest.model_validate({"shapes": [HOLE], "feather": 4, "texture": 0})
    fill(opened, asked, Networks(), lambda event: None, threading.Event())
    assert opened.result is not None
    assert opened.filled is not None
    result = np.asarray(opened.result)
    assert result.dtype == pixels.dtype
    np.testing.assert_array_equal(result[~opened.filled], pixels[~opened.filled])
    assert (result[opened.filled] != pixels[opened.filled]).any()
    saved = Image.open(io.BytesIO(encode_png(opened.result, opened.picture.info)))
    assert saved.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    np.testing.assert_array_equal(np.asarray(saved), result)
    y, x = np.nonzero(opened.filled)  # the box, and 4 pixels around it
    assert [x.min(), x.max(), y.min(), y.max()] == pytest.approx([36, 73, 26, 58], abs=1)


def test_a_feathered_fill_fades_into_the_image() -> None:
    flat = np.full((90, 120), 100, np.uint8)
    flat[30:55, 40:70] = 200
    opened = open_picture(png(flat), "flat.png")
    asked = {"shapes": [HOLE], "texture": 0, "grow": 3, "feather": 5, "opencv": "off"}
    request = FillRequest.model_validate(asked)
    fill(opened, request, Networks(), lambda event: None, threading.Event())
    assert opened.result is not None
    row = np.asarray(opened.result).astype(int)[42, 20:60]
    np.testing.assert_allclose(row, 100, atol=2)


@pytest.mark.parametrize("most", [40_000, 300])
def test_the_draft_is_the_membrane_at_any_resolution(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image that is linear in both directions, the membrane is the image itself."""
    monkeypatch.setattr("context_encoder.demo.filling._MOST_FOR_DRAFT", most)
    y, x = np.mgrid[:90, :120]
    ramp = np.stack([40 + x, 200 - 2 * y, x + y], 2).astype(np.uint8)
    opened = open_picture(png(ramp), "ramp.png")
    stop = threading.Event()
    asked = FillRequest.model_validate({"shapes": [HOLE]})
    with pytest.raises(Cancelled):
        fill(opened, asked, Networks(), lambda event: stop.set(), stop)
    # Within half of a cell at its corners, and what JPEG loses.
    difference = decoded(opened.shown["draft"]).astype(int) - ramp[30:55, 40:70]
    assert abs(difference).max() <= (3 if most > 1000 else 7)
    assert abs(difference).mean() < 2


def test_work_ends_when_the_page_no_longer_wants_it() -> None:
    opened = open_picture(png(image()), "waves.png")
    stop, seen = threading.Event(), []

    def send(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        if event["event"] == "progress":
            stop.set()

    with pytest.raises(Cancelled):
        fill(opened, FillRequest.model_validate({"shapes": [HOLE]}), Networks(), send, stop)
    assert "filled" not in seen
    assert opened.result is None


def test_the_network_of_a_run_can_be_chosen(tmp_path: Path) -> None:
    run = save_untrained(tmp_path / "first", seed=0)
    networks = Networks((run,))
    assert list(networks.labels()) == ["included", "none", "run1"]
    assert str(run) in networks.labels()["run1"]
    pixels = image()
    mask = np.zeros(pixels.shape[:2], bool)
    mask[30:55, 40:70] = True
    for texture in (0.0, 0.5):
        opened = open_picture(png(pixels), "waves.png")
        request = FillRequest.model_validate(
            {"shapes": [HOLE], "texture": texture, "network": "run1"}
        )
        fill(opened, request, networks, lambda event: None, threading.Event())
        own = Inpainter.from_run(run)
        filler = HoleFiller(own, texture=texture) if texture else own
        np.testing.assert_array_equal(opened.result, filler(pixels, mask).image)


def test_large_images_are_shown_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("context_encoder.demo.pictures._SHOWN_PIXELS", 2700)
    opened = open_picture(png(image()), "waves.png")
    opened.show_all()
    assert (opened.display.width, opened.display.height) == (60, 45)
    assert Image.open(io.BytesIO(opened.shown["display"])).size == (60, 45)
    events: list[dict[str, Any]] = []
    asked = FillRequest.model_validate({"shapes": [HOLE], "texture": 0})
    fill(opened, asked, Networks(), events.append, threading.Event())
    filled = next(event for event in events if event["event"] == "filled")
    assert filled["part"] == pytest.approx([20, 15, 15, 12.5], abs=0.5)
    assert opened.result is not None
    assert opened.result.shape == (90, 120, 3)


def test_images_are_few_and_forgotten() -> None:
    opened = [open_picture(png(image(seed)), "waves.png") for seed in range(3)]
    pictures = Pictures(most=2, seconds=1e6)
    keys = [pictures.add(one) for one in opened]
    assert pictures.find(keys[0]) is None
    assert pictures.find(keys[2]) is opened[2]
    opened[1].used -= 2e6
    pictures.forget_unused()
    assert pictures.find(keys[1]) is None
    pictures.forget(keys[2])
    assert len(pictures) == 0


def test_errors_name_the_file_of_the_user() -> None:
    with pytest.raises(InpaintError, match=r"^notes\.txt: .*not an image"):
        open_picture(b"hello", "notes.txt")
    opened = open_picture(png(image()), "waves.png")
    with pytest.raises(InpaintError, match=r"mask small\.png is 5x4 pixels, the image 120x90"):
        open_mask(png(np.zeros((4, 5), np.uint8)), "small.png", opened.picture)


def test_wrong_requests_get_a_sentence(server: Server) -> None:
    key = server.post("api/pictures?name=waves.png", png(image()))["key"]
    assert "nothing is marked" in server.fill(key, shapes=[])[-1]["text"]
    everything = {"kind": "area", "points": [[-9, -9], [200, -9], [200, 200], [-9, 200]]}
    assert "whole image" in server.fill(key, shapes=[everything])[-1]["text"]
    assert "no network 'x'" in server.fill(key, shapes=[HOLE], network="x")[-1]["text"]
    assert (
        "`texture` must be at most 1, got 3" in server.fill(key, shapes=[], texture=3)[0]["error"]
    )
    status, body, _ = server.request("api/pictures/unknown/result.png")
    assert (status, json.loads(body)["error"]) == (
        404,
        "the image is no longer here; open it again",
    )
    status, body, _ = server.request("api/pictures", bytes(1 + (1 << 20)))
    assert status == 413
    assert "larger than the 1 MiB" in json.loads(body)["error"]
    assert "not an image" in server.post("api/pictures?name=a.txt", b"hello")["error"]


def test_other_sites_cannot_use_the_page(server: Server) -> None:
    assert server.request("api/about", Host="rebound.example")[0] == 400
    assert server.request("api/pictures", png(image()), Origin="http://other.example")[0] == 403
    assert server.request("api/about", Origin=server.url.rstrip("/"))[0] == 200
    policy = server.request("")[2]["content-security-policy"]
    assert policy.startswith("default-src 'self';")


def test_nothing_is_written(server: Server) -> None:
    key = server.post("api/pictures?name=waves.png", png(image()))["key"]
    server.fill(key, shapes=[HOLE], texture=0)
    assert server.request(f"api/pictures/{key}/result.png")[0] == 200
    assert list(server.folder.iterdir()) == []
    files = [str(link.readlink()) for link in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert not [name for name in files if "upload" in name]


def test_signals_end_it_as_documented(tmp_path: Path) -> None:
    with serving(tmp_path) as one, serving(tmp_path) as other:
        assert one.url != other.url  # both are ready
        key = one.post("api/pictures", png(np.tile(image(), (5, 5, 1))))["key"]
        large = {"kind": "area", "points": [[50, 50], [500, 50], [500, 400], [50, 400]]}
        body = json.dumps({"shapes": [large]}).encode()
        working = threading.Thread(target=one.request, args=(f"api/pictures/{key}/fill", body))
        working.start()
        one.process.send_signal(signal.SIGINT)
        other.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 130
        assert other.process.wait(60) == 143
        working.join()
        assert one.process.stderr is not None
        assert one.process.stderr.read() == "interrupted\n"


def test_without_the_extra_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said == "error: the page needs uvicorn: pip install 'context-encoder[demo]'\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port", "70000"], "--port must be 0 to 65535, got 70000"),
        (["--host", "203.0.113.1"], "choose another --port"),
        (["--max-upload", "0"], "--max-upload must be at least 1 MiB"),
        (["--checkpoint", "no-such-run", "--port", "0"], "no-such-run"),
    ],
)
def test_wrong_options(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert reason in said


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "address already in use; choose another --port" in capsys.readouterr().err
