"""Specification of the ops: plain PyTorch, on any device, differentiable by autograd.

The functions here only compute; the public functions in :mod:`cekernels.ops` check the arguments.
Each function has the name and the signature of its op in ``torch.ops.cekernels``. Any other
implementation is correct if it agrees with these functions.
"""

from cekernels.reference.channelwise_linear import channelwise_linear, channelwise_linear_backward
from cekernels.reference.fill_masked import fill_masked
from cekernels.reference.local_response_norm import (
    local_response_norm,
    local_response_norm_backward,
)
from cekernels.reference.masked_loss import (
    masked_loss,
    masked_loss_and_gradient,
    masked_loss_backward,
    scale_gradient_,
)
from cekernels.reference.patch_synthesis import patch_match, patch_vote
from cekernels.reference.random import philox4x32
from cekernels.reference.rasterize import (
    fill_boxes,
    fill_polygons,
    rasterize_boxes,
    rasterize_polygons,
)
from cekernels.reference.remove_seam import remove_seam

__all__ = [
    "channelwise_linear",
    "channelwise_linear_backward",
    "fill_boxes",
    "fill_masked",
    "fill_polygons",
    "local_response_norm",
    "local_response_norm_backward",
    "masked_loss",
    "masked_loss_and_gradient",
    "masked_loss_backward",
    "patch_match",
    "patch_vote",
    "philox4x32",
    "rasterize_boxes",
    "rasterize_polygons",
    "remove_seam",
    "scale_gradient_",
]
