"""Reading photographs of every size and mode as 8-bit RGB, and finding them in a folder."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from context_encoder.data.listing import (
    FileList,
    ImageList,
    list_folder,
    read_manifest,
    relative_names,
)
from context_encoder.data.shards import ImageFile, ShardImage, are_shards, list_shards, open_source
from context_encoder.data.storage import patient

__all__ = [
    "SUFFIXES",
    "Scan",
    "UnreadableImage",
    "find_images",
    "list_images",
    "read_image",
    "read_square",
    "scan_images",
    "to_input",
]

log = logging.getLogger(__name__)

# Formats by their Pillow name. The contents of a file decide its format, not its suffix; formats
# that start other programs (EPS) or that have no signature (TGA) are excluded.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

#: Suffixes (lower case) by which :func:`list_images` recognizes an image file.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".avif"),
)

# White is the usual background of cut-outs and drawings. Mid-grey would resemble a hole, which is
# filled with a mean colour close to it.
_BEHIND_ALPHA = (255, 255, 255)

_EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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


@patient
def read_image(
    path: str | os.PathLike[str] | ShardImage, min_side: int | None = None, *, upright: bool = True
) -> Image.Image:
    """Read one image file as 8-bit RGB, upright.

    * Grey, palette, CMYK (Adobe's inverted form too), YCbCr and Lab become RGB; colour profiles
      are not applied.
    * Transparent pixels are blended with white.
    * Integer grey (16 bits, or stored in 32) is scaled so that 65535 becomes 255; other 32-bit
      values are refused, because the value of white is unknown.
    * Float grey: 1.0 is white (brighter is cut off) while no pixel exceeds 2; otherwise 255 is
      white. Anything above 255, and NaN or infinity, is refused.
    * The EXIF orientation is applied. If there are several frames, the first one is read.

    Args:
        path: the file, or an image in a shard; the contents decide the format, not the suffix.
        min_side: if the caller will shrink the image to this short side (pixels), a JPEG is
            decoded at 1/2, 1/4 or 1/8 of its size where that leaves at least as much.
        upright: False to ignore the EXIF orientation, for annotations of the stored pixels.

    Raises:
        UnreadableImage: the file is missing, empty, forbidden, truncated, corrupt, not an image,
            of an unsupported format, or larger than Pillow's decompression-bomb limit.
        StorageError: the file was not given for a minute, and its folder is out of reach.
        ValueError: ``min_side`` below 1.
    """
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be at least 1 pixel, got {min_side}")
    with open_image(path) as image:
        if min_side is not None:
            image.draft(None, (min_side, min_side))  # only JPEG has drafts
        with libtiff_silenced() if image.format == "TIFF" else nullcontext():
            try:
                image.load()
            except Exception as error:  # some decoders give only a code such as "-2"
                raise ValueError(f"the pixels cannot be decoded ({error})") from error
        turn = UPRIGHT.get(exif_orientation(image)) if upright else None
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file as stored, without decoding it.

    Raises:
        UnreadableImage: see :func:`read_image`.
    """
    with open_image(path) as image:
        return image.size


@dataclass(frozen=True)
class Scan:
    """Results of :func:`scan_images`."""

    #: Width and height, as stored, of every file whose header can be read.
    sizes: dict[Path, tuple[int, int]]
    #: The other files.
    unreadable: list[UnreadableImage]

    def smaller_than(self, side: int) -> int:
        """Number of images with a short side below ``side`` pixels."""
        return sum(min(size) < side for size in self.sizes.values())


def scan_images(paths: Iterable[str | os.PathLike[str]]) -> Scan:
    """Read the header of every file without decoding it; cheap enough for thousands of files.

    This finds empty, forbidden and foreign files; damage beyond the header shows only on reading.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[UnreadableImage] = []
    for path in paths:
        try:
            sizes[Path(path)] = stored_size(path)
        except UnreadableImage as error:
            unreadable.append(error)
    return Scan(sizes, unreadable)


def list_images(folder: str | os.PathLike[str]) -> FileList:
    """All image files in a folder and its subfolders, by suffix, in a fixed order.

    Names that begin with a dot and ``__MACOSX`` folders are skipped. Links are followed, each
    folder once. The order is that of the paths relative to ``folder`` and the same on every
    system. Subfolders that cannot be listed are named in the log.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        NotADirectoryError: ``folder`` is a file.
        StorageError: a folder is out of reach.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"image folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"image folder {root} is a file; give the folder that holds it")
    found = list_folder(root, SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"no image in {root} or its subfolders: no file name ends in {', '.join(SUFFIXES)}"
        )
    return found


def find_images(location: str | os.PathLike[str]) -> ImageList[Any]:
    """The images of a folder, of a text file that lists them, or of shards.

    Args:
        location: a folder, see :func:`list_images`; a file with one path per line, see
            :func:`~context_encoder.data.listing.read_manifest`; or shards, see
            :func:`~context_encoder.data.shards.list_shards`.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError, StorageError: as these functions.
    """
    if are_shards(location):
        return list_shards(location, SUFFIXES)
    if os.path.isfile(location) and not os.fspath(location).lower().endswith(SUFFIXES):
        return read_manifest(Path(location))
    return list_images(location)


def relative_name(path: str | os.PathLike[str] | ShardImage, root: str | os.PathLike[str]) -> str:
    """``path`` relative to ``root``, with forward slashes and in NFC: equal on all systems."""
    return relative_names([path], root)[0]


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()  # only then are the formats of this build of Pillow known
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def open_image(path: str | os.PathLike[str] | ShardImage) -> Iterator[Image.Image]:
    """Open an image without decoding it; errors in the context become UnreadableImage."""
    try:
        with warnings.catch_warnings(), open_source(path) as file:
            warnings.simplefilter("ignore")
            try:
                opened = Image.open(file, formats=_formats())
            except UnidentifiedImageError:
                file.seek(0)
                raise ValueError(
                    f"not an image in a format that can be read ({', '.join(_formats())}); "
                    f"it begins with {file.read(16)!r}"
                ) from None
            with opened:
                yield opened
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UnreadableImage(path, reason or type(error).__name__) from error


@contextmanager
def libtiff_silenced() -> Iterator[None]:
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


def exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # an image with damaged EXIF data is still usable
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_from_integers(image)
    elif image.mode == "F":
        image = _grey_from_floats(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, _BEHIND_ALPHA)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image.convert("RGB")


def _grey_from_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"32-bit grey with values from {low} to {high}: white is unknown; "
            "save it with 8 or 16 bits"
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: one grey value stands for "nothing here"
        values[values == transparent] = 65535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _grey_from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and high <= 255):  # a NaN anywhere makes both NaN
        raise ValueError(
            f"float grey with values from {low:g} to {high:g}: white is expected at 1 or 255"
        )
    white = 1.0 if high <= 2 else 255.0
    return Image.fromarray(np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8))


def read_square(path: ImageFile, size: int) -> Tensor:
    """The centre square of an image whose short side is scaled to ``size``: uint8 ``(3, S, S)``.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    image = read_image(path, min_side=size)
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())


def to_input(pixels: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Convert uint8 RGB to the scale of the networks' input: float32 on [-1, 1], a new tensor.

    Args:
        pixels: uint8, of any shape and on any device.
        memory_format: memory format of the result.
    """
    return pixels.to(torch.float32, copy=True, memory_format=memory_format).div_(127.5).sub_(1)
