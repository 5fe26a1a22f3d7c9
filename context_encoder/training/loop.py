"""The training loop shared by pretraining and transfer.

It handles steps, log lines, stop requests, checkpoints, non-finite values and the end of data
processes. A step does not synchronize with the device: losses are summed there and read every
``log_every`` steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import multiprocessing
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import torch.distributed as dist
from pydantic import BaseModel, Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from context_encoder.data import DataError, StorageError, end_workers
from context_encoder.optimization import Learner
from context_encoder.runs import (
    Checkpoint,
    MismatchError,
    RunError,
    RunFolder,
    RunState,
    check_tensors,
    load_optimizer,
    optimizer_tensors,
)
from context_encoder.training.agreement import Agreement
from context_encoder.training.watch import Watch, own_name
from context_encoder.utils.errors import is_connection_error, outside_reason
from context_encoder.utils.files import reported

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """The loss, an output or a weight is no longer a finite number."""


class TrainingError(RuntimeError):
    """A run cannot go on for a reason outside the program; the message says which.

    The checkpoints that were written before are kept.
    """


class _Interruption(BaseException):
    """A stop request that arrived during work that need not be finished."""


class _Window(BaseModel):
    """The sums of losses since the last log line; the sums themselves are tensors."""

    names: list[str]
    steps: Annotated[int, Field(ge=0)]


class LoopState(RunState):
    """The state of a loop in ``state.json``. Versions before 0.2 wrote some of it only."""

    unreadable: list[str]
    processes: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    window: _Window | None = None
    validation_due: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    steps: int
    seconds: float
    #: A validation after the last step was left out.
    validation_due: bool = False

    @property
    def interrupted(self) -> bool:
        return self.step < self.steps or self.validation_due


class TrainingLoop(ABC):
    """One training run: :meth:`fit` calls the methods that a kind of training defines.

    Args:
        learner: networks and optimizers.
        steps: length of the run.
        batch_size: images per step, over all processes together.
        log_every: steps between log lines.
        val_every: steps between validations, each of which is followed by a checkpoint.
        save_every: steps between further checkpoints, without a validation; None for none.
        save_minutes: minutes between two checkpoints, at most; None for no limit.
        timeout: seconds without a sign of life of another process after which this one ends.

    Attributes:
        step: number of steps done.
        stop_requested: set it to end the run after the current step.
        stop_reason: source of that request, for the log; empty without one.
        unreadable: names of the files that were skipped.
        run: the run folder; None before :meth:`fit`, and in all processes but the first.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        steps: int,
        batch_size: int,
        log_every: int,
        val_every: int,
        save_every: int | None = None,
        save_minutes: float | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.learner = learner
        self.device = learner.device
        self.processes = learner.processes
        self.steps = steps
        self.batch_size = batch_size
        self.log_every = log_every
        self.val_every = val_every
        self.save_every = save_every
        self.save_minutes = save_minutes
        self.step = 0
        self.stop_requested = False
        self.stop_reason = ""
        self.unreadable: set[str] = set()
        self.run: RunFolder | None = None
        self._unreported: list[tuple[str, str]] = []
        self._writer: SummaryWriter | None = None
        self._saved_step = -1  # unlike 0, it lets a new run save before its first step
        self._saved_at = 0.0
        self._validation_due = False
        self._interruptible = False
        self._loss_names: list[str] = []
        self._sums: Tensor | None = None
        self._summed = 0
        self._timed = 0
        self._mark = 0.0
        self._states: list[dict[str, Tensor]] = []
        self._agreement = Agreement(self.processes)
        self._timeout = timeout

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

        The next step may overwrite them.

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

    # --- the state of the loop ----------------------------------------------------------------

    def loop_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The loop's part of a checkpoint: tensors and scalar state of all processes.

        The tensors are the optimizers' state, and for every process its random generators and
        its sums of losses since the last log line.
        """
        states = self._states or [self._own_state()]
        tensors = {
            f"{name}.{rank}": t for rank, own in enumerate(states) for name, t in own.items()
        }
        for name, optimizer in self.learner.optimizers.items():
            tensors |= optimizer_tensors(name, optimizer)
        state = {
            "step": self.step,
            "processes": len(states),
            "unreadable": sorted(self.unreadable),
            "window": {"names": self._loss_names, "steps": self._summed},
            "validation_due": self._validation_due,
        }
        return tensors, state

    def restore_loop(self, checkpoint: Checkpoint, state: LoopState) -> None:
        """Continue from the state that :meth:`loop_state` returned.

        With the same number of processes, every process continues exactly. With another one, the
        stream of samples is the same, the sums of losses are divided evenly, and all processes
        but the first have new random generators.

        Raises:
            RunError: a tensor is missing, unexpected, misshaped, of another dtype or not finite.
        """
        tensors = checkpoint.training
        try:
            for name, optimizer in self.learner.optimizers.items():
                # With fp16, the first steps may have been skipped.
                empty = state.step == 0 or bool(checkpoint.state.get("scaler"))
                load_optimizer(name, optimizer, tensors, may_be_empty=empty)
            self._restore_own(tensors, state)
        except (MismatchError, RuntimeError) as error:
            raise RunError(f"checkpoint {checkpoint.path} cannot be used: {error}") from error
        self.unreadable = set(state.unreadable)
        self._validation_due = state.validation_due
        self.mark_resumed(state.step)

    def _restore_own(self, tensors: Mapping[str, Tensor], state: LoopState) -> None:
        rank, count = self.processes.rank, state.processes
        optimizers = tuple(f"optimizer.{name}." for name in self.learner.optimizers)
        found = {name: t for name, t in tensors.items() if not name.startswith(optimizers)}
        random = {"random.cpu": torch.get_rng_state()}
        if "random.cuda" in tensors or "random.cuda.0" in tensors:  # 16 bytes on every device
            random["random.cuda"] = torch.empty(16, dtype=torch.uint8)
        if count is None:  # versions before 0.2, of which the transfers saved none
            check_tensors({n: t for n, t in random.items() if n in found}, found)
            own = found
        else:
            each = dict(random)
            if state.window is not None and state.window.steps:
                each["window"] = torch.zeros(len(state.window.names))
            check_tensors({f"{n}.{r}": t for r in range(count) for n, t in each.items()}, found)
            own = {name: found[f"{name}.{min(rank, count - 1)}"] for name in each}
            if state.window is not None and state.window.steps:
                self._loss_names, self._summed = state.window.names, state.window.steps
                if count != self.processes.world_size:
                    windows = [found[f"window.{r}"] for r in range(count)]
                    own["window"] = torch.stack(windows).mean(0)
                self._sums = own["window"].to(self.device)
        if self.processes.first or count == self.processes.world_size:
            if "random.cpu" in own:
                torch.set_rng_state(own["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in own:
                torch.cuda.set_rng_state(own["random.cuda"], self.device)
        else:  # a function of the run and of the rank
            drawn = own["random.cpu"].numpy().tobytes() + str(rank).encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(drawn).digest()[:7], "big"))

    def _own_state(self) -> dict[str, Tensor]:
        own = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self._summed:
            assert self._sums is not None
            own["window"] = self._sums.cpu()
        return own

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
            TrainingError: the data, the disk, the memory or another process fails. If too few
                photographs can be read, a checkpoint was written.
        """
        started = self._saved_at = time.monotonic()
        self.run = run
        watch: Watch | None = None
        ended: str | None = None
        try:
            if self.processes.world_size > 1:
                watch = Watch(self.processes, self._timeout)
                watch.start(self._agreement.gather(own_name(self.processes)))
            self._run()
        except (NonFiniteError, TrainingError) as error:
            ended = str(error)
            raise
        except Exception as error:
            reason = outside_reason(error)
            if reason is None and watch is not None and isinstance(error, RuntimeError):
                reason = watch.lost() if is_connection_error(error) else None
            ended = reason or repr(error)
            if reason is None:
                raise
            raise TrainingError(reason) from error
        except BaseException as error:
            ended = repr(error)
            raise
        finally:
            if watch is not None:
                watch.stop(ended)
        seconds = time.monotonic() - started
        return Outcome(self.step, self.steps, seconds, self._validation_due)

    def _run(self) -> None:
        workers: list[Any] = []
        try:
            with contextlib.suppress(_Interruption):
                self.prepare()
            with self._tensorboard(), self._progress_bar() as bar:
                self._mark = time.monotonic()
                if self._validation_due and not self.stop_requested:
                    self._checkpoint(validate=True)
                batches: Iterator[Any] = iter(())
                if self.step < self.steps and not self._alone_and_stopped():
                    others = set(multiprocessing.active_children())
                    batches = self.batches()
                    workers = [w for w in multiprocessing.active_children() if w not in others]
                self._train(batches, bar)
                self._agreement.finish()
                if self.step < self.steps or self._validation_due:
                    if self.stop_reason and self.processes.first:
                        log.info("%s: stopped after step %d, saving", self.stop_reason, self.step)
                    if self.step > self._saved_step:
                        self._report_unreadable()
                        self._checkpoint(validate=False)
        finally:
            end_workers(workers)  # they would otherwise finish what they read

    def _train(self, batches: Iterator[Any], bar: Any) -> None:
        # Of several processes, each reads one batch ahead: whether one of them has none for the
        # next step must be known to all before that step.
        several = self.processes.world_size > 1
        ahead: deque[Any] = deque()
        while self.step < self.steps:
            failing = any(isinstance(item, Exception) for item in ahead)
            while several and not failing and len(ahead) < min(2, self.steps - self.step):
                ahead.append(self._read(batches))
                failing = isinstance(ahead[-1], Exception)
            stop, save, failed = self._agreement.any_of(
                (self.stop_requested, self._save_is_due(), failing)
            )
            if stop:
                self.stop_requested = True
                return
            if failed:
                self._end_for_data(ahead)
            try:
                # Several processes must leave the loop at the same step.
                with self.interruptible(not several):
                    item = ahead.popleft() if several else self._read(batches)
            except _Interruption:
                continue
            except Exception:
                if self._alone_and_stopped():  # what stops this process may have killed a worker
                    continue
                raise
            if isinstance(item, Exception):
                self._end_for_data([item])
            batch, unreadable = item
            self.note_unreadable(unreadable)
            losses = self.train_step(batch)
            self.step += 1
            self._add_to_sums(losses)
            bar.update()
            last = self.step == self.steps
            if self.step % self.log_every == 0 or last:
                self._report_unreadable()
                self._log_losses(bar)
            if self.step % self.val_every == 0 or last:
                bar.set_description("validation and checkpoint")
                self._checkpoint(validate=True)
                bar.set_description()
            elif save or (self.save_every is not None and self.step % self.save_every == 0):
                self._checkpoint(validate=False)

    def _read(self, batches: Iterator[Any]) -> Any:
        """The next batch and its unreadable files; or the error for which there is none."""
        try:
            return next(batches)
        except (DataError, StorageError) as error:
            return error

    def _end_for_data(self, ahead: Iterable[Any]) -> NoReturn:
        """Save, and end the run, in all processes, because one of them has no batch."""
        self._agreement.finish()
        own = next((str(item) for item in ahead if isinstance(item, Exception)), None)
        reasons = self._agreement.gather(own)
        if self.step > self._saved_step:
            self._report_unreadable()
            self._checkpoint(validate=False)
        rank, reason = next((r, text) for r, text in enumerate(reasons) if text is not None)
        where = f"process {rank}: " if len(reasons) > 1 else ""
        raise TrainingError(f"{where}{reason}; step {self.step} is saved")

    def _alone_and_stopped(self) -> bool:
        return self.stop_requested and self.processes.world_size == 1

    def interrupt(self) -> None:
        """Called by a signal's handler: leave work that need not be finished."""
        if self._interruptible:
            self._interruptible = False
            raise _Interruption

    @contextlib.contextmanager
    def interruptible(self, allowed: bool = True) -> Iterator[None]:
        """For reading and validation, which a stop request ends at once.

        What :meth:`prepare` and :meth:`validate` do in it is repeated when the run is resumed.
        """
        self._interruptible = allowed and not self.stop_requested
        try:
            yield
        finally:
            self._interruptible = False

    def _save_is_due(self) -> bool:
        if self.save_minutes is None or not self.processes.first:
            return False
        return time.monotonic() - self._saved_at >= 60 * self.save_minutes

    def _checkpoint(self, *, validate: bool) -> None:
        """Validate, if asked for, and save; if that fails, it fails in all processes."""
        paused = time.monotonic()
        if self._summed:
            self._mean_losses()
        self._validation_due |= validate
        self._states = self._agreement.gather(self._own_state())
        error: Exception | None = None
        result: Exception | str = ""
        if self.processes.first:
            try:
                if validate:
                    self.validate()
                    self._validation_due = False
                    self._states[0] = self._own_state()
                self.save()
            except _Interruption:
                torch.set_rng_state(self._states[0]["random.cpu"])
                result = "stop"
            except NonFiniteError as found:
                error = result = NonFiniteError(f"{found} {self._kept()}")
            except Exception as found:
                error, result = found, TrainingError("stopped with the first process")
        self._states = []
        result = self._agreement.from_first(result)
        if error is not None:
            raise error
        if isinstance(result, Exception):
            raise result
        now = time.monotonic()
        self._mark += now - paused  # images per second count the steps only
        if result == "stop":
            self.stop_requested = True
        else:
            self._validation_due &= not validate
            self._saved_step, self._saved_at = self.step, now

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
            with reported(self._writer.log_dir):
                for name, value in values.items():
                    self._writer.add_scalar(f"{split}/{name}", value, self.step)

    def _add_to_sums(self, losses: Mapping[str, Tensor]) -> None:
        values = torch.stack([value.float() for value in losses.values()])
        self._loss_names = list(losses)
        self._sums = values if self._sums is None else self._sums + values
        self._summed += 1
        self._timed += 1

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
        speed = self._timed * self.batch_size / (now - self._mark)
        self._sums, self._summed, self._timed, self._mark = None, 0, 0, now
        bar.set_postfix(loss=f"{means['loss']:.4f}", img_s=f"{speed:.0f}")
        rate = self.learner.learning_rate()
        self.record("train", {**means, "images_per_s": round(speed, 1), "lr": rate})

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        if self.run is None:
            yield
            return
        folder = self.run.path / "tensorboard"
        with _quiet_writer():
            with reported(folder):
                self._writer = SummaryWriter(folder, purge_step=self.step + 1)
            try:
                yield
            finally:
                with reported(folder):
                    self._writer.close()
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
        gathered = self._agreement.gather(self._unreported)
        self._unreported = []
        if self.processes.first:
            for failures in gathered:
                self.note_unreadable(failures)


@contextlib.contextmanager
def _quiet_writer() -> Iterator[None]:
    """No traceback from the thread of TensorBoard's writer, whose error is raised here later."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def check_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteError if a weight is not finite; synchronizes with the device."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"weights {name} are not finite at step {step}. Lower `lr`.")
