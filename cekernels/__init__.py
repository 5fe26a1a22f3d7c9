"""Kernels for context encoders (Pathak et al. 2016), usable on their own in any model.

Every op has a plain PyTorch reference, which is its specification, and takes ``impl="auto"`` or
the implementation to force. ``python -m cekernels.info`` lists the implementations available on
this machine.
"""

from cekernels import _backends, _interop
from cekernels._backends import Impl, ImplementationError
from cekernels._register import OPS, decompositions
from cekernels._version import __version__
from cekernels._warm_up import warm_up
from cekernels.ops.channelwise_linear import ChannelwiseLinear, channelwise_linear
from cekernels.ops.fill_masked import fill_masked
from cekernels.ops.local_response_norm import LocalResponseNorm, local_response_norm
from cekernels.ops.masked_loss import masked_l1_loss, masked_l2_loss
from cekernels.ops.pack import pack_boxes, pack_polygons
from cekernels.ops.patch_synthesis import patch_match, patch_vote
from cekernels.ops.random import philox4x32, random_below
from cekernels.ops.rasterize import (
    fill_boxes,
    fill_polygons,
    rasterize_boxes,
    rasterize_polygons,
    to_fixed_point,
)
from cekernels.ops.remove_seam import remove_seam

_backends.load_libraries()
_interop.register(list(OPS.values()))

__all__ = [
    "ChannelwiseLinear",
    "Impl",
    "ImplementationError",
    "LocalResponseNorm",
    "__version__",
    "channelwise_linear",
    "decompositions",
    "fill_boxes",
    "fill_masked",
    "fill_polygons",
    "local_response_norm",
    "masked_l1_loss",
    "masked_l2_loss",
    "pack_boxes",
    "pack_polygons",
    "patch_match",
    "patch_vote",
    "philox4x32",
    "random_below",
    "rasterize_boxes",
    "rasterize_polygons",
    "remove_seam",
    "to_fixed_point",
    "warm_up",
]
