"""Positions of a network's output cells in its input, and upsampling to the input's pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ReceptiveField:
    """Positions of a network's output cells in its input, with pixel centres at integers.

    Cell i is centred at ``offset + stride * i``; n pixels give
    ``floor((n - extent) / stride) + 1`` cells.
    """

    stride: int = 1
    offset: float = 0.0
    extent: int = 1

    def then(self, kernel: int, stride: int = 1, padding: int = 0) -> ReceptiveField:
        """The receptive field after one more convolution or pooling."""
        return ReceptiveField(
            self.stride * stride,
            self.offset + ((kernel - 1) / 2 - padding) * self.stride,
            self.extent + (kernel - 1 - 2 * padding) * self.stride,
        )

    @classmethod
    def of(cls, network: nn.Module) -> ReceptiveField:
        """The receptive field of a network's convolutions and poolings, in module order."""
        geometry = cls()
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
                kernel, stride, padding = (
                    value if isinstance(value, int) else int(value[0])
                    for value in (module.kernel_size, module.stride, module.padding)
                )
                geometry = geometry.then(kernel, stride, padding)
        return geometry


@dataclass(frozen=True)
class Upsampling:
    """An up-convolution whose output, cut at ``crop``, lies on the input's pixels.

    Attributes:
        kernel: 2 stride or 2 stride - 1, whichever puts its centres on pixels.
        padding: of the input, on every side.
        crop: pixels cut off the output's top and left.
    """

    kernel: int
    padding: int
    crop: int

    @classmethod
    def fit(cls, geometry: ReceptiveField, padding: int | None = None) -> Upsampling:
        """Upsampling with the given padding, or the smallest that covers images of every size."""
        stride = geometry.stride
        kernel = 2 * stride
        if (stride - 0.5 - geometry.offset) % 1:
            kernel -= 1
        shift = round((kernel - 1) / 2 - geometry.offset)
        if padding is None:
            covering = shift + geometry.extent + stride - 1 - kernel
            padding = max(-shift, covering, geometry.extent // 2)  # the last: one cell at least
        return cls(kernel, padding, shift + padding)


def bilinear_kernel(size: int) -> Tensor:
    """``(size, size)``: the weights of an up-convolution of stride ``ceil(size / 2)``."""
    stride = math.ceil(size / 2)
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    return line[:, None] * line
