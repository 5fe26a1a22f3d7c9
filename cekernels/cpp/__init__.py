"""C++ kernels for the CPU (csrc/cpu), behind the op names of :mod:`cekernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import _native
from cekernels._compiled import CompiledOps

# Numbers of weights of a channel from which torch's batched product beats the kernel, measured on
# an AMD EPYC with AVX-512. The kernel widens bfloat16; torch's product may multiply it as it is.
_LARGE = 256 * 256
_LARGE_BFLOAT16_FORWARD = 48 * 48


def _by_torch(weight: Tensor, backward: bool) -> bool:
    forward_bfloat16 = weight.dtype == torch.bfloat16 and not backward
    limit = _LARGE_BFLOAT16_FORWARD if forward_bfloat16 else _LARGE
    return weight.shape[1] * weight.shape[2] > limit


_OPS = CompiledOps("cekernels_cpp", "cpu", _by_torch)
unsupported = _OPS.unsupported
channelwise_linear = _OPS.channelwise_linear
channelwise_linear_backward = _OPS.channelwise_linear_backward
masked_loss = _OPS.masked_loss
masked_loss_backward = _OPS.masked_loss_backward
rasterize_polygons = _OPS.rasterize_polygons
rasterize_boxes = _OPS.rasterize_boxes
fill_masked = _OPS.fill_masked
fill_polygons = _OPS.fill_polygons
fill_boxes = _OPS.fill_boxes


def unavailable() -> str | None:
    return _native.load("_C")
