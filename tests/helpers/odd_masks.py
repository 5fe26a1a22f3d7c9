"""Masks as editors and programs export them, for one known shape on one known image."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 120, 160


def picture() -> NDArray[np.uint8]:
    """A smooth image with some noise, like a photograph."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [90 + 60 * np.sin(x / (9 + c)) + 50 * np.cos(y / (7 + 2 * c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 3))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def shape() -> NDArray[np.bool_]:
    """A disc and a bar, 7 % of the image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x - 60) ** 2 + (y - 50) ** 2 < 18**2) | ((x > 100) & (x < 140) & (y > 90) & (y < 98))


def soft(radius: float = 1.0) -> NDArray[np.uint8]:
    """The shape with anti-aliased edges, 0 to 255; at least half in the shape, less outside."""
    blurred = np.asarray(
        Image.fromarray(shape().astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(radius))
    )
    return np.where(shape(), np.maximum(blurred, 128), np.minimum(blurred, 127)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class OddMask:
    name: str
    image: Callable[[], Image.Image | bytes]
    #: Part of the refusal; empty if the mask marks the shape.
    refused: str = ""
    #: Options with which it marks the shape.
    meant: dict[str, object] | None = None
    #: Pixels near the shape's edge may differ: the file is lossy, or the brush soft.
    about: bool = False


def rgba(color: NDArray | tuple[int, ...], alpha: NDArray) -> Image.Image:
    colors = np.broadcast_to(np.asarray(color, np.uint8), (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.dstack((colors, alpha)).astype(np.uint8))


def on(
    ground: NDArray | tuple[int, ...], color: tuple[int, ...], opacity: float = 1.0
) -> Image.Image:
    """The shape in a colour on another, or on a picture."""
    grounds = np.broadcast_to(np.asarray(ground, np.uint8), (HEIGHT, WIDTH, 3))
    mixed = opacity * np.array(color) + (1 - opacity) * grounds
    return Image.fromarray(np.where(shape()[..., None], mixed, grounds).astype(np.uint8))


def grey(values: NDArray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def palette(colors: list[tuple[int, ...]], transparent: int | None = None) -> bytes:
    image = Image.fromarray(shape().astype(np.uint8)).convert("P")
    image.putpalette([value for color in colors for value in color])
    buffer = io.BytesIO()
    options = {} if transparent is None else {"transparency": transparent}
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def strokes() -> Image.Image:
    """Red and green strokes that cover the shape, on transparent."""
    image = rgba((0, 0, 0), np.zeros((HEIGHT, WIDTH)))
    draw = ImageDraw.Draw(image)
    disc = shape() & (np.arange(WIDTH) < 90)
    draw.bitmap((0, 0), Image.fromarray(disc), fill=(200, 10, 20, 255))
    draw.bitmap((0, 0), Image.fromarray(shape() & ~disc), fill=(20, 180, 20, 255))
    return image


OPAQUE = np.full((HEIGHT, WIDTH), 255)
IN, OUT = shape() * 255, ~shape() * 255

MARKS = [
    OddMask("grey", lambda: grey(IN)),
    OddMask("bool", lambda: Image.fromarray(shape())),
    OddMask("16 bits", lambda: Image.fromarray(IN.astype(np.uint16) * 257)),
    OddMask("anti-aliased", lambda: grey(soft())),
    OddMask("blurred", lambda: grey(soft(4))),
    OddMask("JPEG", lambda: jpeg(grey(IN), 90), about=True),
    OddMask("poor JPEG", lambda: jpeg(grey(IN), 30), about=True),
    OddMask("RGB JPEG", lambda: jpeg(grey(IN).convert("RGB"), 75), about=True),
    OddMask("half white", lambda: grey(shape() * 140)),
    OddMask("opaque RGBA", lambda: rgba(np.dstack([IN] * 3), OPAQUE)),
    OddMask("RGBA, alpha 0 everywhere", lambda: rgba(np.dstack([IN] * 3), OPAQUE * 0)),
    OddMask("RGBA, alpha 100 everywhere", lambda: rgba(np.dstack([IN] * 3), OPAQUE * 0 + 100)),
    OddMask("black on transparent", lambda: rgba((0, 0, 0), IN)),
    OddMask("white on transparent", lambda: rgba((255, 255, 255), IN)),
    OddMask("white on transparent black", lambda: rgba(np.dstack([IN] * 3), IN)),
    OddMask("red on transparent", lambda: rgba((230, 20, 30), IN)),
    OddMask("grey on transparent", lambda: rgba((120, 120, 120), IN)),
    OddMask("soft black on transparent", lambda: rgba((0, 0, 0), soft())),
    OddMask("strokes on transparent", strokes),
    OddMask(
        "black on transparent, LA", lambda: Image.fromarray(np.dstack((IN * 0, IN)).astype("u1"))
    ),
    OddMask(
        "black and white drawing with transparent parts",
        lambda: rgba(np.dstack([IN] * 3), np.where(np.arange(WIDTH) < 20, 0, OPAQUE)),
    ),
    OddMask("palette", lambda: palette([(0, 0, 0), (255, 255, 255)])),
    OddMask("palette, black on transparent", lambda: palette([(0, 0, 0), (0, 0, 0)], 0)),
    OddMask("palette, red on transparent white", lambda: palette([(255,) * 3, (255, 0, 0)], 0)),
    OddMask("red on black", lambda: on((0, 0, 0), (255, 0, 0))),
    OddMask("dark blue on black", lambda: on((0, 0, 0), (0, 0, 160))),
    OddMask("red on white", lambda: on((255, 255, 255), (255, 0, 0))),
    OddMask("green JPEG on white", lambda: jpeg(on((255,) * 3, (0, 200, 0)), 90), about=True),
    OddMask("red on the image", lambda: on(picture(), (255, 0, 0))),
    OddMask("white on the image", lambda: on(picture(), (255, 255, 255))),
    OddMask(
        "a half-transparent brush on the image",
        lambda: on(picture(), (255, 0, 0), opacity=0.5),
    ),
    OddMask("red on a JPEG of it", lambda: jpeg(on(picture(), (255, 0, 0)), 92), about=True),
    OddMask("erased", lambda: rgba(picture(), OUT)),
    OddMask("erased, black below", lambda: rgba(picture() * ~shape()[..., None], OUT)),
    OddMask("erased, white below", lambda: rgba(np.maximum(picture(), IN[..., None]), OUT)),
    OddMask("erased with a soft brush", lambda: rgba(picture(), 255 - soft()), about=True),
]

INVERT = {"invert_mask": True}
REFUSED = [
    OddMask("black on white", lambda: grey(OUT), "would fill 9", INVERT),
    OddMask("1-bit, black on white", lambda: Image.fromarray(~shape()), "would fill 9", INVERT),
    OddMask("a hole in white", lambda: rgba((255, 255, 255), OUT), "would fill 9", INVERT),
    OddMask("a hole in black", lambda: rgba((0, 0, 0), OUT), "would fill 9", INVERT),
    OddMask("all black", lambda: grey(IN * 0), "nowhere white"),
    OddMask("all white", lambda: grey(IN * 0 + 255), "covers the whole image"),
    OddMask("all transparent", lambda: rgba((0, 0, 0), IN * 0), "nowhere white"),
    OddMask("labels 0 and 1", lambda: grey(shape()), "multiply it by 255"),
    OddMask("a faint brush", lambda: rgba((0, 0, 0), shape() * 100), "at its brightest 39"),
    OddMask("too dark", lambda: grey(shape() * 100), "at its brightest 39"),
    OddMask("the image", lambda: Image.fromarray(picture()), "many grey levels"),
    OddMask("a grey photograph", lambda: Image.fromarray(picture()).convert("L"), "grey levels"),
    OddMask("another", lambda: Image.fromarray(picture()[::-1].copy()), "many grey levels"),
    OddMask("its JPEG", lambda: jpeg(Image.fromarray(picture()), 60), "many grey levels"),
    OddMask(
        "another image with an erased part",
        lambda: rgba(picture()[::-1], OUT),
        "shows a photograph in 9",
        {"mask_channel": "alpha", "invert_mask": True},
    ),
    OddMask(
        "an object cut out of the image",
        lambda: rgba(picture(), IN),
        "shows a photograph in",
        {"mask_channel": "alpha"},
    ),
]
