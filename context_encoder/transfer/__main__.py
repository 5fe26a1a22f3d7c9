"""``python -m context_encoder.transfer COMMAND``: probe and the transfers to PASCAL VOC."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from context_encoder.runs import RunError, find_checkpoint
from context_encoder.training import NonFiniteError
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.registry import TRANSFERS
from context_encoder.utils.cli import parse_config

_FREE_ON_RESUME = ("voc", "steps", "workers", "device", "log_every", "save_every", "resume")

C = TypeVar("C", bound=TransferConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status.

    0 done, or stopped by a signal and saved; 1 failed; 2 misused; 130 interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in TRANSFERS:
        asked = bool(given) and given[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        if given and not asked:
            print(f"error: there is no command {given[0]!r}", file=out)
        print("usage: python -m context_encoder.transfer COMMAND [options]\n\ncommands:", file=out)
        for name, transfer in TRANSFERS.items():
            print(f"  {name:14} {transfer.summary}", file=out)
        print("\nCOMMAND --help tells the options.", file=out)
        return 0 if asked else 2
    name, options = given[0], given[1:]
    transfer = TRANSFERS[name]
    try:
        if issubclass(transfer.config, TransferConfig):
            return transfer.run(parse(transfer.config, name, options))
        prog = f"python -m context_encoder.transfer {name}"
        return transfer.run(parse_config(transfer.config, prog, options))
    except (RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse(kind: type[C], command: str, arguments: Sequence[str] | None) -> C:
    """The configuration that the command line asks for; --resume makes the run's the default.

    Raises:
        RunError: what --resume names cannot be used.
        ValueError: an option would change the run that is resumed.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", nargs="?")
    known, _ = first.parse_known_args(arguments)
    defaults = kind()
    if known.resume is not None:
        file = find_checkpoint(Path(known.resume), "last") / "config.json"
        try:
            defaults = kind.model_validate_json(file.read_text())
        except (OSError, ValidationError) as error:
            raise RunError(f"{file} is not a configuration of {command}: {error}") from error
    config = parse_config(
        kind, f"python -m context_encoder.transfer {command}", arguments, defaults
    )
    if config.resume is not None:
        changed = [
            "--" + name.replace("_", "-")
            for name in kind.model_fields
            if name not in _FREE_ON_RESUME and getattr(config, name) != getattr(defaults, name)
        ]
        if changed:
            raise ValueError(
                f"--resume continues {config.resume} as it began, but {', '.join(changed)} would "
                "change it; leave that out, or start a new run"
            )
    return config


if __name__ == "__main__":
    sys.exit(main())
