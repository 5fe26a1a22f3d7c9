"""The training loop shared by pretraining and transfer.

It handles steps, log lines, stop requests, checkpoints and non-finite values. A step does not
synchronize with the device: losses are summed there and read every ``log_every`` steps.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from context_encoder.data import DataError, StorageError
from context_encoder.optimization import Learner
from context_encoder.runs import RunFolder

log = logging.getLogger(__name__)


class TrainingFailure(RuntimeError):  # noqa: N818 - not always an error of the program
    """A run cannot go on for a reason outside the program; the message says which.

    The checkpoints that were written before are kept.
    """


class NonFiniteError(RuntimeError):
    """The loss, an output or a weight is no longer a finite number."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    steps: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        return self.step < self.steps


class TrainingLoop(ABC):
    """One training run: :meth:`fit` calls the methods that a kind of training defines.

    Args:
        learner: networks and optimizers.
        steps: length of the run.
        batch_size: images per step, over all processes together.
        log_every: steps between log lines.
        save_every: steps between checkpoints, each after a validation.

    Attributes:
        step: number of steps done.
        stop_requested: set it to end the run after the current step.
        stop_reason: source of that request, for the log; empty without one.
        unreadable: names of the files that were skipped.
        run: the run folder; None before :meth:`fit`, and in all processes but the first.
    """

    def __init__(
        self, learner: Learner, *, steps: int, batch_size: int, log_every: int, save_every: int
    ) -> None:
        self.learner = learner
        self.device = learner.device
        self.processes = learner.processes
        self.steps = steps
        self.batch_size = batch_size
        self.log_every = log_every
        self.save_every = save_every
        self.step = 0
        self.stop_requested = False
        self.stop_reason = ""
        self.unreadable: set[str] = set()
        self.run: RunFolder | None = None
        self._unreported: list[tuple[str, str]] = []
        self._writer: SummaryWriter | None = None
        self._saved_step = -1  # unlike 0, it lets a new run save before its first step
        self._loss_names: list[str] = []
        self._sums: Tensor | None = None
        self._summed = 0
        self._mark = 0.0

    # --- methods that each kind of training defines -------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Set the networks to training mode; read the data needed before the first step."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[Any, list[tuple[str, str]]]]:
        """The batches from :attr:`step` on, each with the skipped files and the reasons."""

    @abstractmethod
    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """One step; returns the losses, "loss" first, ``()`` each, detached, on the device.

        The result must depend only on the configuration, :attr:`step` and the contents of a
        checkpoint. The step must not synchronize with the device.
        """

    @abstractmethod
    def validate(self) -> None:
        """Evaluate the networks before a checkpoint; in the first process only.

        Raises:
            NonFiniteError: an output is not finite.
        """

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint into the run folder; in the first process only.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
        """

    def mark_resumed(self, step: int) -> None:
        """Continue from a checkpoint after ``step`` steps."""
        self.step = self._saved_step = step

    # --- the loop -----------------------------------------------------------------------------

    def fit(self, run: RunFolder | None) -> Outcome:
        """Train to the last step, or until :attr:`stop_requested` is set.

        Args:
            run: a started run folder; None in all processes but the first.

        Raises:
            NonFiniteError: the loss, an output or a weight is not finite; the last checkpoint
                was written before.
            TrainingFailure: too few photographs can be read. A checkpoint was written.
        """
        started = time.monotonic()
        self.run = run
        self.prepare()
        batches = self.batches() if self.step < self.steps else iter(())
        with self._tensorboard(), self._progress_bar() as bar:
            self._mark = time.monotonic()
            while self.step < self.steps and not self._stopping():
                try:
                    batch, unreadable = next(batches)
                except (DataError, StorageError) as error:
                    if self.step > self._saved_step and self.processes.world_size == 1:
                        self._save_if_finite(self.save)
                    raise TrainingFailure(f"{error} {self._kept()}") from error
                self.note_unreadable(unreadable)
                losses = self.train_step(batch)
                self.step += 1
                self._add_to_sums(losses)
                bar.update()
                last = self.step == self.steps
                if self.step % self.log_every == 0 or last:
                    self._report_unreadable()
                    self._log_losses(bar)
                if self.step % self.save_every == 0 or last:
                    self._save_if_finite(self.validate, self.save)
            if self.step < self.steps:
                if self.stop_reason and self.processes.first:
                    log.info("%s: stopped after step %d, saving", self.stop_reason, self.step)
                if self.step > self._saved_step:
                    self._report_unreadable()
                    self._save_if_finite(self.save)
        return Outcome(self.step, self.steps, time.monotonic() - started)

    def _stopping(self) -> bool:
        if self.processes.world_size == 1:
            return self.stop_requested
        # All processes must leave the loop at the same step. The query synchronizes: do it rarely.
        if self.step % self.log_every:
            return False
        flag = torch.tensor(float(self.stop_requested), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def _save_if_finite(self, *actions: Callable[[], None]) -> None:
        """Call the actions in the first process; if one raises NonFiniteError, all processes do."""
        paused = time.monotonic()
        if self._summed:
            self._mean_losses()
        failure: list[NonFiniteError | None] = [None]
        if self.processes.first:
            try:
                for action in actions:
                    action()
            except NonFiniteError as error:
                failure = [NonFiniteError(f"{error} {self._kept()}")]
        if self.processes.world_size > 1:
            dist.broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]
        self._saved_step = self.step
        self._mark += time.monotonic() - paused  # images per second count the steps only

    def _kept(self) -> str:
        """The last checkpoint in words."""
        if self._saved_step < 0:
            return "No checkpoint was written."
        return f"The checkpoint of step {self._saved_step} is kept."

    # --- log lines ----------------------------------------------------------------------------

    def record(self, split: str, values: Mapping[str, float]) -> None:
        """Write values of this step to ``metrics.jsonl`` and TensorBoard."""
        if self.run is not None:
            self.run.log(split, self.step, values)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, self.step)

    def _add_to_sums(self, losses: Mapping[str, Tensor]) -> None:
        values = torch.stack([value.float() for value in losses.values()])
        self._loss_names = list(losses)
        self._sums = values if self._sums is None else self._sums + values
        self._summed += 1

    def _mean_losses(self) -> dict[str, float]:
        """Means since the last log line, over all processes; synchronizes with the device.

        Raises:
            NonFiniteError: one of them is not finite.
        """
        assert self._sums is not None
        means = self._sums / self._summed
        if self.processes.world_size > 1:
            dist.all_reduce(
                means, dist.ReduceOp.AVG if self.device.type == "cuda" else dist.ReduceOp.SUM
            )
            if self.device.type != "cuda":
                means /= self.processes.world_size
        values: dict[str, float] = dict(zip(self._loss_names, means.tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                advice = "Lower `lr`"
                if self.learner.scaler.is_enabled():
                    advice += ", or use `amp` bf16 or off instead of fp16"
                raise NonFiniteError(
                    f"{name} is {value} within the {self._summed} steps up to step {self.step}. "
                    f"{advice}. {self._kept()}"
                )
        return values

    def _log_losses(self, bar: Any) -> None:
        means = self._mean_losses()
        now = time.monotonic()
        speed = self._summed * self.batch_size / (now - self._mark)
        self._sums, self._summed, self._mark = None, 0, now
        bar.set_postfix(loss=f"{means['loss']:.4f}", img_s=f"{speed:.0f}")
        rate = self.learner.learning_rate()
        self.record("train", {**means, "images_per_s": round(speed, 1), "lr": rate})

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        if self.run is None:
            yield
            return
        folder = self.run.path / "tensorboard"
        with SummaryWriter(folder, purge_step=self.step + 1) as self._writer:
            yield
        self._writer = None

    def _progress_bar(self) -> Any:
        return tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            disable=not self.processes.first,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    # --- files that cannot be read ------------------------------------------------------------

    def note_unreadable(self, failures: list[tuple[str, str]]) -> None:
        """Record skipped files, each once, in the log and the run folder.

        Args:
            failures: names and reasons.
        """
        for name, reason in failures:
            if name not in self.unreadable:
                self.unreadable.add(name)
                if not self.processes.first:
                    self._unreported.append((name, reason))
                    continue
                log.warning("skipped %s: %s", name, reason)
                if self.run is not None:
                    self.run.log_unreadable(Path(name), reason)

    def _report_unreadable(self) -> None:
        """Report the unreadable files of all processes to the first one."""
        if self.processes.world_size == 1:
            return
        gathered: list[Any] = [None] * self.processes.world_size
        dist.all_gather_object(gathered, self._unreported)
        self._unreported = []
        if self.processes.first:
            for failures in gathered:
                self.note_unreadable(failures)


def check_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteError if a weight is not finite; synchronizes with the device."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"weights {name} are not finite at step {step}. Lower `lr`.")
