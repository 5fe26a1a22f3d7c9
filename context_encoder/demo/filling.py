"""The filling that the page asks for: options, progress, cancelling, what the page shows of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from context_encoder.data.mask_images import InpaintError, feathered, grown
from context_encoder.demo.pictures import Open, Pixels, eight_bits
from context_encoder.demo.shapes import Shape, draw_mask
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.hole_filler import TEXTURE, HoleFiller
from context_encoder.inpainting.image_io import Hole, Picture, read_picture
from context_encoder.inpainting.inpainter import SHOWN_HOLES, Inpainter
from context_encoder.inpainting.neighbourhoods import neighbourhoods
from context_encoder.runs import Which
from context_encoder.utils.bounding_box import Box, bounding_box
from context_encoder.utils.opencv import fill_by_opencv, missing_for

__all__ = ["Cancelled", "FillRequest", "Networks", "available_methods", "fill", "hole_of"]

Mask = NDArray[np.bool_]
Send = Callable[[dict[str, Any]], None]

#: OpenCV's methods that the page offers, the best first.
OpenCVName = Literal["fsr", "telea", "navier-stokes"]
METHODS: dict[OpenCVName, str] = {
    "fsr": "OpenCV FSR",
    "telea": "OpenCV Telea",
    "navier-stokes": "OpenCV Navier-Stokes",
}

INCLUDED, NONE = "included", "none"
#: Above so many pixels of a hole, FSR takes minutes; Telea is used in its place.
_MOST_FOR_FSR = 150_000
#: Holes that the page can show in close view.
_SHOWN_IN_CLOSE = 8
#: Pixels of a hole that the draft is solved for.
_MOST_FOR_DRAFT = 40_000
#: Known pixels that OpenCV's methods see around the holes.
_AROUND = 64


class Cancelled(Exception):  # noqa: N818 - not an error
    """The page no longer wants the result."""


class FillRequest(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(extra="forbid")

    shapes: list[Shape]
    grow: Annotated[int, Field(ge=0, le=1000)] = 0
    feather: Annotated[int, Field(ge=0, le=1000)] = 0
    texture: Annotated[float, Field(ge=0, le=1)] = TEXTURE
    network: str = INCLUDED
    opencv: OpenCVName | Literal["off"] = "off"


@dataclass(frozen=True)
class _Run:
    path: Path
    inpainter: Inpainter


class Networks:
    """The networks to choose from: the included one, none, and those of runs.

    Args:
        runs: run folders; each is loaded here, so that a wrong one is reported at the start.
        which, device: see :meth:`Inpainter.from_run`.

    Raises:
        As :meth:`Inpainter.from_run`.
    """

    def __init__(
        self, runs: tuple[Path, ...] = (), which: Which = "best", device: str = "auto"
    ) -> None:
        self._runs = {
            f"run{number}": _Run(path, Inpainter.from_run(path, which=which, device=device))
            for number, path in enumerate(runs, 1)
        }

    def labels(self) -> dict[str, str]:
        """The networks' names in requests, and their labels for users."""
        runs = {name: f"run {run.path}" for name, run in self._runs.items()}
        return {
            INCLUDED: "included network",
            NONE: "no network (linear prediction)",
        } | runs

    def filler(self, name: str, texture: float) -> HoleFiller | Inpainter:
        """What fills holes, as the command ``inpaint`` with the same options.

        Raises:
            InpaintError: there is no network of this name.
        """
        if name == INCLUDED:
            return HoleFiller(texture=texture)
        if name == NONE:
            return HoleFiller(None, texture=texture)
        if name not in self._runs:
            raise InpaintError(f"there is no network {name!r}; load the page again")
        inpainter = self._runs[name].inpainter
        return HoleFiller(inpainter, texture=texture) if texture else inpainter


def available_methods() -> dict[OpenCVName, str]:
    """OpenCV's methods that can run here, with their labels for users."""
    return {name: label for name, label in METHODS.items() if missing_for(name) is None}


def hole_of(opened: Open, request: FillRequest) -> tuple[Mask, NDArray[np.float32]]:
    """The hole that a request describes.

    Returns:
        bool ``(H, W)``, every pixel that may change; and float32 ``(H, W)``, how much of the fill
        each pixel gets: 1 but where it fades.

    Raises:
        InpaintError: the hole is empty or the whole image.
    """
    picture = opened.picture
    drawn = draw_mask(request.shapes, opened.masks, picture.width, picture.height)
    if not drawn.any():
        raise InpaintError("nothing is marked yet: brush over what is to be filled")
    weights = feathered(grown(drawn, request.grow), request.feather)
    missing = weights > 0
    if missing.all():
        raise InpaintError(
            "the whole image is marked, so there is nothing to fill it from; leave some of it"
        )
    return missing, weights


