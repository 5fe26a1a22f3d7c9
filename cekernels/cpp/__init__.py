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


def _torch_is_faster(input: Tensor, weight: Tensor) -> bool:
    """Where torch's batched product beats the kernel (measured on 2 cores of an AMD EPYC).

    In float32 and bfloat16 it wins for small batches, for which the kernel would rearrange the
    weights in vain, and in every dtype for large maps. In float16 and float64 the kernel wins.
    """
    large = weight.shape[1] * weight.shape[2] > 256 * 256
    return large or (input.shape[0] < 48 and input.dtype in (torch.float32, torch.bfloat16))


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    by_torch = _torch_is_faster(input, weight)
    function = torch_linear if by_torch else _OPS.channelwise_linear
    return function(input, weight, bias, relu)


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    by_torch = _torch_is_faster(input, weight)
    function = torch_linear_backward if by_torch else _OPS.channelwise_linear_backward
    return function(grad_output, input, weight, output, needs)
