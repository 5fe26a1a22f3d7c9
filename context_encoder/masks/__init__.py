"""Masks: the missing part of an image as a function of (seed, epoch, sample index)."""

from context_encoder.masks.base import MaskSampler
from context_encoder.masks.blob import BlobMasks
from context_encoder.masks.block import BlockMasks
from context_encoder.masks.central import CentralMasks
from context_encoder.masks.folder import FolderMasks
from context_encoder.masks.outlines import trace_outline
from context_encoder.masks.region import RegionMasks
from context_encoder.masks.registry import (
    MASKS,
    MaskName,
    MaskSpec,
    build_mask_sampler,
    masks_with_fixed_hole,
    masks_without_files,
    register_mask,
)
from context_encoder.masks.silhouettes import silhouettes
from context_encoder.masks.voc import voc_outlines
from context_encoder.utils.option_groups import OptionGroup

__all__ = [
    "MASKS",
    "BlobMasks",
    "BlockMasks",
    "CentralMasks",
    "FolderMasks",
    "MaskName",
    "MaskSampler",
    "MaskSpec",
    "OptionGroup",
    "RegionMasks",
    "build_mask_sampler",
    "masks_with_fixed_hole",
    "masks_without_files",
    "register_mask",
    "silhouettes",
    "trace_outline",
    "voc_outlines",
]
