"""Boxes: overlap, coding for regression, non-maximum suppression, RoI max pooling.

A box is (x1, y1, x2, y2) in pixels counted from 0, both corners belonging to it, as in VOC: its
width is x2 - x1 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FloatArray = NDArray[np.float64]

# Standard deviations of the regression targets, which are divided by them.
TARGET_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of boxes ``(N, 4)`` and ``(M, 4)``: ``(N, M)``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low + 1, 0, None), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2] + 1, axis=1) for x in (a, b))
    return np.asarray(common / (area_a[:, None] + area_b[None] - common))


def encode(boxes: FloatArray, targets: FloatArray) -> FloatArray:
    """Shift and log-scale from ``boxes`` to ``targets``, both ``(N, 4)`` (Girshick et al. 2014).

    Divided by :data:`TARGET_DEVIATIONS`, which keep all four of order 1.
    """
    size, center = _size_center(boxes)
    to_size, to_center = _size_center(targets)
    deltas = np.concatenate([(to_center - center) / size, np.log(to_size / size)], axis=1)
    return np.asarray(deltas / TARGET_DEVIATIONS)


def decode(boxes: FloatArray, deltas: FloatArray) -> FloatArray:
    """The inverse of :func:`encode`; growth is bounded against overflow."""
    size, center = _size_center(boxes)
    deltas = deltas * TARGET_DEVIATIONS
    new_center = center + deltas[:, :2] * size
    new_size = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16)))
    low = new_center - (new_size - 1) / 2
    return np.concatenate([low, low + new_size - 1], axis=1)


def _size_center(boxes: FloatArray) -> tuple[FloatArray, FloatArray]:
    return boxes[:, 2:] - boxes[:, :2] + 1, (boxes[:, 2:] + boxes[:, :2]) / 2


def clip(boxes: FloatArray, width: int, height: int) -> FloatArray:
    """Boxes clipped to the image."""
    return np.clip(boxes, 0, [width - 1, height - 1, width - 1, height - 1])


def flip(boxes: FloatArray, width: int) -> FloatArray:
    """Boxes in the mirrored image."""
    mirrored = boxes.copy()
    mirrored[:, 0] = width - 1 - boxes[:, 2]
    mirrored[:, 2] = width - 1 - boxes[:, 0]
    return mirrored


def nms(boxes: FloatArray, scores: FloatArray, max_iou: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``; among equal scores the first is stronger.
        max_iou: a box that overlaps a stronger kept one by more is dropped.

    Returns:
        Indices of the kept boxes, strongest first.
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[iou(boxes[best : best + 1], boxes[order])[0] <= max_iou]
    return np.array(kept, dtype=np.intp)


def roi_max_pool(features: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """RoI max pooling (Girshick 2015, section 2.1) of the boxes of one image.

    Corners are divided by ``stride`` and rounded half up; the cells between them, both ends
    included, are divided into ``size`` x ``size`` bins: bin i reaches from floor(i n / size)
    to ceil((i + 1) n / size). Cells outside the map are ignored; a bin without cells is 0.

    Args:
        features: floating point ``(C, H, W)``; gradients flow.
        boxes: ``(R, 4)`` in pixels, x1, y1 not negative.
        stride: pixels per cell; cell i is at pixel ``stride * i``.
        size: bins per side.

    Returns:
        ``(R, C, size, size)``.
    """
    channels, height, width = features.shape
    corners = torch.floor(boxes / stride + 0.5).long().tolist()
    if not corners:
        return features.new_zeros(0, channels, size, size)
    right = max(width, max(c[2] for c in corners) + 1, max(c[0] for c in corners) + 1)
    bottom = max(height, max(c[3] for c in corners) + 1, max(c[1] for c in corners) + 1)
    padded = F.pad(features, (0, right - width, 0, bottom - height), value=-torch.inf)
    pooled = torch.stack(
        [
            # Adaptive pooling has the same bins.
            F.adaptive_max_pool2d(padded[:, y1 : max(y1, y2) + 1, x1 : max(x1, x2) + 1], size)
            for x1, y1, x2, y2 in corners
        ]
    )
    return pooled.masked_fill(torch.isinf(pooled), 0)
