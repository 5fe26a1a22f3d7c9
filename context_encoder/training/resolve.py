"""Defaults and checks that complete a configuration before training."""

from __future__ import annotations

import math
import os

from context_encoder.config import TrainConfig
from context_encoder.models import check_image_size, default_image_size
from context_encoder.pretexts import PRETEXTS
from context_encoder.runs.photos import Photos


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
