"""Train the weights that ship with the package: the network that fills holes.

    python tools/train_fill_weights.py --out weights.safetensors --photos FOLDER --keep-out 10 ...

The photographs that ship take part always, without the 8 that the package holds out. Of every
--photos folder the files are sorted by the SHA-256 of their names, and the first --keep-out of
them (one number per folder) are left out for evaluation.

A run ends after --steps, or at a time of day (--until 02:15), to which the schedule then adapts.
Every --save-every steps, and on SIGTERM, two files are written, each whole or not at all: --out,
averaged weights in half precision (what the package loads), and --out with the suffix .training,
everything that is needed to go on. The same command goes on from there. Where only --out is left,
--init takes it: weights continue, Adam's moments start afresh. --grow makes the network of half
the size in --init one of --size first.

Needs opencv-contrib-python-headless. A processor with bfloat16 (--bfloat16) takes 0.6 of the time.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from context_encoder.data import embedded_photos, list_images, read_image, split_photos
from context_encoder.masks import BlobMasks, RegionMasks, silhouettes
from context_encoder.models.membrane_unet import MembraneUNet
from context_encoder.pretexts.losses import log_l2_loss

FORMAT_VERSION = 1
VAL_FRACTION = 0.18  # that of context_encoder.train
LONGEST_SHORT_SIDE = 512

#: Kinds of hole and how often they are drawn.
HOLES = {
    "box": 0.4,
    "boxes": 0.1,
    "strokes": 0.12,
    "region": 0.23,
    "blob": 0.05,
    "central": 0.1,
}
GRADIENT_NORM = 5.0


class HoleMixture:
    """Holes as people make them, bool ``(B, 1, S, S)``.

    * box: a rectangle, half of them square, of 1/6 to 1/2 of the side, mostly near the middle,
      where windows put a hole; central: a square in the middle, of 1/3 to 1/2 of the side
    * boxes: 2 to 6 rectangles of up to 1/4 of the side anywhere
    * strokes: 1 to 4 polylines, 1 to 10 % of the side thick
    * region, blob: the masks of the paper and of the released code
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.samplers = {
            "region": RegionMasks(size, seed, silhouettes()),
            "blob": BlobMasks(size, seed),
        }
        self.drawn = 0

    def __call__(self, count: int, rng: np.random.Generator) -> Tensor:
        kinds = rng.choice(list(HOLES), size=count, p=list(HOLES.values()))
        masks = np.zeros((count, self.size, self.size), bool)
        for kind, sampler in self.samplers.items():
            chosen = np.flatnonzero(kinds == kind)
            if len(chosen):
                numbers = torch.arange(self.drawn, self.drawn + len(chosen))
                mask, _ = sampler(torch.zeros_like(numbers), numbers)
                masks[chosen] = mask[:, 0].numpy()
                self.drawn += len(chosen)
        draw = {
            "box": self._box,
            "central": self._central,
            "boxes": self._boxes,
            "strokes": self._strokes,
        }
        third, half = self.size // 3, self.size // 2
        for mask, kind in zip(masks, kinds, strict=True):
            if kind in draw:
                draw[kind](mask, rng)
            if not mask.any():
                mask[third:half, third:half] = True
        return torch.from_numpy(masks)[:, None]

    def _box(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
        size = self.size
        side = rng.uniform(1 / 6, 1 / 2) * size
        ratio = math.exp(rng.normal(0, 0.25)) if rng.random() < 0.5 else 1.0
        height, width = (
            int(np.clip(round(s), 2, 0.7 * size)) for s in (side * ratio, side / ratio)
        )
        if rng.random() < 0.15:
            top, left = (
                rng.integers(0, size - height + 1),
                rng.integers(0, size - width + 1),
            )
        else:
            top, left = (
                int(np.clip(round((size - s) / 2 + rng.normal(0, 0.12) * size), 0, size - s))
                for s in (height, width)
            )
        mask[top : top + height, left : left + width] = True

    def _central(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
        side = round(rng.uniform(1 / 3, 1 / 2) * self.size)
        first = (self.size - side) // 2
        mask[first : first + side, first : first + side] = True

    def _boxes(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
        for _ in range(rng.integers(2, 7)):
            height, width = (max(1, int(s)) for s in rng.uniform(0.04, 0.25, 2) * self.size)
            top = rng.integers(0, self.size - height + 1)
            left = rng.integers(0, self.size - width + 1)
            mask[top : top + height, left : left + width] = True

    def _strokes(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
        canvas = np.zeros(mask.shape, np.uint8)
        for _ in range(rng.integers(1, 5)):
            start = rng.uniform(0, self.size, (1, 2))
            moves = rng.normal(0, 0.2 * self.size, (rng.integers(2, 7), 2))
            points = np.concatenate((start, moves)).cumsum(0).astype(np.int32)
            thickness = max(1, int(rng.uniform(0.01, 0.1) * self.size))
            cv2.polylines(canvas, [points], False, 1, thickness)
        mask |= canvas > 0


class RandomCrops:
    """Square crops of photographs in memory, uint8 ``(B, 3, S, S)``.

    Photographs are kept with a short side of at most 512 pixels. The side of a crop is drawn
    evenly on a logarithmic scale between S and the short side, so nothing is enlarged (except
    photographs smaller than S); half of the crops are mirrored.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.size = size
        self.photos = [_read(path) for path in paths]

    def __call__(self, count: int, rng: np.random.Generator) -> Tensor:
        size = self.size
        crops = np.empty((count, size, size, 3), np.uint8)
        for crop, number in zip(crops, rng.choice(len(self.photos), count), strict=True):
            photo = self.photos[number]
            height, width = photo.shape[:2]
            short = min(height, width)
            side = round(math.exp(rng.uniform(math.log(min(size, short)), math.log(short))))
            top, left = (
                rng.integers(0, height - side + 1),
                rng.integers(0, width - side + 1),
            )
            square = photo[top : top + side, left : left + side]
            if side != size:
                how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
                square = cv2.resize(square, (size, size), interpolation=how)
            crop[:] = square[:, ::-1] if rng.random() < 0.5 else square
        return torch.from_numpy(crops).permute(0, 3, 1, 2)


def training_files(folders: Sequence[Path], keep_out: Sequence[int]) -> list[Path]:
    """The files to train on, by the rule of this module's docstring."""
    root = embedded_photos()
    train, _ = split_photos(list_images(root), root, VAL_FRACTION)
    for folder, first in zip(folders, keep_out, strict=True):
        files = sorted(
            list_images(folder),
            key=lambda path: hashlib.sha256(path.name.encode()).hexdigest(),
        )
        train += files[first:]
    return train


def load_weights(path: Path) -> MembraneUNet:
    """The network of a weights file, float32."""
    with safe_open(path, "pt") as file:
        network = MembraneUNet(int(file.metadata()["image_size"]))
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return network


def save_weights(network: MembraneUNet, path: Path, steps: int) -> None:
    """Half precision, whole or not at all."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    metadata = {
        "format": str(FORMAT_VERSION),
        "model": "membrane-unet",
        "image_size": str(network.image_size),
        "steps": str(steps),
    }
    new = path.with_name(f".{path.name}.new")
    save_file(tensors, new, metadata=metadata)
    os.replace(new, path)


@torch.no_grad()
def follow(average: MembraneUNet, network: MembraneUNet, decay: float) -> None:
    """Move the averaged weights (and statistics) towards the present ones."""
    ours, theirs = average.state_dict(), network.state_dict()
    names = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_([ours[n] for n in names], [theirs[n] for n in names], 1 - decay)


def train(args: argparse.Namespace) -> None:
    files = training_files(args.photos, args.keep_out)
    torch.manual_seed(args.seed)
    network = MembraneUNet(args.size)
    if args.init:
        network = load_weights(args.init)
        if args.grow:
            network = network.grown()
        if network.image_size != args.size:
            sys.exit(f"{args.init} is of {network.image_size} pixels, --size {args.size}")
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
    )
    state_path = args.out.with_suffix(".training")
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    crops = RandomCrops(files, args.size)
    holes = HoleMixture(args.size, args.seed + first)
    rng = np.random.default_rng([args.seed, args.size, first])
    print(f"{len(files)} photographs, {args.size} pixels, from step {first}", flush=True)

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    began = time.time()
    end = _next(args.until) if args.until else None
    gains: list[Tensor] = []
    step = first
    while not stopped:
        part = step / args.steps if end is None else (time.time() - began) / (end - began)
        if part >= 1:
            break
        warm = min(1.0, (step - first + 1) / args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * schedule(part, args.decay)
        image = crops(args.batch_size, rng).float() / 127.5 - 1
        mask = holes(args.batch_size, rng)
        with torch.no_grad():
            start = network.starting_point(image, mask)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            correction = network.correction(start, mask)
        loss = log_l2_loss(start + correction, image, mask)
        with torch.no_grad():
            gains.append((log_l2_loss(start, image, mask) - loss) * 10 / math.log(10))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimizer.step()
        step += 1
        follow(average, network, min(args.average, (step - first) / (step - first + 9)))
        if step % args.save_every == 0:
            print(
                f"step {step}: {torch.stack(gains).mean():+.3f} dB over the membrane in training, "
                f"{time.time() - began:.0f} s",
                flush=True,
            )
            gains.clear()
            _save(args.out, state_path, network, average, optimizer, step)
    _save(args.out, state_path, network, average, optimizer, step)


def schedule(part: float, decay: float) -> float:
    """Constant, then linearly to 0 over the last ``decay`` of the run."""
    return max(1e-3, min(1.0, (1 - part) / decay)) if decay else 1.0


def _save(
    out: Path,
    state_path: Path,
    network: MembraneUNet,
    average: MembraneUNet,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    state = {
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    new = state_path.with_name(f".{state_path.name}.new")
    torch.save(state, new)
    os.replace(new, state_path)
    save_weights(average, out, step)


def _read(path: Path) -> NDArray[np.uint8]:
    photo = read_image(path, min_side=LONGEST_SHORT_SIDE)
    short = min(photo.size)
    if short > LONGEST_SHORT_SIDE:
        width, height = (max(1, round(n * LONGEST_SHORT_SIDE / short)) for n in photo.size)
        photo = photo.resize((width, height), Image.Resampling.HAMMING, reducing_gap=3.0)
    return np.array(photo)


def _next(clock: str) -> float:
    """The next time that the clock shows HH:MM."""
    today = time.strftime("%Y-%m-%d ")
    end = time.mktime(time.strptime(today + clock, "%Y-%m-%d %H:%M"))
    return end if end > time.time() else end + 86400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    parser.add_argument("--keep-out", type=int, nargs="*", default=[])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--until", help="HH:MM, instead of --steps")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.2, help="part of the run, 0 for none")
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    args = parser.parse_args()
    if len(args.photos) != len(args.keep_out):
        parser.error("--keep-out takes one number per folder of --photos")
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
