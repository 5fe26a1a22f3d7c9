"""The run folder: layout and writing.

    run/
      config.json            the full configuration
      metrics.jsonl          one JSON object per line, "split" train or val
      log.txt                the log lines of the console
      unreadable.jsonl       skipped files and the reasons (only if there are any)
      samples/               sheets of held-out images: original, masked, filled
      tensorboard/           event files
      .lock                  locked while a training writes here
      checkpoints/
        last, best           links to checkpoints: the last one, and the one with the lowest error
                             in the hole of held-out images
        step_0000250/
          model.safetensors  encoder, bottleneck and decoder (relative-patch: encoder and head)
          discriminator.safetensors
          training.safetensors   optimizer moments, random generators and sums of losses
          state.json         step, metrics, scalar state
          config.json        so that a checkpoint can be used alone
          manifest.json      version of the format, checksum of every file

All files are JSON, text, PNG or safetensors, so reading them cannot execute code.

A checkpoint is written under a temporary name, flushed to the disk and renamed; then the links are
replaced, each in one step; then checkpoints without a link are removed. So every crash leaves a
run that can be resumed. Versions before 0.2 wrote the folders ``last`` and ``best`` themselves;
they are read, and renamed at the first save of a resumed run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    holds_checkpoint,
    step_folders,
    step_name,
    step_of,
)
from context_encoder.runs.lock import Lock
from context_encoder.runs.manifest import FORMAT, write_manifest
from context_encoder.runs.places import with_absolute_paths
from context_encoder.utils.files import (
    WriteError,
    check_regular,
    check_writable,
    make_folder,
    point,
    pointed_at,
    remove_folder,
    remove_unfinished,
    rename_folder,
    save_tensors,
    write_file,
    write_folder,
)
from context_encoder.utils.text import read_rows, read_text

log = logging.getLogger("context_encoder")

_APPENDED = ("metrics.jsonl", "unreadable.jsonl", "log.txt")


class RunFolder:
    """Writes a run folder; nothing is written before :meth:`start`.

    Args:
        path: the folder.
        resume: None for a new run, or the checkpoint at which the run in the folder is resumed.
        keep: number of the last checkpoints to keep, besides the best one.

    Raises:
        RunError: a new run would overwrite an existing one.
        WriteError: the folder is not writable.
    """

    def __init__(self, path: Path, resume: Checkpoint | None = None, *, keep: int = 1) -> None:
        check_writable(path, folder=True)
        self.path = path
        self.resume = resume
        self.keep = keep
        self._checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._unreadable = path / "unreadable.jsonl"
        self._lock: Lock | None = None
        self._check_new()

    def _check_new(self) -> None:
        if self.resume is None and holds_checkpoint(self._checkpoints):
            raise RunError(
                f"{self.path} already holds a run; continue it with `resume` {self.path}, or name "
                "another folder with `out`"
            )

    def start(self, config: BaseModel) -> None:
        """Create the folder, lock it and write the configuration.

        On resume, the folder is set back to the checkpoint: later lines of ``metrics.jsonl`` and
        later checkpoints are removed; the run writes them again.

        Raises:
            RunError: another training writes into the folder.
            WriteError: the folder cannot be written.
        """
        make_folder(self.path)
        self._lock = Lock(self.path)
        self._check_new()
        if self.resume is not None:
            real = self.resume.path.resolve()
            step = step_of(real)
            if step is not None and (step != self.resume.state["step"] or not real.is_dir()):
                raise RunError(f"{self.path} has gone on since it was read; repeat the command")
        remove_unfinished(self.path)
        for name in _APPENDED:
            if (self.path / name).exists():
                check_regular(self.path / name)
        write_file(self.path / CONFIG_FILE, _stored(config))
        if self.resume is None:  # a run without a checkpoint may have left these
            for name in _APPENDED:
                (self.path / name).unlink(missing_ok=True)
        else:
            self._set_back(self.resume)

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def _set_back(self, resume: Checkpoint) -> None:
        step = int(resume.state["step"])
        self._rename_earlier_format()
        _keep_lines(self._metrics, lambda row: int(row["step"]) <= step)
        skipped = {str(Path(name)) for name in resume.state.get("unreadable") or ()}
        _keep_lines(self._unreadable, lambda row: row["file"] in skipped)
        remove_unfinished(self._checkpoints)
        # The links first: there is a checkpoint at each moment.
        if step_of(resume.path.resolve()) == step:
            self._point("last", resume.path.resolve())
            best = resume.state.get("best") or {}
            for folder in step_folders(self._checkpoints):
                if step_of(folder) == best.get("step"):
                    self._point("best", folder)
        for which in ("best", "last"):
            target = pointed_at(self._checkpoints / which)
            if target is not None and (not target.is_dir() or (step_of(target) or 0) > step):
                (self._checkpoints / which).unlink()
        for folder in step_folders(self._checkpoints):
            if (step_of(folder) or 0) > step:
                remove_folder(folder)
        self.prune()

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self._append(self._metrics, {"split": split, "step": step, **values})

    def log_unreadable(self, path: Path, reason: str) -> None:
        """Record a skipped file in ``unreadable.jsonl``."""
        self._append(self._unreadable, {"file": str(path), "reason": reason})

    def _append(self, file: Path, values: Mapping[str, Any]) -> None:
        try:
            with file.open("a") as stream:
                stream.write(json.dumps(values, allow_nan=False) + "\n")
        except OSError as error:
            raise WriteError.of(error, file) from error

    def sample_path(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:07d}.png"

    def save(self, which: Which, checkpoint: Checkpoint, config: BaseModel) -> Path:
        """Write a complete checkpoint, and let the link ``which`` point at it.

        Args:
            which: ``"last"``, or ``"best"``, which :meth:`mark_best` also sets.
            checkpoint: its state has the ``"step"``.
            config: the configuration of the run.

        Returns:
            The checkpoint's folder.

        Raises:
            WriteError: it cannot be written; the earlier checkpoints are kept.
        """

        def fill(new: Path) -> None:
            save_tensors(new / MODEL_FILE, _contiguous(checkpoint.model))
            if checkpoint.discriminator is not None:
                save_tensors(new / DISCRIMINATOR_FILE, _contiguous(checkpoint.discriminator))
            save_tensors(new / TRAINING_FILE, _contiguous(checkpoint.training))
            state = {**checkpoint.state, "format": FORMAT}
            write_file(new / STATE_FILE, json.dumps(state, indent=2) + "\n")
            write_file(new / CONFIG_FILE, _stored(config))
            write_manifest(new)

        make_folder(self._checkpoints)
        remove_unfinished(self._checkpoints)
        self._rename_earlier_format()
        folder = self._free_name(int(checkpoint.state["step"]))
        write_folder(folder, fill)
        self._point(which, folder)
        return folder

    def mark_best(self, folder: Path) -> None:
        """Let the link ``best`` point at a checkpoint that :meth:`save` returned."""
        self._point("best", folder)

    def prune(self) -> None:
        """Remove the checkpoints without a link, except the last ``keep`` ones."""
        linked = {
            target.resolve()
            for which in ("best", "last")
            if (target := pointed_at(self._checkpoints / which)) is not None
        }
        for folder in step_folders(self._checkpoints)[self.keep :]:
            if folder.resolve() not in linked:
                remove_folder(folder)

    def _point(self, which: str, folder: Path) -> None:
        pointer = self._checkpoints / which
        target = pointed_at(pointer)
        if target is None or target.name != folder.name:
            point(pointer, folder.name)

    def _free_name(self, step: int) -> Path:
        """A folder for a checkpoint; a number is added while there is one of the same step."""
        for number in itertools.count(1):
            folder = self._checkpoints / (step_name(step) + (f"-{number}" if number > 1 else ""))
            if not os.path.lexists(folder):
                return folder
        raise AssertionError

    def _rename_earlier_format(self) -> None:
        """Give the folders ``last`` and ``best`` of earlier versions the names of their steps."""
        for which in ("last", "best"):
            folder = self._checkpoints / which
            if folder.is_dir() and not folder.is_symlink():
                try:
                    step = int(json.loads(read_text(folder / STATE_FILE))["step"])
                except (OSError, ValueError, TypeError, KeyError):
                    step = 0
                named = rename_folder(folder, self._free_name(step).name)
                point(folder, named.name)
            for left in (f".{which}.old", f".{which}.new"):
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        shutil.rmtree(self._checkpoints / left)


def _keep_lines(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the lines of a file that are not wanted, or damaged: a crash may leave part of one."""
    if not file.exists():
        return
    kept, damaged = [], 0
    for text, row in read_rows(file):
        try:
            if row is not None and wanted(row):
                kept.append(f"{text}\n")
            damaged += row is None
        except (ValueError, TypeError, KeyError, OverflowError):
            damaged += 1
    if damaged:
        log.warning("%s: %d damaged lines are removed", file, damaged)
    write_file(file, "".join(kept))


def _stored(config: BaseModel) -> str:
    return with_absolute_paths(config).model_dump_json(indent=2) + "\n"


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
