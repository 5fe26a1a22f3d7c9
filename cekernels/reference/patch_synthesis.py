"""Patch matching (PatchMatch: Barnes, Shechtman, Finkelstein and Goldman 2009) and voting (Wexler,
Shechtman and Irani 2007) in integers, so that every implementation gives the same bits.

A patch is a square of ``2 * radius + 1`` pixels, named by its centre as a flat index ``y * W + x``.
A nearest-neighbour field, int32 ``(H, W)``, holds the source patch of every target patch, and -1
elsewhere. Images are int16 ``(H, W, C)``: three colours from 0 to 1020, four to a level of 8 bits,
then any further channels that patches are compared in and that are copied with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels.reference.random import philox4x32

COLORS = 3
LARGEST = 1020
#: Costs are cut off here.
WORST = 1 << 30
#: A colour offset costs its square times the area of the patch, divided by this.
_OFFSET_PENALTY = 8
#: 2**15 * 2**(-i / 16), rounded.
_POWER = (32768, 31379, 30048, 28774, 27554, 26386, 25268, 24196,
          23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109)  # fmt: skip
#: A pixel of depth weighs as much as a factor of 1.6: 16 log2(1.6) / 3 per third of a pixel.
_DEPTH = (29, 8)
#: 16 / (2 ln 2): exp(-d / 2) as a power of 2 in sixteenths.
_COST = (23, 2)
_NEIGHBOURS = ((-1, 0), (0, -1), (0, 1), (1, 0))
_WORD = 0xFFFFFFFF


def patch_match(
    image: Tensor,
    guide: Tensor,
    source: Tensor,
    field: Tensor,
    radius: int,
    guide_weight: int,
    max_offset: int,
    sweeps: int,
    first_sweep: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """A better field, int32 ``(H, W)``, and the costs of its matches, likewise (0 outside of it).

    The cost of a match is the sum of squared differences after a colour offset is added to the
    source, a penalty of the offset, and the distance from the guide's mean colour. In each sweep, a
    patch first tries what its 4 neighbours had before the sweep, shifted, in the order up, left,
    right, down; then patches drawn around its best match, within max(H, W), half of that, and so on
    down to 1. A match is replaced by one of lower cost only.
    """
    matcher = _Matcher(image, guide, source, field, radius, guide_weight, max_offset)
    return matcher.run(sweeps, first_sweep, seed)


class _Matcher:
    def __init__(
        self,
        image: Tensor,
        guide: Tensor,
        source: Tensor,
        field: Tensor,
        radius: int,
        guide_weight: int,
        max_offset: int,
    ) -> None:
        self.height, self.width = field.shape
        self.radius, self.guide_weight, self.max_offset = radius, guide_weight, max_offset
        self.image = image.reshape(-1, image.shape[2]).long()
        self.sums = _patch_sums(image, radius)
        self.guides = _patch_sums(guide, radius)
        self.source = source.flatten() != 0
        self.field = field.flatten().long()
        self.targets = (self.field >= 0).nonzero()[:, 0]
        reach = torch.arange(-radius, radius + 1, device=field.device)
        self.patch = (reach[:, None] * self.width + reach).flatten()

    def run(self, sweeps: int, first_sweep: int, seed: int) -> tuple[Tensor, Tensor]:
        best = self.field[self.targets]
        cost = self.cost(best)
        everything = torch.ones_like(best, dtype=torch.bool)
        y, x = self.targets // self.width, self.targets % self.width
        for sweep in range(first_sweep, first_sweep + sweeps):
            before = torch.full_like(self.field, -1)
            before[self.targets] = best
            for dy, dx in _NEIGHBOURS:
                inside = _within(y + dy, self.height) & _within(x + dx, self.width)
                found = before[torch.where(inside, self.targets + dy * self.width + dx, 0)]
                sy, sx = found // self.width - dy, found % self.width - dx
                usable = inside & (found >= 0)
                usable &= _within(sy, self.height) & _within(sx, self.width)
                best, cost = self.consider(best, cost, sy * self.width + sx, usable)
            reach = max(self.height, self.width)
            trial = 0
            while reach >= 1:
                words = philox4x32(
                    self.targets,
                    torch.tensor(sweep, device=best.device),
                    torch.tensor(trial // 2, device=best.device),
                    torch.tensor(0, device=best.device),
                    seed & _WORD,
                    seed >> 32 & _WORD,
                )[..., trial % 2 * 2 :]
                sy = self.near(best // self.width, reach, self.height, words[..., 0])
                sx = self.near(best % self.width, reach, self.width, words[..., 1])
                best, cost = self.consider(best, cost, sy * self.width + sx, everything)
                trial, reach = trial + 1, reach // 2
        matched = torch.full_like(self.field, -1)
        matched[self.targets] = best
        costs = torch.zeros_like(self.field)
        costs[self.targets] = cost
        shape = (self.height, self.width)
        return matched.reshape(shape).int(), costs.reshape(shape).int()

    def consider(
        self, best: Tensor, cost: Tensor, candidate: Tensor, usable: Tensor
    ) -> tuple[Tensor, Tensor]:
        candidate = torch.where(usable, candidate, best)
        usable = usable & self.source[candidate]
        candidate = torch.where(usable, candidate, best)
        found = self.cost(candidate)
        better = usable & (found < cost)
        return torch.where(better, candidate, best), torch.where(better, found, cost)

    def cost(self, source: Tensor) -> Tensor:
        """Of the match of each target with one source."""
        area = len(self.patch)
        target_sums, source_sums = self.sums[self.targets], self.sums[source]
        offset = _color_offset(target_sums, source_sums, area, self.max_offset)
        to = self.image[self.targets[:, None] + self.patch]
        difference = to - self.image[source[:, None] + self.patch]
        difference[..., :COLORS] -= offset[:, None]
        penalty = (offset.square() * area).div(_OFFSET_PENALTY, rounding_mode="floor").sum(1)
        off_guide = (source_sums + offset * area - self.guides[self.targets]).square().sum(1)
        from_guide = (off_guide * self.guide_weight).div(16 * area, rounding_mode="floor")
        return (difference.square().sum((1, 2)) + penalty + from_guide).clamp(max=WORST)

    def near(self, middle: Tensor, reach: int, length: int, word: Tensor) -> Tensor:
        """A coordinate within ``reach`` of ``middle`` where patches lie whole in the image."""
        first = (middle - reach).clamp(min=self.radius)
        last = (middle + reach).clamp(max=length - 1 - self.radius)
        return first + (word * (last - first + 1) >> 32)


def patch_vote(
    image: Tensor,
    field: Tensor,
    cost: Tensor,
    mask: Tensor,
    depth: Tensor,
    radius: int,
    max_offset: int,
    best: bool,
) -> Tensor:
    """The image with its masked pixels, where a target patch covers them, voted for, ``(H, W, C)``.

    Every target patch around a pixel proposes the pixel of its source, its colour offset added. A
    vote weighs exp(-d / (2 s)) * 1.6**(-depth), d the patch's cost and s the upper quartile of the
    costs around the pixel. With ``best`` the pixel is that of the patch of lowest
    d * 1.6**(2 depth); of equals, the first by rows.

    ``depth``, int16 ``(H, W)``: distance from the known pixels in thirds of a pixel.
    """
    height, width, channels = image.shape
    flat, fields = image.reshape(-1, channels).long(), field.flatten().long()
    costs, depths = cost.flatten().long(), depth.flatten().long()
    pixels = (mask.flatten() != 0).nonzero()[:, 0]
    y, x = pixels // width, pixels % width
    reach = torch.arange(-radius, radius + 1, device=image.device)
    dy, dx = (step.flatten() for step in torch.meshgrid(reach, reach, indexing="ij"))
    inside = _within(y[:, None] + dy, height) & _within(x[:, None] + dx, width)
    centre = torch.where(inside, pixels[:, None] + dy * width + dx, 0)
    votes = inside & (fields[centre] >= 0)
    covered = votes.any(1)
    pixels, centre, votes = pixels[covered], centre[covered], votes[covered]
    # From here on, a patch that has no vote copies from itself, at a cost beyond all others.
    source = torch.where(votes, fields[centre], centre)
    copied = torch.where(votes, source - (dy * width + dx), pixels[:, None])
    patch_cost = torch.where(votes, costs[centre], WORST)

    sums = _patch_sums(image, radius)
    value = flat[copied]
    offset = _color_offset(sums[centre], sums[source], len(dy), max_offset)
    value[..., :COLORS] = (value[..., :COLORS] + offset).clamp(0, LARGEST)

    deeper = depths[centre] - depths[pixels][:, None]
    handicap = (deeper * _DEPTH[0]).div(_DEPTH[1], rounding_mode="floor")
    power = torch.tensor(_POWER, device=image.device)
    if best:
        # cost * 2**(handicap / 8) in fixed point
        octaves, fraction = -(-2 * handicap >> 4), -2 * handicap & 15
        scaled = (patch_cost + 1) * power[fraction]
        rank = torch.where(
            octaves >= 0, scaled << octaves.clamp(min=0), scaled >> -octaves.clamp(max=0)
        )
        rank = torch.where(votes, rank, torch.iinfo(torch.int64).max)
        first = (rank == rank.min(1, keepdim=True).values).long().argmax(1)
        voted = value[torch.arange(len(pixels), device=image.device), first]
    else:
        least = patch_cost.min(1, keepdim=True).values
        ordered = torch.where(votes, costs[centre], torch.iinfo(torch.int64).max).sort(1).values
        quartile = ordered.gather(1, votes.sum(1, keepdim=True) * 3 // 4).clamp(min=1)
        rank = ((patch_cost - least) * _COST[0]).div(_COST[1] * quartile, rounding_mode="floor")
        rank = torch.where(votes, rank + handicap, torch.iinfo(torch.int32).max)
        rank = rank - rank.min(1, keepdim=True).values
        weight = power[rank & 15] >> (rank >> 4).clamp(max=62)
        voted = _rounded_divide((weight[..., None] * value).sum(1), weight.sum(1, keepdim=True))
    output = flat.clone()
    output[pixels] = voted
    return output.reshape(image.shape).to(image.dtype)


def _within(index: Tensor, length: int) -> Tensor:
    return (index >= 0) & (index < length)


def _rounded_divide(a: Tensor, b: Tensor | int) -> Tensor:
    """To the nearest integer, halves up; b > 0."""
    return (2 * a + b).div(2 * b, rounding_mode="floor")


def _color_offset(target_sum: Tensor, source_sum: Tensor, area: int, most: int) -> Tensor:
    """The colour that is added to a source patch before it is compared and copied."""
    return _rounded_divide(target_sum - source_sum, area).clamp(-most, most)


def _patch_sums(image: Tensor, radius: int) -> Tensor:
    """Colours summed over the patch at each centre, ``(H W, 3)``; 0 where it is not whole."""
    side = 2 * radius + 1
    height, width = image.shape[:2]
    table = torch.zeros(height + 1, width + 1, COLORS, dtype=torch.int64, device=image.device)
    table[1:, 1:] = image[..., :COLORS].long().cumsum(0).cumsum(1)
    sums = torch.zeros(height, width, COLORS, dtype=torch.int64, device=image.device)
    sums[radius : height - radius, radius : width - radius] = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return sums.reshape(-1, COLORS)
