"""Masks drawn by users: image files, arrays and boxes that mark missing pixels.

This module is the one place that says what a mask marks. docs/inputs.md has the rule in words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from context_encoder.data.decode import (
    MAX_MEGAPIXELS,
    OpenImage,
    Samples,
    check_size,
    open_image,
    turned_upright,
)
from context_encoder.data.images import to_rgb, with_alpha
from context_encoder.utils.bounding_box import bounding_box

#: A file, a Pillow image or a NumPy array.
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]

Mask = NDArray[np.bool_]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"

#: What of a mask says where to fill; "auto" chooses by the rule of :func:`read_mask`.
MaskChannel = Literal["auto", "luminance", "alpha", "red", "green", "blue"]

#: What to do with an image that exceeds the limit.
LARGER = "raise `max_megapixels` if the memory suffices (docs/inputs.md)"

# More than this part of an image to fill is taken for a mask with its polarity swapped.
_MOST = 0.9
# Levels of 8 bits: up to so far from black or white is an edge or an artefact of JPEG.
_NEAR = 32
# A mask has at least this part of its pixels near black, near white or at two other levels; and at
# most this part that differs from its left neighbour, unless nearly all are near black or white.
_FEW, _BUSY, _NEARLY_ALL = 0.75, 0.5, 0.98
# A colour: its channels differ by more than this.
_COLOURED = 64
# Pixels are those of the image if no channel differs by more than this; the first is for the
# test whether a mask is a copy of it, the second for what is painted on a copy.
_SAME, _PAINTED = 24, 64
# Pixels that are looked at to tell whether a mask resembles the image.
_LOOKED_AT = 200_000


class InpaintError(ValueError):
    """An image, mask or output cannot be used; the message says why and what to do."""


class UnusualMaskError(InpaintError):
    """A mask that cannot be meant; ``reason`` without the options that change how it is read."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)  # both, so that the exception can be pickled
        self.reason, self.advice = reason, advice

    def __str__(self) -> str:
        return self.reason + self.advice


@dataclass(frozen=True)
class InputOptions:
    """How an image and its mask are read."""

    #: Fill what the mask keeps, and keep what it fills.
    invert_mask: bool = False
    mask_channel: MaskChannel = "auto"
    #: Use a mask that fills nothing or more than 90 %, or has many grey levels.
    allow_unusual_mask: bool = False
    #: Pixels by which the hole is grown on all sides.
    grow: int = 0
    #: Pixels around the hole over which the fill fades into the image; they change too.
    feather: int = 0
    #: Refuse larger images and masks, in millions of pixels.
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if self.mask_channel not in get_args(MaskChannel):
            raise InpaintError(
                f"`mask_channel` must be one of {', '.join(get_args(MaskChannel))}, "
                f"got {self.mask_channel}"
            )
        for name in ("grow", "feather"):
            value = getattr(self, name)
            if not 0 <= value <= 1000 or int(value) != value:
                raise InpaintError(f"`{name}` must be 0 to 1000 whole pixels, got {value}")
        if not self.max_megapixels > 0:
            raise InpaintError(f"`max_megapixels` must be above 0, got {self.max_megapixels}")


