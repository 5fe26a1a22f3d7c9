"""Lossless image input and output: reading images in their own mode, saving without loss.

Training reads all images as 8-bit RGB (:mod:`context_encoder.data.images`). An image that is
to be filled keeps its mode, so that every pixel outside the mask is unchanged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_encoder.data.images import (
    UPRIGHT,
    exif_orientation,
)
from context_encoder.data.mask_images import (
    LUMA,
    ImageLike,
    InpaintError,
    Mask,
    load_pixels,
    mask_from_boxes,
    opened_image,
    read_mask,
)
from context_encoder.utils.files import write_file

__all__ = [
    "Picture",
    "check_output",
    "read_picture",
    "read_with_mask",
    "save_picture",
]

_SAVE: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".tif": {"format": "TIFF", "compression": "tiff_lzw"},
    ".tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},  # exact: under alpha 0 too
}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in the mode in which it is returned.

    ========  =============================  ==================================================
    mode      pixels                         read from
    ========  =============================  ==================================================
    ``L``     uint8 ``(H, W)``               8-bit grey; 1-bit
    ``LA``    uint8 ``(H, W, 2)``            grey with alpha or a transparent value
    ``RGB``   uint8 ``(H, W, 3)``            RGB; palette; CMYK, YCbCr, Lab, HSV (converted)
    ``RGBA``  uint8 ``(H, W, 4)``            the same with alpha or a transparent colour
    ``I;16``  uint16 ``(H, W)``              16-bit grey; 32-bit grey with values to 65535
    ========  =============================  ==================================================
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    mode: str
    #: Metadata that is saved with the result: ``icc_profile``, ``dpi``, ``transparency``.
    info: dict[str, Any]
    #: Remarks about the reading, as sentences.
    notes: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    def rgb(self) -> NDArray[np.float32]:
        """float32 ``(H, W, 3)`` in [-1, 1]; transparency is blended with white, as in training."""
        white = np.float32(65535 if self.mode == "I;16" else 255)
        color = self.pixels.astype(np.float32) / white
        if self.mode in ("LA", "RGBA"):
            color, alpha = color[..., :-1], color[..., -1:]
            color = color * alpha + (1 - alpha)
        elif self.mode != "RGB":
            color = color[..., None]
        return np.broadcast_to(color * 2 - 1, (*color.shape[:2], 3)).copy()

    def filled(self, mask: Mask, rgb: NDArray[np.float32]) -> Image.Image:
        """The image with opaque masked pixels from ``rgb`` and all others unchanged.

        Args:
            mask: bool ``(H, W)``.
            rgb: float32 ``(H, W, 3)`` in [-1, 1] (values outside are clamped).
        """
        pixels = self.pixels.copy()
        color = np.clip((rgb[mask] + 1) / 2, 0, 1)
        if self.mode in ("L", "LA", "I;16"):
            color = (color @ LUMA)[:, None]
        if self.mode in ("LA", "RGBA"):
            color = np.concatenate((color, np.ones_like(color[:, :1])), axis=1)
        white = 65535 if self.mode == "I;16" else 255
        values = np.rint(color * white).astype(pixels.dtype)
        if "transparency" in self.info:  # one grey value means "nothing here"
            nothing = self.info["transparency"]
            values[values == nothing] = nothing - 1 if nothing else 1
        pixels[mask] = values.reshape(-1, *pixels.shape[2:])
        image = Image.fromarray(pixels)
        image.info.update(self.info)
        return image


def read_picture(source: ImageLike) -> Picture:
    """Read an image in its own mode (see :class:`Picture`), upright by its EXIF orientation.

    Args:
        source: a file; a Pillow image; or an array: uint8 ``(H, W)``, ``(H, W, 2)`` grey with
            alpha, ``(H, W, 3)`` RGB, ``(H, W, 4)`` RGBA, or uint16 ``(H, W)``.

    Raises:
        UnreadableImage: the file cannot be read as an image.
        InpaintError: the mode, or the shape or dtype of an array, cannot be kept.
    """
    if isinstance(source, np.ndarray):
        return _picture_from_array(source)
    with opened_image(source) as image:
        return _picture_from_image(image)


def read_with_mask(
    image: ImageLike, mask: ImageLike | None, boxes: Sequence[Sequence[int]] | None
) -> tuple[Picture, Mask, list[str]]:
    """Read an image and what is to be filled in it.

    Args:
        image: see :func:`read_picture`.
        mask: see :func:`context_encoder.data.mask_images.read_mask`; or
        boxes: in its place, see :func:`context_encoder.data.mask_images.mask_from_boxes`.

    Returns:
        The picture; bool ``(H, W)``, True where to fill; what happened on reading, as sentences.

    Raises:
        UnreadableImage: a file cannot be read as an image.
        InpaintError: not one of mask and boxes, an image that cannot be kept, a mask that does
            not fit it, a box outside of it, or nothing left outside the mask.
    """
    if (mask is None) == (boxes is None):
        raise InpaintError("give either a mask or boxes")
    picture = read_picture(image)
    notes = list(picture.notes)
    if mask is not None:
        missing, empty = read_mask(mask, picture.width, picture.height)
        notes += [empty] if empty else []
    else:
        missing = mask_from_boxes(boxes or (), picture.width, picture.height)
        notes += [] if boxes else ["nothing to fill: no box was given"]
    if missing.all():
        raise InpaintError(
            "the mask covers the whole image, so there is nothing to fill it from; "
            "leave some of it black"
        )
    return picture, missing, notes


def check_output(path: Path) -> None:
    """InpaintError unless the suffix of an output file is that of a lossless format."""
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".jpe", ".jfif"):
        raise InpaintError(
            f"{path}: JPEG would change every pixel, also those outside the mask; save as "
            f"{path.with_suffix('.png').name}"
        )
    if suffix not in _SAVE:
        raise InpaintError(
            f"{path}: the name must end in one of {', '.join(_SAVE)} (lossless formats)"
        )


def save_picture(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Save without loss, in the format of the suffix (.png, .tif, .tiff, .webp), atomically.

    The ICC profile and the resolution in ``image.info`` are written. WebP has no grey (it
    becomes RGB with equal values), no 16 bits and no resolution.

    Raises:
        InpaintError: the suffix is another one, or the format cannot hold the image.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    check_output(path)
    options = dict(_SAVE[path.suffix.lower()])
    options |= {key: image.info[key] for key in ("icc_profile", "dpi") if key in image.info}
    if options["format"] == "WEBP" and image.mode == "I;16":
        raise InpaintError(f"{path}: WebP holds 8 bits, the image has 16; save as .png or .tif")
    try:
        write_file(path, lambda new: image.save(new, **options))
    except ValueError as error:
        raise InpaintError(f"{path}: {error}") from error


def _picture_from_image(image: Image.Image) -> Picture:
    notes = []
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {getattr(image, 'n_frames', 1)} frames is taken")
    deep = _has_16_bit_channels(image)
    load_pixels(image)
    orientation = exif_orientation(image)
    picture, note = _in_own_mode(image)
    if deep and picture.mode != "I;16":
        note = (
            "the file has 16 bits per channel, of which 8 are read: pixels outside the mask keep "
            "the upper half of their bits (only grey images are kept with 16)"
        )
    if note:
        notes.append(note)

    info = {}
    if "icc_profile" in image.info and image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        info["icc_profile"] = image.info["icc_profile"]  # a profile of CMYK does not fit RGB
    elif image.info.get("icc_profile") and picture.mode == "I;16":
        info["icc_profile"] = image.info["icc_profile"]
    dpi = _resolution(image.info.get("dpi"))
    if dpi:
        info["dpi"] = dpi[::-1] if orientation >= 5 else dpi
    if picture.mode == "I;16" and isinstance(image.info.get("transparency"), int):
        info["transparency"] = image.info["transparency"]

    upright = UPRIGHT.get(orientation)
    if upright is not None:
        picture = picture.transpose(upright)
        notes.append(
            f"turned upright as its EXIF orientation says: {picture.width}x{picture.height}"
        )
    mode = "I;16" if picture.mode.startswith("I") else picture.mode
    return Picture(np.array(picture), mode, info, tuple(notes))


def _in_own_mode(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The image in the mode in which it is kept, and a remark about a conversion."""
    mode, transparent = image.mode, image.has_transparency_data
    if mode in ("LA", "RGBA") or (mode in ("L", "RGB") and not transparent):
        return image, None
    if mode == "1":
        return image.convert("LA" if transparent else "L"), "1-bit: returned as 8-bit grey"
    if mode in ("L", "RGB"):
        return image.convert(mode + "A"), "one colour stands for transparent: returned with alpha"
    if mode in ("P", "PA"):
        kept = "RGBA" if transparent else "RGB"
        return image.convert(kept), f"palette: returned as {kept}, the same colours"
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise InpaintError(
                f"32-bit grey with values from {low} to {high} cannot be kept; "
                "save the image with 8 or 16 bits"
            )
        return Image.fromarray(values.astype(np.uint16)), None
    if mode == "F":
        raise InpaintError(
            "float grey cannot be kept, since what white would be is unknown; "
            "save the image with 8 or 16 bits"
        )
    kept = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    return image.convert(kept), (
        f"converted from {mode} to {kept}: pixels outside the mask are those of the conversion"
    )


def _has_16_bit_channels(image: Image.Image) -> bool:
    """Whether a file, not yet decoded, stores colours with 16 bits (which Pillow reads as 8)."""
    for tile in getattr(image, "tile", ()):
        raw = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        if isinstance(raw, str) and ";16" in raw:
            return True
        if tile[0] == "ppm" and tile[3][-1] > 255:
            return True
    return False


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Two finite positive numbers, or None, as files may hold invalid values."""
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _picture_from_array(array: NDArray[Any]) -> Picture:
    modes = {(np.uint16, 2, 1): "I;16", (np.uint8, 2, 1): "L"} | {
        (np.uint8, 3, channels): mode for channels, mode in ((2, "LA"), (3, "RGB"), (4, "RGBA"))
    }
    channels = array.shape[2] if array.ndim == 3 else 1
    mode = modes.get((array.dtype.type, array.ndim, channels))
    if mode is None or 0 in array.shape:
        raise InpaintError(
            "an image given as an array must be uint8 (H, W), (H, W, 2), (H, W, 3) RGB or "
            f"(H, W, 4) RGBA, or uint16 (H, W); got {array.dtype} {array.shape}"
        )
    return Picture(array.astype(array.dtype.newbyteorder("=")), mode, {})
