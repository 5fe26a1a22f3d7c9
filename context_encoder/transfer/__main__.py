"""``python -m context_encoder.transfer COMMAND``: probe and the transfers to PASCAL VOC."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from context_encoder.runs import check_places, check_unchanged, find_checkpoint, read_config_as
from context_encoder.training import NonFiniteError, TrainingError
from context_encoder.transfer.backbone import BackboneConfig
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.registry import TRANSFERS, TransferSpec
from context_encoder.utils.cli import (
    DONE,
    UsageError,
    early_options,
    given_fields,
    parse_config,
    run_command,
)

# Paths may have moved. The weights of the network that the run began with are in its checkpoints.
_FREE_ON_RESUME = (
    "voc checkpoint weights max_unreadable steps workers device log_every save_every "
    "save_minutes keep resume"
).split()

C = TypeVar("C", bound=TransferConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command(
        "transfer",
        _parse,
        _run,
        arguments,
        failures=(NonFiniteError, TrainingError),
        needs_console=False,
    )


def _parse(prog: str, words: Sequence[str]) -> tuple[TransferSpec, BackboneConfig] | None:
    """The transfer and its options; None if the list of transfers was requested."""
    if words and words[0] in ("-h", "--help"):
        return None
    if not words or words[0] not in TRANSFERS:
        given = f"there is no command {words[0]!r}" if words else "a command is missing"
        raise UsageError(f"{given}; choose {', '.join(TRANSFERS)}, and see {prog} --help")
    transfer, prog = TRANSFERS[words[0]], f"{prog} {words[0]}"
    if issubclass(transfer.config, TransferConfig):
        return transfer, parse(transfer.config, prog, words[1:])
    return transfer, parse_config(transfer.config, prog, words[1:])


def _run(parsed: tuple[TransferSpec, BackboneConfig] | None) -> int:
    if parsed is not None:
        transfer, config = parsed
        return transfer.run(config)
    print("usage: python -m context_encoder.transfer COMMAND [options]\n\ncommands:")
    for name, transfer in TRANSFERS.items():
        print(f"  {name:14} {transfer.summary}")
    print("\nCOMMAND --help lists the options.")
    return DONE


def parse(kind: type[C], prog: str, arguments: Sequence[str] | None) -> C:
    """Parse the command line into a configuration; ``--resume`` takes defaults from a run.

    Raises:
        RunError: the run of ``--resume`` cannot be used.
        ValueError: an option would change the run that is resumed.
        FileNotFoundError: a file or folder that the resumed run uses is gone.
    """
    early = early_options(("resume",), arguments)
    defaults = kind()
    if "resume" in early:
        folder = find_checkpoint(Path(early["resume"]), "last")
        defaults = read_config_as(kind, folder, f"a configuration of {prog}")
    config = parse_config(kind, prog, arguments, defaults)
    if config.resume is not None:
        check_unchanged(config.resume, defaults, config, _FREE_ON_RESUME)
        check_places(config, given_fields(kind, arguments))
    return config


if __name__ == "__main__":
    sys.exit(main())