def read_mask(
    source: ImageLike,
    width: int,
    height: int,
    options: InputOptions | None = None,
    *,
    picture: NDArray[np.uint8] | None = None,
) -> tuple[Mask, str | None]:
    """Read a mask: what is white, at least by half, is filled; black and transparent are kept.

    Of masks with transparency or colours, ``mask_channel`` "auto" reads, in this order:

    1. An alpha channel that is the same everywhere is ignored.
    2. The image itself with a region erased to transparent: that region is filled.
    3. A drawing in white and black with transparent parts: luminance times alpha.
    4. A shape of any other colours on transparent: what is opaque is filled.
    5. A copy of the image that was painted on: what was painted is filled.
    6. Colours on black or white: all that differs from that background is filled.
    7. Otherwise the luminance.

    Masks that cannot be meant are refused unless ``allow_unusual_mask`` is set. An array of bool is
    what a program means, and is taken as it is.

    Args:
        source: a file or Pillow image of any mode; or an array ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)`` of bool, uint8, uint16 (white is the largest value of
            the type; if there are only the values 0 and 1, it is 1) or floats in [0, 1].
        width, height: of the image.
        options: see :class:`InputOptions`; ``feather`` is not applied here.
        picture: uint8 ``(H, W, 3)``: the image, for the rules 2 and 5; None: without it, the second
            holds for photographs of which at most half is transparent, the fifth is left out.

    Returns:
        bool ``(height, width)``, True where to fill; and a remark on how the mask was read, or
        that it is empty.

    Raises:
        UnreadableImage: the file cannot be read as an image.
        InpaintError: the mask differs in size from the image, is an array of another kind, or
            cannot be meant.
    """
    options = options or InputOptions()
    name = _name(source)
    planes = _planes(source, options.max_megapixels)
    if planes.shape != (height, width):
        turned = " (upright, as its EXIF orientation says)"
        raise InpaintError(
            f"{name} is {planes.shape[1]}x{planes.shape[0]} pixels, the image {width}x{height}"
            f"{turned if planes.shape == (width, height) else ''}; make the "
            "mask from the image as it is, at the same size"
        )
    meant = planes.exact or options.allow_unusual_mask
    try:
        level, note = _level(planes, options.mask_channel, picture, refuse=not meant)
    except UnusualMaskError as error:
        raise UnusualMaskError(f"{name} {error.reason}", error.advice) from None
    except InpaintError as error:
        raise InpaintError(f"{name} {error}") from None
    if options.invert_mask:
        # What is exactly half white is filled in either polarity.
        level = 1 - level
    mask: Mask = level >= 0.5
    strongest = float(level.max()) if level.size else 0.0
    del level
    share = float(np.count_nonzero(mask)) / mask.size
    if share == 0:
        note = _nothing(name, strongest, options)
        if not meant:
            raise UnusualMaskError(
                note,
                "; `invert_mask` fills what is black, `mask_channel` reads another channel, "
                "`allow_unusual_mask` fills nothing",
            )
    elif _MOST < share < 1 and not meant:
        raise UnusualMaskError(
            f"{name} would fill {share:.1%} of the image",
            ": if black marks what to fill, use `invert_mask`; if so much is meant, "
            "`allow_unusual_mask`",
        )
    if options.grow:
        mask = grown(mask, options.grow)
    return mask, note


def whiteness(source: ImageLike) -> NDArray[np.float32]:
    """What a mask marks, ``(H, W)`` in [0, 1]: 1 is missing, by the rule of :func:`read_mask`.

    Raises:
        As :func:`read_mask`; nothing is refused for what it marks.
    """
    return _level(_planes(source, MAX_MEGAPIXELS), "auto", None, refuse=False)[0]


def grown(mask: Mask, pixels: int) -> Mask:
    """The mask and all pixels up to so far from it."""
    return mask if not pixels else _distance(mask, pixels) <= pixels


def feathered(mask: Mask, pixels: int) -> NDArray[np.float32]:
    """Weights of a fill: 1 in the mask, falling to 0 over so many pixels around it."""
    if not pixels:
        return mask.astype(np.float32)
    weights = 1 - _distance(mask, pixels) / np.float32(pixels + 1)
    faded: NDArray[np.float32] = np.clip(weights, 0, 1).astype(np.float32)
    return faded


