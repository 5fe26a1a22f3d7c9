"""The ops of a compiled library under the names of :mod:`cekernels.reference`.

The C++ and the CUDA library have ops of the same names and arguments (csrc/bindings.cpp), in the
namespaces ``cekernels_cpp`` and ``cekernels_cuda``; what both implementation modules share is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cekernels.reference.masked_loss import accumulation_dtype

# The enum Products of csrc/params.h.
PRODUCTS = ("ieee", "tf32x3", "tf32")
_NORMALIZE = {"mask": 0, "all": 1, "sum": 2, "none": 3}


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool or uint8 mask as it is; a floating one in the dtype of the sums."""
    return _dense(mask.to(accumulation_dtype(dtype)) if mask.is_floating_point() else mask)


def torch_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """The channel-wise linear map by torch's batched product."""
    by_channel, weight = input.transpose(0, 1), weight.transpose(1, 2)
    if bias is None:
        product = torch.bmm(by_channel, weight)
    else:
        product = torch.baddbmm(bias.unsqueeze(1), by_channel, weight)
    product = product.transpose(0, 1)
    if not relu:
        return product.clone(memory_format=torch.contiguous_format)  # never a view
    # One pass for the ReLU and the copy; bmm(out=) into a transposed view is slower than both.
    output = product.new_empty(product.shape)
    return torch.clamp_min(product, 0, out=output)


def torch_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients by torch's batched product."""
    grad = grad_output if output is None else torch.where(output > 0, grad_output, 0)
    by_channel, none = grad.transpose(0, 1), grad.new_empty
    return (
        torch.bmm(by_channel, weight).transpose(0, 1).clone(memory_format=torch.contiguous_format)
        if needs[0]
        else none(0),
        torch.bmm(by_channel.mT, input.transpose(0, 1)) if needs[1] else none(0),
        grad.sum(0) if needs[2] else none(0),
    )


class CompiledOps:
    """Every op of the reference, by the compiled ops of ``namespace`` on devices of one type.

    Args:
        namespace: that of the library's ops.
        device: the type of device.
        by_torch: of a channel-wise linear map, its weight and whether it is the backward pass:
            whether torch's batched product serves it better than the kernel.
        products: how float32 is multiplied, an index into :data:`PRODUCTS`.
    """

    def __init__(
        self,
        namespace: str,
        device: str,
        by_torch: Callable[[Tensor, bool], bool],
        products: Callable[[], int] = lambda: 0,
    ) -> None:
        self._ops = getattr(torch.ops, namespace)
        self._device = device
        self._by_torch = by_torch
        self._products = products

    def unsupported(self, op: str, *args: Any) -> str | None:
        for arg in args:
            if isinstance(arg, Tensor):
                if arg.device.type != self._device:
                    return f"runs on {self._device} tensors only, not on {arg.device}"
                if arg.layout != torch.strided:
                    return f"takes strided tensors only, not {arg.layout}"
        if op.startswith("fill") and args[0].element_size() > 8:
            return f"has no {args[0].dtype}"
        return None

    def channelwise_linear(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        relu: bool,
    ) -> Tensor:
        if self._by_torch(weight, False):
            return torch_linear(input, weight, bias, relu)
        bias = None if bias is None else _dense(bias)
        output: Tensor = self._ops.channelwise_linear.default(
            _dense(input), _dense(weight), bias, relu, self._products()
        )
        return output

    def channelwise_linear_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._by_torch(weight, True):
            return torch_linear_backward(grad_output, input, weight, output, needs)
        output = None if output is None else _dense(output)
        grads: tuple[Tensor, Tensor, Tensor] = self._ops.channelwise_linear_backward.default(
            _dense(grad_output), _dense(input), _dense(weight), output, *needs, self._products()
        )
        return grads

    def masked_loss(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        area: Tensor | None,
        power: int,
        normalize: str,
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self._ops.masked_loss.default(
            _dense(prediction),
            _dense(target),
            _mask(mask, prediction.dtype),
            area,
            power,
            _NORMALIZE[normalize],
        )
        return result

    def masked_loss_backward(
        self,
        grad_loss: Tensor,
        scale: Tensor,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        power: int,
    ) -> Tensor:
        grad: Tensor = self._ops.masked_loss_backward.default(
            grad_loss,
            scale,
            _dense(prediction),
            _dense(target),
            _mask(mask, prediction.dtype),
            power,
        )
        return grad

    def masked_loss_and_gradient(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        area: Tensor | None,
        power: int,
        normalize: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, scale and gradient in one pass over the operands; of the CUDA library alone."""
        result: tuple[Tensor, Tensor, Tensor] = self._ops.masked_loss_and_gradient.default(
            _dense(prediction),
            _dense(target),
            _mask(mask, prediction.dtype),
            area,
            power,
            _NORMALIZE[normalize],
        )
        return result

    def scale_gradient_(self, gradient: Tensor, grad_loss: Tensor, mask: Tensor) -> None:
        self._ops.scale_gradient_.default(gradient, grad_loss, _mask(mask, gradient.dtype))

    def rasterize_polygons(
        self,
        vertices: Tensor,
        contour_offsets: Tensor,
        sample_offsets: Tensor,
        height: int,
        width: int,
        fill_rule: str,
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self._ops.rasterize.default(
            vertices.contiguous(),
            contour_offsets.contiguous(),
            sample_offsets.contiguous(),
            height,
            width,
            fill_rule == "evenodd",
        )
        return result

    def rasterize_boxes(
        self, boxes: Tensor, sample_offsets: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self._ops.rasterize.default(
            boxes.contiguous(), None, sample_offsets.contiguous(), height, width, False
        )
        return result

    def fill_masked(self, image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
        filled: Tensor = self._ops.fill_masked.default(_dense(image), _dense(mask), _dense(value))
        return filled

    def fill_polygons(
        self,
        image: Tensor,
        value: Tensor,
        vertices: Tensor,
        contour_offsets: Tensor,
        sample_offsets: Tensor,
        fill_rule: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self._ops.fill.default(
            _dense(image),
            _dense(value),
            vertices.contiguous(),
            contour_offsets.contiguous(),
            sample_offsets.contiguous(),
            fill_rule == "evenodd",
        )
        return result

    def fill_boxes(
        self, image: Tensor, value: Tensor, boxes: Tensor, sample_offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self._ops.fill.default(
            _dense(image),
            _dense(value),
            boxes.contiguous(),
            None,
            sample_offsets.contiguous(),
            False,
        )
        return result
