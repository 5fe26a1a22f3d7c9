"""Holes filled by optimal linear prediction from the pixels around them.

Best for small holes, dust and scratches: unlike a membrane it continues edges and periodic texture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import threadpoolctl
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.linalg import cho_factor, cho_solve

from context_encoder.inpainting.blending import remove_seam

__all__ = ["predict_linearly"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Known pixels within this distance of the hole predict it, ...
_RING = 5
#: ... at most about so many: more would cost their cube. Then the ring is made thinner.
_MOST_KNOWN = 1500
#: Pixels around a hole whose covariance is measured.
_REACH = 24
#: Of the variance: how little a pixel is trusted, and the least variance, of levels of 8 bits.
_NOISE, _LEAST_VARIANCE = 0.003, 0.5
#: Pixels predicted at a time, which bounds the memory.
_AT_ONCE = 2048
#: Holes are predicted whole, except thin ones (at most twice this across): they in tiles.
_THIN, _TILE = 8, 32
#: Pieces of the hole that the threads get at a time.
_QUEUE = 256


def predict_linearly(
    image: Image,
    mask: Mask,
    *,
    only: Mask | None = None,
    progress: Callable[[int], object] | None = None,
) -> Image:
    """Fill holes with the linear prediction of least expected squared error (ordinary kriging).

    The colours around a hole are taken for a stationary random field with an unknown mean, one
    autocovariance for all channels: measured on the known pixels around the hole (the biased
    estimate, which is positive semidefinite). The prediction from a ring of known pixels then
    follows from a system of linear equations (Cressie 1993, Statistics for Spatial Data, section
    3.2). A hole whose ring has too many pixels is predicted at half the resolution first, and its
    seam removed. As many holes at a time as torch has threads; their number does not change the
    result.

    Args:
        image: float32 ``(H, W, C)``, 0 to 255; the hole is not looked at.
        mask: bool ``(H, W)``, True in the hole. Known pixels must be left.
        only: the holes to fill, whole ones of ``mask``; None: all.
        progress: called with the number of pixels after each piece of the hole.

    Returns:
        float32 ``(H, W, C)``; only pixels of the hole differ from ``image``. Not clipped.
    """
    filled = image.copy()
    pieces = _pieces(mask if only is None else only)
    # Small systems are slower on several threads, the more so the busier the machine is.
    one_each = threadpoolctl.threadpool_limits(1, user_api="blas")
    with one_each, ThreadPoolExecutor(torch.get_num_threads()) as threads:
        while some := list(islice(pieces, _QUEUE)):
            predicted = threads.map(lambda piece: _predict(image, mask, *piece), some)
            for (box, part), colors in zip(some, predicted, strict=True):
                filled[box][part] = colors
                if progress is not None:
                    progress(int(part.sum()))
    return filled


def _pieces(mask: Mask) -> Iterator[tuple[tuple[slice, slice], Mask]]:
    """Parts of the hole that are predicted together: a box, and the pixels in it."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        part = labels[box] == number
        if max(part.shape) <= 2 * _THIN or _depth(part) > _THIN:
            yield box, part
            continue
        for top in range(0, part.shape[0], _TILE):
            for left in range(0, part.shape[1], _TILE):
                tile = part[top : top + _TILE, left : left + _TILE]
                for inner in ndimage.find_objects(tile.astype(np.int8)):
                    y, x = (
                        slice(b.start + at + s.start, b.start + at + s.stop)
                        for b, at, s in zip(box, (top, left), inner, strict=True)
                    )
                    yield (y, x), tile[inner]


def _depth(part: Mask) -> float:
    return float(ndimage.distance_transform_edt(np.pad(part, 1)).max())