def _distance(mask: Mask, near: int) -> NDArray[np.float32]:
    """From the mask, in pixels; only up to ``near`` of them, and infinite beyond."""
    distance = np.full(mask.shape, np.inf, np.float32)
    if mask.any():
        box = bounding_box(mask, near + 1)
        distance[box] = ndimage.distance_transform_edt(~mask[box])
    return distance


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
def opened_image(
    source: str | os.PathLike[str] | Image.Image, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[OpenImage]:
    """Open a file as an image, or pass an image on."""
    if not isinstance(source, str | os.PathLike | Image.Image):
        raise InpaintError(
            f"got a {type(source).__name__}; give a path, a Pillow image or a NumPy array "
            "(of a tensor: tensor.cpu().numpy())"
        )
    if not isinstance(source, Image.Image):
        with open_image(source, max_megapixels, LARGER) as image:
            yield image
        return
    try:
        check_size(source.size, max_megapixels, LARGER)
        yield OpenImage(source)
    except InpaintError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise InpaintError(f"the image cannot be read: {error}") from error


# --- what a mask marks ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Planes:
    """A mask as it is stored, upright."""

    #: ``(H, W)`` or ``(H, W, 3)`` in uint8, uint16 or float32.
    color: NDArray[Any]
    #: ``(H, W)`` of the same type, or None.
    alpha: NDArray[Any] | None
    white: float
    #: An array of bool.
    exact: bool = False
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.color.shape[0]), int(self.color.shape[1])

    def luminance(self) -> NDArray[np.float32]:
        """In [0, 1]."""
        if self.color.ndim == 2:
            return self.color.astype(np.float32) / np.float32(self.white)
        parts = LUMA / np.float32(self.white)
        level = np.empty(self.shape, np.float32)
        for rows in _strips(self.shape):
            red, green, blue = np.moveaxis(self.color[rows], -1, 0)
            level[rows] = red * parts[0] + green * parts[1] + blue * parts[2]
        return level

    def opacity(self) -> NDArray[np.float32]:
        assert self.alpha is not None
        return self.alpha.astype(np.float32) / np.float32(self.white)

    def eight(self) -> NDArray[np.uint8]:
        """The colours with 8 bits, ``(H, W)`` or ``(H, W, 3)``."""
        if self.color.dtype == np.uint8 and self.white == 255:
            return self.color
        return (self.color * np.float32(255 / self.white)).astype(np.uint8)


def _planes(source: ImageLike, max_megapixels: float) -> _Planes:
    if isinstance(source, np.ndarray):
        return _planes_of_array(source)
    with opened_image(source, max_megapixels) as image:
        decoded = image.decode()
        notes = (f"the first of {image.frames} frames of the mask is taken",)
        planes = _planes_of_pixels(_pixels(decoded), image.orientation)
        return planes if image.frames == 1 else _Planes(*_parts(planes), notes=notes)


def _parts(planes: _Planes) -> tuple[NDArray[Any], NDArray[Any] | None, float]:
    return planes.color, planes.alpha, planes.white


def _pixels(decoded: Image.Image | Samples) -> NDArray[Any]:
    """uint8 or uint16, ``(H, W)`` or with 2 to 4 channels."""
    if isinstance(decoded, Samples):
        if decoded.values.dtype.kind == "f":
            return np.asarray(to_rgb(decoded))[..., 0]
        return with_alpha(decoded)
    if decoded.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in decoded.info:
        return np.asarray(decoded)
    if decoded.has_transparency_data:
        return np.asarray(decoded.convert("RGBA"))
    return np.asarray(decoded.convert("L" if decoded.mode == "1" else "RGB"))


def _planes_of_pixels(pixels: NDArray[Any], orientation: int = 1) -> _Planes:
    pixels = turned_upright(pixels, orientation)
    white = float(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 2:
        return _Planes(pixels, None, white)
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    color = pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]
    if color.ndim == 3 and all((color[..., 0] == color[..., c]).all() for c in (1, 2)):
        color = color[..., 0]
    return _Planes(color, alpha, white)


def _planes_of_array(array: NDArray[Any]) -> _Planes:
    if (
        array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
        or not (array.dtype in (bool, np.uint8, np.uint16) or array.dtype.kind == "f")
    ):
        raise InpaintError(
            "a mask given as an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of bool, "
            f"uint8, uint16 or float; got {array.dtype} {array.shape}"
        )
    if array.dtype.kind == "u":
        values = array.astype(array.dtype.newbyteorder("="), copy=False)
        white = float(np.iinfo(values.dtype).max) if values.size and values.max() > 1 else 1.0
    else:
        values, white = array.astype(np.float32), 1.0
        if not (values.size == 0 or (values.min() >= 0 and values.max() <= 1)):
            raise InpaintError(
                f"a mask of floats must lie in [0, 1], got {values.min():g} to {values.max():g}"
            )
    exact = array.dtype == np.bool_
    if values.ndim == 2:
        return _Planes(values, None, white, exact)
    alpha = values[..., 3] if values.shape[2] == 4 else None
    color = values[..., 0] if values.shape[2] == 1 else values[..., :3]
    return _Planes(color, alpha, white, exact)


