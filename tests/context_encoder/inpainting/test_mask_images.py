"""Mask images of every mode, and boxes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from context_encoder.data.images import UnreadableImage
from context_encoder.data.mask_images import InpaintError, mask_from_boxes, read_mask
from tests.helpers.known_networks import SHAPE, box_mask, constant, noise


def drawn(kind):
    white = np.where(SHAPE, 255, 0).astype(np.uint8)
    grey = Image.fromarray(white)
    if kind == "1":
        return grey.convert("1")
    if kind == "RGB":
        return grey.convert("RGB")
    if kind == "LA, white on transparent white":
        return Image.fromarray(np.stack((np.full_like(white, 255), white), -1), "LA")
    if kind == "RGBA, transparent white":
        return Image.fromarray(np.dstack([np.full_like(white, 255)] * 3 + [white]))
    if kind == "RGBA, opaque":
        return Image.fromarray(np.dstack([white] * 3 + [np.full_like(white, 255)]))
    if kind == "P":
        image = Image.fromarray(SHAPE.astype(np.uint8) * 3).convert("P")
        image.putpalette(bytes([0, 0, 0] * 3 + [255, 255, 255]))
        return image
    if kind == "I;16":
        return Image.fromarray(np.where(SHAPE, 32768, 32767).astype(np.uint16))
    if kind == "I":
        return Image.fromarray(np.where(SHAPE, 65535, 0).astype(np.int32))
    if kind == "F":
        return Image.fromarray(SHAPE.astype(np.float32))
    if kind == "CMYK":
        return grey.convert("RGB").convert("CMYK")
    assert kind == "L, antialiased"
    return Image.fromarray(np.where(SHAPE, 128, 127).astype(np.uint8))


@pytest.mark.parametrize(
    "kind",
    [
        "1", "RGB", "LA, white on transparent white", "RGBA, transparent white", "RGBA, opaque",
        "P", "I;16", "I", "F", "CMYK", "L, antialiased",
    ],
)  # fmt: skip
@pytest.mark.parametrize("from_file", [False, True])
def test_masks_of_every_kind(kind, from_file, tmp_path):
    source = drawn(kind)
    if from_file:
        suffix = "tif" if kind in ("F", "CMYK", "I") else "png"
        source.save(tmp_path / f"mask.{suffix}")
        source = tmp_path / f"mask.{suffix}"
    mask, empty = read_mask(source, 10, 8)
    assert mask.dtype == bool
    assert np.array_equal(mask, SHAPE)
    assert empty is None


@pytest.mark.parametrize(
    "array",
    [
        SHAPE,
        SHAPE[..., None],
        SHAPE.astype(np.uint8),
        SHAPE.astype(np.uint8) * 255,
        SHAPE.astype(np.uint16) * 65535,
        SHAPE * 0.5,
        np.dstack([SHAPE] * 3).astype(np.float32),
        np.dstack([np.ones_like(SHAPE)] * 3 + [SHAPE]).astype(np.uint8) * 255,
        np.where(SHAPE, 128, 127).astype(np.uint8),
    ],
)
def test_masks_as_arrays(array):
    mask, empty = read_mask(array, 10, 8)
    assert np.array_equal(mask, SHAPE)
    assert empty is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 10), np.int64), "int64"),
        (np.zeros((8, 10, 2), np.uint8), r"\(8, 10, 2\)"),
        (np.full((8, 10), 255.0), "255 to 255"),
        (np.full((8, 10), np.nan), "nan"),
        (np.zeros((10, 8), bool), "8x10 pixels, the image 10x8"),
    ],
)
def test_unfit_masks_are_refused(array, message):
    with pytest.raises(InpaintError, match=message):
        read_mask(array, 10, 8)


def test_an_exif_orientation_turns_the_mask_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(SHAPE).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png", 10, 8)[0], SHAPE)


def test_nothing_set_is_refused_or_returns_the_picture_and_says_why():
    image, dark = noise(40, 50, 3), np.full((40, 50), 76, np.uint8)
    with pytest.raises(InpaintError, match=r"nowhere white \(at its brightest 29.8%\); `invert"):
        constant()(image, dark)
    result = constant()(image, dark, allow_unusual_mask=True)
    assert np.array_equal(np.asarray(result.image), image)
    assert "nowhere white (at its brightest 29.8%)" in str(result.report)
    assert result.report.windows == ()


def test_everything_set_is_an_error():
    with pytest.raises(InpaintError, match="covers the whole image"):
        constant()(noise(40, 50, 3), np.ones((40, 50), bool))


def test_boxes():
    expected = box_mask(40, 50, (1, 2, 3, 4), (10, 0, 40, 50))
    mask = mask_from_boxes([(2, 1, 4, 3), (0, 10, 50, 40)], 50, 40)
    assert np.array_equal(mask, expected)
    for box in ((0, 0, 51, 5), (-1, 0, 5, 5), (0, 0, 5, 41)):
        text = "box " + " ".join(map(str, box))
        with pytest.raises(InpaintError, match=text + ".* 50x40"):
            mask_from_boxes([box], 50, 40)
    with pytest.raises(InpaintError, match=r"box 5 5 5 9 .* empty"):
        mask_from_boxes([(5, 5, 5, 9)], 50, 40)
    with pytest.raises(InpaintError, match="four numbers"):
        mask_from_boxes([(5, 5, 5)], 50, 40)


def test_either_a_mask_or_boxes():
    image = noise(40, 50, 3)
    for options in ({}, {"mask": np.zeros((40, 50), bool), "boxes": [(0, 0, 1, 1)]}):
        with pytest.raises(InpaintError, match="either a mask or boxes"):
            constant()(image, **options)
    result = constant()(image, boxes=[(3, 4, 8, 6)])
    assert np.array_equal(result.mask, box_mask(40, 50, (4, 3, 6, 8)))


def test_damaged_files_and_images(tmp_path):
    data = io.BytesIO()
    Image.fromarray(noise(40, 50, 3)).save(data, "PNG")
    (tmp_path / "cut.png").write_bytes(data.getvalue()[:2000])
    mask = box_mask(40, 50, (5, 5, 9, 9))
    with pytest.raises(UnreadableImage, match=r"cut\.png: "):
        constant()(tmp_path / "cut.png", mask)
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(InpaintError, match="be read"):
        constant()(opened, mask)
    with pytest.raises(UnreadableImage, match=r"nowhere\.png"):
        constant()(noise(40, 50, 3), tmp_path / "nowhere.png")
