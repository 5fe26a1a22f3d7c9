"""What a user draws on the page, as a mask: strokes of a brush, lassos, boxes, loaded masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cekernels import rasterize_polygons, to_fixed_point
from context_encoder.data.mask_images import InpaintError

__all__ = ["Area", "Brush", "Loaded", "Shape", "draw_mask"]

Mask = NDArray[np.bool_]
Point = tuple[float, float]
Contour = NDArray[np.float64]

#: Of all shapes together, so that a request cannot take unlimited time.
_MOST_POINTS = 200_000


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    #: Take away from the hole instead of adding to it.
    erase: bool = False


class Brush(_Shape):
    """A stroke: a polyline with round ends, in pixels of the image from its upper left corner."""

    kind: Literal["brush"]
    width: Annotated[float, Field(gt=0, le=10_000)]
    points: Annotated[list[Point], Field(min_length=1)]


class Area(_Shape):
    """A closed outline: a lasso, or a box by its four corners."""

    kind: Literal["area"]
    points: Annotated[list[Point], Field(min_length=1)]


class Loaded(_Shape):
    """A mask that was loaded, by the number that it was given then."""

    kind: Literal["loaded"]
    number: int


Shape = Annotated[Brush | Area | Loaded, Field(discriminator="kind")]


def draw_mask(
    shapes: Sequence[Brush | Area | Loaded], loaded: Mapping[int, Mask], width: int, height: int
) -> Mask:
    """The mask that shapes make, one after the other.

    Args:
        shapes: in the order in which they were drawn.
        loaded: the masks that were loaded, bool ``(height, width)``.
        width, height: of the image.

    Returns:
        bool ``(height, width)``, True in the hole.

    Raises:
        InpaintError: a mask is not among those loaded, or there are too many points.
    """
    if sum(len(shape.points) for shape in shapes if not isinstance(shape, Loaded)) > _MOST_POINTS:
        raise InpaintError(f"more than {_MOST_POINTS} points were drawn; load a mask instead")
    mask = np.zeros((height, width), bool)
    for shape in shapes:
        if isinstance(shape, Loaded):
            if shape.number not in loaded:
                raise InpaintError("the mask is no longer here; load it again")
            mask[loaded[shape.number]] = not shape.erase
        elif isinstance(shape, Area):
            _draw(mask, [np.array(shape.points)], "evenodd", not shape.erase)
        else:
            _draw(
                mask, _stroke(np.array(shape.points), shape.width / 2), "nonzero", not shape.erase
            )
    return mask


def _stroke(points: Contour, radius: float) -> list[Contour]:
    """A disc for each point and a rectangle for each segment, all of one orientation."""
    angles = np.linspace(0, 2 * np.pi, 16 + int(4 * radius**0.5), endpoint=False)
    disc = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    contours = [point + disc for point in points]
    for start, end in itertools.pairwise(points):
        length = float(np.hypot(*(end - start)))
        if length:
            across = (end - start)[::-1] / length * radius * (1, -1)
            contours.append(np.stack([start + across, end + across, end - across, start - across]))
    return contours


def _draw(
    mask: Mask, contours: list[Contour], rule: Literal["nonzero", "evenodd"], value: bool
) -> None:
    """Set the pixels of ``mask`` whose centres lie in the contours."""
    every = np.concatenate(contours)
    low = np.clip(np.floor(every.min(0)), 0, mask.shape[::-1]).astype(int)
    high = np.clip(np.ceil(every.max(0)), 0, mask.shape[::-1]).astype(int)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    if right <= left or bottom <= top:
        return
    inside, _ = rasterize_polygons(
        to_fixed_point(torch.from_numpy(every - low)),
        torch.tensor([0, *np.cumsum([len(contour) for contour in contours])]),
        torch.tensor([0, len(contours)]),
        bottom - top,
        right - left,
        fill_rule=rule,
    )
    mask[top:bottom, left:right][inside[0, 0].numpy()] = value
