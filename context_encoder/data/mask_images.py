"""Masks drawn by users: image files, arrays and boxes that mark missing pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_encoder.data.images import (
    UPRIGHT,
    exif_orientation,
    libtiff_silenced,
    open_image,
    to_rgb,
)

#: A file, a Pillow image or a NumPy array.
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]

Mask = NDArray[np.bool_]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"


class InpaintError(ValueError):
    """An image, mask or output cannot be used; the message says why and what to do."""


def read_mask(source: ImageLike, width: int, height: int) -> tuple[Mask, str | None]:
    """Read a mask: white (at least half) is filled, black is kept.

    Luminance times alpha counts, so transparent pixels are kept.

    Args:
        source: a file or Pillow image of any mode; or an array ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)`` of bool, uint8, uint16 (white is the largest value of
            the type; if there are only the values 0 and 1, it is 1) or floats in [0, 1].
        width, height: of the image.

    Returns:
        bool ``(height, width)``, True where to fill; and a message if that is nowhere.

    Raises:
        UnreadableImage: the file cannot be read as an image.
        InpaintError: the mask differs in size from the image, or is an array of another kind.
    """
    grey = whiteness(source)
    if isinstance(source, np.ndarray | Image.Image):
        name = "the mask"
    else:
        name = f"mask {os.fspath(source)}"
    if grey.shape != (height, width):
        turned = " (upright, as its EXIF orientation says)"
        raise InpaintError(
            f"{name} is {grey.shape[1]}x{grey.shape[0]} pixels, the image {width}x{height}"
            f"{turned if grey.shape == (width, height) else ''}; they must be equal"
        )
    mask: Mask = grey >= 0.5
    if mask.any():
        return mask, None
    brightest = float(grey.max())
    hint = ""
    if 0 < brightest <= 1 / 255 * 1.001:
        hint = "; it looks like a mask of 0 and 1: multiply it by 255"
    return mask, (
        f"nothing to fill: {name} is nowhere white (at its brightest {brightest:.1%}){hint}"
    )


def whiteness(source: ImageLike) -> NDArray[np.floating[Any]]:
    """Luminance times alpha of a mask as :func:`read_mask` takes it, ``(H, W)`` in [0, 1].

    Raises:
        As :func:`read_mask`.
    """
    if isinstance(source, np.ndarray):
        return _grey_from_array(source)
    with opened_image(source) as image:
        return _grey_from_image(image)


def mask_from_boxes(boxes: Sequence[Sequence[int]], width: int, height: int) -> Mask:
    """A mask that is set in rectangles ``(x0, y0, x1, y1)``, pixels, x1 and y1 exclusive.

    Raises:
        InpaintError: a box is empty or not inside the image.
    """
    mask = np.zeros((height, width), bool)
    for box in boxes:
        if len(box) != 4:
            raise InpaintError(f"a box is four numbers x0 y0 x1 y1, got {tuple(box)}")
        x0, y0, x1, y1 = box
        text = f"box {x0} {y0} {x1} {y1} (x0 y0 x1 y1)"
        if not (x0 < x1 and y0 < y1):
            raise InpaintError(f"{text} is empty: x0 must be below x1, and y0 below y1")
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise InpaintError(
                f"{text} is not inside the image, which is {width}x{height}: x goes from 0 to "
                f"{width}, y from 0 to {height}"
            )
        mask[y0:y1, x0:x1] = True
    return mask


@contextmanager
def opened_image(source: str | os.PathLike[str] | Image.Image) -> Iterator[Image.Image]:
    """Open a file as an image, or pass an image on."""
    if not isinstance(source, str | os.PathLike | Image.Image):
        raise InpaintError(
            f"got a {type(source).__name__}; give a path, a Pillow image or a NumPy array "
            "(of a tensor: tensor.cpu().numpy())"
        )
    if not isinstance(source, Image.Image):
        with open_image(source) as image:
            yield image
        return
    try:
        yield source
    except InpaintError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise InpaintError(f"the image cannot be read: {error}") from error


def load_pixels(image: Image.Image) -> None:
    with libtiff_silenced() if image.format == "TIFF" else nullcontext():
        image.load()


def _grey_from_image(image: Image.Image) -> NDArray[np.float32]:
    load_pixels(image)
    upright = UPRIGHT.get(exif_orientation(image))
    if image.has_transparency_data and not image.mode.startswith("I"):
        bands = image.convert("LA").split()
    else:
        bands = (to_rgb(image).convert("L"),)
    product = np.prod([np.asarray(band, np.float32) / 255 for band in bands], axis=0)
    values = Image.fromarray(product)
    return np.asarray(values if upright is None else values.transpose(upright))


def _grey_from_array(array: NDArray[Any]) -> NDArray[np.float32]:
    if (
        array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
        or not (array.dtype in (bool, np.uint8, np.uint16) or array.dtype.kind == "f")
    ):
        raise InpaintError(
            "a mask given as an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of bool, "
            f"uint8, uint16 or float; got {array.dtype} {array.shape}"
        )
    values = array.astype(np.float32)
    if array.dtype.kind == "u" and array.size and array.max() > 1:
        values /= np.iinfo(array.dtype).max
    if not (values.size == 0 or (values.min() >= 0 and values.max() <= 1)):
        raise InpaintError(
            f"a mask of floats must lie in [0, 1], got {values.min():g} to {values.max():g}"
        )
    if values.ndim == 2:
        return values
    alpha = values[..., 3] if values.shape[2] == 4 else np.float32(1)
    color = values[..., :3] @ LUMA if values.shape[2] > 1 else values[..., 0]
    return np.asarray(color * alpha, np.float32)
