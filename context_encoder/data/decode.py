"""Opening and decoding of image files with the depth and the photometric interpretation they state.

Pillow reads most files. It holds no colours of more than 8 bits, and takes some TIFF files for
others than they are: those are read by imagecodecs and tifffile.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from context_encoder.data.shards import ShardImage, open_source

__all__ = [
    "MAX_MEGAPIXELS",
    "WHITE",
    "OpenImage",
    "Samples",
    "UnreadableImage",
    "open_image",
    "turned_upright",
]

#: The largest images that are read unless told otherwise, in millions of pixels.
MAX_MEGAPIXELS = 300.0
#: Of 16 bits.
WHITE = 65535

# Formats by their Pillow name. The contents of a file decide its format, not its suffix; formats
# that start other programs (EPS) or that have no signature (TGA) are excluded.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Photometric interpretations of TIFF by the number of their colours.
_GREY, _RGB = (0, 1), (2,)
_MIN_IS_WHITE = 0
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_PREMULTIPLIED, _STRAIGHT = 1, 2
_PHOTOMETRIC = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr",
    8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "colour filter array (raw)",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_SAVE_OTHERWISE = "save it with 8 or 16 bits per channel"

_ORIENTATION = 0x0112
# From an upright image to the stored one.
_AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# Without a handler of its own, Pillow's log about unusual files goes to the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadableImage(Exception):  # noqa: N818 - what it is, not what went wrong
    """A file cannot be read as an image; ``path`` is the file, ``reason`` the cause."""

    def __init__(self, path: str | os.PathLike[str] | ShardImage, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the exception can be pickled
        self.path = Path(str(path))
        self.reason = reason

    def __str__(self) -> str:
        # File names need not be valid UTF-8; printing one must not raise a second error.
        return f"{self.path}: {self.reason}".encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels that Pillow cannot hold, or of which it does not know what white is."""

    #: ``(H, W)`` grey, ``(H, W, 2)`` grey and alpha, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA:
    #: uint16 with white at 65535, or float of which white is not known. Alpha is not premultiplied.
    values: NDArray[Any]
    #: The grey value, or the colour, that stands for transparent; None if there is none.
    transparent: int | tuple[int, int, int] | None = None
    #: Remarks about the reading, as sentences.
    notes: tuple[str, ...] = ()


