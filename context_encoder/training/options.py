"""Command-line options of a training run: sources of their defaults, options without effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from context_encoder.config import (
    PRESETS,
    TrainConfig,
    default_preset,
    idle_options,
    preset,
    refusal,
)
from context_encoder.runs import check_places, find_checkpoint, read_config
from context_encoder.utils.cli import (
    arguments_of,
    checked,
    early_options,
    given_fields,
    parse_arguments,
)

_SUMMARY = """Train a context encoder to fill holes in photographs, or another pretext.

    Without arguments: the network that corrects the membrane, on the packaged
    photographs, in two to three minutes on two CPU cores. `model` and `pretext`
    select the preset made for them, `preset` a named one; every other option
    changes one value of it.
    """

_EXTRA = (
    ("resume", Path, "Run folder to continue; its configuration becomes the default."),
    ("config", Path, "JSON file with the defaults, such as the config.json of a run."),
)


def parse_training(prog: str, arguments: Sequence[str] | None) -> tuple[TrainConfig, Path | None]:
    """Parse the command line into a configuration and the run to resume, if any.

    Args:
        prog: the command as it is typed.
        arguments: its arguments; None for those of the process.

    Raises:
        ValueError: values are out of range, incompatible or without effect.
        RunError: the run of ``--resume`` or the file of ``--config`` cannot be used.
        FileNotFoundError: a folder that the resumed run uses is gone.
        SystemExit: help was requested and is printed.
    """
    # The source of the defaults must be known before tyro can show and change them.
    early = early_options(("preset", "model", "pretext", "config", "resume"), arguments)
    if len({"preset", "config", "resume"} & early.keys()) > 1:
        raise ValueError("`preset`, `config` and `resume` each set all defaults; give one of them")
    if "resume" in early:
        defaults = read_config(find_checkpoint(Path(early["resume"]), "last"))
        # The folder may have been moved, copied or named relative to another one: run_training.
        defaults = defaults.model_copy(update={"out": None})
    elif "config" in early:
        defaults = read_config(Path(early["config"])).model_copy(update={"out": None})
    else:
        name = early.get("preset") or default_preset(early.get("model"), early.get("pretext"))
        defaults = preset(PRESETS.canonical(name))

    options = arguments_of(TrainConfig, defaults, summary=_SUMMARY, extra=_EXTRA)
    parsed = parse_arguments(options, prog, arguments)
    given = {name: getattr(parsed, name) for name in given_fields(TrainConfig, arguments)}
    values = defaults.model_dump() | given
    # A default without effect is dropped; a given option without effect is refused.
    idle = idle_options(values)
    for name in given:
        if name in idle:
            raise ValueError(refusal(name, idle[name]))
    kept = {name: value for name, value in values.items() if name not in idle}
    config = checked(TrainConfig, kept)
    if parsed.resume is not None:
        check_places(config, given)
    return config, parsed.resume
