"""Defaults and checks that complete a configuration before training."""

from __future__ import annotations

import math
import os

from context_encoder.config import TrainConfig, in_words
from context_encoder.config.train_config import MOST_STEPS
from context_encoder.models import MODELS, check_image_size
from context_encoder.pretexts import PRETEXTS, find_pretext
from context_encoder.runs.photos import Photos


def resolve(config: TrainConfig, photos: Photos) -> TrainConfig:
    """Fill in the open values of a configuration, and check that its parts fit.

    Args:
        config: the configuration of a run.
        photos: its files, for the number of steps per epoch.

    Returns:
        A copy in which ``size``, ``resize``, ``steps``, ``workers`` and the pretext's options
        have values, and ``epochs`` is None.

    Raises:
        ValueError: parts do not fit, such as a size or pretext that the model cannot handle.
    """
    model, task = MODELS[config.model], PRETEXTS[config.pretext]
    size = config.size or model.image_size
    check_image_size(config.model, size)
    for option, least in (
        (f"`model` {config.model}", model.min_batch),
        (f"`pretext` {config.pretext}", task.min_batch),
    ):
        if config.batch_size < least:
            raise ValueError(
                f"{option} normalises over the batch; `batch_size` must be at least {least}"
            )
        if config.batch_size < least * config.accumulate:
            raise ValueError(
                f"{option} normalises over each of the `accumulate` {config.accumulate} parts of a "
                f"batch; `batch_size` must be at least {least * config.accumulate}"
            )
    if task.whole_output and not model.whole:
        raise ValueError(
            f"`pretext` {config.pretext} reconstructs the whole image, `model` {config.model} "
            "predicts the central region only; use `model` "
            f"{in_words(MODELS.names(lambda spec: spec.whole))}"
        )
    if not (task.fills_holes or model.gives_features):
        raise ValueError(
            f"`pretext` {config.pretext} trains on images without holes, `model` {config.model} "
            "needs the mask of a hole; use `model` "
            f"{in_words(MODELS.names(lambda spec: spec.gives_features))}"
        )
    pretext = find_pretext(config.pretext)
    config = config.model_copy(update={"size": size})
    config = config.model_copy(update=pretext.resolve(config))
    crop = pretext.crop_size(config)
    resize = config.resize or 2 * size
    if resize < crop:
        what = "the crops that the patches are cut from" if crop != size else "`size`"
        raise ValueError(f"`resize` {resize} is smaller than the network's input, {what}: {crop}")
    steps = config.steps
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * len(photos.train) / config.batch_size))
        if steps > MOST_STEPS:
            raise ValueError(f"`epochs` {config.epochs:g} are {steps:g} steps; use fewer")
    workers = config.workers
    if workers is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(8, (os.cpu_count() or 1) // local) if model.data_processes else 0
    most = max(32, 4 * (os.cpu_count() or 1))
    if workers > most:
        raise ValueError(
            f"`workers` {workers} are too many for {os.cpu_count()} CPUs; use at most {most}"
        )
    _check_memory(config.batch_size, size)
    update = {"resize": resize, "steps": steps, "epochs": None, "workers": workers}
    return config.model_copy(update=update)


def _check_memory(batch_size: int, size: int) -> None:
    """ValueError if not even the images of a batch and their outputs fit into the memory."""
    images = 2 * 4 * 3 * batch_size * size**2  # input and output, float32
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    local = images // int(os.environ.get("WORLD_SIZE", 1))
    if local > memory:
        raise ValueError(
            f"`batch_size` {batch_size} needs {local / 1e9:.0f} GB for its images of {size} pixels "
            f"alone, this machine has {memory / 1e9:.0f} GB; lower it or `size`"
        )
