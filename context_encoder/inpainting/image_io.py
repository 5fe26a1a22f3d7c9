"""Images that are to be filled: read in their own depth and mode, and saved.

Training reads all images as 8-bit RGB (:mod:`context_encoder.data.images`). An image that is
to be filled keeps its mode, so that every pixel outside the mask is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_encoder.data.decode import (
    OpenImage,
    Samples,
    check_size,
    stored_depth,
    turned_upright,
)
from context_encoder.data.images import with_alpha
from context_encoder.data.mask_images import (
    LARGER,
    LUMA,
    ImageLike,
    InpaintError,
    InputOptions,
    Mask,
    feathered,
    grown,
    mask_from_boxes,
    opened_image,
    read_mask,
)
from context_encoder.inpainting.encode import check_output, write_picture
from context_encoder.inpainting.metadata import metadata_of

__all__ = [
    "Hole",
    "Picture",
    "check_output",
    "read_picture",
    "read_with_mask",
    "write_picture",
]

_MODES = {(1, 1): "L", (1, 2): "LA", (1, 3): "RGB", (1, 4): "RGBA"}
_MODES |= {(2, 1): "I;16", (2, 2): "LA;16", (2, 3): "RGB;16", (2, 4): "RGBA;16"}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in the mode in which it is returned.

    ============  ==============================  =================================================
    mode          pixels                          read from
    ============  ==============================  =================================================
    ``L``         uint8 ``(H, W)``                grey of up to 8 bits
    ``LA``        uint8 ``(H, W, 2)``             grey with alpha or a transparent value
    ``RGB``       uint8 ``(H, W, 3)``             RGB; palette; CMYK, YCbCr, Lab, HSV (converted)
    ``RGBA``      uint8 ``(H, W, 4)``             the same with alpha or a transparent colour
    ``I;16``      uint16 ``(H, W)``               grey of 9 to 16 bits; of 32 with values to 65535
    ``LA;16``     uint16 ``(H, W, 2)``            the same with alpha
    ``RGB;16``    uint16 ``(H, W, 3)``            RGB of 9 to 16 bits
    ``RGBA;16``   uint16 ``(H, W, 4)``            the same with alpha or a transparent colour
    ============  ==============================  =================================================
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    #: Metadata: ``icc_profile``, ``exif``, ``xmp``, ``dpi``; ``transparency`` of ``I;16``.
    info: dict[str, Any]
    #: Remarks about the reading, as sentences.
    notes: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        return mode_of(self.pixels)

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def _white(self) -> int:
        return int(np.iinfo(self.pixels.dtype).max)

    def rgb(self) -> NDArray[np.float32]:
        """float32 ``(H, W, 3)`` in [-1, 1]; transparency is blended with white, as in training."""
        result = np.empty((self.height, self.width, 3), np.float32)
        pixels = self.pixels if self.pixels.ndim == 3 else self.pixels[..., None]
        # In place, since large images need the memory.
        colors = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
        np.multiply(colors, np.float32(1 / self._white), out=result, dtype=np.float32)
        if pixels.shape[2] in (2, 4):
            alpha = pixels[..., -1:] * np.float32(1 / self._white)
            result *= alpha
            result += 1 - alpha
        result *= 2
        result -= 1
        return result

    def eight(self) -> NDArray[np.uint8]:
        """uint8 ``(H, W, 3)``, transparency left out."""
        pixels = self.pixels if self.pixels.ndim == 3 else self.pixels[..., None]
        colors = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
        if colors.dtype != np.uint8:
            colors = (colors >> 8).astype(np.uint8)
        return np.broadcast_to(colors, (self.height, self.width, 3))

    def filled(self, hole: Hole, rgb: NDArray[np.float32]) -> NDArray[Any]:
        """The pixels with opaque ones from ``rgb`` in the hole, and all others unchanged.

        Args:
            hole: what is filled.
            rgb: float32 ``(H, W, 3)`` in [-1, 1] (values outside are clamped).
        """
        mask = hole.mask
        pixels = self.pixels.copy()
        color = np.clip((rgb[mask] + 1) / 2, 0, 1)  # of the hole only
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        if channels <= 2:
            color = (color @ LUMA)[:, None]
        if channels in (2, 4):
            color = np.concatenate((color, np.ones_like(color[:, :1])), axis=1)
        color *= self._white
        if hole.weights is not None:
            weight = hole.weights[mask][:, None]
            color = weight * color + (1 - weight) * pixels[mask].reshape(len(color), -1)
        values = np.rint(color).astype(pixels.dtype)
        if "transparency" in self.info:  # one grey value means "nothing here"
            nothing = self.info["transparency"]
            values[values == nothing] = nothing - 1 if nothing else 1
        pixels[mask] = values.reshape(-1, *pixels.shape[2:])
        return pixels


@dataclass(frozen=True, eq=False)
class Hole:
    """What is filled in an image."""

    #: bool ``(H, W)``: every pixel that changes.
    mask: Mask
    #: float32 ``(H, W)``, how much of the fill each pixel gets; None: all of it in the mask.
    weights: NDArray[np.float32] | None = None


def mode_of(pixels: NDArray[Any]) -> str:
    """The mode of pixels, see :class:`Picture`."""
    return _MODES[pixels.dtype.itemsize, pixels.shape[2] if pixels.ndim == 3 else 1]


def read_picture(source: ImageLike, options: InputOptions | None = None) -> Picture:
    """Read an image in its own mode (see :class:`Picture`), upright by its EXIF orientation.

    Args:
        source: a file; a Pillow image; or an array, uint8 or uint16: ``(H, W)`` grey,
            ``(H, W, 2)`` grey with alpha, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA.
        options: ``max_megapixels``.

    Raises:
        UnreadableImage: the file cannot be read as an image.
        InpaintError: the mode, or the shape or dtype of an array, cannot be kept.
    """
    options = options or InputOptions()
    if isinstance(source, np.ndarray):
        return _picture_from_array(source, options)
    with opened_image(source, options.max_megapixels) as image:
        return _picture_from_image(image)


def read_with_mask(
    image: ImageLike,
    mask: ImageLike | None,
    boxes: Sequence[Sequence[int]] | None,
    options: InputOptions | None = None,
) -> tuple[Picture, Hole, list[str]]:
    """Read an image and what is to be filled in it.

    Args:
        image: see :func:`read_picture`.
        mask: see :func:`context_encoder.data.mask_images.read_mask`; or
        boxes: in its place, see :func:`context_encoder.data.mask_images.mask_from_boxes`.
        options: how both are read.

    Returns:
        The picture; the hole; what happened on reading, as sentences.

    Raises:
        UnreadableImage: a file cannot be read as an image.
        InpaintError: not one of mask and boxes, an image that cannot be kept, a mask that does
            not fit it or cannot be meant, a box outside of it, or nothing left outside the mask.
    """
    options = options or InputOptions()
    if (mask is None) == (boxes is None):
        raise InpaintError("give either a mask or boxes")
    picture = read_picture(image, options)
    notes = list(picture.notes)
    if mask is not None:
        size = picture.width, picture.height
        missing, remark = read_mask(mask, *size, options, picture=picture.eight())
        notes += [remark] if remark else []
    else:
        missing = mask_from_boxes(boxes or (), picture.width, picture.height)
        notes += [] if boxes else ["nothing to fill: no box was given"]
        if options.grow:
            missing = grown(missing, options.grow)
    weights = None
    if options.feather:
        weights = feathered(missing, options.feather)
        missing = weights > 0
    if missing.all():
        raise InpaintError(
            "the mask covers the whole image, so there is nothing to fill it from; "
            "leave some of it black"
            + (", or use `invert_mask` if black marks what to fill" if mask is not None else "")
        )
    return picture, Hole(missing, weights), notes


def _picture_from_image(image: OpenImage) -> Picture:
    notes = []
    if image.frames > 1:
        notes.append(f"the first of {image.frames} frames is taken")
    depth = 8 if image.pillow is None else stored_depth(image.pillow, image.file)
    decoded = image.decode()
    info: dict[str, Any] = {}
    if isinstance(decoded, Samples):
        if decoded.values.dtype.kind == "f":
            kind = "grey" if decoded.values.ndim == 2 else "colours"
            raise InpaintError(
                f"float {kind} cannot be kept, since what white would be is unknown; "
                "save the image with 8 or 16 bits per channel"
            )
        notes += decoded.notes
        if decoded.values.ndim == 2 and isinstance(decoded.transparent, int):
            info["transparency"] = decoded.transparent
            pixels: NDArray[Any] = decoded.values
        else:
            pixels = with_alpha(decoded)
            if decoded.transparent is not None:
                notes.append("one colour stands for transparent: returned with alpha")
    else:
        kept, note = _in_own_mode(decoded)
        pixels = np.asarray(kept)
        notes += [note] if note else []
        if depth > 8:
            notes.append(
                f"the file has {depth} bits per channel, of which 8 are read: pixels outside the "
                "mask keep the upper half of their bits"
            )
    orientation = image.orientation
    if orientation in range(2, 9):
        pixels = turned_upright(pixels, orientation)
        notes.append(
            f"turned upright as its EXIF orientation says: {pixels.shape[1]}x{pixels.shape[0]}"
        )
    info |= metadata_of(image, (pixels.shape[1], pixels.shape[0]))
    profile = _icc_profile(image)
    # A profile of CMYK or Lab does not fit the RGB that they become.
    own = isinstance(decoded, Samples) or decoded.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
    if profile and own:
        info["icc_profile"] = profile
    return Picture(np.array(pixels, order="C"), info, tuple(notes))


def _icc_profile(image: OpenImage) -> bytes | None:
    if image.pillow is not None:
        found = image.pillow.info.get("icc_profile")
    else:
        assert image.page is not None
        found = image.page.tags.valueof(34675, None)
    return bytes(found) if isinstance(found, bytes | bytearray) and found else None


def _in_own_mode(image: Image.Image) -> tuple[Image.Image, str | None]:
    """An image of up to 8 bits in the mode that is kept, and a remark about a conversion."""
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
    kept = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    return image.convert(kept), (
        f"converted from {mode} to {kept}: pixels outside the mask are those of the conversion"
    )


def _picture_from_array(array: NDArray[Any], options: InputOptions) -> Picture:
    channels = array.shape[2] if array.ndim == 3 else 1
    fits = array.ndim == 2 or (array.ndim == 3 and channels in (2, 3, 4))
    if array.dtype.type not in (np.uint8, np.uint16) or not fits or 0 in array.shape:
        raise InpaintError(
            "an image given as an array must be uint8 or uint16, (H, W), (H, W, 2), (H, W, 3) RGB "
            f"or (H, W, 4) RGBA; got {array.dtype} {array.shape}"
        )
    try:
        check_size((array.shape[1], array.shape[0]), options.max_megapixels, LARGER)
    except ValueError as error:
        raise InpaintError(str(error)) from None
    return Picture(array.astype(array.dtype.newbyteorder("=")), {})
