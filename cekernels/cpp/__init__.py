"""C++ kernels for the CPU (csrc/cpu), behind the op names of :mod:`cekernels.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import _native
from cekernels._compiled import CompiledOps, torch_linear, torch_linear_backward

_OPS = CompiledOps("cekernels_cpp", "cpu")
unsupported = _OPS.unsupported
masked_loss = _OPS.masked_loss
masked_loss_backward = _OPS.masked_loss_backward
rasterize_polygons = _OPS.rasterize_polygons
rasterize_boxes = _OPS.rasterize_boxes
fill_masked = _OPS.fill_masked
fill_polygons = _OPS.fill_polygons
fill_boxes = _OPS.fill_boxes


def unavailable() -> str | None:
    return _native.load("_C")


# Numbers of weights of a channel from which torch's batched product beats the kernel, measured on
# an AMD EPYC with AVX-512. The kernel widens bfloat16; torch's product may multiply it as it is.
_LARGE = 256 * 256
_LARGE_BFLOAT16_FORWARD = 48 * 48


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    limit = _LARGE_BFLOAT16_FORWARD if input.dtype == torch.bfloat16 else _LARGE
    by_torch = weight.shape[1] * weight.shape[2] > limit
    function = torch_linear if by_torch else _OPS.channelwise_linear
    return function(input, weight, bias, relu)


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    by_torch = weight.shape[1] * weight.shape[2] > _LARGE
    function = torch_linear_backward if by_torch else _OPS.channelwise_linear_backward
    return function(grad_output, input, weight, output, needs)
