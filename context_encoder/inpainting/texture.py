"""Texture for a hole, copied from the rest of the picture.

A prediction of what a hole contains is blurred where it is uncertain. Coarse-to-fine patch
synthesis led by it (Wexler, Shechtman and Irani 2007; Barnes et al. 2009; Newson et al. 2014; with
a context encoder as guide: Yang et al. 2017) supplies what it lacks: on each level of an image
pyramid, a nearest-neighbour field says for every patch that touches the hole which whole patch of
known pixels is most like it, and the patches vote for the hole's pixels, in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from cekernels import patch_match, patch_vote
from context_encoder.inpainting.blending import remove_seam

__all__ = ["Settings", "add_texture", "with_texture"]

Image = NDArray[np.float32]
Fixed = NDArray[np.int16]
Mask = NDArray[np.bool_]

#: Units of the integers that patches are compared in, per level of 8 bits.
_UNITS = 4
#: Patches are searched for up to so far from a hole, in pixels and in sides of the hole.
_REACH, _REACH_SIDES = 96, 1.0
#: Holes that lie nearer to each other than this are filled together.
_APART = 16


@dataclass(frozen=True)
class Settings:
    """Parameters of the synthesis; colours in levels of 8 bits."""

    #: Of a patch: a square of 2 radius + 1 pixels.
    radius: int = 3
    #: Weight of a patch's distance from the guide on the coarsest level, and its factor from each
    #: level to the next finer one. More where the guide is better.
    guide_weight: float = 4.0
    guide_decay: float = 0.7
    #: The most that is added to a patch's colours to fit it to its target.
    max_offset: float = 30.0
    #: Weight of the texture channels, and the extent in pixels that they are averaged over.
    texture_weight: float = 10.0
    texture_sigma: float = 3.0
    #: Detail is what a Gaussian of so many pixels removes.
    detail_sigma: float = 2.0
    #: There is no level on which the hole's area is below the square of this.
    smallest_hole: float = 8.0
    #: Rounds of matching and voting on the coarsest and the finest level, in between in between.
    coarsest_rounds: int = 15
    finest_rounds: int = 4
    sweeps: int = 4
    #: A level is done when a round changes its pixels by less than this on average.
    tolerance: float = 0.1


def add_texture(
    image: Image,
    mask: Mask,
    guide: Image,
    *,
    strength: float = 0.7,
    settings: Settings | None = None,
    seed: int = 0,
    progress: Callable[[float], object] | None = None,
) -> Image:
    """Give the prediction of a hole the texture of its surroundings.

    Time and memory follow the area of the holes and of their neighbourhoods, not of the picture.
    The result depends on ``seed`` and not on the number of threads.

    Args:
        image: float32 ``(H, W, 3)``, 0 to 255; the hole is not looked at.
        mask: bool ``(H, W)``, True in the hole.
        guide: float32 ``(H, W, 3)``: the prediction, looked at in the hole only.
        strength: s from 0, the prediction, to 1, patches of the picture, the sharpest and the
            least accurate. In between, the result has s of the patches' detail and s^2 of their
            coarse structure, in which the prediction is more reliable.
        settings: parameters of the synthesis.
        seed: of the random search.
        progress: called after each step with the hole's pixels that it stands for; they add up to
            those of ``mask``. Whatever it raises ends the work.

    Returns:
        float32 ``(H, W, 3)``; outside the hole it is ``image``. Where no whole patch of known
        pixels is near, it is the prediction.
    """
    settings = settings or Settings()
    filled = np.where(mask[..., None], guide, image)
    result = filled.copy()
    for box, hole in _groups(mask):
        step = _Steps(progress, float(hole.sum()))
        crop = filled[box]
        patches = _synthesize(crop, mask[box], hole, settings, seed, step)
        if patches is not None:
            change = _meet(patches, crop, hole) - crop
            coarse = ndimage.gaussian_filter(change, (settings.detail_sigma,) * 2 + (0,))
            textured = crop + strength * (change - (1 - strength) * coarse)
            result[box][hole] = textured[hole]
        step.finish()
    return result


def with_texture(mask: Mask, radius: int = Settings.radius) -> Mask:
    """The pixels of the holes that have a whole patch of known pixels near, bool ``(H, W)``."""
    result = np.zeros_like(mask)
    for box, hole in _groups(mask):
        if _whole_patches(mask[box], radius).any():
            result[box] |= hole
    return result


def _whole_patches(missing: Mask, radius: int) -> Mask:
    """The centres of patches in which nothing is missing."""
    touched: Mask = ndimage.maximum_filter(missing, 2 * radius + 1, mode="constant", cval=True)
    return ~touched


class _Steps:
    """Reports shares of a hole's pixels."""

    def __init__(self, progress: Callable[[float], object] | None, pixels: float) -> None:
        self._progress, self._left, self._pixels = progress, pixels, pixels

    def __call__(self, share: float) -> None:
        done = min(share * self._pixels, self._left)
        self._left -= done
        if self._progress is not None:
            self._progress(done)

    def finish(self) -> None:
        self(1.0)


