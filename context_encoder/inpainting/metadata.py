"""Metadata that an image keeps when it is filled: EXIF, XMP, ICC profile and resolution.

Left out, because they may show what was removed or no longer hold: thumbnails, maker notes (whose
offsets do not survive either), and the tags that describe how the pixels were stored.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

from PIL import Image

from context_encoder.data.decode import OpenImage

__all__ = ["metadata_of", "metadata_that_fits"]

# What the first directory says of an image, and not of how it is stored (TIFF 6.0, EXIF 2.32):
# description, make, model, software, date, artist, host, rating, copyright, what Windows writes.
_DESCRIPTIVE = {
    0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298,
    0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
}  # fmt: skip
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_MAKER_NOTE, _INTEROPERABILITY = 0x927C, 0xA005
_WIDTH, _HEIGHT = 0xA002, 0xA003
# Elements of XMP with thumbnails, and its copy of the orientation.
_THUMBNAILS = re.compile(
    rb"<(xmp|xap):Thumbnails\b.*?</\1:Thumbnails>|<GDepth:Data\b.*?</GDepth:Data>"
    rb"|<(?:xmp|xap)GImg:image>.*?</(?:xmp|xap)GImg:image>",
    re.S,
)
_XMP_DATA = re.compile(rb"""\s(?:GImage|GDepth|GAudio):Data=(?:"[^"]*"|'[^']*')""", re.S)
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:=["']|>))\d""")
# Of a segment of JPEG, after its header.
_JPEG_EXIF, _JPEG_XMP = 65525, 65502


def metadata_of(opened: OpenImage, size: tuple[int, int]) -> dict[str, Any]:
    """EXIF, XMP and resolution of an image, as ``info`` of Pillow's images, upright.

    Args:
        opened: decoded already, since PNG may have them after the pixels.
        size: width and height after turning upright.

    Returns:
        ``exif`` (bytes with the header), ``xmp`` (bytes) and ``dpi``, as far as there are any.
    """
    info: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # damaged metadata does not lose the image
        exif = _mended(_exif(opened), size)
        if exif is not None:
            info["exif"] = exif
    with contextlib.suppress(Exception):
        xmp = _xmp(opened)
        if xmp:
            xmp = _XMP_DATA.sub(b"", _THUMBNAILS.sub(b"", xmp))
            info["xmp"] = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    given = None if opened.pillow is None else opened.pillow.info.get("dpi")
    dpi = _resolution(given)
    if dpi is not None:
        info["dpi"] = dpi[::-1] if opened.orientation >= 5 else dpi
    return info


def metadata_that_fits(info: dict[str, Any], format_name: str) -> tuple[dict[str, Any], list[str]]:
    """The metadata that a format can hold, and sentences on what is left out.

    Args:
        info: of :func:`metadata_of`, with ``icc_profile``.
        format_name: PNG, TIFF, WEBP or JPEG.
    """
    kept: dict[str, Any] = {
        key: info[key] for key in ("icc_profile", "exif", "xmp", "dpi") if key in info
    }
    notes = []
    if "dpi" in kept and not _holds(kept["dpi"], format_name):
        x, y = kept.pop("dpi")
        if format_name != "WEBP":
            notes.append(f"{format_name} cannot hold the resolution of {x:g} x {y:g} dpi")
    if format_name == "JPEG":
        for key, most in (("exif", _JPEG_EXIF), ("xmp", _JPEG_XMP)):
            if len(kept.get(key, b"")) > most:
                del kept[key]
                notes.append(f"the {key.upper()} metadata is too long for JPEG and left out")
    return kept, notes


def _holds(dpi: tuple[float, float], format_name: str) -> bool:
    if format_name == "PNG":  # whole pixels per metre, 31 bits
        return all(1 <= round(value / 0.0254) < 2**31 for value in dpi)
    if format_name == "TIFF":
        return all(1e-3 <= value < 2**31 for value in dpi)
    if format_name == "JPEG":
        return all(1 <= round(value) < 2**16 for value in dpi)
    return False


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Two finite positive numbers, or None, as files may hold invalid values."""
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _exif(opened: OpenImage) -> Image.Exif:
    if opened.pillow is not None:
        return opened.pillow.getexif()
    assert opened.file is not None
    exif = Image.Exif()
    opened.file.seek(0)
    exif.load_from_fp(opened.file)
    return exif


def _xmp(opened: OpenImage) -> bytes:
    if opened.pillow is None:
        assert opened.page is not None
        found = opened.page.tags.valueof(700, b"")
    else:
        found = opened.pillow.info.get("xmp") or opened.pillow.info.get("XML:com.adobe.xmp")
        if not found and opened.pillow.format == "TIFF":
            found = getattr(opened.pillow, "tag_v2", {}).get(700, b"")
    if isinstance(found, tuple):
        found = bytes(found)
    return (found.encode() if isinstance(found, str) else found or b"").strip(b"\0")


def _mended(exif: Image.Exif, size: tuple[int, int]) -> bytes | None:
    """The descriptive part, tag by tag, so that one damaged tag does not lose the others."""
    new = Image.Exif()
    for tag, value in list(exif.items()):
        if tag in _DESCRIPTIVE and _encodes({tag: value}, None):
            new[tag] = value
    for directory in (_EXIF_IFD, _GPS_IFD):
        values = {}
        with contextlib.suppress(Exception):
            values = dict(exif.get_ifd(directory))
        for tag in (_MAKER_NOTE, _INTEROPERABILITY):
            values.pop(tag, None)
        if directory == _EXIF_IFD and _WIDTH in values and _HEIGHT in values:
            values[_WIDTH], values[_HEIGHT] = size
        values = {tag: v for tag, v in values.items() if _encodes({tag: v}, directory)}
        if values:
            new[directory] = values
    return new.tobytes() if len(new) else None


def _encodes(values: dict[int, Any], directory: int | None) -> bool:
    """Whether Pillow can write tags, and read what it writes."""
    trial = Image.Exif()
    try:
        if directory is None:
            trial.update(values)
        else:
            trial[directory] = values
        again = Image.Exif()
        again.load(trial.tobytes())
        found = dict(again) if directory is None else again.get_ifd(directory)
        return set(values) <= set(found)
    except Exception:  # numbers out of range, texts that cannot be encoded and more
        return False
