"""``python -m context_encoder.train``: train a context encoder, or one of its rivals.

Without arguments: a small network on the photographs that ship, in about two minutes on a CPU.
Several GPUs: ``torchrun --nproc-per-node N -m context_encoder.train ...``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from pydantic import ValidationError

from context_encoder.config import (
    PRESETS,
    TrainConfig,
    default_preset,
    idle_options,
    preset,
    refusal,
)
from context_encoder.runs import (
    RunError,
    find_checkpoint,
    read_config,
)
from context_encoder.training.run import run_training
from context_encoder.utils.cli import arguments_of
from context_encoder.utils.options import explain, option

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
        # The folder may have been moved or copied, or be named from elsewhere: see run_training.
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
        return run_training(config, resume)
    except ValidationError as error:
        for problem in explain(error):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except (RunError, ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
