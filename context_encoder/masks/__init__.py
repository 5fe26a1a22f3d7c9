"""Masks: which part of a picture is missing, as a function of (seed, epoch, sample index)."""

from context_encoder.masks.base import MaskSampler
from context_encoder.masks.blob import BlobMasks
from context_encoder.masks.block import BlockMasks
from context_encoder.masks.central import CentralMasks
from context_encoder.masks.folder import FolderMasks
from context_encoder.masks.outlines import silhouettes, trace_outline
from context_encoder.masks.region import RegionMasks
from context_encoder.masks.registry import MASKS, build_mask_sampler
from context_encoder.masks.voc import voc_outlines

__all__ = [
    "MASKS",
    "BlobMasks",
    "BlockMasks",
    "CentralMasks",
    "FolderMasks",
    "MaskSampler",
    "RegionMasks",
    "build_mask_sampler",
    "silhouettes",
    "trace_outline",
    "voc_outlines",
]
