"""The specification: every op in plain PyTorch, on any device, differentiable by its formula.

The functions here compute; the public functions of :mod:`cekernels` check, and register them
with autograd. What another implementation returns is right when it agrees with these.
"""

from __future__ import annotations

from typing import Any

from cekernels.reference.channelwise_linear import channelwise_linear, channelwise_linear_backward
from cekernels.reference.masked_loss import (
    masked_loss,
    masked_loss_backward,
)
from cekernels.reference.masked_loss import (
    scale_gradient_ as scale_gradient_,  # no op of its own: part of the loss made in one pass
)
from cekernels.reference.random import philox4x32
from cekernels.reference.rasterize import (
    fill_boxes,
    fill_masked,
    fill_polygons,
    rasterize_boxes,
    rasterize_polygons,
)

__all__ = [
    "channelwise_linear",
    "channelwise_linear_backward",
    "fill_boxes",
    "fill_masked",
    "fill_polygons",
    "masked_loss",
    "masked_loss_backward",
    "philox4x32",
    "rasterize_boxes",
    "rasterize_polygons",
]


def unavailable() -> str | None:
    return None


def unsupported(op: str, *args: Any) -> str | None:
    return None
