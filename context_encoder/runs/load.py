"""Trained networks from run folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from context_encoder.config import TrainConfig, in_words
from context_encoder.models import Backbone
from context_encoder.pretexts import PRETEXTS, find_pretext
from context_encoder.runs.checkpoint import (
    MODEL_FILE,
    RunError,
    Which,
    find_checkpoint,
    read_config,
    read_model,
)
from context_encoder.runs.strict import MismatchError, check_tensors


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in eval mode, and the checkpoint that it was loaded from."""

    model: Backbone
    config: TrainConfig
    step: int
    path: Path


def model_from_config(config: TrainConfig) -> Backbone:
    """The network of a configuration, with fresh weights."""
    return find_pretext(config.pretext).build(config)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load a complete state dict.

    Raises:
        RunError: a weight is missing, unexpected, misshaped, of another dtype or not finite.
    """
    try:
        check_tensors(module.state_dict(), tensors)
    except MismatchError as error:
        raise RunError(f"{source} does not fit the network of its configuration: {error}") from None
    module.load_state_dict(dict(tensors))


def check_fills_holes(loaded: LoadedModel) -> None:
    """RunError unless the network was trained to fill holes."""
    pretext = loaded.config.pretext
    if not PRETEXTS[pretext].fills_holes:
        fillers = in_words(PRETEXTS.names(lambda spec: spec.fills_holes))
        raise RunError(
            f"{loaded.path} was trained with the pretext {pretext}, not to fill holes; "
            f"name a run of the pretext {fillers}, or use the features of this one: "
            "python -m context_encoder.features"
        )


def load_model(
    path: Path | str, *, which: Which = "best", device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load the trained network of a run folder or a checkpoint folder, whatever its pretext.

    Args:
        path: the folder.
        which: "best" or "last" checkpoint of a run folder.
        device: where to put the network.

    Raises:
        RunError: the checkpoint is missing, damaged or does not fit its configuration.
    """
    folder = find_checkpoint(Path(path), which)
    config = read_config(folder)
    model = model_from_config(config)
    weights, step = read_model(folder)
    load_weights(model, weights, folder / MODEL_FILE)
    return LoadedModel(model.to(device).eval(), config, step, folder)