def _level(
    planes: _Planes, channel: MaskChannel, picture: NDArray[np.uint8] | None, *, refuse: bool
) -> tuple[NDArray[np.float32], str | None]:
    """How much each pixel is marked, in [0, 1], and a remark; InpaintError for no mask."""
    if channel == "auto":
        level, note = _automatic(planes, picture, refuse=refuse)
    elif channel == "alpha":
        if planes.alpha is None:
            raise InpaintError("has no alpha channel for `mask_channel` to read")
        level, note = planes.opacity(), None
    elif channel == "luminance":
        level, note = planes.luminance(), None
    else:
        number = ("red", "green", "blue").index(channel)
        plane = planes.color if planes.color.ndim == 2 else planes.color[..., number]
        level, note = plane.astype(np.float32) / np.float32(planes.white), None
    if channel != "auto" and refuse and is_photograph((level * 255).astype(np.uint8)):
        raise _photograph("this channel")
    return level, "; ".join([*planes.notes, *([note] if note else [])]) or None


def _automatic(
    planes: _Planes, picture: NDArray[np.uint8] | None, *, refuse: bool
) -> tuple[NDArray[np.float32], str | None]:
    """The rule of :func:`read_mask`."""
    if planes.alpha is not None and planes.alpha.size and planes.alpha.min() < planes.alpha.max():
        return _from_alpha(planes, picture, refuse=refuse)
    eight = planes.eight()
    grey = _grey(eight)
    if is_photograph(grey):
        if picture is not None and _resembles(eight, picture, None) >= 0.5:
            painted = _painted(eight, picture)
            if painted.any():
                return painted.astype(np.float32), (
                    "the mask is a copy of the image with painted parts: these are filled"
                )
        if refuse:
            raise _photograph("it")
    if eight.ndim == 3:
        least, most = np.empty(planes.shape, np.uint8), np.empty(planes.shape, np.uint8)
        for rows in _strips(planes.shape):
            red, green, blue = np.moveaxis(eight[rows], -1, 0)
            least[rows] = np.minimum(np.minimum(red, green), blue)
            most[rows] = np.maximum(np.maximum(red, green), blue)
        coloured = np.count_nonzero(most - least > _COLOURED)
        if coloured > 2e-5 * least.size:
            black = np.count_nonzero(most < _NEAR)
            white = np.count_nonzero(least > 255 - _NEAR)
            marked = most if black >= white else 255 - least
            level = marked.astype(np.float32) / np.float32(255)
            ground = "black" if black >= white else "white"
            return level, f"the mask has colours: what is not {ground} is filled"
    return planes.luminance(), None


def _from_alpha(
    planes: _Planes, picture: NDArray[np.uint8] | None, *, refuse: bool
) -> tuple[NDArray[np.float32], str | None]:
    """Of a mask of which some parts are transparent."""
    opacity = planes.opacity()
    visible = opacity >= 0.5
    share = np.count_nonzero(visible) / visible.size
    erased = "the mask is the image with erased parts: these are filled"
    shape = "the mask is a shape on transparent: the shape is filled"
    eight = planes.eight()
    colors = eight[visible]
    if not len(colors):
        return opacity, shape
    alike = picture is not None and _resembles(eight, picture, visible) >= 0.9
    flat = bool((np.percentile(colors, 99, 0) - np.percentile(colors, 1, 0) <= _NEAR).all())
    if alike and share >= 0.5:
        return 1 - opacity, erased
    if not flat and is_photograph(_grey(eight), visible):
        if picture is None:
            return (1 - opacity, erased) if share >= 0.5 else (opacity, shape)
        if refuse:
            raise UnusualMaskError(
                f"shows a photograph in {share:.0%} of its area and is transparent elsewhere",
                ": `mask_channel` alpha fills what is opaque, with `invert_mask` what is "
                "transparent",
            )
    if not flat:
        grey = _grey(eight)[visible]
        ends = np.count_nonzero(grey < _NEAR), np.count_nonzero(grey > 255 - _NEAR)
        # Both black and white, and little else: the drawing itself says what to fill.
        if min(ends) > 0.01 * len(grey) and sum(ends) > _FEW * len(grey):
            return planes.luminance() * opacity, None
    white = bool((np.percentile(colors, 10, 0) > 255 - _NEAR).all())
    return opacity, None if white else shape


