"""CUDA kernels (csrc/cuda), behind the op names of :mod:`cekernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import _native
from cekernels._compiled import PRODUCTS, CompiledOps
from cekernels._precision import float32_products


def _by_torch(weight: Tensor, backward: bool) -> bool:
    """Maps so large that the product is bound by arithmetic: cuBLAS has tensor cores for it."""
    return weight.shape[1] * weight.shape[2] >= 256 * 256


def _products() -> int:
    return PRODUCTS.index(float32_products())


_OPS = CompiledOps("cekernels_cuda", "cuda", _by_torch, _products)
unsupported = _OPS.unsupported
channelwise_linear = _OPS.channelwise_linear
channelwise_linear_backward = _OPS.channelwise_linear_backward
masked_loss = _OPS.masked_loss
masked_loss_backward = _OPS.masked_loss_backward
masked_loss_and_gradient = _OPS.masked_loss_and_gradient
scale_gradient_ = _OPS.scale_gradient_
rasterize_polygons = _OPS.rasterize_polygons
rasterize_boxes = _OPS.rasterize_boxes
fill_masked = _OPS.fill_masked
fill_polygons = _OPS.fill_polygons
fill_boxes = _OPS.fill_boxes


def unavailable() -> str | None:
    reason = _native.load("_C_cuda")
    if reason is None and not torch.cuda.is_available():
        reason = "there is no CUDA device"
    return reason
