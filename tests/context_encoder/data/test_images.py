"""Image reading, the folder data set, the sample stream and the loader."""

from __future__ import annotations

import csv
import io
import itertools
import os
import pickle
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from context_encoder.data import (
    SUFFIXES,
    PhotoFolder,
    SampleStream,
    UnreadableImage,
    collate,
    embedded_photos,
    folder,
    list_images,
    make_loader,
    read_image,
    scan_images,
    split_photos,
)

ORIENTATION = 0x0112


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


# --- read_image ------------------------------------------------------------------------------


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores, from the EXIF definition: the sides that row 0 and column 0 show."""
    swapped = upright.swapaxes(0, 1)
    return {
        1: upright,  # row 0 is the top, column 0 the left side
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: swapped,  # left, top
        6: swapped[::-1],  # right, top
        7: swapped[::-1, ::-1],  # right, bottom
        8: swapped[:, ::-1],  # left, bottom
    }[orientation]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = noise(5, 7)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", stored(upright, orientation), exif=exif, **lossless)
    np.testing.assert_array_equal(pixels_of(path), upright)


def test_orientation_of_a_jpeg_that_is_decoded_small(tmp_path: Path) -> None:
    upright = np.zeros((400, 800, 3), np.uint8)
    upright[:200, :400] = 255  # only the top left quarter is white
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(tmp_path / "a.jpg", stored(upright, 6), exif=exif)
    image = read_image(path, min_side=100)
    assert image.size == (200, 100)
    light = np.asarray(image).mean(-1) > 128
    assert light[:50, :100].mean() > 0.97
    assert light.sum() < 1.03 * 50 * 100


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, exif: bytes) -> None:
    pixels = noise(6, 6)
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "a.png", pixels, exif=exif)), pixels)


def save_16_bits(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".pgm":  # by hand: the format is a line of text and big-endian numbers
        height, width = values.shape
        path.write_bytes(b"P5 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes())
        return path
    return save(path, values.astype(np.uint16))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path, suffix: str) -> None:
    # By hand: v * 255 / 65535 = v / 257, to the nearest integer.
    values = np.array([[0, 128, 129, 257, 385, 386], [32767, 32768, 40000, 65406, 65407, 65535]])
    expected = np.array([[0, 0, 1, 1, 1, 2], [127, 128, 156, 254, 255, 255]])
    path = save_16_bits(tmp_path / f"a.{suffix}", values)
    np.testing.assert_array_equal(pixels_of(path), np.stack([expected] * 3, -1))


def test_16_bit_grey_with_a_transparent_value_shows_white_there(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 65535, 1001]], np.uint16)
    path = save(tmp_path / "a.png", values, transparency=1000)
    assert pixels_of(path)[0, :, 0].tolist() == [0, 255, 255, 4]


def test_32_bit_grey_within_16_bits_is_read_and_beyond_refused(tmp_path: Path) -> None:
    inside = save(tmp_path / "a.tif", np.array([[0, 257, 65535]], np.int32))
    assert pixels_of(inside)[0, :, 1].tolist() == [0, 1, 255]
    for values in ([[0, 65536]], [[-1, 5]]):
        with pytest.raises(UnreadableImage, match="white is unknown"):
            read_image(save(tmp_path / "b.tif", np.array(values, np.int32)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-0.2, 0.25, 1.5], [0, 64, 255]),  # beyond black and white is cut off
        ([0.0, 100.4, 255.0], [0, 100, 255]),
    ],
)
def test_float_grey(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = save(tmp_path / "a.tif", np.array([values], np.float32))
    assert pixels_of(path)[0, :, 2].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 256.0])
def test_float_grey_without_a_known_white_is_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "a.tif", np.array([[0.5, value]], np.float32))
    with pytest.raises(UnreadableImage, match="white is expected at 1 or 255"):
        read_image(path)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None].astype(np.float64) / 255
    return np.rint(colour * alpha + 255 * (1 - alpha))


def test_alpha_is_blended_with_white(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    got = pixels_of(save(tmp_path / "a.png", rgba)).astype(int)
    np.testing.assert_allclose(got, on_white(rgba[..., :3], rgba[..., 3]), atol=1)
    assert (got[0] == 255).all()
    np.testing.assert_array_equal(got[1], rgba[1, :, :3])

    got = pixels_of(save(tmp_path / "b.png", rgba[..., [0, 3]])).astype(int)  # grey with alpha
    grey = np.repeat(rgba[..., :1], 3, -1)
    np.testing.assert_allclose(got, on_white(grey, rgba[..., 3]), atol=1)


def test_palette_with_transparency(tmp_path: Path) -> None:
    colours = np.array([[200, 10, 30], [0, 255, 0], [7, 8, 9]], np.uint8)
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    assert image.mode == "P"

    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "plain.png"), colours[indices])

    image.save(tmp_path / "alphas.png", transparency=bytes([255, 0, 51]))
    expected = on_white(colours, np.array([255, 0, 51]))[indices]  # 51 / 255 is one fifth
    np.testing.assert_allclose(pixels_of(tmp_path / "alphas.png"), expected, atol=1)

    image.save(tmp_path / "one.gif", transparency=2)
    expected = on_white(colours, np.array([255, 255, 0]))[indices]
    np.testing.assert_array_equal(pixels_of(tmp_path / "one.gif"), expected)


def test_one_transparent_colour_of_an_rgb_png(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    path = save(tmp_path / "a.png", pixels, transparency=(1, 2, 3))
    assert pixels_of(path).tolist() == [[[255, 255, 255], [1, 2, 4]]]


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = noise(4, 4)[..., 0]
    np.testing.assert_array_equal(
        pixels_of(save(tmp_path / "a.png", grey)), np.stack([grey] * 3, -1)
    )
    bits = grey > 128
    np.testing.assert_array_equal(
        pixels_of(save(tmp_path / "b.png", bits)), np.stack([bits * np.uint8(255)] * 3, -1)
    )


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
    ],
)
def test_cmyk_jpeg(tmp_path: Path, cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    # Pillow writes Adobe's form, in which the four inks are stored inverted.
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), cmyk).save(path, quality=100)
    assert b"Adobe" in path.read_bytes()
    np.testing.assert_allclose(pixels_of(path), np.broadcast_to(rgb, (16, 16, 3)), atol=3)


def test_cmyk_photograph_is_converted_as_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.open(list_images(embedded_photos())[0]).convert("CMYK").save(path)
    np.testing.assert_array_equal(pixels_of(path), Image.open(path).convert("RGB"))


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_first_of_several_frames(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(path).n_frames == 3  # type: ignore[attr-defined]
    assert (pixels_of(path) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(s, None) for s in (".jpg", ".JPEG", ".png", ".bmp", ".gif", ".tiff", ".ppm")]
    + [(".webp", "webp"), (".jp2", "jpg_2000"), (".avif", "avif")],
)
def test_every_common_format_is_read(tmp_path: Path, suffix: str, codec: str | None) -> None:
    if codec is not None and not features.check(codec):
        pytest.skip(f"this Pillow has no {codec}")
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 24), (200, 100, 50)).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (32, 24))
    np.testing.assert_allclose(np.asarray(image), np.full((24, 32, 3), (200, 100, 50)), atol=6)
    assert suffix.lower() in SUFFIXES


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(noise(3, 4)).save(path, format="PNG")
    np.testing.assert_array_equal(pixels_of(path), noise(3, 4))


@pytest.mark.parametrize(
    ("min_side", "expected"), [(None, 512), (300, 512), (256, 256), (200, 256), (64, 64), (1, 64)]
)
def test_min_side_decodes_jpeg_at_a_fraction(
    tmp_path: Path, min_side: int | None, expected: int
) -> None:
    photo = Image.open(embedded_photos() / "kde_cat.jpg")
    image = read_image(embedded_photos() / "kde_cat.jpg", min_side)
    assert image.size == (expected, expected)
    # The picture is the same one: close to block means of the full decode.
    blocks = np.asarray(photo, np.float64).reshape(expected, 512 // expected, expected, -1, 3)
    assert np.abs(blocks.mean((1, 3)) - np.asarray(image)).mean() < 2


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so step down while the test runs."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def broken_files(where: Path) -> dict[Path, str]:
    """Files that cannot be read, each with what the reason must say."""
    picture = Image.fromarray(noise(64, 64))
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    tiff = bytearray(encoded(picture, "TIFF", compression="tiff_lzw"))
    tiff[200:4000] = b"\xff" * 3800  # libtiff complains of this by itself, on standard error
    contents = {
        "empty.jpg": (b"", "the file is empty"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "begins with b'<!DOCTYPE html>"),
        "text.png": (b"a", "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "start.jpg": (jpeg[:20], r"\w"),
        "noise.jpg": (jpeg[:2] + noise(10, 10).tobytes(), r"\w"),
        "damaged.tif": (bytes(tiff), "pixels cannot be decoded"),
        "bomb.png": (png_header(40000, 40000), "exceeds limit"),
        "no_pixels.png": (png_header(100, 100), "pixels cannot be decoded"),
    }
    where.mkdir(exist_ok=True)
    for name, (content, _) in contents.items():
        (where / name).write_bytes(content)
    reasons = {where / name: reason for name, (_, reason) in contents.items()}
    (where / "dangling.jpg").symlink_to(where / "nowhere.jpg")
    reasons[where / "dangling.jpg"] = "No such file"
    os.mkfifo(where / "pipe.jpg")
    reasons[where / "pipe.jpg"] = "not a regular file"
    return reasons


def test_unreadable_files_raise_one_exception_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    reasons = broken_files(tmp_path)
    (tmp_path / "folder.jpg").mkdir()
    reasons[tmp_path / "folder.jpg"] = "a folder"
    for path, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            read_image(path)
        assert caught.value.path == path
        assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_standard_error_works_after_a_tiff(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read_image(save(tmp_path / "a.tif", noise(4, 4)))
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_forbidden_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(4, 4))
    path.chmod(0)
    with without_privileges(), pytest.raises(UnreadableImage, match="Permission denied"):
        read_image(path)


def test_large_image_below_the_limit_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(tmp_path / "a.png", noise(12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).size == (12, 12)
    with pytest.raises(UnreadableImage, match="exceeds limit"):
        read_image(save(tmp_path / "b.png", noise(15, 15)))


def test_min_side_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_side must be at least 1 pixel, got 0"):
        read_image(save(tmp_path / "a.png", noise(4, 4)), min_side=0)


def test_the_exception_survives_pickling_and_printing() -> None:
    error = UnreadableImage(os.fsdecode(b"/a/\xff.jpg"), "broken")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason) == (error.path, "broken")
    assert str(error).encode() == rb"/a/\udcff.jpg: broken"


# --- list_images and scan_images -------------------------------------------------------------


def test_list_images_order_and_what_is_skipped(tmp_path: Path) -> None:
    wanted = ["A.JPG", "a/1.png", "a/b/2.jpeg", "a.tif", "x.jpg/in.webp", "Öl/é 日本.jpg"]
    others = [".h.jpg", "._A.jpg", ".git/3.jpg", "__MACOSX/a/1.png", "notes.txt", "jpg", "v.mp4"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a" / "b")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == sorted(wanted)


def test_list_images_of_a_hidden_root_and_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / ".photos" / "a.png", noise(2, 2))
    monkeypatch.chdir(tmp_path)
    assert list_images(".photos") == [Path(".photos/a.png")]


def test_list_images_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        list_images(tmp_path / "nowhere")
    file = save(tmp_path / "a.png", noise(2, 2))
    with pytest.raises(NotADirectoryError, match="is a file; give the folder"):
        list_images(file)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"no image in .*\.jpg, .*\.webp"):
        list_images(tmp_path / "empty")


def test_list_images_names_folders_that_it_cannot_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png", noise(2, 2))
    save(tmp_path / "locked" / "b.png", noise(2, 2))
    (tmp_path / "locked").chmod(0)
    monkeypatch.chdir(tmp_path)  # the folders above belong to the user who runs the tests
    tmp_path.chmod(0o755)
    try:
        with without_privileges():
            found = list_images(".")
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert found == [Path("a.png")]
    assert "locked are left out: Permission denied" in caplog.text


def test_scan_finds_sizes_and_foreign_files(tmp_path: Path) -> None:
    good = [save(tmp_path / "a.png", noise(30, 20)), save(tmp_path / "b.jpg", noise(100, 50))]
    scan = scan_images([good[0], *broken_files(tmp_path / "broken"), good[1]])
    assert scan.sizes[good[0]] == (20, 30)
    assert scan.sizes[good[1]] == (50, 100)
    assert (scan.smaller_than(20), scan.smaller_than(21)) == (0, 1)
    named = {error.path.name for error in scan.unreadable}
    assert named >= {"empty.jpg", "page.jpg", "text.png", "bomb.png", "dangling.jpg", "pipe.jpg"}
    assert len(scan.sizes) + len(scan.unreadable) == 14


# --- PhotoFolder -----------------------------------------------------------------------------


def photos(root: Path, **changes: Any) -> PhotoFolder:
    options: dict[str, Any] = {
        "size": 16,
        "resize": 32,
        "crop_scale": (0.5, 1.0),
        "flip": True,
        "seed": 3,
        "train": True,
    }
    return PhotoFolder(list_images(root), root=root, **(options | changes))


def places(crop: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """All (top, left) where the crop lies in the image, to the last bit."""
    h, w = crop.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(image, (h, w), (0, 1))
    return list(zip(*np.nonzero((windows == crop.transpose(2, 0, 1)).all((2, 3, 4))), strict=True))


def hwc(sample: Any) -> np.ndarray:
    image: torch.Tensor = sample["image"]
    return image.permute(1, 2, 0).numpy()


def test_crops_of_unchanged_scale_are_pieces_of_the_image(tmp_path: Path) -> None:
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    data = photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5))
    found: list[tuple[int, int]] = []
    flips = 0
    for epoch in range(200):
        sample = data[epoch, 0]
        assert sample["image"].shape == (3, 12, 12)
        assert sample["image"].dtype == torch.uint8
        assert sample["image"].is_contiguous()
        assert (sample["epoch"], sample["index"], sample["source"]) == (epoch, 0, 0)
        crop = hwc(sample)
        plain, mirrored = places(crop, image), places(crop[:, ::-1], image)
        assert len(plain) + len(mirrored) == 1
        found += plain + mirrored
        flips += len(mirrored)
    assert 70 <= flips <= 130
    tops, lefts = zip(*found, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 12, 0, 28)  # every place occurs
    assert all(
        places(
            hwc(photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5), flip=False)[e, 0]),
            image,
        )
        for e in range(20)
    )


def test_scaled_crops_are_squares_of_the_wanted_sides(tmp_path: Path) -> None:
    # Red tells x and green tells y, so that a crop shows where it was taken.
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    save(tmp_path / "a.png", np.stack([x, y, x], -1))
    data = photos(tmp_path, size=32, resize=256, crop_scale=(0.25, 0.75))
    sides, middles = [], []
    for epoch in range(300):
        red, green = hwc(data[epoch, 0])[..., :2].astype(float).transpose(2, 0, 1)
        width = abs(red[16, 28] - red[16, 3]) / 25 * 32
        height = (green[28, 16] - green[3, 16]) / 25 * 32
        assert width == pytest.approx(height, abs=3)
        sides.append(height)
        middles.append(green[15:17, 15:17].mean())
    assert 61 < min(sides) < 70
    assert 186 < max(sides) < 195
    assert np.mean(sides) == pytest.approx(128, abs=10)
    assert np.mean(middles) == pytest.approx(127.5, abs=10)


@pytest.mark.parametrize(("resize", "train"), [(64, True), (256, True), (256, False)])
def test_shrinking_does_not_alias(tmp_path: Path, resize: int, train: bool) -> None:
    y, x = np.mgrid[:256, :256]
    checkers = np.uint8(255) * ((x + y) % 2).astype(np.uint8)
    save(tmp_path / "a.png", checkers)
    data = photos(tmp_path, size=32, resize=resize, crop_scale=(1.0, 1.0), train=train)
    np.testing.assert_allclose(hwc(data[0, 0]), 127.5, atol=4)


def test_resize_keeps_the_aspect_and_the_place(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    save(tmp_path / "a.png", np.broadcast_to(ramp[None, :, None], (100, 300, 3)).copy())
    data = photos(tmp_path, size=50, resize=50, crop_scale=(1.0, 1.0), train=False)
    # The centre third of the ramp, whichever scale it went through.
    expected = np.linspace(100, 200, 51)[:-1] + 1 - 0.5
    np.testing.assert_allclose(hwc(data[0, 0])[25, :, 0], expected / 299 * 255, atol=1.5)


def test_first_evaluation_crop_is_the_centre(tmp_path: Path) -> None:
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    options: dict[str, Any] = {"size": 12, "resize": 24, "crop_scale": (0.4, 0.6), "train": False}
    one = photos(tmp_path, **options)
    assert len(one) == 1
    np.testing.assert_array_equal(hwc(one[0, 0]), image[6:18, 14:26])
    many = photos(tmp_path, **options, crops_per_image=6, seed=99)
    assert len(many) == 6
    crops = [many[5, i]["image"] for i in range(6)]
    assert torch.equal(crops[0], one[0, 0]["image"])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(crops, 2))
    again = photos(tmp_path, **options, crops_per_image=6, seed=1)
    assert all(torch.equal(crop, again[0, i]["image"]) for i, crop in enumerate(crops))


def test_evaluation_index_names_image_and_crop(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((20, 20, 3), 50 * i, np.uint8))
    data = photos(tmp_path, train=False, crops_per_image=4)
    samples = [data[0, i] for i in range(len(data))]
    assert [s["source"] for s in samples] == [i // 4 for i in range(12)]
    assert [int(s["image"].max()) for s in samples] == [50 * (i // 4) for i in range(12)]
    assert [s["index"] for s in samples] == list(range(12))


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    first, again = photos(embedded_photos()), photos(embedded_photos())
    keys = [(e, i) for e in (0, 1, 7) for i in (0, 5)]
    forward = {key: first[key]["image"] for key in keys}
    backward = {key: again[key]["image"] for key in reversed(keys)}
    assert all(torch.equal(forward[key], backward[key]) for key in keys)
    assert not torch.equal(forward[0, 0], forward[1, 0])
    other = photos(embedded_photos(), seed=4)
    assert not torch.equal(forward[0, 0], other[0, 0]["image"])


def test_draws_stay_the_same_between_versions(tmp_path: Path) -> None:
    # Resuming a run with a newer version must go on with the same crops.
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    data = photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5), seed=0)
    crops = [hwc(data[epoch, 0]) for epoch in range(4)]
    found = [(*places(c, image), *places(c[:, ::-1], image)) for c in crops]
    assert found == [((10, 23),), ((4, 18),), ((2, 5),), ((3, 11),)]
    assert [bool(places(c, image)) for c in crops] == [False, True, True, False]  # mirrored or not


def test_small_images_are_enlarged_and_marked(tmp_path: Path) -> None:
    save(tmp_path / "1x1.png", np.array([[[9, 99, 199]]], np.uint8))
    save(tmp_path / "long.png", np.full((1, 500, 3), 77, np.uint8))
    save(tmp_path / "15.png", noise(15, 90))
    save(tmp_path / "16.png", noise(16, 16))
    data = photos(tmp_path)
    samples = {data.names[i]: data[0, i] for i in range(4)}
    marked = {name: sample["upsampled"] for name, sample in samples.items()}
    assert marked == {"1x1.png": True, "long.png": True, "15.png": True, "16.png": False}
    assert (hwc(samples["1x1.png"]) == (9, 99, 199)).all()
    assert (hwc(samples["long.png"]) == 77).all()


def test_memory_holds_images_up_to_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((64, 64, 3), 10 * i, np.uint8))
    room_for_two = 2 * 32 * 32 * 4

    def kept(cache_bytes: int) -> list[int]:
        """Which images survive the loss of their file."""
        data = photos(tmp_path, cache_bytes=cache_bytes)
        before = [data[0, i]["image"] for i in range(3)]
        for path in list_images(tmp_path):
            path.rename(path.with_suffix(".gone"))
        try:
            after = [data[0, i] for i in range(3)]
        except ValueError:
            return []
        finally:
            for path in tmp_path.glob("*.gone"):
                path.rename(path.with_suffix(".png"))
        held = [i for i in range(3) if after[i]["source"] == i]
        assert all(torch.equal(before[i], after[i]["image"]) for i in held)
        return held

    assert kept(room_for_two) == [0, 1]
    assert kept(room_for_two - 1) == [0]
    assert kept(0) == []
    worker = SimpleNamespace(num_workers=2)
    monkeypatch.setattr(folder, "get_worker_info", lambda: worker)
    assert kept(room_for_two) == [0]


def test_memory_does_not_change_the_pixels() -> None:
    kept, fresh = photos(embedded_photos()), photos(embedded_photos(), cache_bytes=0)
    for epoch, index in itertools.product(range(2), range(0, 43, 6)):
        assert torch.equal(kept[epoch, index]["image"], fresh[epoch, index]["image"])


def test_a_pickled_data_set_leaves_its_memory_behind() -> None:
    data = photos(embedded_photos())
    empty = len(pickle.dumps(data))
    expected = data[0, 2]["image"]
    pickled = pickle.dumps(data)
    assert len(pickled) == empty
    assert torch.equal(pickle.loads(pickled)[0, 2]["image"], expected)


def test_unreadable_files_are_replaced_by_the_next_and_named_once(tmp_path: Path) -> None:
    for name in ("b", "e"):
        save(tmp_path / f"{name}.png", np.full((20, 20, 3), ord(name), np.uint8))
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    for name in ("c.jpg", "d.jpg", "é.jpg"):
        (tmp_path / name).touch()
    data = photos(tmp_path)
    assert data.names == ["a.jpg", "b.png", "c.jpg", "d.jpg", "e.png", "é.jpg"]
    samples = [data[0, i] for i in range(6)]
    assert [s["source"] for s in samples] == [1, 1, 4, 4, 4, 1]
    assert [s["index"] for s in samples] == list(range(6))
    assert [int(s["image"].max()) for s in samples] == [ord(c) for c in "bbeeeb"]
    named = [[name for name, _ in s["unreadable"]] for s in samples]
    assert named == [["a.jpg"], [], ["c.jpg", "d.jpg"], [], [], ["é.jpg"]]
    assert samples[2]["unreadable"][0] == ("c.jpg", "the file is empty")
    assert "begins with b'<html>'" in samples[0]["unreadable"][0][1]
    assert not any(data[1, i]["unreadable"] for i in range(6))
    # A replacement does not depend on what was met before.
    assert torch.equal(photos(tmp_path)[0, 3]["image"], samples[3]["image"])


def test_no_readable_file_at_all(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    data = photos(tmp_path)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"none of the 2 image files in .* can be read; the first is a\.jpg"
        ):
            data[0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"resize": 15}, r"resize \(15\) must be at least size \(16\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.8)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale"),
        ({"crop_scale": (float("nan"), 1.0)}, "crop_scale"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"crops_per_image": 0, "train": False}, "crops_per_image"),
        ({"crops_per_image": 2}, "1 for training"),
        ({"cache_bytes": -1}, "cache_bytes"),
    ],
)
def test_photo_folder_checks_its_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        photos(embedded_photos(), **changes)


def test_photo_folder_without_files_and_index_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image files were given"):
        PhotoFolder(
            [], root=tmp_path, size=1, resize=1, crop_scale=(1, 1), flip=False, seed=0, train=True
        )
    data = photos(embedded_photos())
    for index in (-1, 43):
        with pytest.raises(IndexError, match="43 samples"):
            data[0, index]


# --- split_photos and the embedded photographs -------------------------------------------------


def names(count: int) -> list[Path]:
    return [Path(f"/photos/{i % 7}/{i}.jpg") for i in range(count)]


def test_split_is_stable_when_files_are_added() -> None:
    for smaller, larger in ((20, 21), (20, 200), (200, 2000)):
        train, val = split_photos(names(smaller), "/photos", 0.2)
        more_train, more_val = split_photos(names(larger), "/photos", 0.2)
        assert set(train) <= set(more_train)
        assert set(val) <= set(more_val)
    assert len(more_val) == pytest.approx(400, abs=60)


def test_split_keeps_every_file_once_and_in_order() -> None:
    paths = names(100)
    train, val = split_photos(paths, "/photos", 0.3)
    assert sorted(train + val) == sorted(paths)
    assert train == [p for p in paths if p in train]
    assert val == [p for p in paths if p in val]
    shuffled = paths[50:] + paths[:50]
    assert set(split_photos(shuffled, "/photos", 0.3)[1]) == set(val)


def test_split_does_not_depend_on_where_the_folder_lies() -> None:
    _, val = split_photos(names(50), "/photos", 0.2)
    moved = [Path("/elsewhere") / p.relative_to("/photos") for p in names(50)]
    _, moved_val = split_photos(moved, "/elsewhere", 0.2)
    assert [p.name for p in moved_val] == [p.name for p in val]


def test_split_of_accented_names_is_the_same_on_systems_that_decompose_them() -> None:
    accented = [Path("/p") / f"é{i}.jpg" for i in range(60)]
    decomposed = [Path(unicodedata.normalize("NFD", str(p))) for p in accented]
    assert decomposed != accented
    numbers = [
        [int(p.stem[-2:].strip("é\u0301")) for p in split_photos(paths, "/p", 0.3)[1]]
        for paths in (accented, decomposed)
    ]
    assert numbers[0] == numbers[1]
    split_photos([Path(os.fsdecode(b"/p/\xff.jpg")), accented[0]], "/p", 0.3)  # not UTF-8


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_split_never_leaves_a_side_empty(count: int, fraction: float) -> None:
    train, val = split_photos(names(count), "/photos", fraction)
    assert len(train) >= 1
    assert len(val) >= 1
    assert len(train) + len(val) == count


def test_split_is_limited_by_max_val() -> None:
    train, val = split_photos(names(2000), "/photos", 0.5)
    assert (len(train), len(val)) == (1488, 512)
    _, few = split_photos(names(2000), "/photos", 0.5, max_val=10)
    assert len(few) == 10
    assert set(few) < set(val)


def test_split_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"at least 2 images are needed.*; 1 found in /photos"):
        split_photos(names(1), "/photos", 0.2)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1"):
            split_photos(names(9), "/photos", fraction)
    with pytest.raises(ValueError, match="max_val must be at least 1"):
        split_photos(names(9), "/photos", 0.2, max_val=0)


def test_embedded_photos_are_complete_and_attributed() -> None:
    root = embedded_photos()
    with (root / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sizes = {root / row["file"]: (int(row["width"]), int(row["height"])) for row in rows}
    scan = scan_images(list_images(root))
    assert scan.sizes == sizes
    assert len(sizes) == 43
    assert not scan.unreadable
    links = {
        "CC0": "publicdomain/zero/1.0/",
        "CC0-1.0": "publicdomain/zero/1.0/",
        "CC-BY-2.0": "licenses/by/2.0/",
        "CC-BY-4.0": "licenses/by/4.0/",
        "Public Domain": "publicdomain/mark/1.0/",
    }
    attribution = (root / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()
    for row in rows:
        (line,) = (line for line in attribution if line.startswith(f"| {row['file']} |"))
        assert f"https://creativecommons.org/{links[row['licence']]}" in line


def test_embedded_photos_hold_out_a_few() -> None:
    root = embedded_photos()
    train, val = split_photos(list_images(root), root, 0.18)
    assert (len(train), len(val)) == (35, 8)


# --- SampleStream ------------------------------------------------------------------------------


def stream(length: int = 10, **changes: Any) -> list[tuple[int, int]]:
    return list(SampleStream(length, **({"seed": 5, "batch_size": 4, "num_steps": 25} | changes)))


def test_every_index_comes_once_per_epoch() -> None:
    keys = stream()
    assert [epoch for epoch, _ in keys] == [n // 10 for n in range(100)]  # batches span epochs
    orders = [[i for e, i in keys if e == epoch] for epoch in range(10)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 10
    assert stream(seed=6) != keys


def test_order_is_uniform() -> None:
    # 2400 epochs of 4: each of the 24 orders about 100 times (standard deviation 9.8).
    keys = stream(4, num_steps=2400)
    orders = [tuple(i for _, i in keys[n : n + 4]) for n in range(0, len(keys), 4)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 2400
    assert 60 < min(counts) <= max(counts) < 140


@pytest.mark.parametrize("start", [0, 1, 2, 7, 24, 25])
def test_resuming_gives_the_tail(start: int) -> None:
    assert stream(start_step=start, num_steps=25 - start) == stream()[start * 4 :]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_give_the_stream_of_one(world_size: int) -> None:
    local = 4 // world_size
    parts = [stream(rank=r, world_size=world_size) for r in range(world_size)]
    merged = [
        key
        for step in range(25)
        for part in parts
        for key in part[step * local : (step + 1) * local]
    ]
    assert merged == stream()


def test_a_batch_may_hold_several_epochs() -> None:
    keys = stream(3, batch_size=8, num_steps=3)
    assert [epoch for epoch, _ in keys] == [n // 3 for n in range(24)]
    for epoch in range(8):
        assert sorted(i for e, i in keys if e == epoch) == [0, 1, 2]


def test_the_stream_has_no_end_unless_told() -> None:
    endless = SampleStream(3, seed=0, batch_size=2)
    assert len(list(itertools.islice(endless, 1000))) == 1000
    with pytest.raises(TypeError, match="no length"):
        len(endless)
    assert len(SampleStream(3, seed=0, batch_size=4, num_steps=5, rank=1, world_size=2)) == 10


def test_the_order_stays_the_same_between_versions() -> None:
    # Resuming a run with a newer version must go on with the same samples.
    assert [i for _, i in stream(8, seed=0, batch_size=8, num_steps=2)] == [
        *(0, 3, 7, 5, 1, 2, 6, 4),
        *(3, 7, 4, 2, 1, 6, 5, 0),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"start_step": -1}, "start_step and num_steps"),
        ({"num_steps": -1}, "start_step and num_steps"),
        ({"batch_size": 0}, "positive multiple"),
        ({"batch_size": 3, "world_size": 2}, r"processes \(2\), got 3"),
        ({"rank": 2, "world_size": 2}, r"rank must be in range\(2\), got 2"),
        ({"rank": -1}, "rank must be"),
    ],
)
def test_stream_checks_its_arguments(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**changes)


# --- make_loader -------------------------------------------------------------------------------


def batches(data: PhotoFolder, **options: Any) -> list[Any]:
    return list(make_loader(data, **({"batch_size": 4, "num_steps": 5} | options)))


def assert_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"unreadable"}:
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    "options", [{"workers": 1}, {"workers": 2}, {"workers": 1, "context": "spawn"}]
)
def test_batches_do_not_depend_on_the_workers(options: dict[str, Any]) -> None:
    root = embedded_photos()
    paths = list_images(root)[:12]
    data = PhotoFolder(
        paths, root=root, size=16, resize=24, crop_scale=(0.6, 1), flip=True, seed=8, train=True
    )
    alone = batches(data)
    assert alone[0]["image"].shape == (4, 3, 16, 16)
    assert alone[0]["image"].dtype == torch.uint8
    assert all(alone[0][key].dtype == torch.int64 for key in ("epoch", "index", "source"))
    expected = list(SampleStream(12, seed=8, batch_size=4, num_steps=5))
    keys = [k for b in alone for k in zip(b["epoch"].tolist(), b["index"].tolist(), strict=True)]
    assert keys == expected
    assert_same(alone, batches(data, **options))


def test_resumed_and_divided_loaders_give_the_same_batches() -> None:
    data = photos(embedded_photos())
    whole = batches(data)
    assert_same(whole[2:], batches(data, start_step=2, num_steps=3))
    parts = [batches(data, rank=r, world_size=2) for r in range(2)]
    images = [torch.cat([b["image"] for b in pair]) for pair in zip(*parts, strict=True)]
    assert all(torch.equal(a, b["image"]) for a, b in zip(images, whole, strict=True))


def test_evaluation_takes_every_sample_once() -> None:
    data = photos(embedded_photos(), train=False, crops_per_image=2)
    sizes = [len(b["image"]) for b in make_loader(data, batch_size=20, workers=1)]
    assert sizes == [20, 20, 20, 20, 6]
    parts = [
        [i for b in make_loader(data, batch_size=8, rank=r, world_size=2) for i in b["index"]]
        for r in range(2)
    ]
    assert sorted(int(i) for part in parts for i in part) == list(range(86))
    assert len(parts[0]) == len(parts[1])


def test_the_loader_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    batches(photos(embedded_photos()), workers=1, num_steps=1)
    batches(photos(embedded_photos()), num_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_report_unreadable_files_and_carry_on(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"good{i}.png", noise(20, 20, i))
    broken = broken_files(tmp_path / "broken")
    found = batches(photos(tmp_path), workers=2, num_steps=16)
    assert all(len(b["image"]) == 4 for b in found)
    reports = [report for b in found for report in b["unreadable"]]
    assert {name for name, _ in reports} == {f"broken/{path.name}" for path in broken}
    assert len(reports) <= 2 * len(broken)  # once by each worker
    assert all(reason for _, reason in reports)
    replaced = torch.cat([b["source"] != b["index"] for b in found])
    indices = torch.cat([b["index"] for b in found])
    assert torch.equal(replaced, indices < len(broken))


def test_no_readable_file_is_told_through_the_loader(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="none of the 1 image files"):
            batches(photos(tmp_path), workers=workers)


class ThreadCounter(PhotoFolder):
    def __getitem__(self, key: tuple[int, int]) -> Any:
        return super().__getitem__(key) | {"source": torch.get_num_threads()}


def test_workers_use_one_thread() -> None:
    root = embedded_photos()
    data = ThreadCounter(
        list_images(root),
        root=root,
        size=8,
        resize=8,
        crop_scale=(1, 1),
        flip=True,
        seed=0,
        train=True,
    )
    assert batches(data, workers=1, num_steps=1)[0]["source"].tolist() == [1] * 4


def test_upsampled_samples_are_counted_in_the_batch(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 4))
    save(tmp_path / "b.png", noise(40, 40))
    (batch,) = batches(photos(tmp_path), batch_size=2, num_steps=1)
    assert sorted(batch["upsampled"].tolist()) == [False, True]
    assert batch["upsampled"][batch["index"] == 0].all()


def test_collate_gathers_reports() -> None:
    data = photos(embedded_photos())
    samples = [data[0, 0], data[0, 1] | {"unreadable": [("x.jpg", "empty")]}]
    batch = collate(samples)
    assert batch["unreadable"] == [("x.jpg", "empty")]
    assert torch.equal(batch["image"][1], samples[1]["image"])


def test_loader_checks_its_arguments() -> None:
    data = photos(embedded_photos())
    with pytest.raises(ValueError, match="workers must be at least 0"):
        make_loader(data, batch_size=4, workers=-1)
    with pytest.raises(ValueError, match="positive multiple"):
        make_loader(data, batch_size=5, world_size=2)
    with pytest.raises(ValueError, match="are for training"):
        make_loader(photos(embedded_photos(), train=False), batch_size=4, num_steps=3)
