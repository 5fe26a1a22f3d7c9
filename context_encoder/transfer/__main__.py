"""``python -m context_encoder.transfer COMMAND``: probe and the transfers to PASCAL VOC."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from context_encoder.runs import RunError
from context_encoder.training.trainer import NonFiniteError

# Each is a module with main(arguments) -> exit status; imported only when asked for.
COMMANDS = {
    "probe": ("probe", "accuracy of a linear classifier on each layer's frozen features"),
    "voc-classify": ("classify", "VOC07 classification by Krähenbühl's recipe"),
    "voc-segment": ("segment", "VOC12 segmentation as FCN-32s"),
    "voc-detect": ("detect", "VOC07 detection as Fast R-CNN"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status.

    0 done, or stopped by a signal and saved; 1 failed; 2 misused; 130 interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        asked = bool(given) and given[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        if given and not asked:
            print(f"error: there is no command {given[0]!r}", file=out)
        print("usage: python -m context_encoder.transfer COMMAND [options]\n\ncommands:", file=out)
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:14} {summary}", file=out)
        print("\nCOMMAND --help tells the options.", file=out)
        return 0 if asked else 2
    module = importlib.import_module(f"context_encoder.transfer.{COMMANDS[given[0]][0]}")
    try:
        status: int = module.main(given[1:])
        return status
    except (RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
