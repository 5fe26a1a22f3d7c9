"""Image files of every kind: reading, and finding them in a folder."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from context_encoder.data import (
    SUFFIXES,
    UnreadableImage,
    embedded_photos,
    list_images,
    read_image,
    scan_images,
)
from tests.helpers.photo_files import broken_files, noise, save

ORIENTATION = 0x0112


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF orientations by their definition: the sides that row 0 and column 0 show."""
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
        ([-0.2, 0.25, 1.5], [0, 64, 255]),  # values beyond black and white are clipped
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
    # The image is the same: close to block means of the full decode.
    blocks = np.asarray(photo, np.float64).reshape(expected, 512 // expected, expected, -1, 3)
    assert np.abs(blocks.mean((1, 3)) - np.asarray(image)).mean() < 2


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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own is not asked
    path = save(tmp_path / "a.png", noise(15, 15))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).size == (15, 15)
        assert read_image(path, max_megapixels=225e-6).size == (15, 15)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(UnreadableImage, match="exceeds the limit"):
        read_image(path, max_megapixels=224e-6)


def test_min_side_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_side must be at least 1 pixel, got 0"):
        read_image(save(tmp_path / "a.png", noise(4, 4)), min_side=0)


def test_the_exception_survives_pickling_and_printing() -> None:
    error = UnreadableImage(os.fsdecode(b"/a/\xff.jpg"), "broken")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason) == (error.path, "broken")
    assert str(error).encode() == rb"/a/\udcff.jpg: broken"


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
