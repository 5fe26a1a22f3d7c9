"""Photographs and runs that are small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from context_encoder.config import TrainConfig
from context_encoder.runs import Checkpoint, Photos, RunFolder, model_from_config
from context_encoder.training.resolve import resolve
from context_encoder.training.trainer import Trainer
from context_encoder.utils.device import Processes

#: Options of a training command that takes seconds.
TINY = "--size 32 --batch-size 4 --workers 0 --device cpu --val-samples 6 --log-every 2".split()


def save_photos(
    root: Path,
    count: int,
    seed: int = 0,
    *,
    coarse: tuple[int, int] = (4, 5),
    folders: Sequence[str] = ("",),
) -> list[Path]:
    """Smooth images of 80 x 60 pixels, distributed over the folders in turn."""
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        paths.append(root / folders[i % len(folders)] / f"{i}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (*coarse, 3), dtype=np.uint8))
        image.resize((80, 60), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def save_untrained(run: Path, seed: int, **options: Any) -> Path:
    """A run folder as training writes it, with initial weights recorded as step 3.

    The network is the small one, unless the options name another.
    """
    config = TrainConfig(**{"size": 32, "preset": "laptop", **options})
    torch.manual_seed(seed)
    weights = model_from_config(config).state_dict()
    folder = RunFolder(run)
    checkpoint = Checkpoint(weights, None, {"empty": torch.zeros(1)}, {"step": 3})
    for which in ("best", "last"):
        folder.save(which, checkpoint, config)
    return run


def make_trainer(photos: Path, **options: Any) -> Trainer:
    common = {"size": 32, "batch_size": 4, "workers": 0, "val_samples": 4, "data": photos}
    config = TrainConfig(**{**common, "preset": "laptop", **options})
    files = Photos.from_config(config)
    return Trainer(resolve(config, files), files, torch.device("cpu"), Processes())
