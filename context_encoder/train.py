"""``python -m context_encoder.train``: train a context encoder, or one of its rivals.

Without arguments: a small network on the photographs that ship, in about two minutes on a CPU.
Several GPUs: ``torchrun --nproc-per-node N -m context_encoder.train ...``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
import tyro
from pydantic import ValidationError
from tqdm.contrib.logging import logging_redirect_tqdm

from context_encoder.cli import arguments_of
from context_encoder.config import (
    PRESETS,
    TrainConfig,
    default_preset,
    explain,
    idle_options,
    option,
    preset,
    refusal,
)
from context_encoder.prepare import Photos, Processes, choose_device, resolve
from context_encoder.runs import (
    Checkpoint,
    RunError,
    RunFolder,
    find_checkpoint,
    read_checkpoint,
    read_config,
    run_root,
)
from context_encoder.trainer import NonFiniteError, Outcome, Trainer

log = logging.getLogger("context_encoder")

# What may differ from the run that is resumed: nothing that changes the network, or the stream
# of pictures and masks. Folders may have moved; whether they hold the same files is checked.
_FREE_ON_RESUME = (
    "data val_data mask_folder voc_root steps epochs workers device amp compile channels_last out "
    "log_every val_every sample_rows lr lr_discriminator_ratio lr_schedule warmup_steps "
    "weight_decay beta1 lambda_rec lambda_adv"
).split()


_SUMMARY = """Train a context encoder to fill holes in photographs, or a rival pretext.

    Without arguments: the preset "laptop", a small network on the photographs that ship, in about
    two minutes on a CPU. --model and --pretext pick the recipe made for them and --preset a named
    one; every other option changes one value of it.
    """


_EXTRA = (
    ("resume", Path, "Run folder to continue; its configuration becomes the default."),
    ("config", Path, "JSON file with the defaults, such as the config.json of a run."),
)


def parse(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, Path | None]:
    """The configuration that the command line asks for, and the run to resume, if any.

    Raises:
        ValueError: values that are out of range (ValidationError), that do not go together, or
            that would do nothing.
        RunError: what --resume or --config names cannot be used.
    """
    # What sets the defaults must be known before tyro can show and change them.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "model", "pretext", "config", "resume"):
        first.add_argument(f"--{name}", nargs="?")
    known, _ = first.parse_known_args(arguments)
    if sum(value is not None for value in (known.preset, known.config, known.resume)) > 1:
        raise ValueError("--preset, --config and --resume each set all defaults; give one of them")
    if known.resume is not None:
        defaults = read_config(find_checkpoint(Path(known.resume), "last"))
        # The folder may have been moved or copied, or be named from elsewhere: see _run.
        defaults = defaults.model_copy(update={"out": None})
    elif known.config is not None:
        defaults = read_config(Path(known.config)).model_copy(update={"out": None})
    else:
        name = known.preset or default_preset(known.model, known.pretext)
        defaults = preset(name) if name in PRESETS else TrainConfig()

    parsed: Any = tyro.cli(
        arguments_of(TrainConfig, defaults, summary=_SUMMARY, extra=_EXTRA),
        prog="python -m context_encoder.train",
        args=arguments,
    )
    config = _with_options(defaults, parsed, sys.argv[1:] if arguments is None else arguments)
    if parsed.resume is not None:
        changed = [
            option(name)
            for name in TrainConfig.model_fields
            if name not in _FREE_ON_RESUME and getattr(config, name) != getattr(defaults, name)
        ]
        if changed or (config.lambda_adv > 0) != (defaults.lambda_adv > 0):
            raise ValueError(
                f"--resume continues {parsed.resume} as it began, but "
                f"{', '.join(changed) or '--lambda-adv'} would change it; leave that out, or start "
                "a new run"
            )
    return config, parsed.resume


def _with_options(defaults: TrainConfig, parsed: Any, arguments: Sequence[str]) -> TrainConfig:
    """The defaults with what was given on the command line.

    A default that this leaves nothing to do is dropped; an option that was given is refused then.
    """
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in arguments}
    given = {
        name: getattr(parsed, name)
        for name in TrainConfig.model_fields
        if name in names or f"no_{name}" in names
    }
    values = defaults.model_dump() | given
    idle = idle_options(values)
    for name in given:
        if name in idle:
            raise ValueError(refusal(name, idle[name]))
    return TrainConfig(**{name: value for name, value in values.items() if name not in idle})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done or stopped by a signal, 1 failed, 2 misused."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config, resume = parse(arguments)
        return _run(config, resume)
    except ValidationError as error:
        for problem in explain(error):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except (RunError, ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(config: TrainConfig, resume: Path | None) -> int:
    processes = Processes.from_environment()
    if config.batch_size % processes.world_size:
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be shared by {processes.world_size} "
            "processes; make it a multiple"
        )
    photos = Photos.from_config(config)
    config = resolve(config, photos)
    device = choose_device(config.device, processes)
    checkpoint: Checkpoint | None = None
    step = 0
    if resume is not None:
        checkpoint = read_checkpoint(find_checkpoint(resume, "last"))
        step = int(checkpoint.state["step"])
        if step >= config.steps:
            raise ValueError(
                f"{resume} is done: it has made {step} of {config.steps} steps; "
                f"add some with --steps {2 * step}"
            )
    out = config.out or (resume and run_root(resume)) or _default_out(config)
    config = config.model_copy(update={"out": out})

    root = resume and run_root(resume)
    into_old = root is not None and out.resolve() == root.resolve()
    if checkpoint is not None and not into_old:
        checkpoint.state["best"] = {}  # the best one so far lies in the other folder
    run = RunFolder(out, step if into_old else None)

    with _process_group(processes, device):
        trainer = Trainer(config, photos, device, processes, checkpoint)
        if not processes.first:
            try:
                with stop_on_signal(trainer):
                    trainer.fit(None)
            except NonFiniteError:  # the first process says it
                return 1
            return 0
        run.start(config)
        with _log_to(out / "log.txt"):
            try:
                _announce(config, photos, trainer, resume)
                with stop_on_signal(trainer), logging_redirect_tqdm():
                    outcome = trainer.fit(run)
                _conclude(trainer, outcome, out)
            except NonFiniteError as error:
                log.error("stopped: %s", error)
                return 1
    return 0


def _default_out(config: TrainConfig) -> Path:
    name: str = config.preset
    if config.pretext != preset(name).pretext:
        name += f"-{config.pretext}"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


@contextlib.contextmanager
def _process_group(processes: Processes, device: torch.device) -> Iterator[None]:
    if processes.world_size == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class Stoppable(Protocol):
    """A training loop that looks at ``stop_requested`` after every step."""

    stop_requested: bool
    stop_reason: str


@contextlib.contextmanager
def stop_on_signal(trainer: Stoppable) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the current step; a second SIGINT ends it at once."""

    def request(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        # Nothing is logged in here: the loop may hold the log's lock, or be writing a line.
        trainer.stop_requested = True
        trainer.stop_reason = signal.Signals(number).name

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)  # whatever the program that this runs in has chosen
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


def _announce(config: TrainConfig, photos: Photos, trainer: Trainer, resume: Path | None) -> None:
    device = trainer.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else (f"CPU, {torch.get_num_threads()} threads")
    )
    source = "photographs that ship" if config.data is None else f"photographs in {config.data}"
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
    for line in pretext.summary(outcome.metrics):
        log.info("  %s", line)
    if outcome.best and outcome.best["step"] != outcome.step:
        figure = pretext.best_metric
        log.info("  best at step %d: %s %.4g", outcome.best["step"], figure, outcome.best[figure])
    if outcome.unreadable:
        log.info(
            "  files that could not be read: %d, see %s",
            outcome.unreadable,
            out / "unreadable.jsonl",
        )
    if outcome.sheet is not None:
        log.info("  look at %s", outcome.sheet)
    for line in pretext.advice(out):
        log.info("%s", line)


if __name__ == "__main__":
    sys.exit(main())
