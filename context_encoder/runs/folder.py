"""The run folder: layout and writing.

    run/
      config.json            the full configuration
      metrics.jsonl          one JSON object per line, "split" train or val
      log.txt                the log lines of the console
      unreadable.jsonl       skipped files and the reasons (only if there are any)
      samples/               sheets of held-out images: original, masked, filled
      tensorboard/           event files
      checkpoints/last/      also best/: the lowest error in the hole of held-out images
        model.safetensors    encoder, bottleneck and decoder (relative-patch: encoder and head)
        discriminator.safetensors
        training.safetensors optimizer moments and random generators
        state.json           step, metrics, scalar state
        config.json          so that a checkpoint can be used alone

All files are JSON, text, PNG or safetensors, so reading them cannot execute code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from context_encoder.runs.checkpoint import (
    CONFIG_FILE,
    DISCRIMINATOR_FILE,
    MODEL_FILE,
    STATE_FILE,
    TRAINING_FILE,
    Checkpoint,
    RunError,
    Which,
)
from context_encoder.utils.files import (
    check_writable,
    make_folder,
    save_tensors,
    write_file,
    write_folder,
)


class RunFolder:
    """Writes a run folder; nothing is written before :meth:`start`.

    Args:
        path: the folder.
        resume_step: None for a new run, or the step at which the run in the folder is resumed.

    Raises:
        RunError: a new run would overwrite an existing one.
        WriteError: the folder is not writable.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        if resume_step is None and (path / "checkpoints").exists():
            raise RunError(
                f"{path} already holds a run; continue it with `resume` {path}, or name another "
                "folder with `out`"
            )
        check_writable(path, folder=True)
        self.path = path
        self.resume_step = resume_step
        self._metrics = path / "metrics.jsonl"

    def start(self, config: BaseModel) -> None:
        """Create the folder and write the configuration.

        On resume, ``metrics.jsonl`` is cut back to the checkpoint's step; later rows are
        written again.
        """
        make_folder(self.path)
        write_file(self.path / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
        if self.resume_step is None:  # a run without a checkpoint may have left these
            for name in ("metrics.jsonl", "unreadable.jsonl", "log.txt"):
                (self.path / name).unlink(missing_ok=True)
        if self.resume_step is not None and self._metrics.exists():
            lines = self._metrics.read_text().splitlines()
            kept = [line for line in lines if _step(line) <= self.resume_step]
            write_file(self._metrics, "".join(line + "\n" for line in kept))

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"split": split, "step": step, **values}, allow_nan=False) + "\n")

    def log_unreadable(self, path: Path, reason: str) -> None:
        """Record a skipped file in ``unreadable.jsonl``."""
        with (self.path / "unreadable.jsonl").open("a") as file:
            file.write(json.dumps({"file": str(path), "reason": reason}) + "\n")

    def sample_path(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:07d}.png"

    def save(self, which: Which, checkpoint: Checkpoint, config: BaseModel) -> Path:
        """Write a complete checkpoint, then replace the previous one by it."""

        def fill(new: Path) -> None:
            save_tensors(new / MODEL_FILE, _contiguous(checkpoint.model))
            if checkpoint.discriminator is not None:
                save_tensors(new / DISCRIMINATOR_FILE, _contiguous(checkpoint.discriminator))
            save_tensors(new / TRAINING_FILE, _contiguous(checkpoint.training))
            write_file(new / STATE_FILE, json.dumps(checkpoint.state, indent=2) + "\n")
            write_file(new / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")

        folder = self.path / "checkpoints" / which
        write_folder(folder, fill)
        return folder


def _step(line: str) -> float:
    """The step of a line of metrics; infinite for an incomplete line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
