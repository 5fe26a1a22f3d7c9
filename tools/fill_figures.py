"""Figures of docs/filling.md: what fills of square holes are worth, beside other methods.

    python tools/fill_figures.py [FOLDER:COUNT ...] [--out docs/results/fills.json]

Photographs: the 8 included ones that the default run holds out, and of each FOLDER the COUNT files
whose base names have the smallest SHA-256. A photograph whose short side is longer than 384
pixels is scaled to 384, then the centre 256 x 256 is cut out. Photographs count from 0, those of
the folders first; number i has a square hole of (24, 48, 80, 112)[i % 4] pixels, at least 16 pixels
from the edges, whose place is drawn by SHA-256 of "<base name>:top" and "<base name>:left".

Measures, of 8-bit pixels: PSNR in the hole in dB and the EfficientNet-Lite0 feature distance of the
whole crop, as means over photographs. OpenCV's xphoto methods need opencv-contrib-python-headless.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from context_encoder import HoleFiller
from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, list_images, split_photos
from context_encoder.evaluation.perceptual import FeatureDistance
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.membrane_network import predict_holes

SIZE, SHORT_SIDE, MARGIN = 256, 384, 16
HOLES = (24, 48, 80, 112)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A crop uint8 (256, 256, 3) with one hole, True in the mask (256, 256)."""

    image: Pixels
    mask: Mask
    hole: int


def by_hash(files: Sequence[Path]) -> list[Path]:
    return sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).hexdigest())


def photographs(folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        path, _, count = folder.rpartition(":")
        yield from by_hash(list_images(Path(path)))[: int(count)]
    root = embedded_photos()
    yield from by_hash(split_photos(list_images(root), root, TrainConfig().val_fraction)[1])


def make_case(number: int, file: Path) -> Case:
    image = Image.open(file).convert("RGB")
    short = min(image.size)
    if short > SHORT_SIDE:
        width, height = (round(side * SHORT_SIDE / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
    hole = HOLES[number % len(HOLES)]
    places = SIZE - hole - 2 * MARGIN + 1
    y, x = (
        MARGIN
        + int.from_bytes(hashlib.sha256(f"{file.name}:{axis}".encode()).digest()[:8], "big")
        % places
        for axis in ("top", "left")
    )
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + hole, x : x + hole] = True
    return Case(pixels, mask, hole)


def membrane(image: Pixels, mask: Mask) -> NDArray[Any]:
    return remove_seam(image.astype(np.float32), mask)


def included_network(image: Pixels, mask: Mask) -> NDArray[Any]:
    return predict_holes(image.astype(np.float32), mask)


def hole_filler(filler: HoleFiller) -> Callable[[Pixels, Mask], NDArray[Any]]:
    return lambda image, mask: np.asarray(filler(image, mask).image)


def telea(image: Pixels, mask: Mask) -> NDArray[Any]:
    import cv2

    return np.asarray(cv2.inpaint(image, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA))


def xphoto(image: Pixels, mask: Mask, method: str) -> NDArray[Any]:
    import cv2

    # SHIFTMAP takes the first channel for intensity; FSR takes blue first.
    shiftmap = method == "INPAINT_SHIFTMAP"
    there, back = (
        (cv2.COLOR_RGB2Lab, cv2.COLOR_Lab2RGB)
        if shiftmap
        else (cv2.COLOR_RGB2BGR, cv2.COLOR_BGR2RGB)
    )
    given = cv2.cvtColor(image, there)
    result = np.zeros_like(given)
    cv2.xphoto.inpaint(given, np.uint8(255) * ~mask, result, getattr(cv2.xphoto, method))
    return np.asarray(cv2.cvtColor(result, back))


def methods() -> dict[str, Callable[[Pixels, Mask], NDArray[Any]]]:
    found: dict[str, Callable[[Pixels, Mask], NDArray[Any]]] = {"membrane": membrane}
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed: its rows are missing")
    else:
        found["OpenCV Telea"] = telea
        if hasattr(cv2, "xphoto"):
            for name in ("FSR_FAST", "SHIFTMAP"):
                found[f"OpenCV xphoto {name}"] = lambda image, mask, name=name: xphoto(
                    image, mask, f"INPAINT_{name}"
                )
        else:
            print("xphoto is not installed (opencv-contrib-python-headless): its rows are missing")
    return found | {
        "included network alone": included_network,
        "linear prediction alone": hole_filler(HoleFiller(None, texture="off")),
        "`HoleFiller(None)`, without a network": hole_filler(HoleFiller(None)),
        "`HoleFiller()`": hole_filler(HoleFiller()),
    }


def measure(
    fill: Callable[[Pixels, Mask], NDArray[Any]], cases: Sequence[Case], network: FeatureDistance
) -> tuple[NDArray[np.float64], float]:
    """PSNR and distance per case ``(N, 2)``, and seconds per case."""
    filled, start = [], time.perf_counter()
    for case in cases:
        given = np.where(case.mask[..., None], np.uint8(0), case.image)
        result = np.clip(np.rint(fill(given, case.mask).astype(np.float64)), 0, 255)
        filled.append(np.where(case.mask[..., None], result.astype(np.uint8), case.image))
    seconds = (time.perf_counter() - start) / len(cases)
    rows = []
    for case, result in zip(cases, filled, strict=True):
        error = (result[case.mask].astype(np.float64) - case.image[case.mask]) / 255
        pair = torch.from_numpy(np.stack((result, case.image))).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            distance = float(network(pair[:1], pair[1:]))
        rows.append((-10 * np.log10(max(np.square(error).mean(), 1e-10)), distance))
    return np.array(rows), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER:COUNT")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cases = [make_case(i, file) for i, file in enumerate(photographs(options.folders))]
    holes = np.array([case.hole for case in cases])
    network = FeatureDistance()
    results: dict[str, Any] = {}
    columns = [*(f"{hole} px" for hole in HOLES), "all"]
    print(f"| fill | {' | '.join(columns)} |\n|{' --- |' * 6}")
    for name, fill in methods().items():
        scores, seconds = measure(fill, cases, network)
        chosen = [*(holes == hole for hole in HOLES), holes > 0]
        means = [scores[where].mean(0) for where in chosen]
        cells = (f"{db:.2f} / {distance:.4f}" for db, distance in means)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        results[name] = {
            column: {"psnr": round(float(db), 3), "distance": round(float(distance), 5)}
            for column, (db, distance) in zip(columns, means, strict=True)
        } | {"seconds per image": round(seconds, 3)}
    if options.out:
        content = {
            "machine": f"{platform.machine()}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads",
            "photographs": {str(hole): int((holes == hole).sum()) for hole in HOLES},
            "fills": results,
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
