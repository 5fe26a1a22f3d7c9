"""Checkpoint folders: contents, place in a run folder, and reading."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from context_encoder.config import TrainConfig
from context_encoder.utils.options import explain
from context_encoder.utils.text import read_text

Which = Literal["best", "last"]
MODEL_FILE = "model.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
TRAINING_FILE = "training.safetensors"
STATE_FILE = "state.json"
CONFIG_FILE = "config.json"


class RunError(ValueError):
    """A run or checkpoint folder is missing or cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint folder, apart from the configuration."""

    model: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None
    training: dict[str, Tensor]
    state: dict[str, Any]


def find_checkpoint(path: Path, which: Which = "best") -> Path:
    """The checkpoint folder for ``path``, a run folder or a checkpoint folder.

    Raises:
        RunError: there is no such folder, or no checkpoint in it.
    """
    if not path.exists():
        raise RunError(f"checkpoint {path} does not exist; name a run folder, such as runs/first")
    if path.is_file():
        raise RunError(f"checkpoint {path} is a file; name the run folder that contains it")
    if (path / MODEL_FILE).exists():
        return path
    # After an interruption between the two renames of a save, the previous checkpoint remains.
    for name in (which, f".{which}.old", "last", ".last.old"):
        if (path / "checkpoints" / name / MODEL_FILE).exists():
            return path / "checkpoints" / name
    raise RunError(
        f"{path} holds no checkpoint (looked for checkpoints/{which}/{MODEL_FILE}); a run writes "
        "its first one at its first validation"
    )


def run_root(path: Path) -> Path | None:
    """The run folder of a run or checkpoint folder; None for a checkpoint outside a run."""
    if (path / "checkpoints").is_dir():
        return path
    above = path.resolve().parent
    return above.parent if above.name == "checkpoints" else None


def read_config(folder: Path) -> TrainConfig:
    """The configuration in a run or checkpoint folder, or in a JSON file.

    Raises:
        RunError: the file is missing, or not a configuration of this version.
    """
    file = folder / CONFIG_FILE if folder.is_dir() else folder
    if not file.exists():
        raise RunError(f"{file} does not exist")
    try:
        return TrainConfig.model_validate_json(read_text(file))
    except ValidationError as error:
        reasons = "; ".join(explain(error))
        raise RunError(f"{file} is not a training configuration: {reasons}") from error
    except ValueError as error:
        raise RunError(f"{file} is not a training configuration: {error}") from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; tensors are on the CPU.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        discriminator = folder / DISCRIMINATOR_FILE
        return Checkpoint(
            model=load_file(folder / MODEL_FILE),
            discriminator=load_file(discriminator) if discriminator.exists() else None,
            training=load_file(folder / TRAINING_FILE),
            state=json.loads((folder / STATE_FILE).read_text()),
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from error


def optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{prefix}.{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer(prefix: str, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"optimizer.{prefix}."):
            index, name = key.split(".")[2:]
            if value.dim():
                # The fused kernel needs moments with the memory layout of their weights.
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
