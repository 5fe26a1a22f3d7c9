"""Odd images and masks with known pixels, as bytes: the corpus that the tests make.

What is encoded by hand here, by the words of the formats' specifications, is a truth that no
library shares. Other cases are encoded by tifffile, imagecodecs or Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 13, 22
WHITES = {8: 255, 16: 65535}


@dataclass(frozen=True, eq=False)
class Odd:
    """A file, and what it shows."""

    name: str
    data: bytes
    #: uint8 or uint16, as inpainting returns it: ``(H, W)`` or with 2 to 4 channels. None: refused.
    pixels: NDArray[Any] | None
    #: Part of the remarks on reading, or of the reason of the refusal.
    says: str = ""
    #: OpenCV reads it with the same values, in the same depth.
    opencv: bool = False


def values(*channels: int, bits: int = 16, seed: int = 1) -> NDArray[np.uint16]:
    """Random values that include black and white."""
    result = np.random.default_rng(seed).integers(0, 1 << bits, (HEIGHT, WIDTH, *channels))
    result[0, 0], result[0, 1] = 0, (1 << bits) - 1
    return result.astype(np.uint16)


def scaled(stored: NDArray[Any], white: int, to: int) -> NDArray[Any]:
    """To another white, rounded to the nearest."""
    exact = stored.astype(np.float64) * to / white
    return np.floor(exact + 0.5).astype(np.uint16 if to > 255 else np.uint8)


# --- encoders by hand -------------------------------------------------------------------------


def tiff(
    stored: NDArray[Any],
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    sample_format: int = 1,
    planar: int = 1,
    extra: tuple[int, ...] = (),
) -> bytes:
    """An uncompressed TIFF of one strip per plane (TIFF 6.0)."""
    stored = stored if stored.ndim == 3 else stored[..., None]
    height, width, channels = stored.shape
    planes = [stored] if planar == 1 else [stored[..., c : c + 1] for c in range(channels)]
    strips = []
    for plane in planes:
        rows = plane.reshape(height, -1)
        if bits % 8 == 0:
            kind = {1: "u", 2: "i", 3: "f"}[sample_format]
            strips.append(rows.astype(f"{order}{kind}{bits // 8}").tobytes())
        else:
            planes_of_bits = (rows[..., None] >> np.arange(bits)[::-1]) & 1
            strips.append(np.packbits(planes_of_bits.reshape(height, -1).astype(bool), 1).tobytes())
    tags: dict[int, tuple[int, list[int]]] = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [bits] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        277: (3, [channels]),
        278: (3, [height]),
        284: (3, [planar]),
        339: (3, [sample_format] * channels),
    }
    if extra:
        tags[338] = (3, list(extra))
    count = len(tags) + 2
    spare = 8 + 2 + 12 * count + 4
    blob = b""

    def place(data: bytes) -> int:
        nonlocal blob
        at = spare + len(blob)
        blob += data + b"\0" * (len(data) % 2)
        return at

    tags[273] = (4, [place(strip) for strip in strips])
    tags[279] = (4, [len(strip) for strip in strips])
    entries = b""
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers)
        if len(data) > 4:
            data = struct.pack(order + "I", place(data))
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return (
        start + struct.pack(order + "IH", 8, count) + entries + struct.pack(order + "I", 0) + blob
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(stored: NDArray[Any], bits: int, *chunks: bytes) -> bytes:
    """A PNG without filters (ISO/IEC 15948)."""
    stored = stored if stored.ndim == 3 else stored[..., None]
    height, width, channels = stored.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = stored.reshape(height, -1).astype(">u2" if bits == 16 else "u1")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", body),
            png_chunk(b"IEND", b""),
        )
    )


def bmp_565(stored: NDArray[Any]) -> bytes:
    """A bitmap of 16 bits per pixel: 5 of red, 6 of green, 5 of blue; rows from the bottom."""
    height, width, _ = stored.shape
    words = (stored[..., 0] << 11 | stored[..., 1] << 5 | stored[..., 2]).astype("<u2")
    rows = b"".join(row.tobytes() + b"\0" * (-2 * width % 4) for row in words[::-1])
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(rows), 0, 0, 0, 0)
    offset = 14 + len(header) + len(masks)
    start = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return start + header + masks + rows


def with_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_tifffile(stored: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, metadata=None, **options)
    return buffer.getvalue()


# --- the tables -------------------------------------------------------------------------------


def odd_images() -> Iterator[Odd]:
    """Images of every depth and photometric interpretation that the formats state."""
    yield from _tiff_grey()
    yield from _tiff_colors()
    yield from _others()
    yield from _refused()


def _tiff_grey() -> Iterator[Odd]:
    for bits in (1, 2, 4, 8, 16):
        stored = values(bits=bits)
        white = (1 << bits) - 1
        to = WHITES[16] if bits == 16 else WHITES[8]
        for order, name in (("<", "little"), (">", "big")):
            shown = scaled(stored, white, to)
            yield Odd(f"black_is_zero_{bits}_{name}.tif", tiff(stored, bits, 1, order=order), shown)
            shown = scaled(white - stored, white, to)
            yield Odd(f"white_is_zero_{bits}_{name}.tif", tiff(stored, bits, 0, order=order), shown)
    twelve = values(bits=12)
    yield Odd(
        "12_bits.tif", tiff(twelve, 12, 1), scaled(twelve, 4095, 65535), "12 bits per channel"
    )
    data = with_tifffile(values(bits=15).astype(np.int16), photometric="minisblack")
    yield Odd("signed_16.tif", data, values(bits=15), "16-bit integers: returned with 16")
    data = with_tifffile(values().astype(np.uint32), photometric="minisblack")
    yield Odd("within_32.tif", data, values(), "32-bit integers: returned with 16")
    alpha = values(2, bits=8)
    shown = np.dstack((255 - alpha[..., 0], alpha[..., 1])).astype(np.uint8)
    yield Odd("white_is_zero_alpha.tif", tiff(alpha, 8, 0, extra=(2,)), shown)
    alpha = values(2)
    shown = np.dstack((65535 - alpha[..., 0], alpha[..., 1]))
    yield Odd("white_is_zero_alpha_16.tif", tiff(alpha, 16, 0, extra=(2,)), shown)


def _tiff_colors() -> Iterator[Odd]:
    for bits in (8, 16):
        kind = np.uint8 if bits == 8 else np.uint16
        rgb, rgba = values(3, bits=bits).astype(kind), values(4, bits=bits).astype(kind)
        for order, name in (("<", "little"), (">", "big")):
            data = tiff(rgb, bits, 2, order=order)
            yield Odd(f"rgb_{bits}_{name}.tif", data, rgb, opencv=True)
            data = tiff(rgb, bits, 2, order=order, planar=2)
            yield Odd(f"planar_{bits}_{name}.tif", data, rgb)
        yield Odd(f"rgba_{bits}.tif", tiff(rgba, bits, 2, extra=(2,)), rgba, opencv=bits == 16)
        yield Odd(f"rgbx_{bits}.tif", tiff(rgba, bits, 2, extra=(0,)), rgba[..., :3])
        for compression in ("lzw", "deflate", "packbits"):
            data = with_tifffile(rgb, photometric="rgb", compression=compression)
            yield Odd(f"{compression}_{bits}.tif", data, rgb)
        data = with_tifffile(rgb, photometric="rgb", compression="lzw", predictor=True)
        yield Odd(f"predictor_{bits}.tif", data, rgb, opencv=True)
        yield Odd(f"tiles_{bits}.tif", with_tifffile(rgb, photometric="rgb", tile=(16, 16)), rgb)
        yield Odd(f"big_{bits}.tif", with_tifffile(rgb, photometric="rgb", bigtiff=True), rgb)
    jpeg2000 = with_tifffile(values(3), photometric="rgb", compression="jpeg2000")
    yield Odd("jpeg2000_in.tif", jpeg2000, values(3))


def _others() -> Iterator[Odd]:
    for channels, name in ((1, "grey"), (2, "grey_alpha"), (3, "rgb"), (4, "rgba")):
        stored = values(channels)
        shown = stored[..., 0] if channels == 1 else stored
        yield Odd(f"{name}_16.png", png(stored, 16), shown, opencv=channels != 2)
    bits = png_chunk(b"sBIT", bytes([12, 12, 12]))
    yield Odd("significant_bits.png", png(values(3), 16, bits), values(3))
    stored = values(3)
    nothing = png_chunk(b"tRNS", struct.pack(">HHH", *stored[3, 4]))
    opaque = (stored != stored[3, 4]).any(-1) * np.uint16(65535)
    shown = np.dstack((stored, opaque)).astype(np.uint16)
    yield Odd("transparent_colour.png", png(stored, 16, nothing), shown, "one colour stands")
    rgb = values(3)
    yield Odd("16.ppm", b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + rgb.astype(">u2").tobytes(), rgb)
    ten = values(3, bits=10)
    data = b"P6\n# words\n%d %d\n1023\n" % (WIDTH, HEIGHT) + ten.astype(">u2").tobytes()
    yield Odd("10.ppm", data, scaled(ten, 1023, 65535), "white is 1023")
    text = b"P3 %d %d 1023\n" % (WIDTH, HEIGHT) + b" # a\n".join(
        b" ".join(b"%d" % v for v in row) for row in ten.reshape(HEIGHT, -1)
    )
    yield Odd("plain.ppm", text, scaled(ten, 1023, 65535), "white is 1023")
    small = np.stack([values(bits=n, seed=n) for n in (5, 6, 5)], -1)
    white = np.array([31, 63, 31])
    yield Odd("565.bmp", bmp_565(small), (small * 255 // white).astype(np.uint8))
    data = imagecodecs.jpeg2k_encode(rgb, level=0)
    yield Odd("16.jp2", data, rgb, opencv=True)
    twelve = values(3, bits=12)
    data = imagecodecs.jpeg2k_encode(twelve, level=0, bitspersample=12)
    yield Odd("12.jp2", data, scaled(twelve, 4095, 65535), "12 bits per channel")
    data = imagecodecs.jpeg2k_encode(twelve[..., 0], level=0, bitspersample=12)
    yield Odd("12_grey.jp2", data, scaled(twelve[..., 0], 4095, 65535), "12 bits per channel")
    if imagecodecs.AVIF.available:
        data = imagecodecs.avif_encode(ten, level=100, bitspersample=10)
        yield Odd("10.avif", data, scaled(ten, 1023, 65535), "10 bits per channel")


def _refused() -> Iterator[Odd]:
    yield Odd("float_rgb.tif", tiff(values(3) / 65535, 32, 2, sample_format=3), None, "float")
    yield Odd("double_rgb.tif", tiff(values(3) / 65535, 64, 2, sample_format=3), None, "float")
    yield Odd("half_grey.tif", tiff(values(bits=8) / 255, 16, 1, sample_format=3), None, "float")
    yield Odd("float_grey.tif", tiff(values() / 65535, 32, 1, sample_format=3), None, "float")
    yield Odd("signed_8.tif", tiff(values(bits=7), 8, 1, sample_format=2), None, "8-bit signed int")
    beyond = values().astype(np.int64) * 60000
    yield Odd("beyond_32.tif", tiff(beyond, 32, 1), None, "32-bit integers with values from 0 to")
    yield Odd("lab_16.tif", tiff(values(3), 16, 8), None, "16-bit CIE Lab")
    yield Odd("color_map.pfm", b"PF\n2 2\n-1.0\n" + b"\0" * 48, None, "float map of colours")
    yield Odd("grey.pfm", b"Pf\n2 2\n-1.0\n" + b"\0" * 16, None, "float grey")
