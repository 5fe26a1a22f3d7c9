"""Lists of boxes or contours per image, in the packed form of the rasterizers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cekernels import _checks
from cekernels.ops.rasterize import to_fixed_point

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
_BOX_FORMATS = ("xyxy", "xywh", "cxcywh")


def pack_boxes(
    boxes: Iterable[Any],
    *,
    format: BoxFormat = "xyxy",
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Pack a list of boxes per image: ``rasterize_boxes(*pack_boxes(boxes), height, width)``.

    Args:
        boxes: per image its boxes ``(K, 4)`` in pixels, as torchvision's detection targets have
            them: a tensor, floating point or integer, or anything ``torch.as_tensor`` takes; an
            empty sequence for an image without boxes.
        format: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height) or "cxcywh"
            (centre, width, height), as for ``torchvision.ops.box_convert``.
        device: of the result; None for that of the first tensor in the list, or else the CPU.

    Returns:
        boxes, int32 ``(sum of K, 4)``, and sample_offsets, int64 ``(B + 1,)``: the first two
        arguments of :func:`rasterize_boxes`, the last two of :func:`fill_boxes`.

    Raises:
        TypeError, ValueError: boxes of another type, shape or, if they are torchvision's
            ``BoundingBoxes``, format; on the CPU also NaN or infinite coordinates.
    """
    op = "pack_boxes"
    _checks.choice(op, "format", format, _BOX_FORMATS)
    images = _items(op, "boxes", boxes)
    device = _device(images) if device is None else device
    packed = []
    for i, image in enumerate(images):
        own = getattr(getattr(image, "format", None), "name", None)
        if isinstance(own, str) and own.lower() != format:
            raise ValueError(f"{op}: boxes[{i}] is in the format {own.lower()!r}, not {format!r}")
        packed.append(_points(op, f"boxes[{i}]", image, 4, device))
    corners = torch.cat(packed) if packed else torch.zeros(0, 4, device=device)
    if format != "xyxy":
        first, size = corners[:, :2], corners[:, 2:]
        first = first - size / 2 if format == "cxcywh" else first
        corners = torch.cat([first, first + size], 1)
    return to_fixed_point(corners), _offsets(map(len, packed), device)


def pack_polygons(
    polygons: Iterable[Iterable[Any]], *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pack a list of contours per image: ``rasterize_polygons(*pack_polygons(p), height, width)``.

    Args:
        polygons: per image a list of its contours. A contour holds its vertices ``(N, 2)``, (x, y)
            in pixels, or one after the other, ``(2 N,)``, as in COCO's annotations: a tensor,
            floating point or integer, or anything ``torch.as_tensor`` takes.
        device: of the result; None for that of the first tensor in the lists, or else the CPU.

    Returns:
        vertices, int32 ``(V, 2)``; contour_offsets, int64 ``(K + 1,)``; sample_offsets, int64
        ``(B + 1,)``: the first three arguments of :func:`rasterize_polygons`, the last three of
        :func:`fill_polygons`.

    Raises:
        TypeError, ValueError: contours of another type or shape; three or more of an image that
            are two numbers each, which are a contour in place of a list of contours; on the CPU
            also NaN or infinite coordinates.
    """
    op = "pack_polygons"
    images = [
        _items(op, f"polygons[{i}]", image)
        for i, image in enumerate(_items(op, "polygons", polygons))
    ]
    for i, image in enumerate(images):
        if len(image) >= 3 and all(map(_is_vertex, image)):
            raise ValueError(
                f"{op}: polygons[{i}] is a list of {len(image)} single vertices; expected per "
                "image a list of contours, each with all vertices: is one level of lists missing?"
            )
    device = _device(itertools.chain.from_iterable(images)) if device is None else device
    contours = [
        _points(op, f"polygons[{i}][{k}]", contour, 2, device)
        for i, image in enumerate(images)
        for k, contour in enumerate(image)
    ]
    vertices = torch.cat(contours) if contours else torch.zeros(0, 2, device=device)
    return (
        to_fixed_point(vertices),
        _offsets(map(len, contours), device),
        _offsets(map(len, images), device),
    )


def _is_vertex(value: Any) -> bool:
    """Whether a contour is two numbers alone."""
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(isinstance(number, int | float) for number in value)
    return tuple(getattr(value, "shape", ())) == (2,)


def _items(op: str, name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise TypeError(f"{op}: {name} must be a list, got {_checks.describe(value)}")
    if isinstance(value, Tensor):
        _checks.tensor(op, name, value)
        if not value.dim():
            raise TypeError(f"{op}: {name} must be a list, got a {_checks.describe(value)}")
    return list(value)


def _device(items: Iterable[Any]) -> torch.device:
    found = (item.device for item in items if isinstance(item, Tensor))
    return next(found, torch.device("cpu"))


def _points(op: str, name: str, value: Any, numbers: int, device: torch.device | str) -> Tensor:
    """Rows of ``numbers`` numbers, floating point."""
    try:
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            value = torch.stack(tuple(value))
        points = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{op}: {name} must hold numbers, got {_checks.describe(value)}: {error}"
        ) from error
    _checks.tensor(op, name, points)
    if points.is_complex() or points.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must hold real numbers, got a {_checks.describe(points)}")
    flat = points.dim() == 1 and points.shape[0] % numbers == 0
    if flat and (numbers == 2 or points.shape[0] == 0):
        points = points.reshape(-1, numbers)
    if points.dim() != 2 or points.shape[1] != numbers:
        layout = "(K, 4)" if numbers == 4 else "(N, 2) or (2 N,)"
        raise ValueError(f"{op}: {name} must be {layout}, got a {_checks.describe(points)}")
    points = points.detach().as_subclass(Tensor)
    if _checks.readable(points) and not points.isfinite().all():
        raise ValueError(f"{op}: {name} must be finite, got NaN or infinite coordinates")
    if points.is_meta and torch.device(device).type != "meta":
        raise ValueError(f"{op}: {name} is a meta tensor, which has no values to copy to {device}")
    return points.to(device, torch.promote_types(points.dtype, torch.float32))


def _offsets(lengths: Iterable[int], device: torch.device | str) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64).to(device)