class OpenImage:
    """An image that is open and not decoded yet: a file, or a Pillow image in memory."""

    def __init__(
        self,
        pillow: Image.Image | None,
        file: BinaryIO | None = None,
        page: tifffile.TiffPage | None = None,
    ) -> None:
        """
        Args:
            pillow: None for TIFF files that Pillow does not know.
            file: None for an image in memory.
            page: the first page of a TIFF file.
        """
        self.pillow = pillow
        self.file = file
        self.page = page
        self._orientation: int | None = None

    @property
    def format(self) -> str | None:
        return "TIFF" if self.pillow is None else self.pillow.format

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        if self.pillow is not None:
            return self.pillow.size
        assert self.page is not None
        return int(self.page.imagewidth), int(self.page.imagelength)

    @property
    def frames(self) -> int:
        """Number of frames, of which the first is read; a second image in a JPEG does not count."""
        if self.pillow is None or self.pillow.format == "MPO":
            return 1
        return int(getattr(self.pillow, "n_frames", 1))

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        if self._orientation is None:
            self._orientation = self._read_orientation()
        return self._orientation

    def _read_orientation(self) -> int:
        try:
            if self.pillow is None:
                assert self.page is not None
                return int(self.page.tags.valueof(_ORIENTATION, 1))
            return int(self.pillow.getexif().get(_ORIENTATION, 1))
        except Exception:  # an image with damaged EXIF data is still usable
            return 1

    def decode(self, min_side: int | None = None) -> Image.Image | Samples:
        """Decode the first frame, as stored.

        Args:
            min_side: if the caller will shrink the image to this short side (pixels), a JPEG is
                decoded at 1/2, 1/4 or 1/8 of its size where that leaves at least as much.

        Returns:
            An image of up to 8 bits per channel, or samples.

        Raises:
            ValueError: the pixels are damaged, or of a kind that cannot be read.
        """
        try:
            samples = self._samples()
            if samples is not None:
                return samples
        except _Refused:
            raise
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly every type on damaged files
            raise ValueError(f"the pixels cannot be decoded ({_first_line(error)})") from error
        image = self.pillow
        assert image is not None
        # Pillow turns TIFF files upright when it decodes them, and no others.
        turn = self.orientation if image.format == "TIFF" else 1
        if min_side is not None:
            image.draft(None, (min_side, min_side))  # only JPEG has drafts
        with _libtiff_silenced() if image.format == "TIFF" else contextlib.nullcontext():
            try:
                image.load()
            except MemoryError:
                raise
            except Exception as error:  # some decoders give only a code such as "-2"
                raise ValueError(f"the pixels cannot be decoded ({error})") from error
        if turn in _AS_STORED and self._read_orientation() == 1:
            image = image.transpose(_AS_STORED[turn])
        if image.mode == "F":
            return Samples(np.asarray(image))
        if image.mode == "I" or image.mode.startswith("I;16"):
            return self._grey(image)
        return image

    def _samples(self) -> Image.Image | Samples | None:
        """The pixels if Pillow would reduce them or take them for others."""
        image = self.pillow
        if self.file is None or image is None or image.format == "TIFF":
            if self.page is None:
                return None
            _check_segments(self.page)
            return None if self._pillow_reads_page() else _tiff_samples(self.page)
        depth = stored_depth(image, self.file)
        if depth <= 8 or image.mode.startswith("I"):
            if image.format == "JPEG2000" and depth > 8:
                return _from_codec(imagecodecs.jpeg2k_decode, self.file, depth)
            return None
        if image.format == "PNG":
            return replace(
                _from_codec(imagecodecs.png_decode, self.file, 16, channels=_png_channels(image)),
                transparent=image.info.get("transparency"),
            )
        if image.format == "PPM":
            return _ppm_samples(image, self.file)
        if image.format == "JPEG2000":
            return _from_codec(imagecodecs.jpeg2k_decode, self.file, depth)
        if image.format == "AVIF":
            decode = functools.partial(imagecodecs.avif_decode, index=0)
            return _from_codec(decode, self.file, depth)
        return None

    def _pillow_reads_page(self) -> bool:
        """Whether Pillow reads a TIFF page as its tags say: unsigned, up to 8 bits."""
        page = self.page
        assert page is not None
        if self.pillow is None:
            return False
        plain = page.sampleformat == _UNSIGNED and page.bitspersample in range(9)
        return self.pillow.mode == "CMYK" or (plain and page.compression not in _NOT_IN_PILLOW)

    def _grey(self, image: Image.Image) -> Samples:
        """Grey of Pillow's modes of 16 and 32 bits."""
        values = np.asarray(image)
        tags = getattr(image, "tag_v2", {})  # of a TIFF image that the caller opened
        if image.mode.startswith("I;16") and tags.get(262) == _MIN_IS_WHITE:
            values = WHITE - values.astype(np.uint16)
        transparent = image.info.get("transparency")
        return Samples(
            _as_16_bits(values, 32 if image.mode == "I" else 16),
            transparent if isinstance(transparent, int) else None,
        )


class _Refused(ValueError):  # noqa: N818 - what was done, not what went wrong
    """Pixels that are read and cannot be taken; the message says why."""


@contextmanager
def open_image(
    path: str | os.PathLike[str] | ShardImage,
    max_megapixels: float = MAX_MEGAPIXELS,
    advice: str = "",
) -> Iterator[OpenImage]:
    """Open an image without decoding it; errors in the context become UnreadableImage.

    Args:
        path: the file, or an image in a shard.
        max_megapixels: refuse larger images, in millions of pixels.
        advice: what to do then.
    """
    try:
        with (
            warnings.catch_warnings(),
            _without_pillows_limit(),
            _tifffile_silenced(),
            open_source(path) as file,
            contextlib.ExitStack() as stack,
        ):
            warnings.simplefilter("ignore")
            opened = _opened(file, stack)
            check_size(opened.size, max_megapixels, advice)
            yield opened
    except MemoryError as error:
        raise UnreadableImage(path, "the memory does not suffice for this image") from error
    except Exception as error:  # decoders raise nearly every type on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or _first_line(error)
        raise UnreadableImage(path, reason or type(error).__name__) from error


