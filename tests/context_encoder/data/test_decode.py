"""Images of every depth and photometric interpretation, for training and inpainting alike."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, features

from context_encoder.data import UnreadableImage, read_image
from context_encoder.data.decode import open_image, turned_upright
from context_encoder.inpainting.image_io import read_picture
from tests.context_encoder.data.test_images import stored
from tests.helpers.odd_images import (
    HEIGHT,
    WIDTH,
    Odd,
    odd_images,
    tiff,
    values,
    with_pillow,
    with_tifffile,
)

CASES = {odd.name: odd for odd in odd_images()}
SHOWN = [name for name, odd in CASES.items() if odd.pixels is not None]


def written(where: Path, odd: Odd) -> Path:
    path = where / odd.name
    path.write_bytes(odd.data)
    return path


def as_rgb(pixels: NDArray) -> NDArray[np.float64]:
    """8-bit RGB on white, in float64."""
    white = np.iinfo(pixels.dtype).max
    colors = pixels.reshape(*pixels.shape[:2], -1).astype(np.float64) / white
    if colors.shape[2] in (2, 4):
        alpha = colors[..., -1:]
        colors = colors[..., :-1] * alpha + 1 - alpha
    return np.broadcast_to(colors * 255, (*colors.shape[:2], 3))


@pytest.mark.parametrize("name", SHOWN)
def test_inpainting_has_every_bit(name: str, tmp_path: Path) -> None:
    odd = CASES[name]
    picture = read_picture(written(tmp_path, odd))
    assert odd.pixels is not None
    assert picture.pixels.dtype == odd.pixels.dtype
    assert np.array_equal(picture.pixels, odd.pixels)
    told = " ".join(note for note in picture.notes if not note.startswith(("1-bit", "palette")))
    assert odd.says in told
    assert ("16 bits" in told or "returned" in told) <= bool(odd.says)


@pytest.mark.parametrize("name", SHOWN)
def test_training_has_the_same_as_8_bit_rgb(name: str, tmp_path: Path) -> None:
    odd = CASES[name]
    assert odd.pixels is not None
    got = np.asarray(read_image(written(tmp_path, odd)))
    assert np.abs(got - as_rgb(odd.pixels)).max() <= (1 if odd.pixels.shape[2:] else 0.51)


@pytest.mark.parametrize("name", [name for name in SHOWN if CASES[name].opencv])
def test_an_independent_reader_agrees(name: str, tmp_path: Path) -> None:
    odd = CASES[name]
    read = cv2.imread(str(written(tmp_path, odd)), cv2.IMREAD_UNCHANGED)
    assert odd.pixels is not None
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[odd.pixels[0, 0].size]
    read = read.reshape(HEIGHT, WIDTH, -1)[..., order]
    assert np.array_equal(read, odd.pixels.reshape(read.shape))


@pytest.mark.parametrize("name", [name for name, odd in CASES.items() if odd.pixels is None])
def test_the_refusal_says_the_truth(name: str, tmp_path: Path) -> None:
    odd = CASES[name]
    with pytest.raises(UnreadableImage, match=odd.says):
        read_picture(written(tmp_path, odd))


@pytest.mark.parametrize(
    ("suffix", "options", "codec", "tolerance"),
    [
        (".jpg", {"quality": 95}, None, 2),
        (".png", {}, None, 0),
        (".webp", {"lossless": True}, "webp", 0),
        (".bmp", {}, None, 0),
        (".tif", {"compression": "tiff_lzw"}, None, 0),
        (".ppm", {}, None, 0),
        (".jp2", {}, "jpg_2000", 0),
        (".gif", {}, None, 0),
        (".avif", {"quality": 100, "subsampling": "4:4:4"}, "avif", 3),
    ],
)
def test_every_format_of_8_bits_as_an_independent_reader(
    suffix: str, options: dict[str, object], codec: str | None, tolerance: int, tmp_path: Path
) -> None:
    """Smooth colours, so that the decoders' upsampling makes no difference; few for GIF."""
    if codec is not None and not features.check(codec):
        pytest.skip(f"this Pillow has no {codec}")
    y, x = np.mgrid[:48, :64]
    pixels = np.stack((x * 4, y * 5, 255 - x * 2 - y), -1).astype(np.uint8)
    if suffix == ".gif":
        pixels = pixels // 64 * 64
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, **options)
    data = path.read_bytes()
    if suffix == ".avif":
        expected = imagecodecs.avif_decode(data)
    elif suffix == ".gif":
        expected = imagecodecs.gif_decode(data, index=0)
    else:
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for got in (read_picture(path).pixels, np.asarray(read_image(path))):
        assert got.shape == expected.shape
        assert np.abs(got.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_an_opened_tiff_has_its_polarity_too(photometric: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(with_tifffile(values(), photometric=photometric))
    expected = values() if photometric == "minisblack" else 65535 - values()
    with Image.open(path) as image:
        assert np.array_equal(read_picture(image).pixels, expected)


def test_premultiplied_alpha_is_divided_out(tmp_path: Path) -> None:
    stored = np.array([[[100, 200, 300, 400], [0, 0, 0, 0], [65535] * 4, [7, 8, 9, 65535]]])
    (tmp_path / "a.tif").write_bytes(tiff(stored, 16, 2, extra=(1,)))
    picture = read_picture(tmp_path / "a.tif")
    # 100 / (400 / 65535) = 16383.75 and so on.
    expected = [[16384, 32768, 49151, 400], [0, 0, 0, 0], [65535] * 4, [7, 8, 9, 65535]]
    assert picture.pixels.tolist() == [expected]
    assert "premultiplied" in " ".join(picture.notes)


def test_a_strip_that_is_missing_is_found(tmp_path: Path) -> None:
    data = with_tifffile(values(3), photometric="rgb", rowsperstrip=1, compression="lzw")
    for broken in (data[:-300], data[: len(data) // 2]):
        (tmp_path / "a.tif").write_bytes(broken)
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 3}, {"tile": (16, 16)}])
def test_a_strip_that_is_left_out_is_refused(
    kind: type, layout: dict[str, object], tmp_path: Path
) -> None:
    """As in sparse files, whose strips without content have offset 0 and no bytes."""
    path, tag = tmp_path / "a.tif", "Tile" if "tile" in layout else "Strip"
    path.write_bytes(with_tifffile(values(3, bits=8).astype(kind), photometric="rgb", **layout))
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in (f"{tag}Offsets", f"{tag}ByteCounts"):
            numbers = list(file.pages.first.tags[name].value)
            file.pages.first.tags[name].overwrite([*numbers[:-1], 0])
    for read in (read_image, read_picture):
        with pytest.raises(UnreadableImage, match=r"1 of the \d+ (strips|tiles) are missing"):
            read(path)


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 3}, {"tile": (16, 16)}])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_header_with_more_rows_than_strips_is_refused(
    kind: type, layout: dict[str, object], planar: str, compression: str | None, tmp_path: Path
) -> None:
    path, stored = tmp_path / "a.tif", values(3, bits=8).astype(kind)
    if planar == "separate":
        stored = np.moveaxis(stored, -1, 0).copy()
    data = with_tifffile(
        stored, photometric="rgb", planarconfig=planar, compression=compression, **layout
    )
    path.write_bytes(data)
    read_image(path)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["ImageLength"].overwrite(HEIGHT + 40)
    for read in (read_image, read_picture):
        with pytest.raises(UnreadableImage, match=r"of the \d+ (strips|tiles) are missing"):
            read(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"II*\0\xff\xff\xff\xff" + b"\0" * 50, "TIFF file that cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a PNG file that cannot be read"),
    ],
)
def test_a_file_of_a_known_format_is_not_called_unknown(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UnreadableImage, match=reason):
        read_image(tmp_path / "a")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_are_turned_as_the_definition_says(orientation: int) -> None:
    upright = values(3)
    assert np.array_equal(turned_upright(stored(upright, orientation), orientation), upright)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stored_pixels_of_a_turned_tiff(orientation: int, bits: int, tmp_path: Path) -> None:
    upright = values(3, bits=bits).astype(f"u{bits // 8}")
    data = with_tifffile(
        stored(upright, orientation), photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
    )
    (tmp_path / "a.tif").write_bytes(data)
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, upright)
    assert ("turned upright" in " ".join(picture.notes)) == (orientation > 1)
    eight = as_rgb(stored(upright, orientation))
    as_stored = np.asarray(read_image(tmp_path / "a.tif", upright=False))
    assert np.abs(as_stored - eight).max() <= 0.51


def test_pillows_limit_is_restored_also_with_several_threads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(with_pillow(Image.new("RGB", (4, 4)), "PNG"))
    before = Image.MAX_IMAGE_PIXELS
    inside = threading.Barrier(4)

    def read() -> None:
        with open_image(tmp_path / "a.png"):
            inside.wait(10)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS
    assert len(os.listdir("/proc/self/fd")) < 200
