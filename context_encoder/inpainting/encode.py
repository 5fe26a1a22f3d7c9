"""Writing of filled images: PNG, TIFF and WebP without loss, and JPEG."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.metadata import metadata_that_fits
from context_encoder.utils.files import write_file

__all__ = ["check_output", "encode_picture", "write_picture"]

_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},  # exact: under alpha 0 too
    "JPEG": {"quality": 95, "subsampling": 0},
}
# PNGs of more pixels are compressed at level 3 instead of 6: in a third of the time, a tenth
# larger for photographs.
_MANY_PIXELS = 4_000_000
_SUB_DIRECTORIES = (0x8769, 0x8825)  # EXIF, GPS


def check_output(path: Path) -> None:
    """InpaintError unless the suffix of an output file is that of a format that is written."""
    if path.suffix.lower() not in (*_FORMATS, *_JPEG):
        raise InpaintError(
            f"{path}: the name must end in one of {', '.join(_FORMATS)} (lossless) or .jpg"
        )


def write_picture(
    pixels: NDArray[Any],
    info: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    strip_metadata: bool = False,
) -> list[str]:
    """Save in the format of the suffix, atomically: .png, .tif, .tiff and .webp without loss.

    ICC profile, resolution, EXIF and XMP are written where the format holds them. WebP has no grey
    (it becomes RGB with equal values), no 16 bits and no resolution. JPEG has quality 95 without
    subsampling of the colours, no alpha (blended with white) and 8 bits.

    Args:
        pixels: uint8 or uint16, ``(H, W)`` or with 2 to 4 channels.
        info: see :class:`context_encoder.inpainting.image_io.Picture`.
        path: an existing file is replaced.
        strip_metadata: leave EXIF and XMP out.

    Returns:
        What the format could not hold, as sentences.

    Raises:
        InpaintError: the suffix is another one, or the format cannot hold the image.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    check_output(path)
    data, notes = encode_picture(pixels, info, path, strip_metadata=strip_metadata)
    write_file(path, data)
    return notes


def encode_picture(
    pixels: NDArray[Any], info: Mapping[str, Any], path: Path, *, strip_metadata: bool = False
) -> tuple[bytes, list[str]]:
    """The content of the file that :func:`write_picture` writes, and what it returns.

    Args:
        pixels, info, strip_metadata: see :func:`write_picture`.
        path: gives the format, and the name in messages.

    Raises:
        InpaintError: the format cannot hold the image.
    """
    kind = _FORMATS.get(path.suffix.lower(), "JPEG")
    notes: list[str] = []
    if kind == "WEBP" and pixels.dtype == np.uint16:
        raise InpaintError(f"{path}: WebP holds 8 bits, the image has 16; save as .png or .tif")
    if kind == "JPEG":
        notes.append(f"{path.name} is a JPEG: pixels outside the hole change too (quality 95)")
        pixels = _for_jpeg(pixels)
    kept, left_out = metadata_that_fits(dict(info), kind)
    notes += left_out
    if strip_metadata:
        kept = {key: value for key, value in kept.items() if key not in ("exif", "xmp")}
    extra = {key: info[key] for key in ("transparency",) if key in info and kind == "PNG"}
    try:
        data = _encoded(pixels, kind, kept, extra)
    except MemoryError:
        raise
    except Exception as first:  # what an encoder makes of unusual metadata is not foreseeable
        if not kept:
            raise InpaintError(f"{path}: {first}") from first
        try:
            data = _encoded(pixels, kind, {}, extra)
        except Exception as error:
            raise InpaintError(f"{path}: {error}") from error
        notes.append(f"saved without metadata, which {kind} does not take ({first})")
    return data, notes


