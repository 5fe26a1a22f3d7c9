"""The specification: every op in plain PyTorch, on any device, differentiable by its formula.

The functions here compute; the public functions in :mod:`cekernels.ops` check arguments. The name
and the signature of a function are those of its op in ``torch.ops.cekernels``. Another
implementation is right when it agrees with these.
"""

from cekernels.reference.channelwise_linear import channelwise_linear, channelwise_linear_backward
from cekernels.reference.fill_masked import fill_masked
from cekernels.reference.masked_loss import (
    masked_loss,
    masked_loss_and_gradient,
    masked_loss_backward,
    scale_gradient_,
)
from cekernels.reference.random import philox4x32
from cekernels.reference.rasterize import (
    fill_boxes,
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
