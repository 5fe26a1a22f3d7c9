"""The paper's random block masks."""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels import random_below, rasterize_boxes
from context_encoder.masks.arithmetic import integer_sqrt
from context_encoder.masks.base import MaskSampler
from context_encoder.masks.registry import register_mask

MAX_BLOCKS = 8
_WORDS = 2 + 3 * MAX_BLOCKS


@register_mask("block", summary="one to a few smaller squares anywhere, together at most ¼")
class BlockMasks(MaskSampler):
    """Several squares, which may overlap, over at most a quarter of the image.

    The paper (section 3.3) removes several smaller blocks, which may overlap, up to a quarter of
    the image, and gives no numbers. Here 1 to 8 squares are drawn. The sum of their
    areas is drawn between 1/10 and 1/4 of the image, their sides differ by up to a factor of
    two, and each lies anywhere inside the image, on whole pixels.

    The limit holds by construction: sides are rounded down after dividing the drawn sum,
    and the area of a union is at most the sum of the areas.
    """

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        size, batch = self.size, index.shape[0]
        words = self.words(epoch, index, _WORDS)
        number = 1 + random_below(words[:, :1], MAX_BLOCKS)
        largest = size * size // 4
        smallest = size * size // 10
        total = smallest + random_below(words[:, 1:2], largest - smallest + 1)
        weights, left, top = words[:, 2:].view(batch, 3, MAX_BLOCKS).unbind(1)
        present = torch.arange(MAX_BLOCKS, device=index.device) < number
        weight = torch.where(present, 128 + random_below(weights, 129), 0)
        # The largest scale, in 2**-10 pixel, with sum((weight * scale)**2) <= total.
        squares = weight.square().sum(1, keepdim=True)
        scale = integer_sqrt(torch.div(total << 20, squares, rounding_mode="floor"))
        side = (weight * scale) >> 10
        left, top = random_below(left, size + 1 - side), random_below(top, size + 1 - side)
        boxes = torch.stack((left, top, left + side, top + side), dim=-1) << 8
        offsets = torch.arange(batch + 1, device=index.device) * MAX_BLOCKS
        return rasterize_boxes(boxes.view(-1, 4).int(), offsets, size, size)
