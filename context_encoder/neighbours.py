"""``python -m context_encoder.neighbours``: photographs whose context resembles that of a hole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from context_encoder.evaluation.neighbour_grid import NeighboursConfig, draw_sheet
from context_encoder.utils.cli import parse_config, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("neighbours", partial(parse_config, NeighboursConfig), _draw, arguments)


def _draw(config: NeighboursConfig) -> None:
    print(f"look at {draw_sheet(config)}")


if __name__ == "__main__":
    sys.exit(main())
