"""C++ kernels for the CPU (csrc/cpu), behind the op names of :mod:`cekernels.reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cekernels import _native
from cekernels.reference.masked_loss import accumulation_dtype

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NORMALIZE = {"mask": 0, "all": 1, "sum": 2, "none": 3}


def unavailable() -> str | None:
    return _native.load("_C")


def unsupported(op: str, *args: Any) -> str | None:
    for arg in args:
        if isinstance(arg, Tensor):
            if arg.device.type != "cpu":
                return f"runs on the CPU only, not on {arg.device}"
            if arg.layout != torch.strided:
                return f"takes strided tensors only, not {arg.layout}"
    if op.startswith("fill") and args[0].element_size() > 8:
        return f"has no {args[0].dtype}"
    return None


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool or uint8 mask as it is; a floating one in the dtype of the sums."""
    return _dense(mask.to(accumulation_dtype(dtype)) if mask.is_floating_point() else mask)


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    bias = None if bias is None else _dense(bias)
    output: Tensor = torch.ops.cekernels_cpp.channelwise_linear.default(
        _dense(input), _dense(weight), bias, relu, 0
    )
    return output


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    output = None if output is None else _dense(output)
    grads: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.cekernels_cpp.channelwise_linear_backward.default(
            _dense(grad_output), _dense(input), _dense(weight), output, *needs, 0
        )
    )
    return grads


def masked_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.cekernels_cpp.masked_loss.default(
        _dense(prediction),
        _dense(target),
        _mask(mask, prediction.dtype),
        area,
        power,
        _NORMALIZE[normalize],
    )
    return result


def masked_loss_backward(
    grad_loss: Tensor,
    scale: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
) -> Tensor:
    grad: Tensor = torch.ops.cekernels_cpp.masked_loss_backward.default(
        grad_loss, scale, _dense(prediction), _dense(target), _mask(mask, prediction.dtype), power
    )
    return grad


def rasterize_polygons(
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    height: int,
    width: int,
    fill_rule: str,
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.cekernels_cpp.rasterize.default(
        vertices.contiguous(),
        contour_offsets.contiguous(),
        sample_offsets.contiguous(),
        height,
        width,
        fill_rule == "evenodd",
    )
    return result


def rasterize_boxes(
    boxes: Tensor, sample_offsets: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.cekernels_cpp.rasterize.default(
        boxes.contiguous(), None, sample_offsets.contiguous(), height, width, False
    )
    return result


def fill_masked(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    filled: Tensor = torch.ops.cekernels_cpp.fill_masked.default(
        _dense(image), _dense(mask), _dense(value)
    )
    return filled


def fill_polygons(
    image: Tensor,
    value: Tensor,
    vertices: Tensor,
    contour_offsets: Tensor,
    sample_offsets: Tensor,
    fill_rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.cekernels_cpp.fill.default(
        _dense(image),
        _dense(value),
        vertices.contiguous(),
        contour_offsets.contiguous(),
        sample_offsets.contiguous(),
        fill_rule == "evenodd",
    )
    return result


def fill_boxes(
    image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.cekernels_cpp.fill.default(
        _dense(image),
        _dense(value),
        boxes.contiguous(),
        None,
        sample_offsets.contiguous(),
        False,
    )
    return result