def _predict(image: Image, mask: Mask, box: tuple[slice, slice], part: Mask) -> Image:
    """The colours of the pixels of ``part``, ``(n, C)``."""
    reach = _REACH + max(part.shape) // 2
    window = tuple(
        slice(max(0, s.start - reach), min(length, s.stop + reach))
        for s, length in zip(box, mask.shape, strict=True)
    )
    missing = mask[window]
    wanted = np.zeros_like(missing)
    wanted[
        tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, window, strict=True))
    ] = part
    known = ~missing
    if not known.any():
        return np.broadcast_to(image[~mask].mean(0), (int(part.sum()), image.shape[2]))
    distance = ndimage.distance_transform_edt(~wanted)
    counts = np.array([np.count_nonzero(known & (distance <= d)) for d in range(1, _RING + 1)])
    fitting = np.flatnonzero(counts <= _MOST_KNOWN)
    if not len(fitting) or (fitting[-1] < 1 and min(missing.shape) >= 32):
        return _coarsely(image[window], missing, wanted)
    ring = known & (distance <= fitting[-1] + 1)
    if not ring.any():
        ring = known & (distance <= distance[known].min() + 1)
    return _krige(image[window].astype(np.float64), known, ring, wanted)


def _coarsely(image: Image, missing: Mask, wanted: Mask) -> Image:
    """Predicted at half the resolution, enlarged, made to meet the known pixels."""
    height, width = missing.shape
    pad = ((0, height % 2), (0, width % 2))
    gone = np.pad(missing, pad, mode="edge").reshape(-(-height // 2), 2, -(-width // 2), 2)
    weight = (~gone).astype(np.float32)[..., None]
    colors = np.pad(image, (*pad, (0, 0)), mode="edge").reshape(*gone.shape, image.shape[2])
    count = weight.sum((1, 3))
    small = (colors * weight).sum((1, 3)) / np.maximum(count, 1)
    small, gone_small = small.astype(np.float32), count[..., 0] == 0
    filled = small.copy()
    for box, part in _pieces(gone_small):
        filled[box][part] = _predict(small, gone_small, box, part)
    y, x = ((np.arange(n) - 0.5) / 2 for n in (height, width))
    grid = np.meshgrid(y, x, indexing="ij")
    large = np.stack(
        [
            ndimage.map_coordinates(filled[..., c], grid, order=1, mode="nearest")
            for c in range(image.shape[2])
        ],
        2,
    )
    return remove_seam(np.where(missing[..., None], large, image).astype(np.float32), missing)[
        wanted
    ]


def _krige(image: NDArray[np.float64], known: Mask, ring: Mask, wanted: Mask) -> Image:
    ky, kx = np.nonzero(ring)
    uy, ux = np.nonzero(wanted)
    farthest = int(max(np.ptp(np.r_[ky, uy]), np.ptp(np.r_[kx, ux]))) + 1
    covariance = _autocovariance(image, known, farthest)
    between = covariance[ky[:, None] - ky, kx[:, None] - kx]
    between[np.diag_indices_from(between)] += _NOISE * covariance[0, 0] + _LEAST_VARIANCE
    factor = cho_factor(between, overwrite_a=True, check_finite=False)
    one = np.ones((len(ky), 1))
    solved = cho_solve(factor, np.concatenate((image[ring], one), 1), check_finite=False)
    mean = solved[:, :-1].sum(0) / solved[:, -1].sum()
    weighted = solved[:, :-1] - solved[:, -1:] * mean
    predicted = [
        covariance[uy[part, None] - ky, ux[part, None] - kx] @ weighted + mean
        for part in (slice(start, start + _AT_ONCE) for start in range(0, len(uy), _AT_ONCE))
    ]
    return np.concatenate(predicted).astype(np.float32)


def _autocovariance(image: NDArray[np.float64], known: Mask, farthest: int) -> NDArray[np.float64]:
    """By lag, negative lags from the end; the mean over the channels."""
    # More zeros than the lags need, to a length that is transformed fast.
    shape = tuple(fft.next_fast_len(n + farthest, real=True) for n in known.shape)
    count = np.count_nonzero(known)
    colors = image.transpose(2, 0, 1)
    centred = np.where(known, colors - image[known].mean(0)[:, None, None], 0)
    spectrum = fft.rfft2(centred, shape)
    power = np.square(spectrum.real).sum(0) + np.square(spectrum.imag).sum(0)
    covariance: NDArray[np.float64] = fft.irfft2(power, shape) / (count * len(colors))
    return covariance
