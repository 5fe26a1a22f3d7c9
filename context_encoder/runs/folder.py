"""The run folder: what a training run leaves behind, and how to read it again.

    run/
      config.json            the full configuration
      metrics.jsonl          one JSON object a line, "split" train or val
      log.txt                what the console said
      unreadable.jsonl       files that were skipped, and why (only if there are any)
      samples/               sheets of held-out pictures: original, masked, filled
      tensorboard/           event files
      checkpoints/last/      also best/: the lowest error in the hole of held-out pictures
        model.safetensors    encoder, bottleneck and decoder (relative-patch: encoder and head)
        discriminator.safetensors
        training.safetensors optimizer moments and random generators
        state.json           step, metrics, scalar state
        config.json          so that a checkpoint can be used alone

Everything is JSON, text, PNG or safetensors: nothing read from here can run code.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from context_encoder.config import TrainConfig, explain
from context_encoder.models import Backbone
from context_encoder.pretexts import PRETEXTS

Which = Literal["best", "last"]
_MODEL = "model.safetensors"
_DISCRIMINATOR = "discriminator.safetensors"
_TRAINING = "training.safetensors"
_STATE = "state.json"
_CONFIG = "config.json"


class RunError(ValueError):
    """A run or checkpoint folder that is not there or cannot be used; says what is wrong."""


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, in eval mode, and where it came from."""

    model: Backbone
    config: TrainConfig
    step: int
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds beside the configuration."""

    model: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None
    training: dict[str, Tensor]
    state: dict[str, Any]


class RunFolder:
    """Writes a run folder; nothing is written before :meth:`start`.

    Args:
        path: the folder.
        resume_step: None for a new run; else the step that the run there goes on from.

    Raises:
        RunError: a new run would write over something.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        if path.exists() and not path.is_dir():
            raise RunError(f"--out {path} is a file; name a folder")
        if resume_step is None and (path / "checkpoints").exists():
            raise RunError(
                f"{path} already holds a run; continue it with --resume {path}, or name another "
                "folder with --out"
            )
        self.path = path
        self.resume_step = resume_step
        self._metrics = path / "metrics.jsonl"

    def start(self, config: BaseModel) -> None:
        """Make the folder and write the configuration.

        A run that goes on loses the lines of ``metrics.jsonl`` behind its step: it makes them anew.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        _write_text(self.path / _CONFIG, config.model_dump_json(indent=2) + "\n")
        if self.resume_step is None:  # what a run without a checkpoint may have left
            for name in ("metrics.jsonl", "unreadable.jsonl", "log.txt"):
                (self.path / name).unlink(missing_ok=True)
        if self.resume_step is not None and self._metrics.exists():
            lines = self._metrics.read_text().splitlines()
            kept = [line for line in lines if _step(line) <= self.resume_step]
            _write_text(self._metrics, "".join(line + "\n" for line in kept))

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"split": split, "step": step, **values}, allow_nan=False) + "\n")

    def log_unreadable(self, path: Path, reason: str) -> None:
        """Name a file that was skipped."""
        with (self.path / "unreadable.jsonl").open("a") as file:
            file.write(json.dumps({"file": str(path), "reason": reason}) + "\n")

    def sample_path(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:07d}.png"

    def save(self, which: Which, checkpoint: Checkpoint, config: BaseModel) -> Path:
        """Write a checkpoint whole, then put it in the place of the previous one."""
        folder = self.path / "checkpoints" / which
        new, old = folder.with_name(f".{which}.new"), folder.with_name(f".{which}.old")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(_contiguous(checkpoint.model), new / _MODEL)
        if checkpoint.discriminator is not None:
            save_file(_contiguous(checkpoint.discriminator), new / _DISCRIMINATOR)
        save_file(_contiguous(checkpoint.training), new / _TRAINING)
        (new / _STATE).write_text(json.dumps(checkpoint.state, indent=2) + "\n")
        (new / _CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
        # On the disk before it takes the other's place, or a power cut could leave neither.
        for path in (*new.iterdir(), new):
            _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
        return folder


def _step(line: str) -> float:
    """The step of a line of metrics; infinite for one that was cut off in the writing."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    _sync(new)
    new.replace(path)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def find_checkpoint(path: Path, which: Which = "best") -> Path:
    """The checkpoint folder that ``path``, a run or a checkpoint folder, stands for.

    Raises:
        RunError: no such folder, or no checkpoint in it.
    """
    if not path.exists():
        raise RunError(f"checkpoint {path} does not exist; name a run folder, such as runs/first")
    if path.is_file():
        raise RunError(f"checkpoint {path} is a file; name the run folder it lies in")
    if (path / _MODEL).exists():
        return path
    # A run cut off between the two renames of a save still has the checkpoint before it.
    for name in (which, f".{which}.old", "last", ".last.old"):
        if (path / "checkpoints" / name / _MODEL).exists():
            return path / "checkpoints" / name
    raise RunError(
        f"{path} holds no checkpoint (looked for checkpoints/{which}/{_MODEL}); a run writes its "
        "first one at its first validation"
    )


def run_root(path: Path) -> Path | None:
    """The run folder of a run or checkpoint folder; None if the checkpoint lies by itself."""
    if (path / "checkpoints").is_dir():
        return path
    above = path.resolve().parent
    return above.parent if above.name == "checkpoints" else None


def read_config(folder: Path) -> TrainConfig:
    """The configuration in a run or checkpoint folder, or in a JSON file.

    Raises:
        RunError: it is missing, or not a configuration of this version.
    """
    file = folder / _CONFIG if folder.is_dir() else folder
    if not file.exists():
        raise RunError(f"{file} does not exist")
    try:
        return TrainConfig.model_validate_json(file.read_text())
    except ValidationError as error:
        reasons = "; ".join(explain(error))
        raise RunError(f"{file} is not a training configuration: {reasons}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is not a training configuration: {error}") from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Everything in a checkpoint folder, on the CPU.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        discriminator = folder / _DISCRIMINATOR
        return Checkpoint(
            model=load_file(folder / _MODEL),
            discriminator=load_file(discriminator) if discriminator.exists() else None,
            training=load_file(folder / _TRAINING),
            state=json.loads((folder / _STATE).read_text()),
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from error


def model_from_config(config: TrainConfig) -> Backbone:
    """The network of a configuration, with fresh weights."""
    return PRETEXTS[config.pretext].build(config)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load a state dict whole; RunError names what is missing, left over or of another shape."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise RunError(f"{source} does not fit the network of its configuration: {error}") from None


def check_fills_holes(loaded: LoadedModel) -> None:
    """RunError unless the network was trained to fill holes."""
    pretext = loaded.config.pretext
    if pretext != "inpainting":
        raise RunError(
            f"{loaded.path} was trained with --pretext {pretext}, not to fill holes: what it made "
            "of one would be no inpainting; name a run with --pretext inpainting (its features "
            "can be used: python -m context_encoder.features)"
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
        RunError: nothing there, or damaged, or not fitting.
    """
    folder = find_checkpoint(Path(path), which)
    config = read_config(folder)
    model = model_from_config(config)
    try:
        weights = load_file(folder / _MODEL)
        step = int(json.loads((folder / _STATE).read_text())["step"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from error
    load_weights(model, weights, folder / _MODEL)
    return LoadedModel(model.to(device).eval(), config, step, folder)
