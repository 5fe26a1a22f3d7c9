"""Masks from polygons and boxes, and filling of masked image regions.

Error of a mask: the share of its pixels that differ from the exact rule (is the pixel's centre
inside?), evaluated in float64. The implementations of cekernels must have none; other libraries
have their own rules and may differ at the shapes' boundaries. Their shapes are converted
beforehand to the form that they need; the timed part ends with a tensor on the row's device.

Error of a filled image: the largest difference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.harness import Call, Problem, Row, UnavailableError, compiled
from bench.providers import chosen, implementations, is_implementation
from cekernels import fill_masked, rasterize_boxes, rasterize_polygons
from context_encoder.masks import block, build_mask_sampler, region

_SUBPIXELS = 256
# Pixels that another library may set differently, per pixel of the shapes' perimeter.
_BOUNDARY_PIXELS = 2.0
_LIBRARIES = {"pil": "PIL", "opencv": "cv2", "scikit-image": "skimage", "kornia": "kornia"}


def rows(device: str) -> list[Row]:
    gpu = device == "cuda"
    batch = 64 if gpu else 16
    result = []
    for batch_size, size in dict.fromkeys([(batch, 128), (batch, 227), (64, 227)]):
        axes = {"batch": batch_size, "side": size}
        for op, kind in (
            ("rasterize_polygons", "region"),
            ("rasterize_polygons", "convex"),
            ("rasterize_boxes", "block"),
        ):
            shape = f"{batch_size}x1x{size}x{size}"
            result.append(Row(op, shape, "bool", "forward", device, kind, axes, seconds=0.6))
    for size in (128, 227):
        axes = {"batch": batch, "side": size}
        for kind in ("region", "central"):
            result.append(
                Row(
                    *("fill_masked", f"{batch}x3x{size}x{size}", "float32", "forward"),
                    *(device, kind, {"channels": 3, **axes}),
                    seconds=0.3,
                    compiled=gpu,
                )
            )
    return result


def providers(row: Row) -> tuple[str, ...]:
    if row.op == "fill_masked":
        return (*implementations(), "where", "compile")
    libraries = ["pil", "opencv", "scikit-image"]
    if row.op == "rasterize_boxes":
        libraries.append("numpy")
    if row.kind == "convex":
        libraries.append("kornia")
    return (*implementations(), *libraries)


# --- rasterization ----------------------------------------------------------------------------


def polygon_bytes(batch: int, size: int, vertices: int, contours: int) -> int:
    """One byte per pixel and 8 per area written; vertices and offsets read."""
    return batch * size * size + 8 * batch + 8 * vertices + 8 * (contours + 1) + 8 * (batch + 1)


def box_bytes(batch: int, size: int, boxes: int) -> int:
    """One byte per pixel and 8 per area written; boxes and offsets read."""
    return batch * size * size + 8 * batch + 16 * boxes + 8 * (batch + 1)


def exact_masks(contours: list[list[np.ndarray]], size: int) -> np.ndarray:
    """bool ``(B, size, size)``: whether the winding number at each pixel's centre is nonzero.

    Computed in float64, where products of these coordinates are exact.
    """
    centres = np.arange(size) + 0.5
    masks = np.zeros((len(contours), size, size), dtype=bool)
    for mask, sample in zip(masks, contours, strict=True):
        winding = np.zeros((size, size), dtype=np.int64)
        for points in sample:
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                sign = 1
                if y1 < y0:
                    x0, y0, x1, y1, sign = x1, y1, x0, y0, -1
                meets = np.flatnonzero((y0 <= centres) & (centres < y1))
                across = (centres[None, :] - x0) * (y1 - y0)
                right = across >= (centres[meets, None] - y0) * (x1 - x0)
                winding[meets] += sign * right
        mask[:] = winding != 0
    return masks


class RasterProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        self.flops = 0
        self.items = batch = int(row.axes["batch"])
        self.size = int(row.axes["side"])
        if row.op == "rasterize_boxes":
            boxes, offsets = _sampled(block, "rasterize_boxes", "block", batch, self.size)
            self.args: tuple[Tensor, ...] = (boxes, offsets)
            self.bytes = box_bytes(batch, self.size, len(boxes))
            grouped = [boxes[a:b].numpy() for a, b in pairwise(offsets.tolist())]
            #: Boxes per sample in whole pixels, without empty ones; also as contours.
            self.boxes = [[b // _SUBPIXELS for b in sample if b[2] > b[0]] for sample in grouped]
            self.contours = [
                [
                    np.array([(b[0], b[1]), (b[2], b[1]), (b[2], b[3]), (b[0], b[3])], float)
                    for b in s
                ]
                for s in self.boxes
            ]
        else:
            if row.kind == "convex":
                self.args = _convex(batch, self.size)
            else:
                self.args = _sampled(region, "rasterize_polygons", "region", batch, self.size)
            vertices, contour_offsets, sample_offsets = self.args
            self.bytes = polygon_bytes(batch, self.size, len(vertices), len(contour_offsets) - 1)
            points = vertices.double().numpy() / _SUBPIXELS
            contours = [points[a:b] for a, b in pairwise(contour_offsets.tolist())]
            self.contours = [contours[a:b] for a, b in pairwise(sample_offsets.tolist())]
        self.args = tuple(argument.to(row.device) for argument in self.args)
        self.truth = torch.from_numpy(exact_masks(self.contours, self.size)).unsqueeze(1)
        perimeter = sum(
            np.abs(np.roll(c, -1, axis=0) - c).sum() for sample in self.contours for c in sample
        )
        self._boundary = float(_BOUNDARY_PIXELS * perimeter / self.truth.numel())

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        if is_implementation(provider):
            self.limit = 0.0
            return self._ours(provider)
        if importlib.util.find_spec(_LIBRARIES.get(provider, provider)) is None:
            raise UnavailableError(f"{_LIBRARIES[provider]} is not installed")
        self.limit = self._boundary
        draw = getattr(self, "_" + provider.replace("-", "_"))()
        if provider == "kornia":
            return draw, {}
        device = self.row.device

        def call() -> Tensor:
            masks = np.stack([draw(sample) for sample in range(self.items)])
            return torch.from_numpy(masks).view(torch.bool).unsqueeze(1).to(device)

        return call, {}

    def _ours(self, provider: str) -> tuple[Call, dict[str, Any]]:
        size, impl = self.size, provider
        if self.row.op == "rasterize_boxes":
            extra = chosen("rasterize_boxes", provider, (*self.args, size, size))
            boxes, offsets = self.args
            return lambda: rasterize_boxes(boxes, offsets, size, size, impl=impl)[0], extra  # type: ignore[arg-type]
        extra = chosen("rasterize_polygons", provider, (*self.args, size, size, "nonzero"))
        vertices, contours, samples = self.args
        return (
            lambda: rasterize_polygons(vertices, contours, samples, size, size, impl=impl)[0],  # type: ignore[arg-type]
            extra,
        )

    # Each of these prepares the shapes and returns a function that draws one sample's mask.

    def _pil(self) -> Callable[[int], Any]:
        # PIL includes the pixels of both ends of a box, and treats a pixel's corner as its centre.
        if self.row.op == "rasterize_boxes":
            boxes = [[(b[0], b[1], b[2] - 1, b[3] - 1) for b in s] for s in self.boxes]
        else:
            polygons = [[list(map(tuple, c - 0.5)) for c in s] for s in self.contours]

        def draw(sample: int) -> Any:
            image = Image.new("L", (self.size, self.size))
            canvas = ImageDraw.Draw(image)
            if self.row.op == "rasterize_boxes":
                for box in boxes[sample]:
                    canvas.rectangle(box, fill=1)
            else:
                for polygon in polygons[sample]:
                    canvas.polygon(polygon, fill=1)
            return np.asarray(image)

        return draw

    def _opencv(self) -> Callable[[int], Any]:
        import cv2

        # Fixed point with 8 fractional bits, as in cekernels; pixel centres are at whole numbers.
        polygons = [
            [((c - 0.5) * _SUBPIXELS).round().astype(np.int32) for c in s] for s in self.contours
        ]

        def draw(sample: int) -> Any:
            image = np.zeros((self.size, self.size), np.uint8)
            if self.row.op == "rasterize_boxes":
                for x0, y0, x1, y1 in self.boxes[sample]:
                    cv2.rectangle(
                        image, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), 1, cv2.FILLED
                    )
            else:
                for polygon in polygons[sample]:
                    cv2.fillPoly(image, [polygon], 1, shift=8)
            return image

        return draw

    def _scikit_image(self) -> Callable[[int], Any]:
        from skimage.draw import polygon2mask

        # (row, column) with pixel centres at whole numbers.
        polygons = [[c[:, ::-1] - 0.5 for c in s] for s in self.contours]

        def draw(sample: int) -> Any:
            image = np.zeros((self.size, self.size), bool)
            for polygon in polygons[sample]:
                image |= polygon2mask(image.shape, polygon)
            return image

        return draw

    def _numpy(self) -> Callable[[int], Any]:
        def draw(sample: int) -> Any:
            image = np.zeros((self.size, self.size), bool)
            for x0, y0, x1, y1 in self.boxes[sample]:
                image[y0:y1, x0:x1] = True
            return image

        return draw

    def _kornia(self) -> Call:
        from kornia.utils import draw_convex_polygon

        device = self.row.device
        polygons = torch.from_numpy(np.stack([s[0] for s in self.contours]) - 0.5).float()
        polygons = polygons.to(device)
        color = torch.ones(self.items, 1, device=device)

        def call() -> Tensor:
            images = torch.zeros(self.items, 1, self.size, self.size, device=device)
            drawn: Tensor = draw_convex_polygon(images, polygons, color)
            return drawn != 0

        return call

    def error(self, outputs: Any) -> float:
        assert outputs.dtype == torch.bool
        return float((outputs.cpu() != self.truth).double().mean())


def _sampled(module: Any, function: str, kind: str, batch: int, size: int) -> tuple[Tensor, ...]:
    """Shapes drawn by a mask sampler of the package."""
    index = torch.arange(batch)
    with mock.patch.object(module, function) as called:
        called.return_value = (torch.empty(0), torch.empty(0))
        build_mask_sampler(kind, size, 0)(torch.zeros_like(index), index)
    arguments = called.call_args.args
    return tuple(argument for argument in arguments if isinstance(argument, Tensor))


def _convex(batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """One octagon per sample, on an ellipse of random place, axes and phase."""
    angle = torch.arange(8) / 8 * 2 * torch.pi + torch.rand(batch, 1)
    centre = size * (0.3 + 0.4 * torch.rand(batch, 2, 1))
    radius = size * (0.1 + 0.2 * torch.rand(batch, 2, 1))
    points = centre + radius * torch.stack((angle.cos(), angle.sin()), dim=1)
    vertices = (points * _SUBPIXELS).round().int().transpose(1, 2).reshape(-1, 2)
    return vertices.contiguous(), torch.arange(batch + 1) * 8, torch.arange(batch + 1)


# --- filling ----------------------------------------------------------------------------------


def fill_bytes(mask: Tensor, channels: int, item: int) -> int:
    """Bytes to read the mask and the kept part of the image, and to write the whole result."""
    kept = mask.numel() - int(mask.sum())
    return mask.numel() + item * channels * (kept + mask.numel())


def _where(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return torch.where(mask, value, image)


class FillProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        self.flops = 0
        self.items = batch = int(row.axes["batch"])
        size = int(row.axes["side"])
        index = torch.arange(batch, device=row.device)
        sampler = build_mask_sampler(row.kind, size, 0).to(row.device)
        self.mask, _ = sampler(torch.zeros_like(index), index)
        self.image = torch.rand(batch, 3, size, size, device=row.device)
        self.value = torch.rand(3, device=row.device)
        self.bytes = fill_bytes(self.mask, 3, 4)
        hole = self.mask.double()
        value = self.value.double().view(1, 3, 1, 1)
        self.truth = hole * value + (1 - hole) * self.image.double()

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        image, mask, value = self.image, self.mask, self.value
        if is_implementation(provider):
            extra = chosen("fill_masked", provider, (image, mask, value))
            return lambda: fill_masked(image, mask, value, impl=provider), extra  # type: ignore[arg-type]
        function: Callable[..., Tensor] = _where
        if provider == "compile":
            if not self.row.compiled:
                raise UnavailableError("not compiled on the CPU, to save time")
            function = compiled(_where, self.row.shape)
        column = value.view(1, 3, 1, 1)
        return lambda: function(image, mask, column), {}

    def error(self, outputs: Any) -> float:
        return float((outputs.double() - self.truth).abs().max())


def problem(row: Row) -> RasterProblem | FillProblem:
    return FillProblem(row) if row.op == "fill_masked" else RasterProblem(row)


def test_rasterize(
    row: Row, timing: str, provider: str, race: Callable[[Row, str, str], None]
) -> None:
    race(row, timing, provider)
