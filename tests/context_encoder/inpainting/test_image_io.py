"""Reading and writing of images of every mode."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from context_encoder.data.decode import UnreadableImage
from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.image_io import read_picture
from tests.helpers.known_networks import COLOR, box_mask, constant, noise

LUMA = 0.299 * 255 + 0.587 * 51


def png16(color_type, channels, height, width):
    """A PNG with 16 bits per channel, which Pillow cannot write."""
    values = noise(height, width * channels, high=65536, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body, values.reshape(height, width, channels)


def palette(alpha=None):
    image = Image.fromarray(noise(40, 50, high=16)).convert("P")
    image.putpalette(noise(16, 3, seed=5).tobytes())
    if alpha is not None:
        image.info["transparency"] = alpha
    return image


def in_mode(mode):
    """An image, how to save it, and the mode and pixels that must come back."""
    rgb, grey = Image.fromarray(noise(40, 50, 3)), Image.fromarray(noise(40, 50))
    if mode == "1":
        image = Image.fromarray(noise(40, 50) > 99)
        return image, {}, "L", np.asarray(image) * np.uint8(255)
    if mode == "L":
        return grey, {}, "L", np.asarray(grey)
    if mode == "LA":
        image = Image.fromarray(noise(40, 50, 2), "LA")
        return image, {}, "LA", np.asarray(image)
    if mode == "RGBA":
        image = Image.fromarray(noise(40, 50, 4))
        return image, {}, "RGBA", np.asarray(image)
    if mode == "L, one value transparent":
        alpha = np.where(np.asarray(grey) == 9, 0, 255).astype(np.uint8)
        return grey, {"transparency": 9}, "LA", np.stack((np.asarray(grey), alpha), -1)
    if mode == "RGB, one colour transparent":
        values = noise(40, 50, 3, high=3)
        alpha = np.where((values == (2, 0, 1)).all(-1), 0, 255).astype(np.uint8)
        options = {"transparency": (2, 0, 1)}
        return Image.fromarray(values), options, "RGBA", np.dstack((values, alpha))
    if mode == "P":
        colors = noise(16, 3, seed=5)
        return palette(), {}, "RGB", colors[np.asarray(palette())]
    if mode == "P, alpha":
        alpha = noise(16, seed=6)
        colors = np.column_stack((noise(16, 3, seed=5), alpha))
        image = palette(alpha.tobytes())
        return image, {}, "RGBA", colors[np.asarray(image)]
    if mode == "I;16":
        values = noise(40, 50, high=65536, dtype=np.uint16)
        return Image.fromarray(values), {}, "I;16", values
    assert mode == "RGB"
    return rgb, {}, "RGB", np.asarray(rgb)


MODES = [
    "1", "L", "LA", "RGB", "RGBA", "P", "P, alpha", "I;16",
    "L, one value transparent", "RGB, one colour transparent",
]  # fmt: skip
FILLED = {
    "L": round(LUMA),
    "LA": (round(LUMA), 255),
    "RGB": COLOR,
    "RGBA": (*COLOR, 255),
    "I;16": round(LUMA * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_pixels_outside_the_mask_are_bit_identical(mode, tmp_path):
    image, options, kept, expected = in_mode(mode)
    image.save(tmp_path / "in.png", **options)
    mask = noise(40, 50, seed=4) < 30
    constant(blend=False)(tmp_path / "in.png", mask).save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == kept
        pixels = np.asarray(out)
    assert pixels.dtype == expected.dtype
    assert np.array_equal(pixels[~mask], expected[~mask])
    assert (pixels[mask] == FILLED[kept]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".webp"])
def test_other_lossless_formats(mode, suffix, tmp_path):
    image, _, _, expected = in_mode(mode)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant(blend=False)(image, mask)
    if (mode, suffix) == ("I;16", ".webp"):
        with pytest.raises(InpaintError, match="WebP holds 8 bits"):
            result.save(tmp_path / "out.webp")
        assert list(tmp_path.iterdir()) == []
        return
    result.save(tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as out:
        pixels = np.asarray(out.convert(mode))
    assert np.array_equal(pixels[~mask], expected[~mask])


def test_16_bit_grey_is_filled_with_16_bits():
    values = (np.arange(40 * 50, dtype=np.uint16) * 31).reshape(40, 50)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant(color=(0.3, 0.3, 0.3))(values, mask)
    assert result.image.mode == "I;16"
    assert (np.asarray(result.image)[mask] == round(0.3 / 255 * 65535)).all()


def test_a_transparent_value_of_16_bit_grey_is_kept_but_not_painted(tmp_path):
    white = 65535
    values = noise(40, 50, high=65536, dtype=np.uint16)
    values[0, 0] = white
    Image.fromarray(values).save(tmp_path / "in.png", transparency=white)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    constant(color=(255, 255, 255))(tmp_path / "in.png", mask).save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.info["transparency"] == white
        assert (np.asarray(out)[mask] == white - 1).all()
        assert np.array_equal(np.asarray(out)[~mask], values[~mask])


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_is_kept_bit_for_bit(color_type, channels, suffix, tmp_path):
    data, values = png16(color_type, channels, 40, 50)
    (tmp_path / "in.png").write_bytes(data)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant()(tmp_path / "in.png", mask)
    assert result.report.notes == ()
    assert result.pixels.dtype == np.uint16
    expected = np.rint(np.array(COLOR) * 257.0)
    if channels == 2:
        expected = expected @ (0.299, 0.587, 0.114)
    assert np.abs(result.pixels[mask][:, : channels - (channels != 3)] - expected).max() <= 1
    # Pillow has no such colours: its image has the upper half of the bits.
    assert np.array_equal(np.asarray(result.image)[~mask], (values >> 8).astype(np.uint8)[~mask])
    assert result.save(tmp_path / f"out{suffix}") == []
    if suffix == ".tif":
        saved = tifffile.imread(tmp_path / "out.tif")
    else:
        saved = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
        order = {2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        saved = saved[..., order]
    assert saved.dtype == np.uint16
    assert np.array_equal(saved[~mask], values[~mask])


def test_16_bit_colour_of_tiff_and_ppm_and_grey_are_read_without_remark(tmp_path):
    values = noise(40, 50, 3, high=65536, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="rgb")
    (tmp_path / "c.ppm").write_bytes(b"P6 50 40 65535\n" + values.astype(">u2").tobytes())
    (tmp_path / "g.pgm").write_bytes(b"P5 50 40 65535\n" + values[..., 0].astype(">u2").tobytes())
    (tmp_path / "g.png").write_bytes(png16(0, 1, 40, 50)[0])
    for name in ("c.tif", "c.ppm"):
        picture = read_picture(tmp_path / name)
        assert (picture.mode, picture.notes) == ("RGB;16", ())
        assert np.array_equal(picture.pixels, values)
    for name in ("g.pgm", "g.png"):
        picture = read_picture(tmp_path / name)
        assert picture.mode == "I;16"
        assert picture.notes == ()
    assert np.array_equal(read_picture(tmp_path / "g.pgm").pixels, values[..., 0])


def test_an_opened_image_of_16_bit_colour_has_8_and_that_is_told(tmp_path):
    data, values = png16(2, 3, 40, 50)
    with Image.open(io.BytesIO(data)) as image:
        picture = read_picture(image)
    assert np.array_equal(picture.pixels, (values >> 8).astype(np.uint8))
    assert "16 bits per channel, of which 8 are read" in " ".join(picture.notes)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb_and_that_is_told(mode, tmp_path):
    image = Image.fromarray(noise(40, 50, 3)).convert(mode)
    image.info["icc_profile"] = b"of another colour space"
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant()(image, mask)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(result.image)[~mask], expected[~mask])
    assert f"converted from {mode} to RGB" in str(result.report)
    assert "icc_profile" not in result.image.info


def test_modes_that_cannot_be_kept_are_refused():
    mask = box_mask(4, 4, (0, 0, 1, 1))
    with pytest.raises(InpaintError, match="float grey"):
        constant()(Image.fromarray(np.zeros((4, 4), np.float32)), mask)
    with pytest.raises(InpaintError, match="from 0 to 70000"):
        constant()(Image.fromarray(np.array([[0, 70000]] * 2, np.int32)), mask)
    for array in (np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4), np.float64), np.zeros((0, 4))):
        with pytest.raises(InpaintError, match="got " + str(array.dtype)):
            constant()(array, mask)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_told(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "in.png", exif=exif, dpi=(100, 200))
    with Image.open(tmp_path / "in.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    mask = box_mask(*upright.shape[:2], (5, 5, 9, 9))
    result = constant()(tmp_path / "in.png", mask)
    assert np.array_equal(np.asarray(result.image)[~mask], upright[~mask])
    assert ("turned upright" in str(result.report)) == (orientation > 1)
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.getexif().get(0x0112, 1) == 1
        dpi = (200, 100) if orientation >= 5 else (100, 200)
        assert out.info["dpi"] == pytest.approx(dpi, abs=0.1)


def test_a_mask_drawn_on_the_picture_before_it_was_turned_is_explained(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "in.png", exif=exif)
    with pytest.raises(InpaintError, match=r"50x40.*40x50 \(upright"):
        constant()(tmp_path / "in.png", np.zeros((40, 50), bool))


def test_of_an_animation_the_first_frame_is_taken_and_that_is_told(tmp_path):
    frames = [Image.fromarray(noise(40, 50, 3, seed=seed)) for seed in (1, 2, 3)]
    frames[0].save(tmp_path / "in.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture = read_picture(tmp_path / "in.webp")
    assert np.array_equal(picture.pixels[..., :3], np.asarray(frames[0]))
    assert "the first of 3 frames" in " ".join(picture.notes)


def test_transparent_pixels_lie_on_white_for_the_network():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = (10, 20, 30, 255)
    image[0, 1] = (10, 20, 30, 0)
    image[1, 0] = (0, 0, 0, 51)
    rgb = read_picture(image).rgb()
    assert np.allclose(rgb[0, 0], np.array([10, 20, 30]) / 127.5 - 1, atol=1e-6)
    assert np.allclose(rgb[0, 1], 1)
    assert np.allclose(rgb[1, 0], 0.8 * 2 - 1, atol=1e-6)


def test_the_callers_image_and_array_stay_as_they_are():
    array = noise(40, 50, 3)
    image = Image.fromarray(array.copy())
    mask = box_mask(40, 50, (5, 5, 9, 9))
    for source in (array, image):
        constant()(source, mask)
        assert np.array_equal(np.asarray(source), noise(40, 50, 3))


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(InpaintError, match="got a Tensor; give a path, a Pillow image or a"):
        read_picture(torch.zeros(4, 4))  # type: ignore[arg-type]


def test_the_limit_of_pixels_is_ones_own(tmp_path):
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "in.png")
    with Image.open(tmp_path / "in.png") as opened:
        for source in (tmp_path / "in.png", opened, noise(40, 50, 3)):
            with pytest.raises((InpaintError, UnreadableImage), match="raise `max_megapixels`"):
                constant()(source, boxes=[(1, 1, 3, 3)], max_megapixels=0.0019)
            constant()(source, boxes=[(1, 1, 3, 3)], max_megapixels=0.002)