def fill(
    opened: Open, request: FillRequest, networks: Networks, send: Send, stop: threading.Event
) -> None:
    """Fill the hole of an image and tell the page of it.

    Args:
        opened: the image; gets the result.
        request: what to fill and how.
        networks: see :class:`Networks`.
        send: called with each event: ``draft`` and ``filled`` with the part to show, ``progress``
            from 0 to 1, ``opencv`` with its part.
        stop: when set, the work ends.

    Raises:
        Cancelled: ``stop`` was set.
        InpaintError: the request cannot be met.
    """
    filler = networks.filler(request.network, request.texture)
    missing, weights = hole_of(opened, request)
    picture, pixels = opened.picture, int(missing.sum())
    box = bounding_box(missing)
    if stop.is_set():
        raise Cancelled
    _show(opened, "draft", _draft(picture, missing), box, send, {})

    done = 0.0

    def progress(count: float) -> None:
        nonlocal done
        if stop.is_set():
            raise Cancelled
        done += count
        send({"event": "progress", "share": min(1.0, done / pixels)})

    start = time.perf_counter()
    result = filler(picture.pixels, missing, progress=progress)
    if stop.is_set():
        raise Cancelled
    opened.result = _finished(picture, missing, weights, result.pixels)
    opened.filled = missing
    seconds = time.perf_counter() - start
    lines = [*picture.notes, *result.report.lines(SHOWN_HOLES)]
    about = {
        "lines": lines,
        "seconds": seconds,
        "pixels": pixels,
        "holes": _largest(opened, missing),
    }
    _show(opened, "filled", eight_bits(_picture_of(opened.result[box])), box, send, about)
    if request.opencv != "off" and not stop.is_set():
        _compare(opened, request.opencv, missing, box, send)


def _compare(opened: Open, name: OpenCVName, missing: Mask, box: Box, send: Send) -> None:
    why_not = missing_for(name)
    if why_not is not None:
        raise InpaintError(why_not)
    note, pixels = "", int(missing.sum())
    if name == "fsr" and pixels > _MOST_FOR_FSR:
        note, name = "FSR would take too long for a hole of this size; ", "telea"
    start = time.perf_counter()
    wide = bounding_box(missing, _AROUND)
    shown = eight_bits(_picture_of(opened.picture.pixels[wide]))
    filled = np.where(missing[wide][..., None], fill_by_opencv(name, shown, missing[wide]), shown)
    seconds = time.perf_counter() - start
    inner = tuple(
        slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True)
    )
    about = {"label": METHODS[name], "seconds": seconds, "note": note}
    _show(opened, "opencv", filled[inner], box, send, about)


def _show(
    opened: Open,
    event: str,
    rgb: NDArray[np.uint8],
    box: Box,
    send: Send,
    about: Mapping[str, Any],
) -> None:
    y, x = box
    part, opened.shown[event] = opened.display.encode(rgb, (x.start, y.start, x.stop, y.stop))
    place = [part.left, part.top, part.width, part.height]
    send({"event": event, "part": place, **about})


def _draft(picture: Picture, missing: Mask) -> NDArray[np.uint8]:
    """A first impression of the hole's bounding box: the membrane, in a moment.

    Large holes are filled at a lower resolution.
    """
    wide, box = bounding_box(missing, 2), bounding_box(missing)
    rgb = eight_bits(_picture_of(picture.pixels[wide])).astype(np.float32)
    hole = missing[wide]
    step = math.ceil(math.sqrt(np.count_nonzero(hole) / _MOST_FOR_DRAFT))
    if step > 1:
        filled = np.where(hole[..., None], _coarse_membrane(rgb, hole, step), rgb)
    else:
        filled = remove_seam(np.where(hole[..., None], np.float32(0), rgb), hole)
    inner = tuple(
        slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True)
    )
    return cast(NDArray[np.uint8], np.clip(np.rint(filled[inner]), 0, 255).astype(np.uint8))


def _coarse_membrane(rgb: NDArray[np.float32], hole: Mask, step: int) -> NDArray[np.float32]:
    """The membrane of cells of ``step`` x ``step`` pixels, scaled to all pixels."""
    height, width = hole.shape
    rows, columns = -(-height // step), -(-width // step)
    padding = ((0, rows * step - height), (0, columns * step - width))
    known = np.pad(~hole, padding)
    cells = np.pad(rgb, (*padding, (0, 0))) * known[..., None]
    count = known.reshape(rows, step, columns, step).sum((1, 3))[..., None]
    mean = cells.reshape(rows, step, columns, step, 3).sum((1, 3)) / np.maximum(count, 1)
    filled = remove_seam(mean.astype(np.float32), count[..., 0] == 0)
    scaled = [
        Image.fromarray(np.ascontiguousarray(filled[..., channel])).resize(
            (columns * step, rows * step), Image.Resampling.BILINEAR
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel)[:height, :width] for channel in scaled], 2)


def _finished(
    picture: Picture, missing: Mask, weights: NDArray[np.float32], filled: Pixels
) -> Pixels:
    """The result at full depth; the fill fades into the image where the weights say so."""
    if (weights[missing] == 1).all() and "transparency" not in picture.info:
        return filled
    rgb = np.empty((*missing.shape, 3), np.float32)
    for box in neighbourhoods(missing):
        rgb[box] = _picture_of(filled[box]).rgb()
    return picture.filled(Hole(missing, weights), rgb)


def _picture_of(pixels: NDArray[Any]) -> Picture:
    return read_picture(np.ascontiguousarray(pixels))


def _largest(opened: Open, missing: Mask) -> list[list[float]]:
    """The largest holes: left, top, width, height in pixels of the display."""
    whole = bounding_box(missing)
    boxes = ndimage.find_objects(ndimage.label(missing[whole], np.ones((3, 3)))[0])
    boxes.sort(key=lambda box: -(box[0].stop - box[0].start) * (box[1].stop - box[1].start))
    scale = opened.display.scale
    return [
        [
            scale * n
            for n in (
                whole[1].start + x.start,
                whole[0].start + y.start,
                x.stop - x.start,
                y.stop - y.start,
            )
        ]
        for y, x in boxes[:_SHOWN_IN_CLOSE]
    ]
