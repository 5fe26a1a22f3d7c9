"""Random region masks of the packaged silhouettes."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from context_encoder.masks.region import RegionMasks
from context_encoder.masks.registry import register_mask


@register_mask(
    "region",
    summary="silhouettes under a random affine map and a smooth warp, at most ¼",
    default=True,
)
def silhouette_masks(size: int, seed: int) -> RegionMasks:
    """:class:`RegionMasks` with the outlines of :func:`silhouettes`."""
    return RegionMasks(size, seed, silhouettes())


def silhouettes() -> Tensor:
    """The packaged outlines of animals, int16 ``(K, 96, 2)``; the source is in their folder."""
    with (files("context_encoder") / "masks/shapes/animals.npz").open("rb") as file:
        return torch.from_numpy(np.load(file, allow_pickle=False)["outlines"])
