"""Kinds of mask by name."""

from __future__ import annotations

import os

from context_encoder.masks.base import MaskSampler
from context_encoder.masks.blob import BlobMasks
from context_encoder.masks.block import BlockMasks
from context_encoder.masks.central import CentralMasks
from context_encoder.masks.folder import FolderMasks
from context_encoder.masks.outlines import silhouettes
from context_encoder.masks.region import RegionMasks
from context_encoder.masks.voc import voc_outlines

#: The kinds of mask, for :func:`build_mask_sampler`.
MASKS = ("central", "block", "region", "blob", "folder", "voc")


def build_mask_sampler(
    kind: str,
    size: int,
    seed: int,
    *,
    hole: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    voc_root: str | os.PathLike[str] | None = None,
) -> MaskSampler:
    """A sampler by name.

    Args:
        kind: "central", "block" and "region" (the paper's masks), "voc" (region with PASCAL
            VOC's objects instead of the packaged silhouettes), "blob" (the released code's) or
            "folder" (the user's own).
        size, seed: see :class:`MaskSampler`.
        hole: for "central", the side of the hole in pixels; see :class:`CentralMasks`.
        folder: for "folder", required; see :class:`FolderMasks`.
        voc_root: for "voc", required; see :func:`voc_outlines`.

    Raises:
        ValueError: an unknown kind, an argument that the kind needs and lacks, or one that it
            has no use for.
        As the sampler of the kind.
    """
    if kind not in MASKS:
        raise ValueError(f"unknown kind of mask {kind!r}; choose one of {', '.join(MASKS)}")
    for name, value, owner in (
        ("hole", hole, "central"),
        ("folder", folder, "folder"),
        ("voc_root", voc_root, "voc"),
    ):
        if value is not None and kind != owner:
            raise ValueError(f"{name} is for {owner!r} masks and would do nothing for {kind!r}")
    if kind == "central":
        return CentralMasks(size, seed, hole)
    if kind == "block":
        return BlockMasks(size, seed)
    if kind == "region":
        return RegionMasks(size, seed, silhouettes())
    if kind == "blob":
        return BlobMasks(size, seed)
    if kind == "folder":
        if folder is None:
            raise ValueError("'folder' masks need folder, a folder of mask images")
        return FolderMasks(size, seed, folder)
    if voc_root is None:
        raise ValueError("'voc' masks need voc_root, the VOCdevkit folder")
    return RegionMasks(size, seed, voc_outlines(voc_root))