def check_size(size: tuple[int, int], max_megapixels: float, advice: str = "") -> None:
    """ValueError for an image that is larger than the limit."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"the image has no pixels ({width}x{height})")
    millions = width * height / 1e6
    if millions > max_megapixels:
        raise ValueError(
            f"{width}x{height} pixels, {millions:,.0f} megapixels: exceeds the limit of "
            f"{max_megapixels:g}" + (advice and f"; {advice}")
        )


def turned_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of ``(H, W, ...)`` pixels as EXIF orientation 1 to 8 says; others change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _opened(file: BinaryIO, stack: contextlib.ExitStack) -> OpenImage:
    start = file.read(16)
    page = None
    trouble: Exception | None = None
    if start.startswith(_TIFF_STARTS):
        try:
            file.seek(0)
            page = stack.enter_context(tifffile.TiffFile(file)).pages.first
        except Exception as error:  # Pillow may do with less
            trouble = error
    file.seek(0)
    try:
        image = stack.enter_context(Image.open(file, formats=_formats()))
    except UnidentifiedImageError:
        if isinstance(page, tifffile.TiffPage):
            return OpenImage(None, file, page)
        raise ValueError(_why_not(file, start, trouble)) from None
    return OpenImage(image, file, page if isinstance(page, tifffile.TiffPage) else None)


def _why_not(file: BinaryIO, start: bytes, trouble: Exception | None) -> str:
    """Why no library reads the file."""
    if trouble is not None:
        return f"a TIFF file that cannot be read ({_first_line(trouble)})"
    if re.match(rb"PF\s", start):
        return f"a float map of colours (PFM): what white would be is unknown; {_SAVE_OTHERWISE}"
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(start) is True:
            file.seek(0)
            try:
                factory(file, "")
            except Exception as error:
                return f"a {name} file that cannot be read ({_first_line(error)})"
    return (
        f"not an image in a format that can be read ({', '.join(_formats())}); "
        f"it begins with {start!r}"
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()  # only then are the formats of this build of Pillow known
    return tuple(name for name in _FORMATS if name in Image.OPEN)


# Pillow's limit of pixels is a setting of the whole process. It is lifted while an image is open
# here, where check_size takes its place, and then has the value that it had.
_limit_lock = threading.Lock()
_limit_users = 0
_limit_kept: int | None = None


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    global _limit_users, _limit_kept
    with _limit_lock:
        if _limit_users == 0:
            _limit_kept = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_kept


@contextmanager
def _libtiff_silenced() -> Iterator[None]:
    """Suppress libtiff's own messages, which it writes to the process's standard error."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _tifffile_silenced() -> Iterator[None]:
    """Suppress tifffile's log about what it finds in damaged files."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("tifffile")
    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


# --- depth ------------------------------------------------------------------------------------


def stored_depth(image: Image.Image, file: BinaryIO | None) -> int:
    """Bits per channel of an image that is not decoded yet; 8 for fewer and where not known."""
    if image.format == "PNG":
        return 16 if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) else 8
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (8,))
        return max(8, *(int(b) for b in (bits if isinstance(bits, tuple) else (bits,))))
    if image.format == "PPM":
        return 8 if _ppm_white(image) <= 255 else 16
    if file is not None and image.format in ("JPEG2000", "AVIF"):
        file.seek(0)
        data = file.read()
        return _jpeg2000_depth(data) if image.format == "JPEG2000" else _avif_depth(data)
    return 8


def _ppm_white(image: Image.Image) -> int:
    for codec, _, _, args in getattr(image, "tile", ()):
        if codec in ("ppm", "ppm_plain") and isinstance(args, tuple):
            return int(args[-1])
        if codec == "raw" and ";16" in str(args):
            return WHITE
    return 255


def _jpeg2000_depth(data: bytes) -> int:
    """From the SIZ segment of the codestream (ISO/IEC 15444-1, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 42:
        return 8
    (count,) = struct.unpack_from(">H", data, at + 40)
    parts = data[at + 42 : at + 42 + 3 * count : 3]
    if any(part & 0x80 for part in parts):
        raise _Refused(f"JPEG 2000 with signed samples: white is unknown; {_SAVE_OTHERWISE}")
    colr = data.find(b"colr\x01", 0, at)
    if colr >= 0 and data[colr + 7 : colr + 11] == struct.pack(">I", 18):
        return 8  # sYCC, which Pillow converts
    return max((8, *(part + 1 for part in parts)))


def _avif_depth(data: bytes) -> int:
    """From the first AV1 codec configuration box (AV1 in ISOBMFF, 2.3)."""
    at = data.find(b"av1C")
    if at < 0 or len(data) < at + 7 or not data[at + 6] & 0x40:
        return 8
    return 12 if data[at + 6] & 0x20 else 10


# --- pixels of more than 8 bits ---------------------------------------------------------------


def _as_16_bits(values: NDArray[Any], depth: int) -> NDArray[np.uint16]:
    """Unsigned values of 9 to 16 bits, white at 65535; of 32 bits those that fit in 16.

    Raises:
        _Refused: values of 32 bits, or signed ones, outside 0 to 65535.
    """
    if depth > 16 or values.dtype.kind == "i":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > WHITE:
            raise _Refused(
                f"{'32' if depth > 16 else depth}-bit integers with values from {low} to {high}: "
                f"white is unknown; {_SAVE_OTHERWISE}"
            )
        return values.astype(np.uint16)
    if depth == 16:
        return values.astype(np.uint16, copy=False)
    white = (1 << depth) - 1
    return ((values.astype(np.uint32) * WHITE + white // 2) // white).astype(np.uint16)


def _told(depth: int) -> tuple[str, ...]:
    return (f"{depth} bits per channel: returned with 16",) if depth < 16 else ()


def _png_channels(image: Image.Image) -> int:
    """Of the file, without the alpha that decoders make of a transparent colour."""
    raw = str(image.tile[0][3])  # type: ignore[attr-defined]
    return {"LA": 2, "RGB": 3, "RGBA": 4}[raw.partition(";")[0]]


def _from_codec(decode: Any, file: BinaryIO, depth: int, channels: int | None = None) -> Samples:
    file.seek(0)
    values = np.asarray(decode(file.read()))
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] > 4):
        raise _Refused(f"pixels of shape {values.shape}: neither grey nor RGB, with alpha or not")
    if values.ndim == 3 and channels is not None:
        values = values[..., :channels]
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return Samples(_as_16_bits(values, depth), notes=_told(depth))


def _ppm_samples(image: Image.Image, file: BinaryIO) -> Samples:
    """A PPM of more than 8 bits, binary or plain."""
    (_, _, offset, _), white = image.tile[0], _ppm_white(image)  # type: ignore[attr-defined]
    count = image.width * image.height * 3
    file.seek(0)
    plain = file.read(2) == b"P3"
    file.seek(offset)
    if plain:
        words = re.sub(rb"#[^\r\n]*", b" ", file.read()).split(None, count)[:count]
        values = np.array(words, np.int64)
    else:
        values = np.frombuffer(file.read(2 * count), ">u2").astype(np.int64)
    if len(values) < count:
        raise ValueError("the file is truncated")
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"values above {white}, which is white")
    scaled = (values * WHITE + white // 2) // white
    pixels = scaled.astype(np.uint16).reshape(image.height, image.width, 3)
    notes = () if white == WHITE else (f"white is {white} in the file: returned with 16 bits",)
    return Samples(pixels, notes=notes)


# Compressions of TIFF by tifffile's numbers that Pillow is usually built without: JPEG 2000, WebP,
# JPEG XL and LERC.
_NOT_IN_PILLOW = {33003, 33004, 33005, 34712, 34887, 50001, 50002, 52546}


def _check_segments(page: tifffile.TiffPage) -> None:
    """ValueError for a page with fewer strips or tiles than its size needs.

    Both readers would leave black, or unset, what no strip covers; Pillow would take the header of
    the file, at offset 0, for the pixels of a strip that is left out.
    """
    needed, there = math.prod(page.chunked), sum(offset > 0 for offset in page.dataoffsets)
    if there < needed:
        kind = "tiles" if page.is_tiled else "strips"
        raise ValueError(f"{needed - there} of the {needed} {kind} are missing")


def _tiff_samples(page: tifffile.TiffPage) -> Image.Image | Samples:
    """The first page of a TIFF file, as its tags say; an image if it has up to 8 bits.

    Raises:
        _Refused: samples of which white is not known, or which are no grey and no RGB.
    """
    bits, kind = page.bitspersample, page.sampleformat
    photometric = int(page.photometric)
    color = _PHOTOMETRIC.get(photometric, f"photometric interpretation {photometric}")
    if not isinstance(bits, int) or not isinstance(kind, int):
        raise _Refused(f"TIFF whose channels differ in depth ({bits} bits); {_SAVE_OTHERWISE}")
    if photometric not in (*_GREY, *_RGB):
        raise _Refused(f"TIFF with {bits}-bit {color}, which cannot be read; save it as RGB")
    if kind not in (_UNSIGNED, _SIGNED, _FLOAT):
        raise _Refused(f"TIFF with samples of format {kind} (complex or unknown)")
    if 0 in page.databytecounts or len(page.dataoffsets) != len(page.databytecounts):
        raise ValueError("a strip or tile is missing")
    if page.imagedepth != 1:
        raise _Refused(f"TIFF with a volume of depth {page.imagedepth}")
    values = page.asarray(maxworkers=1)
    if values.ndim == 3 and int(page.planarconfig) == 2:
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    colors = 1 if photometric in _GREY else 3
    values = values.reshape(*values.shape[:2], -1)
    extra = [int(e) for e in page.extrasamples] if isinstance(page.extrasamples, tuple) else []
    notes = []
    present = values.shape[2] - colors
    if present < 0:
        raise _Refused(f"TIFF with {values.shape[2]} channels of {color}")
    # Where the tag is missing, more channels than colours are not known to be alpha.
    alpha = extra[0] if extra and present else 0
    keep = colors + (alpha in (_PREMULTIPLIED, _STRAIGHT))
    if keep < values.shape[2]:
        notes.append(f"{values.shape[2] - keep} channels besides colour and alpha are left out")
        values = values[..., :keep]
    if kind == _FLOAT:
        if photometric == _MIN_IS_WHITE:
            raise _Refused(f"{bits}-bit float grey with white at the least value")
        return Samples(np.asarray(values[..., 0] if keep == 1 else values), notes=tuple(notes))
    if bits <= 16 and kind == _UNSIGNED:
        if photometric == _MIN_IS_WHITE:
            values = np.concatenate(
                ((1 << bits) - 1 - values[..., :1], values[..., 1:]), 2, dtype=values.dtype
            )
        if bits <= 8 and alpha != _PREMULTIPLIED:
            eight = (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
            return Image.fromarray(eight[..., 0] if keep == 1 else eight)
        sixteen = _as_16_bits(values, bits)
        notes.extend(_told(bits))
    else:
        if photometric == _MIN_IS_WHITE or bits == 8:
            raise _Refused(
                f"{bits}-bit {'signed ' if kind == _SIGNED else ''}integers"
                f"{' with white at the least value' if photometric == _MIN_IS_WHITE else ''}: "
                f"white is unknown; {_SAVE_OTHERWISE}"
            )
        sixteen = _as_16_bits(values, bits)
        notes.append(f"{bits}-bit integers: returned with 16, white at {WHITE}")
    if alpha == _PREMULTIPLIED:
        notes.append("premultiplied alpha: pixels outside the mask are those of the conversion")
        opacity = np.maximum(sixteen[..., -1:].astype(np.float64), 1) / WHITE
        straight = np.rint(np.minimum(sixteen[..., :-1] / opacity, WHITE))
        sixteen = np.concatenate((straight.astype(np.uint16), sixteen[..., -1:]), 2)
    return Samples(sixteen[..., 0] if keep == 1 else sixteen, notes=tuple(notes))
