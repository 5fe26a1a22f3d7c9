"""CUDA kernels (csrc/cuda), behind the op names of :mod:`cekernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import _native
from cekernels._compiled import PRODUCTS, CompiledOps, torch_linear, torch_linear_backward
from cekernels._precision import float32_products

_OPS = CompiledOps("cekernels_cuda", "cuda")
unsupported = _OPS.unsupported
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


def _torch_is_faster(input: Tensor, weight: Tensor) -> bool:
    """Maps so large that the product is bound by arithmetic: cuBLAS has tensor cores for it."""
    return weight.shape[1] * weight.shape[2] >= 256 * 256


def _products() -> int:
    return PRODUCTS.index(float32_products())


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    if _torch_is_faster(input, weight):
        return torch_linear(input, weight, bias, relu)
    return _OPS.channelwise_linear(input, weight, bias, relu, _products())


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    if _torch_is_faster(input, weight):
        return torch_linear_backward(grad_output, input, weight, output, needs)
    return _OPS.channelwise_linear_backward(grad_output, input, weight, output, needs, _products())
