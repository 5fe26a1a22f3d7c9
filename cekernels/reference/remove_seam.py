"""The harmonic correction that makes a filled hole meet its surroundings."""

from __future__ import annotations

import torch
from torch import Tensor


def remove_seam(image: Tensor, mask: Tensor) -> Tensor:
    """``image`` plus the correction, by a dense system in float64: for small holes.

    With n neighbours (of 4) in the image, pixel i of the hole has
    ``n c[i] - sum of c over its neighbours in the hole = sum of (image[j] - image[i]) over its
    known neighbours j``.
    """
    output = image.clone()
    for sample in range(image.shape[0]):
        hole = mask[sample, 0] != 0
        count = int(hole.sum())
        if count == hole.numel():
            continue  # nothing is known
        number = torch.full(hole.shape, -1, dtype=torch.int64, device=image.device)
        number[hole] = torch.arange(count, device=image.device)
        matrix = torch.zeros(count, count, dtype=torch.float64, device=image.device)
        right = torch.zeros(count, image.shape[1], dtype=torch.float64, device=image.device)
        pixels = image[sample].double().movedim(0, -1)
        for here, there in _neighbours():
            i, j = number[here], number[there]
            meets = i >= 0
            matrix[i[meets], i[meets]] += 1
            inner, edge = meets & (j >= 0), meets & (j < 0)
            matrix[i[inner], j[inner]] -= 1
            right[i[edge]] += pixels[there][edge] - pixels[here][edge]
        correction = torch.linalg.solve(matrix, right)
        output[sample][:, hole] = (pixels[hole] + correction).T.to(image.dtype)
    return output


def _neighbours() -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    everything, first, last = slice(None), slice(1, None), slice(None, -1)
    pairs = (((everything, last), (everything, first)), ((last, everything), (first, everything)))
    return [pair for a, b in pairs for pair in ((a, b), (b, a))]
