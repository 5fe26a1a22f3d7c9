"""``python -m context_encoder.neighbours``: photographs whose context is like that of a hole."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from context_encoder.evaluation.neighbour_grid import NeighboursConfig, draw_sheet
from context_encoder.runs import RunError
from context_encoder.utils.cli import parse_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 2 misused, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = parse_config(NeighboursConfig, "python -m context_encoder.neighbours", arguments)
        print(f"look at {draw_sheet(config)}")
        return 0
    except (RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
