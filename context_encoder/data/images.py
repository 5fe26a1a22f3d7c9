"""Reading photographs of every size and mode as 8-bit RGB, and finding them in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from context_encoder.data.decode import (
    MAX_MEGAPIXELS,
    WHITE,
    Samples,
    UnreadableImage,
    open_image,
    turned_upright,
)
from context_encoder.data.listing import (
    FileList,
    ImageList,
    list_folder,
    read_manifest,
    relative_names,
)
from context_encoder.data.shards import ImageFile, ShardImage, are_shards, list_shards
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

#: Suffixes (lower case) by which :func:`list_images` recognizes an image file.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".avif"),
)

# White is the usual background of cut-outs and drawings. Mid-grey would resemble a hole, which is
# filled with a mean colour close to it.
_BEHIND_ALPHA = (255, 255, 255)


@patient
def read_image(
    path: str | os.PathLike[str] | ShardImage,
    min_side: int | None = None,
    *,
    upright: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Image.Image:
    """Read one image file as 8-bit RGB, upright.

    * Grey, palette, CMYK (Adobe's inverted form too), YCbCr and Lab become RGB; colour profiles
      are not applied.
    * Transparent pixels are blended with white.
    * More than 8 bits per channel are scaled so that the brightest value of the file's own depth
      becomes 255. Of TIFF, the tags decide whether the least value is black or white.
    * Integer grey that is stored in 32 bits or signed is scaled so that 65535 becomes 255; values
      outside 0 to 65535 are refused, because the value of white is unknown.
    * Float: 1.0 is white (brighter is cut off) while no pixel exceeds 2; otherwise 255 is
      white. Anything above 255, and NaN or infinity, is refused.
    * The EXIF orientation is applied. If there are several frames, the first one is read.

    Args:
        path: the file, or an image in a shard; the contents decide the format, not the suffix.
        min_side: if the caller will shrink the image to this short side (pixels), a JPEG is
            decoded at 1/2, 1/4 or 1/8 of its size where that leaves at least as much.
        upright: False to ignore the EXIF orientation, for annotations of the stored pixels.
        max_megapixels: refuse larger images, in millions of pixels.

    Raises:
        UnreadableImage: the file is missing, empty, forbidden, truncated, corrupt, not an image,
            of an unsupported format, or larger than the limit.
        StorageError: the file was not given for a minute, and its folder is out of reach.
        ValueError: ``min_side`` below 1.
    """
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be at least 1 pixel, got {min_side}")
    with open_image(path, max_megapixels) as image:
        rgb = to_rgb(image.decode(min_side))
        orientation = image.orientation if upright else 1
        if orientation == 1:
            return rgb
        return Image.fromarray(np.ascontiguousarray(turned_upright(np.asarray(rgb), orientation)))


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


def to_rgb(image: Image.Image | Samples) -> Image.Image:
    """As 8-bit RGB, transparency blended with white; see :func:`read_image`."""
    if isinstance(image, Samples):
        grey_or_colors = image.values
        if grey_or_colors.dtype.kind == "f":
            eight = _from_floats(grey_or_colors)
        else:
            eight = _from_16_bits(with_alpha(image))
        return Image.fromarray(eight).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, _BEHIND_ALPHA)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image.convert("RGB")


def with_alpha(samples: Samples) -> NDArray[np.uint16]:
    """Values of 16 bits, with an alpha channel if one value or colour stands for transparent."""
    values: NDArray[np.uint16] = samples.values
    if samples.transparent is None:
        return values
    if values.ndim == 2:
        values = values[..., None]
    opaque = (values != np.array(samples.transparent)).any(-1, keepdims=True)
    return np.concatenate((values, opaque * np.uint16(WHITE)), 2, dtype=np.uint16)


def _from_16_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    if values.ndim == 3 and values.shape[2] in (2, 4):
        opacity = values[..., -1:].astype(np.float32) / WHITE
        values = np.rint(values[..., :-1] * opacity + (1 - opacity) * WHITE).astype(np.uint16)
        values = values[..., 0] if values.shape[2] == 1 else values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and high <= 255):  # a NaN anywhere makes both NaN
        raise ValueError(
            f"float {'grey' if values.ndim == 2 else 'colours'} with values from {low:g} to "
            f"{high:g}: white is expected at 1 or 255"
        )
    if values.ndim == 3 and values.shape[2] != 3:
        raise ValueError("float samples with alpha: save the image with 8 or 16 bits per channel")
    white = 1.0 if high <= 2 else 255.0
    eight: NDArray[np.uint8] = np.rint(
        np.clip(values.astype(np.float32) / white, 0, 1) * 255
    ).astype(np.uint8)
    return eight


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
