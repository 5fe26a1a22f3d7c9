"""The released code's random pattern: smooth blobs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cekernels import random_below
from context_encoder.masks.base import MaskSampler
from context_encoder.masks.registry import register_mask

CANDIDATES = 64
# Pixel j of the 10000-pixel pattern is at 599 j / 9999 of the 600-value lattice.
_NUMERATOR, _DENOMINATOR = 599, 9999
_PHASES = 64  # positions of a window within a cell of the lattice, along each axis
_WEIGHT_BITS, _VALUE_BITS = 12, 16
# The accepted range in 1/1000, and by how much it is narrowed where windows are judged by a part
# of their pixels (the standard deviation of that estimate is 1.5 to 2 at any size).
_LOWEST, _HIGHEST, _NARROWER = 200, 300, 5
_CHUNK = 4  # candidates judged at a time, to bound the memory


@register_mask("blob", summary="the released code's pattern, 20 to 30 %")
class BlobMasks(MaskSampler):
    """Windows of a smooth random pattern, 20 to 30 % of which are missing.

    From ``train_random.lua`` of the released code: 600 x 600 uniform values are scaled to
    10000 x 10000 with Torch7's bicubic ``image.scale`` (Catmull-Rom, corners aligned) and
    compared with 0.25, which leaves 16.7 % missing; windows are drawn until the share of missing
    pixels is between 20 and 30 %. This mask is then used for a whole batch.

    Here each sample has a mask of its own, from an unbounded pattern: the values around a window
    are drawn when they are needed. The first acceptable one of 64 independent windows is used,
    or the one closest to 25 % if there is none. The share of acceptable windows falls with the
    size, from 26 % at 64 pixels and 23 % at 128 to 10 % at 227 and almost none at 512, where
    masks end below 20 %. Windows of 128 pixels and more are judged by the pixels of a grid, 64
    or more along each axis, within 20.5 to 29.5 %.

    The interpolation is a product of integers below 2**53 held in float64, hence exact.
    """

    weights: Tensor

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self.stride = max(1, size // 64)
        self.register_buffer("weights", _bicubic_weights(size), persistent=False)

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        batch, cells = index.shape[0], self.weights.shape[-1]
        # Each word gives two values of the lattice.
        count = 2 + -(-cells * cells // 2)
        words = self.words(epoch, index, CANDIDATES * count).view(batch, CANDIDATES, count)
        phase = random_below(words[..., :2], _PHASES)
        halves = torch.stack((words[..., 2:] >> _VALUE_BITS, words[..., 2:] & 0xFFFF), dim=-1)
        values = halves.flatten(2)[..., : cells * cells].unflatten(2, (cells, cells))

        coarse = []
        for first in range(0, CANDIDATES, _CHUNK):
            part = slice(first, first + _CHUNK)
            missing = self._missing(values[:, part], phase[:, part], self.stride)
            coarse.append(missing.flatten(2).sum(2, dtype=torch.int32))
        chosen = self._first_acceptable(torch.cat(coarse, dim=1))
        sample = torch.arange(batch, device=index.device)[:, None]
        mask = self._missing(values[sample, chosen], phase[sample, chosen])
        return mask, mask.sum((1, 2, 3))

    def _missing(self, values: Tensor, phase: Tensor, stride: int = 1) -> Tensor:
        """Pixels where the pattern is below 1/4: bool ``(B, C, rows, columns)``."""
        rows, columns = self.weights[:, ::stride].double()[phase].unbind(2)
        pattern = rows @ values.double() @ columns.transpose(-1, -2)
        # Half an integer below the threshold: rounding cannot change the result.
        return pattern < float(1 << (_VALUE_BITS + 2 * _WEIGHT_BITS - 2)) - 0.5

    def _first_acceptable(self, coarse: Tensor) -> Tensor:
        """Index of the candidate to use, ``(B, 1)``, from the missing pixels of all, ``(B, C)``."""
        pixels = (-(-self.size // self.stride)) ** 2
        narrower = _NARROWER if self.stride > 1 else 0
        share = 1000 * coarse
        acceptable = (share > (_LOWEST + narrower) * pixels) & (
            share < (_HIGHEST - narrower) * pixels
        )
        # One key for both orders, different for all candidates.
        distance = torch.where(acceptable, 0, 1 + (4 * coarse - pixels).abs())
        number = torch.arange(CANDIDATES, device=coarse.device)
        return (distance * CANDIDATES + number).amin(1, keepdim=True) % CANDIDATES


def _bicubic_weights(size: int) -> Tensor:
    """Catmull-Rom weights of the lattice at the pixels of a window, times 2**12.

    Returns:
        int16 ``(phases, size, cells)``: each row has four entries and the sum 2**12.
    """
    phase = np.arange(_PHASES)[:, None]
    position = phase * _DENOMINATOR + _PHASES * _NUMERATOR * np.arange(size)
    cell, rest = np.divmod(position, _PHASES * _DENOMINATOR)
    t = rest / (_PHASES * _DENOMINATOR)
    taps = np.stack(
        (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ),
        axis=-1,
    )
    scaled = np.rint(taps * (1 << _WEIGHT_BITS)).astype(np.int16)
    largest = scaled.argmax(-1)[..., None]
    excess = scaled.sum(-1, keepdims=True) - (1 << _WEIGHT_BITS)
    np.put_along_axis(scaled, largest, np.take_along_axis(scaled, largest, -1) - excess, -1)
    weights = np.zeros((_PHASES, size, cell.max() + 4), dtype=np.int16)
    np.put_along_axis(weights, cell[..., None] + np.arange(4), scaled, -1)
    return torch.from_numpy(weights)
