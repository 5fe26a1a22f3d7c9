"""Times of docs/filling.md: how long fills take, beside OpenCV's.

    python tools/fill_times.py [--rounds 3] [--out docs/results/fill-times.json]

Each fill runs in this process after a first one of a small image, so that start-up is left out;
the methods of a case take turns, and the least time of the rounds counts. The images are the
included photograph sklearn_china, enlarged, which changes no time.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from context_encoder import HoleFiller
from context_encoder.data import embedded_photos, read_image

Mask = NDArray[np.uint8]


def square(height: int, width: int, side: int) -> Mask:
    """One square hole in the middle."""
    mask = np.zeros((height, width), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    mask[top : top + side, left : left + side] = 255
    return mask


def specks(height: int, width: int, count: int) -> Mask:
    """Discs of 2 to 6 pixels across."""
    rng = np.random.default_rng(0)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(count):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(mask, centre, int(rng.integers(1, 4)), 255, -1)
    return mask


CASES: dict[str, Mask] = {
    "one hole of 112 x 112 pixels, 1000 x 700": square(700, 1000, 112),
    "750 specks, 1500 x 1000": specks(1000, 1500, 750),
    "18,000 specks, 7348 x 4900 (36 megapixels)": specks(4900, 7348, 18_000),
}


def methods(image: NDArray[np.uint8], mask: Mask) -> dict[str, Callable[[], object]]:
    """The fills that are timed; images are RGB, 8 bits."""
    filler, without = HoleFiller(), HoleFiller(texture="off")

    def fsr() -> None:
        out = np.empty_like(image)
        cv2.xphoto.inpaint(image, 255 - mask, out, cv2.xphoto.INPAINT_FSR_FAST)

    found: dict[str, Callable[[], object]] = {
        "HoleFiller": lambda: filler(image, mask),
        "HoleFiller, texture off": lambda: without(image, mask),
        "OpenCV Telea": lambda: cv2.inpaint(image, mask, 3, cv2.INPAINT_TELEA),
    }
    if image.shape[0] * image.shape[1] < 4e6:
        found["OpenCV xphoto FSR_FAST"] = fsr
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    (path,) = embedded_photos().glob("sklearn_china*")
    photo = np.array(read_image(path))
    seconds: dict[str, dict[str, float]] = {}
    HoleFiller()(photo, square(photo.shape[0], photo.shape[1], 32))
    for case, mask in CASES.items():
        size = mask.shape[1], mask.shape[0]
        image = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        calls = methods(image, mask)
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(options.rounds):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - began)
        seconds[case] = {name: round(value, 2) for name, value in best.items()}
        print(case, seconds[case], flush=True)
    if options.out:
        machine = (
            f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        content = {"machine": machine, "rounds": options.rounds, "seconds": seconds}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
