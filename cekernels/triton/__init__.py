"""The ops as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

With ``TRITON_INTERPRET=1`` in the environment before the first import Triton's interpreter runs
the same kernels on the CPU: slow, and meant for tests.
"""

from __future__ import annotations

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

__all__ = [
    "channelwise_linear",
    "channelwise_linear_backward",
    "masked_loss",
    "masked_loss_and_gradient",
    "masked_loss_backward",
    "scale_gradient_",
]

_OLDEST = (8, 0)


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
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST:
            return f"needs compute capability 8.0, {device} has {capability[0]}.{capability[1]}"
    elif not (device.type == "cpu" and INTERPRETED.value):
        return f"serves CUDA tensors, got one on {device} (TRITON_INTERPRET=1 serves CPU tensors)"
    if op.startswith("channelwise_linear"):
        if tensors[0].dtype == torch.float64:
            return "float64 is served by the reference"
        if tensors[1].numel() == 0 or tensors[2 if op.endswith("backward") else 1].numel() == 0:
            return "the weight or the input is empty"
    return None
