"""``python -m context_encoder.evaluate``: how well networks fill holes, and what they must beat."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from context_encoder.data.mask_images import InpaintError
from context_encoder.evaluation.comparison import EvaluateConfig, evaluate
from context_encoder.runs import RunError
from context_encoder.utils.cli import parse_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 1 failed, 2 misused, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = parse_config(EvaluateConfig, "python -m context_encoder.evaluate", arguments)
        result = evaluate(config)
    except InpaintError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except (RunError, ImportError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    print((result.out / "results.md").read_text(encoding="utf-8"))
    if result.reused:
        print(f"{result.reused} of {result.parts} parts were there already")
    print(f"written: {result.out}/results.md, results.csv, results.json; look at")
    for group in result.groups:
        print(f"  {result.out / (group.mask + '.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