def _groups(mask: Mask) -> list[tuple[tuple[slice, slice], Mask]]:
    """Holes near to each other with their neighbourhood: a box, and the pixels of theirs in it."""
    # Nearness is judged on blocks, so that its cost does not grow with the distance.
    height, width = (-(-n // _APART) for n in mask.shape)
    padded = np.zeros((height * _APART, width * _APART), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(height, _APART, width, _APART).any((1, 3))
    labels, _ = ndimage.label(blocks, np.ones((3, 3)))
    groups = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        rough = tuple(slice(s.start * _APART, s.stop * _APART) for s in box)
        inside = np.kron(labels[box] == number, np.ones((_APART, _APART), bool))
        pixels = padded[rough] & inside
        ys, xs = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        top, bottom = rough[0].start + int(ys[0]), rough[0].start + int(ys[-1]) + 1
        left, right = rough[1].start + int(xs[0]), rough[1].start + int(xs[-1]) + 1
        reach = int(max(_REACH, _REACH_SIDES * max(bottom - top, right - left)))
        y = slice(max(0, top - reach), min(mask.shape[0], bottom + reach))
        x = slice(max(0, left - reach), min(mask.shape[1], right + reach))
        hole = np.zeros((y.stop - y.start, x.stop - x.start), bool)
        tight = pixels[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        hole[top - y.start : bottom - y.start, left - x.start : right - x.start] = tight
        groups.append(((y, x), hole))
    return groups


def _meet(patches: Image, image: Image, hole: Mask) -> Image:
    """The patches, corrected by a membrane over the hole so that around it they would be the image.

    They say something of the known pixels at the hole's edge too, so that what is mended is their
    error, not the contrast of pixels side by side.
    """
    off = np.where(hole[..., None], np.float32(0), image - patches)
    return patches + remove_seam(off, hole)


# --- one hole ---------------------------------------------------------------------------------


class _Level:
    """One level of the pyramid."""

    def __init__(self, image: Fixed, missing: Mask, hole: Mask, radius: int) -> None:
        self.image, self.missing, self.hole = image, missing, hole
        whole = np.zeros_like(hole)
        whole[radius : hole.shape[0] - radius, radius : hole.shape[1] - radius] = True
        self.source = _whole_patches(missing, radius)
        self.target = whole & ndimage.maximum_filter(hole, 2 * radius + 1, mode="constant")
        depth = np.rint(3 * ndimage.distance_transform_edt(hole))
        self.depth = np.minimum(depth, 1 << 14).astype(np.int16)

    def coarser(self, radius: int) -> _Level:
        """Means of 2 x 2 pixels; missing where any of them is."""
        height, width = (n // 2 * 2 for n in self.hole.shape)

        def four(a: NDArray[np.generic]) -> list[NDArray[np.generic]]:
            return [a[y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]

        total = sum(part.astype(np.int32) for part in four(self.image))
        missing, hole = (np.logical_or.reduce(four(m)) for m in (self.missing, self.hole))
        return _Level((np.asarray(total) + 2 >> 2).astype(np.int16), missing, hole, radius)


def _synthesize(
    image: Image, missing: Mask, hole: Mask, s: Settings, seed: int, step: Callable[[float], None]
) -> Image | None:
    """What patches say of the hole and of the pixels around it; None where there are no patches."""
    levels = [_Level(_fixed_point(image, missing, s), missing, hole, s.radius)]
    while True:
        level = levels[-1]
        if (
            np.count_nonzero(level.hole) < s.smallest_hole**2
            or min(level.hole.shape) // 2 < 2 * s.radius + 4
        ):
            break
        coarser = level.coarser(s.radius)
        if np.count_nonzero(coarser.source) < 32:
            break
        levels.append(coarser)
    if not levels[-1].source.any():
        return None
    generator = np.random.default_rng(seed)
    last = len(levels) - 1
    rounds = [
        round(s.finest_rounds + (s.coarsest_rounds - s.finest_rounds) * index / last)
        if last
        else s.coarsest_rounds
        for index in range(len(levels))
    ]
    work = [n * np.count_nonzero(lv.target) for n, lv in zip(rounds, levels, strict=True)]
    image_now: Fixed | None = None
    field: NDArray[np.int32] | None = None
    for index in range(last, -1, -1):
        level = levels[index]
        weight = s.guide_weight * s.guide_decay ** (last - index)
        run = _Rounds(level, weight, s, seed, index << 16)
        drawn = generator.choice(np.flatnonzero(level.source), level.hole.shape)
        drawn = np.where(level.target, drawn, -1).astype(np.int32)
        if image_now is None or field is None:
            image_now, field = level.image, drawn
        else:
            image_now, field = run.enlarge(image_now, field, drawn)
        for number in range(rounds[index]):
            before = image_now
            field, cost = run.match(image_now, field, s.sweeps)
            image_now = run.vote(image_now, field, cost)
            step(work[index] / (sum(work) * rounds[index]))
            change = np.abs(before[level.hole, :3].astype(np.int32) - image_now[level.hole, :3])
            if change.mean() < s.tolerance * _UNITS:
                step((rounds[index] - number - 1) * work[index] / (sum(work) * rounds[index]))
                break
        if index == 0:
            field, cost = run.match(image_now, field, 1)
            image_now = run.vote(image_now, field, cost, final=True)
    assert image_now is not None
    said = ndimage.binary_dilation(hole)[..., None]
    return np.where(said, image_now[..., :3].astype(np.float32) / _UNITS, image)


class _Rounds:
    """Matching and voting on one level."""

    def __init__(
        self, level: _Level, guide_weight: float, s: Settings, seed: int, first_sweep: int
    ) -> None:
        self._level, self._radius, self._sweep = level, s.radius, first_sweep
        self._source, self._hole, self._depth = (
            torch.from_numpy(part) for part in (level.source, level.hole, level.depth)
        )
        self._wider = torch.from_numpy(ndimage.binary_dilation(level.hole))
        self._guide = torch.from_numpy(np.ascontiguousarray(level.image[..., :3]))
        self._offset = round(s.max_offset * _UNITS)
        self._weight, self._seed = round(16 * guide_weight), seed

    def match(
        self, image: Fixed, field: NDArray[np.int32], sweeps: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        matched, cost = patch_match(
            torch.from_numpy(image),
            self._guide,
            self._source,
            torch.from_numpy(field),
            radius=self._radius,
            guide_weight=self._weight,
            max_offset=self._offset,
            sweeps=sweeps,
            first_sweep=self._sweep,
            seed=self._seed,
        )
        self._sweep += sweeps
        return matched.numpy(), cost.numpy()

    def vote(
        self,
        image: Fixed,
        field: NDArray[np.int32],
        cost: NDArray[np.int32],
        *,
        final: bool = False,
    ) -> Fixed:
        """The hole voted for; at last also the pixels beside it, each by the best patch."""
        voted: Fixed = patch_vote(
            torch.from_numpy(image),
            torch.from_numpy(field),
            torch.from_numpy(cost),
            self._wider if final else self._hole,
            self._depth,
            radius=self._radius,
            max_offset=self._offset,
            best=final,
        ).numpy()
        return voted

    def enlarge(
        self, image: Fixed, field: NDArray[np.int32], drawn: NDArray[np.int32]
    ) -> tuple[Fixed, NDArray[np.int32]]:
        """The next coarser level's field on this one, and the image that it votes for.

        Patches without a match that fits get those of ``drawn``.
        """
        height, width = self._level.hole.shape
        rows, columns = field.shape
        r = self._radius
        y, x = np.nonzero(self._level.target)
        above, left = np.clip(y // 2, r, rows - 1 - r), np.clip(x // 2, r, columns - 1 - r)
        match = field[above, left]
        sy = np.clip(match // columns * 2 + y - 2 * above, r, height - 1 - r)
        sx = np.clip(match % columns * 2 + x - 2 * left, r, width - 1 - r)
        fits = (match >= 0) & self._level.source[sy, sx]
        enlarged = drawn.copy()
        enlarged[y[fits], x[fits]] = (sy * width + sx)[fits]
        grid = np.ix_(
            np.minimum(np.arange(height) // 2, rows - 1),
            np.minimum(np.arange(width) // 2, columns - 1),
        )
        coarse = np.where(self._level.hole[..., None], image[grid], self._level.image)
        # All patches count alike: their distance from a blurred image would say little.
        return self.vote(coarse, enlarged, np.ones_like(enlarged)), enlarged


def _fixed_point(image: Image, missing: Mask, s: Settings) -> Fixed:
    """Colours and texture channels as integers."""
    texture = _texture_channels(image, missing, s.texture_sigma) * s.texture_weight**0.5
    channels = np.concatenate((image, texture), 2) if s.texture_weight > 0 else image
    return np.clip(np.rint(channels * _UNITS), 0, 255 * _UNITS).astype(np.int16)


def _texture_channels(image: Image, missing: Mask, sigma: float) -> Image:
    """How much known pixels change to the right and down, smoothed, continued into the hole."""
    grey = image.mean(2)
    known = ndimage.minimum_filter(~missing, 3).astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(known, sigma), 1e-3)
    changes = [np.abs(np.diff(grey, axis=axis, append=grey.take([-1], axis))) for axis in (1, 0)]
    smooth = [ndimage.gaussian_filter(change * known, sigma) / weight for change in changes]
    channels = np.where(missing[..., None], 0, np.stack(smooth, 2)).astype(np.float32)
    return remove_seam(channels, missing)
