"""What is settled and checked before a run begins: files, sizes, device, processes."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, list_images, split_photos
from context_encoder.models import check_image_size, default_image_size
from context_encoder.pretexts import PRETEXTS


@dataclass(frozen=True)
class Processes:
    """This process among those that train together (torchrun sets the environment)."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        return cls(
            int(os.environ.get("RANK", 0)),
            int(os.environ.get("LOCAL_RANK", 0)),
            int(os.environ.get("WORLD_SIZE", 1)),
        )

    @property
    def first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Photos:
    """The files to train on and those held out."""

    train: list[Path]
    train_root: Path
    val: list[Path]
    val_root: Path

    @classmethod
    def from_config(cls, config: TrainConfig) -> Photos:
        """List and split; FileNotFoundError, NotADirectoryError or ValueError say what is wrong."""
        root = embedded_photos() if config.data is None else config.data
        files = list_images(root)
        if config.val_data is not None:
            held_out = config.val_data.resolve()
            # Pictures held out in a folder inside --data must not be trained on.
            files = [file for file in files if held_out not in file.resolve().parents]
            if not files:
                raise ValueError(f"no photograph in --data {root} lies outside --val-data")
            return cls(files, root, list_images(config.val_data), config.val_data)
        train, val = split_photos(files, root, config.val_fraction)
        return cls(train, root, val, root)

    def digest(self) -> str:
        """Changes when the names of the training files do: the stream of samples hangs on them."""
        names = [file.relative_to(self.train_root).as_posix() for file in self.train]
        return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def resolve(config: TrainConfig, photos: Photos) -> TrainConfig:
    """Fill in what the configuration leaves to be chosen, and check that its parts fit.

    Raises:
        ValueError: a size the model cannot take, a pretext that does not fit it, and the like.
    """
    size = config.size or default_image_size(config.model)
    check_image_size(config.model, size)
    if config.model in ("center", "random") and config.batch_size == 1:
        raise ValueError(
            f"--model {config.model} normalises over the batch; --batch-size must be at least 2"
        )
    pretext = PRETEXTS[config.pretext]
    config = config.model_copy(update={"size": size})
    config = config.model_copy(update=pretext.resolve(config))
    crop = pretext.crop_size(config)
    resize = config.resize or 2 * size
    if resize < crop:
        what = "the crops that the patches are cut from" if crop != size else "--size"
        raise ValueError(f"--resize {resize} is smaller than the network's input, {what}: {crop}")
    steps = config.steps
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * len(photos.train) / config.batch_size))
    workers = config.workers
    if workers is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = 0 if config.model == "small" else min(8, (os.cpu_count() or 1) // local)
    update = {"resize": resize, "steps": steps, "epochs": None, "workers": workers}
    return config.model_copy(update=update)


def choose_device(name: str, processes: Processes) -> torch.device:
    """The device of this process; ValueError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if processes.world_size > 1 and ":" in name:
        raise ValueError(
            f"--device {name} names one device for {processes.world_size} processes; "
            "use --device cuda"
        )
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device {name}: this torch finds no CUDA device; use --device cpu")
        if ":" not in name:
            device = torch.device("cuda", processes.local_rank)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"--device {device}: there are only {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    return device
