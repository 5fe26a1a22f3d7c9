"""The ops as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

With ``TRITON_INTERPRET=1`` in the environment before the first import Triton's interpreter runs
the same kernels on the CPU: slow, and meant for tests.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from cekernels.triton._runtime import INTERPRETED
from cekernels.triton.channelwise_linear import channelwise_linear, channelwise_linear_backward
from cekernels.triton.masked_loss import (
    masked_loss,
    masked_loss_and_gradient,
    masked_loss_backward,
    scale_gradient_,
)
from cekernels.triton.random import philox4x32
from cekernels.triton.rasterize import (
    LARGEST_SIDE,
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
    "masked_loss_and_gradient",
    "masked_loss_backward",
    "philox4x32",
    "rasterize_boxes",
    "rasterize_polygons",
    "scale_gradient_",
]

_OLDEST = (8, 0)

# The ops that do arithmetic, and the position of the argument that says in which dtype.
_ARITHMETIC = {
    "channelwise_linear": 1,
    "channelwise_linear_backward": 2,
    "masked_loss": 0,
    "masked_loss_and_gradient": 0,
    "masked_loss_backward": 2,
    "scale_gradient_": 0,
}


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def unavailable() -> str | None:
    if INTERPRETED.value:
        return None
    if torch.version.hip:
        return "written for NVIDIA GPUs; this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


def unsupported(op: str, *args: Any) -> str | None:
    tensors = [a for a in args if isinstance(a, Tensor)]
    device = tensors[0].device
    if device.type == "cuda":
        major, minor = _capability(device)
        if (major, minor) < _OLDEST:
            return f"needs compute capability 8.0 or newer, {device} has {major}.{minor}"
    elif not (device.type == "cpu" and INTERPRETED.value):
        return f"serves CUDA tensors, got one on {device} (TRITON_INTERPRET=1 serves CPU tensors)"

    if op in _ARITHMETIC and args[_ARITHMETIC[op]].dtype == torch.float64:
        return "float64 is served by the reference"
    if op.startswith("channelwise_linear") and 0 in args[_ARITHMETIC[op]].shape:
        return "the weight has no elements"
    sides = args[3:5] if op == "rasterize_polygons" else args[2:4]
    if op.startswith("fill"):
        sides = args[0].shape[2:]
    if op.startswith(("rasterize", "fill")) and max(sides) > LARGEST_SIDE:
        return f"images of at most {LARGEST_SIDE} pixels a side, got {tuple(sides)}"
    return None
