"""The membrane: the smoothest continuation of known pixels into a hole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["membrane", "without_seam"]

# Below this side nothing is gained from a coarser level.
_COARSEST = 4
# Jacobi steps: for the first guess at each level; before and after each coarser correction; at
# the coarsest level. Measured with 2 cycles on 40 crops of photographs, square holes of 9 to 44 %
# of the side: 0.7 levels of 255 (root mean square) from the exact solution at 64 pixels, 1.1 at
# 256.
_GUESS, _SMOOTHING, _LAST = 2, 2, 8
# A coarse pixel is known if one of its 2 x 2 pixels is, so the edge of the hole lies between 0 and
# 1/2 pixel off its centre, and the known neighbours of the correction, which are 0, are nearer than
# a pixel. Counting them 1 + 1/3 times is a compromise: with 1, cycles diverge for squares that
# the coarse pixels fit exactly; with 2, they converge half as fast for all others.
_NEARER = 1 / 3
# How far a step goes towards the mean of the neighbours: at 1 the finest pattern would stay.
_DAMPING = 0.9


def membrane(image: Tensor, mask: Tensor, cycles: int = 2) -> Tensor:
    """Fill the holes of a batch with the harmonic continuation of what is around them.

    In the hole each pixel is the mean of its 4 neighbours (Laplace's equation), with the known
    pixels next to the hole as boundary values; across the edge of the image the gradient is 0.
    Solved approximately by multigrid, for all images and colours at once:

    * A first guess from coarse to fine: a coarse pixel is the mean of the known ones among its 2 x
      2, missing if none is known; each level starts from the coarser one, enlarged bilinearly, and
      takes 2 damped Jacobi steps.
    * Then V-cycles, each of which leaves about half of the error: what the equation lacks is
      averaged to half the size, the correction solved for there (0 where one of the 2 x 2 pixels
      is known), enlarged and added, with 2 Jacobi steps before and after.

    Differentiable, on any device, without waiting for it. For the exact solution of a single
    image see :func:`cekernels.remove_seam`.

    Args:
        image: floating point ``(B, C, H, W)``; what it holds where the mask is set makes no
            difference (it may be NaN).
        mask: bool ``(B, 1, H, W)``, True where the image is missing.
        cycles: V-cycles, 0 or more.

    Returns:
        ``(B, C, H, W)``, equal to ``image`` outside the hole; 0 for an image of which nothing is
        known.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or ``cycles`` below 0.
    """
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point, got {image.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if image.dim() != 4 or mask.shape != (image.shape[0], 1, *image.shape[2:]):
        raise ValueError(
            "expected an image (B, C, H, W) and a mask (B, 1, H, W), "
            f"got {tuple(image.shape)} and {tuple(mask.shape)}"
        )
    if cycles < 0:
        raise ValueError(f"cycles must be 0 or more, got {cycles}")
    filled = _guess(torch.where(mask, 0, image.contiguous()), mask)
    for _ in range(cycles):
        filled = _cycle(filled, mask, None, None)
    return filled


def without_seam(image: Tensor, prediction: Tensor, mask: Tensor, cycles: int = 2) -> Tensor:
    """A batch with its holes filled by a prediction whose seam is removed, approximately.

    The smoothest correction that fits the prediction to the known pixels at the hole's edge, as
    :func:`cekernels.remove_seam` finds it exactly; solved as in :func:`membrane`.

    Args:
        image: floating point ``(B, C, H, W)``.
        prediction: of the same shape; what it holds outside the hole makes little difference.
        mask: bool ``(B, 1, H, W)``, True where the image is missing.
        cycles: V-cycles, 0 or more.

    Returns:
        ``(B, C, H, W)``, equal to ``image`` outside the hole.
    """
    missing = _neighbours(mask.to(image.dtype))
    # The prediction continued by one pixel beyond the hole; the edge's condition is met by pairs of
    # a known and a missing pixel, so what that is off for each pair is a source.
    beside = _neighbours(torch.where(mask, prediction, 0)) / missing.clamp(min=1)
    beside = torch.where(missing > 0, beside, prediction)
    source = _neighbours(torch.where(mask, 0, beside)) - (4 - missing) * prediction
    source = torch.where(mask, source, 0)
    correction = _guess(torch.where(mask, 0, image - beside), mask)
    for _ in range(cycles):
        correction = _cycle(correction, mask, source, None)
    return torch.where(mask, prediction + correction, image)


def _guess(known: Tensor, mask: Tensor) -> Tensor:
    """The filled image, roughly, from one whose holes are 0."""
    height, width = known.shape[2:]
    if min(height, width) <= _COARSEST:
        count = (~mask).sum((2, 3), keepdim=True).clamp(min=1)
        start = (known.sum((2, 3), keepdim=True) / count).expand_as(known)
    else:
        weight = _halved((~mask).to(known.dtype))
        # Nothing is divided by 0; where nothing is known the sum is 0 as well.
        coarse = _guess(_halved(known) / weight.clamp(min=0.25), weight == 0)
        start = _enlarged(coarse, height, width)
    return _smoothed(torch.where(mask, start, known), mask, None, None, _GUESS)


def _cycle(x: Tensor, mask: Tensor, source: Tensor | None, known: Tensor | None) -> Tensor:
    """One V-cycle for "x is the mean of its neighbours, plus source, wherever mask is set"."""
    height, width = x.shape[2:]
    if min(height, width) <= _COARSEST:
        return _smoothed(x, mask, source, known, _LAST)
    x = _smoothed(x, mask, source, known, _SMOOTHING)
    lacking = torch.where(mask, _lack(x, source, known), 0)
    # Halving the resolution makes differences of neighbours twice, second differences four times
    # as large.
    coarse_known = _halved((~mask).to(x.dtype)) > 0
    coarse = torch.where(coarse_known, 0, 4 * _halved(lacking))
    neighbours = _NEARER * _neighbours(coarse_known.to(x.dtype))
    correction = _cycle(torch.zeros_like(coarse), ~coarse_known, coarse, neighbours)
    x = torch.where(mask, x + _enlarged(correction, height, width), x)
    return _smoothed(x, mask, source, known, _SMOOTHING)


def _smoothed(
    x: Tensor, mask: Tensor, source: Tensor | None, known: Tensor | None, steps: int
) -> Tensor:
    weight: Tensor | float = 0.25 if known is None else 1 / (4 + known)
    step = mask * (_DAMPING * weight)
    for _ in range(steps):
        x = x + step * _lack(x, source, known)
    return x


def _lack(x: Tensor, source: Tensor | None, known: Tensor | None) -> Tensor:
    """What the equation lacks: neighbours and ``source``, less the pixel as often.

    ``known``: additional weight of the known neighbours, which are 0.
    """
    lack = _neighbours(x) - (4 if known is None else 4 + known) * x
    return lack if source is None else lack + source


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the 4 neighbours; beyond the edge lies the pixel itself."""
    y = F.pad(x, (1, 1, 1, 1), mode="replicate")
    if torch.compiler.is_exporting():  # one node of the graph instead of eleven, but slower here
        cross = y.new_tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).expand(y.shape[1], 1, 3, 3)
        return F.conv2d(y, cross, groups=y.shape[1])
    return y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:]


def _halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; odd sides are continued by one row or column of zeros."""
    height, width = x.shape[2:]
    return F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2)), 2)


def _enlarged(x: Tensor, height: int, width: int) -> Tensor:
    """Twice the size, bilinearly, without the added row or column."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")[..., :height, :width]
