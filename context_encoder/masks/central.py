"""The paper's central region."""

from __future__ import annotations

import torch
from torch import Tensor

from context_encoder.masks.base import MaskSampler
from context_encoder.masks.registry import register_mask


@register_mask("central", summary="a square in the middle", fixed_hole=True)
class CentralMasks(MaskSampler):
    """A square hole in the middle, the same for every sample (section 3.3 of the paper).

    Where ``size - hole`` is odd, the hole lies half a pixel towards the top-left corner.
    """

    mask: Tensor

    def __init__(self, size: int, seed: int, hole: int | None = None) -> None:
        """
        Args:
            size, seed: see :class:`MaskSampler`; the seed has no effect.
            hole: side of the hole in pixels, 1 to ``size - 1``; ``None``: half of ``size``.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__(size, seed)
        hole = size // 2 if hole is None else hole
        if not 0 < hole < size:
            raise ValueError(f"hole must be 1 to {size - 1} pixels for masks of {size}, got {hole}")
        self.hole = hole
        mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
        first = (size - hole) // 2
        mask[:, :, first : first + hole, first : first + hole] = True
        self.register_buffer("mask", mask, persistent=False)

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask.repeat(index.shape[0], 1, 1, 1)
        return mask, torch.full_like(index, self.hole**2)