def is_photograph(grey: NDArray[np.uint8], where: Mask | None = None) -> bool:
    """Whether an image has the many grey levels of a photograph, and is no mask.

    Anti-aliased and blurred edges and artefacts of JPEG are those of masks.

    Args:
        grey: uint8 ``(H, W)``.
        where: bool ``(H, W)``, the part that is looked at; None: all.
    """
    values = (grey if where is None else grey[where]).ravel()
    if not len(values):
        return False
    counts = np.array(Image.fromarray(values[None]).histogram()) / len(values)
    ends = counts[:_NEAR].sum() + counts[-_NEAR:].sum()
    middle = np.sort(counts[_NEAR:-_NEAR].reshape(-1, 8).sum(1))
    if ends + middle[-2:].sum() < _FEW:
        return True
    if ends >= _NEARLY_ALL:
        return False
    steps = pixels = 0
    for rows in _strips(grey.shape):
        left, right = grey[rows, :-1], grey[rows, 1:]
        step = np.maximum(left, right) - np.minimum(left, right) > 3
        if where is not None:
            step = step[where[rows, 1:]]
        steps, pixels = steps + int(np.count_nonzero(step)), pixels + step.size
    return steps > _BUSY * pixels


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of about a million pixels at a time: work on large images then stays in the cache."""
    height, width = shape
    rows = max(1, (1 << 20) // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def _grey(eight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return eight if eight.ndim == 2 else np.asarray(Image.fromarray(eight).convert("L"))


def _resembles(
    eight: NDArray[np.uint8], picture: NDArray[np.uint8], where: Mask | None, by: int = _SAME
) -> float:
    """Which part of a mask's pixels are those of the image."""
    step = max(1, int((eight.shape[0] * eight.shape[1] / _LOOKED_AT) ** 0.5))
    same = ~_differs(eight[::step, ::step], picture[::step, ::step], by)
    if where is not None:
        same = same[where[::step, ::step]]
    return float(same.mean()) if same.size else 0.0


def _differs(eight: NDArray[np.uint8], picture: NDArray[Any], by: int = _PAINTED) -> Mask:
    colors = eight[..., None] if eight.ndim == 2 else eight
    different = np.zeros(colors.shape[:2], bool)
    for channel in range(picture.shape[-1]):
        own = colors[..., min(channel, colors.shape[-1] - 1)].astype(np.int16)
        different |= np.abs(own - picture[..., channel]) > by
    return different


def _painted(eight: NDArray[np.uint8], picture: NDArray[np.uint8]) -> Mask:
    """The painted parts of a copy of the image, also where its colours are near the brush's."""
    # A copy without loss shows a faint brush too.
    exact = _resembles(eight, picture, None, by=0) >= 0.5
    painted = _differs(eight, picture, 2 if exact else _PAINTED)
    if not painted.any():
        return painted
    brush = np.median(eight[painted], axis=0).astype(np.int16)
    near = ~_differs(eight, np.broadcast_to(brush, picture.shape), 16)
    if np.count_nonzero(near & painted) < 0.8 * np.count_nonzero(painted):
        return painted
    labels, count = ndimage.label(painted | near, np.ones((3, 3)))
    touched = np.zeros(count + 1, bool)
    touched[np.unique(labels[painted])] = True
    return np.asarray(touched[labels], bool)


def _photograph(what: str) -> UnusualMaskError:
    return UnusualMaskError(
        f"is no mask: {what} has many grey levels, as photographs have",
        "; `mask_channel` reads another channel, `allow_unusual_mask` fills what is at least half "
        "white",
    )


def _name(source: ImageLike) -> str:
    if isinstance(source, np.ndarray | Image.Image):
        return "the mask"
    return f"mask {os.fspath(source)}" if isinstance(source, str | os.PathLike) else "the mask"


def _nothing(name: str, brightest: float, options: InputOptions) -> str:
    """Why nothing is filled."""
    if options.invert_mask:
        return f"nothing to fill: {name} is nowhere black"
    hint = ""
    if 0 < brightest <= 1 / 255 * 1.001:
        hint = "; it looks like a mask of 0 and 1: multiply it by 255"
    return f"nothing to fill: {name} is nowhere white (at its brightest {brightest:.1%}){hint}"