def _for_jpeg(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """8 bits, alpha blended with white."""
    white = float(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:] / np.float32(white)
        pixels = np.rint(pixels[..., :-1] * alpha + (1 - alpha) * white)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if white > 255:
        pixels = np.rint(pixels / np.float32(257))
    return pixels.astype(np.uint8)


def _encoded(
    pixels: NDArray[Any], kind: str, kept: Mapping[str, Any], extra: Mapping[str, Any]
) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged EXIF data
        return _encoded_as(pixels, kind, kept, extra)


def _encoded_as(
    pixels: NDArray[Any], kind: str, kept: Mapping[str, Any], extra: Mapping[str, Any]
) -> bytes:
    if kind == "TIFF":
        return _tiff(pixels, kept)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        return _deep_png(pixels, kept)
    buffer = io.BytesIO()
    options = {**_OPTIONS[kind], **_metadata(kind, kept), **extra}
    if kind == "PNG":
        options["compress_level"] = _png_level(pixels)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _metadata(kind: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Pillow's ``save``."""
    options = {key: value for key, value in kept.items() if key != "xmp"}
    if "xmp" in kept and kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", kept["xmp"].decode("utf-8", "replace"))
        options["pnginfo"] = chunks
    elif "xmp" in kept:
        options["xmp"] = kept["xmp"]
    return options


def _png_level(pixels: NDArray[Any]) -> int:
    return 3 if pixels.shape[0] * pixels.shape[1] > _MANY_PIXELS else 6


def _deep_png(pixels: NDArray[np.uint16], kept: Mapping[str, Any]) -> bytes:
    """Colours of 16 bits, which Pillow does not hold.

    Encoded by libpng, with the metadata chunks of a tiny image that Pillow writes.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG", **_metadata("PNG", kept))
    tiny = buffer.getvalue()
    chunks, at = [], 8
    while at < len(tiny):
        end = at + 12 + struct.unpack_from(">I", tiny, at)[0]
        if tiny[at + 4 : at + 8] not in (b"IHDR", b"IDAT", b"IEND"):
            chunks.append(tiny[at:end])
        at = end
    encoded = imagecodecs.png_encode(np.ascontiguousarray(pixels), level=_png_level(pixels))
    header = 8 + 25  # signature and IHDR
    return b"".join((encoded[:header], *chunks, encoded[header:]))


# --- TIFF, of which Pillow writes neither colours of 16 bits nor EXIF beside compression ------


def _tiff(pixels: NDArray[Any], kept: Mapping[str, Any]) -> bytes:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    tags: list[tuple[int, int, int, Any, bool]] = []
    if "icc_profile" in kept:
        tags.append((34675, 7, len(kept["icc_profile"]), kept["icc_profile"], True))
    if "xmp" in kept:
        tags.append((700, 1, len(kept["xmp"]), kept["xmp"], True))
    directories: dict[int, dict[int, Any]] = {}
    if "exif" in kept:
        exif = Image.Exif()
        exif.load(kept["exif"])
        for tag, value in exif.items():
            if tag in _SUB_DIRECTORIES:
                directories[tag] = dict(exif.get_ifd(tag))
            else:
                tags.append(_tag(tag, value))
    options: dict[str, Any] = {}
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    if channels > 1:
        options["planarconfig"] = "contig"
    if "dpi" in kept:
        options |= {"resolution": kept["dpi"], "resolutionunit": "inch"}
    buffer = io.BytesIO()
    row = pixels.shape[1] * channels * pixels.itemsize
    tifffile.imwrite(
        buffer,
        pixels,
        byteorder="<",
        bigtiff=False,
        photometric="rgb" if channels > 2 else "minisblack",
        compression="lzw",
        predictor=True,
        rowsperstrip=min(pixels.shape[0], max(1, 2**18 // row)),
        metadata=None,
        software=False,
        extratags=tags,
        **options,
    )
    return _with_directories(buffer, directories)


def _with_directories(buffer: io.BytesIO, directories: Mapping[int, Mapping[int, Any]]) -> bytes:
    """A little-endian TIFF with directories of tags within its first one, which tifffile refuses.

    They are appended, and after them the first directory, which points to them.
    """
    if not directories:
        return buffer.getvalue()
    view = buffer.getbuffer()
    (start,) = struct.unpack_from("<I", view, 4)
    (count,) = struct.unpack_from("<H", view, start)
    entries = [bytes(view[start + 2 + 12 * i : start + 14 + 12 * i]) for i in range(count)]
    del view

    def append(data: bytes) -> None:
        buffer.seek(0, io.SEEK_END)
        buffer.write(data)

    for tag, values in directories.items():
        end = buffer.seek(0, io.SEEK_END)
        append(b"\0" * (end % 2))
        end += end % 2
        directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        directory.update(values)
        append(directory.tobytes(end))
        entries.append(struct.pack("<HHII", tag, 4, 1, end))
    end = buffer.seek(0, io.SEEK_END)
    append(b"\0" * (end % 2))
    end += end % 2
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    append(struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")
    buffer.seek(4)
    buffer.write(struct.pack("<I", end))
    return buffer.getvalue()


def _tag(tag: int, value: Any) -> tuple[int, int, int, Any, bool]:
    """A descriptive tag for tifffile: text, bytes or a short."""
    if isinstance(value, str):
        data = value.encode("utf-8", "replace") + b"\0"
        return tag, 2, len(data), data, True
    if isinstance(value, bytes):
        return tag, 1, len(value), value, True
    return tag, 3, 1, int(value), True
