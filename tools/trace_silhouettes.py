"""Tracing of the packaged outlines, context_encoder/masks/shapes/animals.npz.

    python tools/trace_silhouettes.py FILE.npz

FILE.npz holds the 10,000 silhouettes, 28 x 28, of the data set Animal-MNIST (Python package
animal-mnist 0.4, MIT licence): ``bits``, rows packed by ``numpy.packbits``, and the classes ``y``.
The result depends on that file only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, label

from cekernels import rasterize_polygons
from context_encoder.masks.outlines import trace_outline
from context_encoder.masks.region import UNIT

SIDE = 28
TARGET = Path(__file__).parents[1] / "context_encoder/masks/shapes/animals.npz"
PER_CLASS = 32
UPSAMPLING = 8  # lets blurring smooth the steps of the 28 x 28 grid
SMOOTHING = (0.055,)  # relative to the square root of the area: about 0.8 pixels of the grid
AREA = (0.12, 0.55)
LARGEST_OVERLAP = 0.77  # intersection over union, mirrored or not


def clean(bits: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """The silhouette as one solid part; None if it is fragmented, tiny or cut by the border."""
    parts, count = label(bits)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    solid: NDArray[np.bool_] = binary_fill_holes(parts == 1 + sizes.argmax())
    filled = solid.sum() - sizes.max()
    border = np.concatenate((solid[0], solid[-1], solid[:, 0], solid[:, -1]))
    if sizes.max() < 0.985 * sizes.sum() or filled > 0.01 * sizes.max() or border.mean() > 0.3:
        return None
    return solid if AREA[0] <= solid.mean() <= AREA[1] else None


def raster(outline: NDArray[np.int16]) -> NDArray[np.bool_]:
    """An outline and its mirror image on a coarse grid, flattened: (2, pixels)."""
    side = 40
    points = np.stack((outline, outline * np.array((-1, 1), np.int16)))
    centred = torch.from_numpy(points.astype(np.int32) * 256 * 12 // UNIT + side * 128)
    mask, _ = rasterize_polygons(
        centred.view(-1, 2),
        torch.arange(3) * len(outline),
        torch.arange(3),
        side,
        side,
        fill_rule="evenodd",
    )
    return mask.flatten(1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    with np.load(parser.parse_args().file, allow_pickle=False) as source:
        silhouettes = np.unpackbits(source["bits"], axis=-1)[..., :SIDE].astype(bool)
        classes = source["y"]

    outlines: list[NDArray[np.int16]] = []
    seen = np.zeros((0, 40 * 40), dtype=bool)
    for kind in np.unique(classes):
        taken = 0
        for bits in silhouettes[classes == kind]:
            solid = clean(bits)
            if solid is None:
                continue
            outline = trace_outline(np.kron(solid, np.ones((UPSAMPLING,) * 2, bool)), SMOOTHING)
            if outline is None:
                continue
            both = raster(outline)
            union = (seen | both[0]).sum(1)
            if len(seen) and ((seen & both[0]).sum(1) / union).max() > LARGEST_OVERLAP:
                continue
            seen = np.concatenate((seen, both))
            outlines.append(outline)
            taken += 1
            if taken == PER_CLASS:
                break
        print(f"class {kind}: {taken} outlines")
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, outlines=np.stack(outlines))
    print(f"{len(outlines)} outlines, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
