"""``python -m context_encoder.evaluate``: inpainting quality of networks and of baselines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from context_encoder.data.mask_images import InpaintError
from context_encoder.evaluation.comparison import evaluate
from context_encoder.evaluation.options import EvaluateConfig
from context_encoder.utils.cli import parse_config, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command(
        "evaluate",
        partial(parse_config, EvaluateConfig),
        _evaluate,
        arguments,
        failures=(InpaintError,),  # a prediction that is not finite
        when_interrupted="repeat the command to continue",
    )


def _evaluate(config: EvaluateConfig) -> None:
    result = evaluate(config)
    print((result.out / "results.md").read_text(encoding="utf-8"))
    if result.reused:
        print(f"{result.reused} of {result.parts} parts were already there")
    files = [*(result.out / f"results.{kind}" for kind in ("md", "csv", "json")), config.html]
    print(f"written: {', '.join(str(file) for file in files if file)}; look at")
    for sheet in result.sheets:
        print(f"  {sheet}")


if __name__ == "__main__":
    sys.exit(main())
