"""The images that the page has open: in memory only, few, and forgotten after a while."""

from __future__ import annotations

import io
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_encoder.data.images import UnreadableImage
from context_encoder.data.mask_images import InpaintError, UnusualMaskError, read_mask
from context_encoder.inpainting.encode import encode_picture
from context_encoder.inpainting.image_io import Picture, read_picture

__all__ = [
    "Display",
    "Open",
    "Pictures",
    "Pixels",
    "eight_bits",
    "encode_png",
    "open_mask",
    "open_picture",
]

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

#: What the browser shows has at most so many pixels, and sides of at most so many.
_SHOWN_PIXELS, _SHOWN_SIDE = 16e6, 8192
_QUALITY = 92
#: Loaded masks that are kept per image.
_MOST_MASKS = 16


@dataclass(frozen=True)
class Display:
    """The size at which an image is shown, and its colour profile."""

    width: int
    height: int
    #: Pixels shown per pixel of the image, at most 1.
    scale: float
    icc_profile: bytes | None

    @classmethod
    def of(cls, picture: Picture) -> Display:
        width, height = picture.width, picture.height
        scale = min(
            1.0, (_SHOWN_PIXELS / (width * height)) ** 0.5, _SHOWN_SIDE / max(width, height)
        )
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return cls(*size, scale, picture.info.get("icc_profile"))

    def encode(self, rgb: NDArray[np.uint8], box: tuple[int, int, int, int]) -> tuple[Part, bytes]:
        """A part of the image as the browser gets it, a JPEG.

        Args:
            rgb: uint8 ``(H, W, 3)``, the part's pixels.
            box: where they are in the image: left, top, right, bottom.
        """
        left, top, right, bottom = box
        image = Image.fromarray(np.ascontiguousarray(rgb))
        part = Part(*(edge * self.scale for edge in (left, top, right - left, bottom - top)))
        if self.scale < 1:
            size = max(1, round(part.width)), max(1, round(part.height))
            image = image.resize(size, Image.Resampling.BOX, reducing_gap=2)
        return part, _jpeg(image, self.icc_profile)


@dataclass(frozen=True)
class Part:
    """Where a part of an image is shown, in pixels of the display."""

    left: float
    top: float
    width: float
    height: float


def _jpeg(image: Image.Image, icc_profile: bytes | None) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, subsampling=0, icc_profile=icc_profile)
    return data.getvalue()


@dataclass(eq=False)
class Open:
    """An image that the page has open, with what belongs to it."""

    name: str
    picture: Picture
    display: Display
    masks: dict[int, Mask] = field(default_factory=dict)
    #: The last result at full depth, and the mask that it was filled in.
    result: Pixels | None = None
    filled: Mask | None = None
    #: Encoded parts to show, by name.
    shown: dict[str, bytes] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    def add_mask(self, mask: Mask) -> int:
        """Keep a mask that was loaded; returns its number."""
        number = max(self.masks, default=0) + 1
        self.masks[number] = mask
        for old in sorted(self.masks)[:-_MOST_MASKS]:
            del self.masks[old]
        return number

    def show_all(self) -> None:
        """Encode the whole image as ``display``."""
        picture = self.picture
        box = (0, 0, picture.width, picture.height)
        self.shown["display"] = self.display.encode(eight_bits(picture), box)[1]


class Pictures:
    """At most so many open images, which are forgotten when they were not used for a while.

    Args:
        most: images at a time; the one that was unused for longest makes room.
        seconds: after which an unused image is forgotten.
    """

    def __init__(self, most: int = 4, seconds: float = 3600) -> None:
        self._most, self._seconds = most, seconds
        self._open: OrderedDict[str, Open] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, opened: Open) -> str:
        """Keep an image; returns the key that names it, which cannot be guessed."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._open[key] = opened
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return key

    def find(self, key: str) -> Open | None:
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                found.used = time.monotonic()
                self._open.move_to_end(key)
            return found

    def forget(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)

    def forget_unused(self) -> None:
        """Forget the images that were not used for a while."""
        with self._lock:
            limit = time.monotonic() - self._seconds
            for key in [key for key, opened in self._open.items() if opened.used < limit]:
                del self._open[key]

    def __len__(self) -> int:
        return len(self._open)


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """A path to bytes in memory. No file is made, so nothing can be left behind."""
    handle = os.memfd_create("upload")
    with os.fdopen(handle, "wb", closefd=True) as file:
        file.write(data)
        file.flush()
        yield Path(f"/proc/self/fd/{handle}")


def open_picture(data: bytes, name: str) -> Open:
    """Decode an uploaded image.

    Args:
        data: the bytes of the file.
        name: the name of the file, for messages.

    Raises:
        InpaintError: it cannot be read as an image, or not kept.
    """
    with _as_file(data) as path:
        try:
            picture = read_picture(path)
        except UnreadableImage as error:
            raise InpaintError(f"{name}: {error.reason}") from error
        except InpaintError as error:
            raise InpaintError(f"{name}: {error}".replace(str(path), name)) from error
    return Open(name, picture, Display.of(picture))


def open_mask(data: bytes, name: str, picture: Picture) -> tuple[Mask, str | None]:
    """Decode an uploaded mask for an image.

    Returns:
        bool ``(H, W)``, True where to fill; and a remark.

    Raises:
        InpaintError: it cannot be read, or is not a mask for this image.
    """
    with _as_file(data) as path:
        try:
            mask, remark = read_mask(path, picture.width, picture.height, picture=picture.eight())
        except UnreadableImage as error:
            raise InpaintError(f"{name}: {error.reason}") from error
        except UnusualMaskError as error:  # the page has none of the options that it advises
            advice = "; a mask is white where to fill and black elsewhere"
            raise InpaintError((error.reason + advice).replace(str(path), name)) from error
        except InpaintError as error:
            raise InpaintError(str(error).replace(str(path), name)) from error
    return mask, remark and remark.replace(str(path), name)


def eight_bits(picture: Picture) -> NDArray[np.uint8]:
    """uint8 ``(H, W, 3)``: how an image is shown, transparency blended with white."""
    if picture.mode == "RGB" and picture.pixels.dtype == np.uint8:
        return picture.pixels.astype(np.uint8, copy=False)
    levels: NDArray[np.uint8] = np.rint((picture.rgb() + 1) * np.float32(127.5)).astype(np.uint8)
    return levels


def encode_png(pixels: Pixels, info: Mapping[str, Any] | None = None) -> bytes:
    """A PNG at the image's depth, with its metadata."""
    return encode_picture(pixels, info or {}, Path("image.png"))[0]
