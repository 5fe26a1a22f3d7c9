"""One training run from its configuration to its report."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from context_encoder.config import (
    TrainConfig,
    preset,
)
from context_encoder.runs import (
    Checkpoint,
    Photos,
    RunFolder,
    check_unchanged,
    find_checkpoint,
    read_checkpoint,
    read_config,
    run_root,
)
from context_encoder.training.failure import with_advice
from context_encoder.training.graph import check_capture
from context_encoder.training.loop import NonFiniteError, Outcome, TrainingError
from context_encoder.training.resolve import resolve
from context_encoder.training.signals import stop_on_signal
from context_encoder.training.trainer import Trainer
from context_encoder.utils.device import Processes, choose_device, process_group
from context_encoder.utils.files import reported

log = logging.getLogger("context_encoder")


# Fields that may differ from the resumed run; the network and the stream of images and masks must
# not. Folders may have moved; whether they hold the same files is checked.
_FREE_ON_RESUME = (
    "data val_data max_unreadable decoded_cache decoded_cache_gb steps epochs workers device amp "
    "compile graph accumulate channels_last out log_every val_every save_every save_minutes keep "
    "timeout sample_rows lr lr_schedule warmup_steps weight_decay beta1"
).split()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How :func:`run_training` ended."""

    #: The run was stopped by a signal before the last step, and saved.
    interrupted: bool
    #: The signal's name, such as "SIGTERM"; empty if another process received it.
    signal: str
    #: None in all processes but the first.
    outcome: Outcome | None
    out: Path


def run_training(config: TrainConfig, resume: Path | None = None) -> Ended:
    """Train in the processes that torchrun started, or in this one, and write the run folder.

    Args:
        config: resolved or not.
        resume: run or checkpoint folder to resume; None for a new run.

    Raises:
        RunError, ValueError, FileNotFoundError, NotADirectoryError: an input cannot be used, or
            ``config`` would change the resumed run; the message says what to do.
        WriteError: the run folder cannot be written, before the first step.
        TrainingError: the data, the disk, the memory or another process fails.
        NonFiniteError: the loss, a weight or an output is not finite.
    """
    if resume is not None:
        _check_resumable(config, resume)
    processes = Processes.from_environment()
    if config.batch_size % processes.world_size:
        raise ValueError(
            f"`batch_size` {config.batch_size} cannot be shared by {processes.world_size} "
            "processes; use a multiple"
        )
    parts = processes.world_size * config.accumulate
    if config.batch_size % parts:
        shared = f" in each of {processes.world_size} processes" if processes.world_size > 1 else ""
        raise ValueError(
            f"`batch_size` {config.batch_size} cannot be divided into `accumulate` "
            f"{config.accumulate} equal parts{shared}; use a multiple of {parts}"
        )
    photos = Photos.from_config(config)
    config = resolve(config, photos)
    device = choose_device(config.device, processes)
    if config.graph:
        check_capture(device, processes)
    checkpoint: Checkpoint | None = None
    step = 0
    if resume is not None:
        checkpoint = read_checkpoint(find_checkpoint(resume, "last"))
        step = int(checkpoint.state["step"])
        if step >= config.steps and checkpoint.state.get("validation_due") is not True:
            raise ValueError(
                f"{resume} is done: it has made {step} of {config.steps} steps; "
                f"add steps with `steps` {2 * step}"
            )
    out = config.out or (resume and run_root(resume)) or _default_out(config)
    config = config.model_copy(update={"out": out})

    root = resume and run_root(resume)
    into_old = root is not None and out.resolve() == root.resolve()
    if checkpoint is not None and not into_old:
        checkpoint.state["best"] = {}  # the best checkpoint so far is in the other folder
    run = RunFolder(out, checkpoint if into_old else None, keep=config.keep)

    with process_group(processes, device):
        trainer = Trainer(config, photos, device, processes, checkpoint)
        if not processes.first:
            with stop_on_signal(trainer):
                ended = trainer.fit(None)
            return Ended(ended.interrupted, trainer.stop_reason, None, out)
        run.start(config)
        with contextlib.closing(run), _log_to(out / "log.txt"):
            try:
                with with_advice(out, "train"):
                    _announce(config, photos, trainer, resume)
                    with stop_on_signal(trainer), logging_redirect_tqdm():
                        outcome = trainer.fit(run)
                    _conclude(trainer, outcome, out)
            except (NonFiniteError, TrainingError) as error:
                with contextlib.suppress(OSError):  # the log may be what cannot be written
                    log.error("stopped: %s", error)
                raise
    return Ended(outcome.interrupted, trainer.stop_reason, outcome, out)


def _check_resumable(config: TrainConfig, resume: Path) -> None:
    before = read_config(find_checkpoint(resume, "last"))
    also = config.options_changed_on_resume(before)
    check_unchanged(resume, before, config, _FREE_ON_RESUME, also)


def _default_out(config: TrainConfig) -> Path:
    name: str = config.preset
    if config.pretext != preset(name).pretext:
        name += f"-{config.pretext}"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


class _LogFile(logging.FileHandler):
    """A log file whose errors end the run, rather than being printed."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name of the base
        with reported(self.baseFilename):
            raise


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    with reported(path):
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)  # independent of the level of the calling program
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        with reported(path):
            handler.close()


def _announce(config: TrainConfig, photos: Photos, trainer: Trainer, resume: Path | None) -> None:
    device = trainer.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else (f"CPU, {torch.get_num_threads()} threads")
    )
    source = "packaged photographs" if config.data is None else f"photographs in {config.data}"
    parameters = sum(p.numel() for p in trainer.model.parameters())
    log.info("%s: %s", "continuing" if resume else "training", config.out)
    log.info("  data    %d %s, %d held out", len(photos.train), source, len(photos.val))
    log.info(
        "  model   %s, %.2f M parameters, %d x %d pixels, %s",
        config.model, parameters / 1e6, config.size, config.size, trainer.pretext.describe(),
    )  # fmt: skip
    log.info(
        "  run     %d steps of %d images from step %d on %s%s",
        config.steps, config.batch_size, trainer.step, name,
        "" if config.amp == "off" else f", {config.amp}",
    )  # fmt: skip


def _conclude(trainer: Trainer, outcome: Outcome, out: Path) -> None:
    log.info("")
    if outcome.interrupted:
        log.info("stopped at step %d of %d, saved; go on with", outcome.step, outcome.steps)
        log.info("  python -m context_encoder.train --resume %s", out)
        return
    pretext = trainer.pretext
    log.info("done: %d steps in %.0f s, in %s", outcome.step, outcome.seconds, out)
    for line in pretext.summary(trainer.latest):
        log.info("  %s", line)
    if trainer.best and trainer.best["step"] != outcome.step:
        figure = pretext.best_metric
        log.info("  best at step %d: %s %.4g", trainer.best["step"], figure, trainer.best[figure])
    if trainer.unreadable:
        log.info(
            "  files that could not be read: %d, see %s; other photographs took their place in "
            "%d of %d samples",
            len(trainer.unreadable), out / "unreadable.jsonl", trainer.replaced,
            outcome.step * trainer.batch_size,
        )  # fmt: skip
    if trainer.sheet is not None:
        log.info("  look at %s", trainer.sheet)
    for line in pretext.advice(out):
        log.info("%s", line)
