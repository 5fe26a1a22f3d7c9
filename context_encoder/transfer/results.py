"""Results of a transfer as JSON values and as a Markdown table."""

from __future__ import annotations

import math
from typing import Any

from context_encoder.transfer.metrics import mean


def summary(
    per_class: dict[str, dict[str, float]], test_images: int, unreadable: int
) -> dict[str, Any]:
    """The parts of ``results.json`` for metrics per class."""
    names = list(next(iter(per_class.values())))
    means = {name: mean([values[name] for values in per_class.values()]) for name in names}
    return {
        "metrics": means,
        "per_class": {
            name: {key: number_or_none(value) for key, value in values.items()}
            for name, values in per_class.items()
        },
        "test_images": test_images,
        "unreadable": unreadable,
    }


def number_or_none(value: float) -> float | None:
    """The value, or None for nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def markdown(result: dict[str, Any]) -> str:
    names = list(result["metrics"])
    lines = [
        f"{result['command']} from {result['network']}: {result['test_images']} test images, "
        f"{result['steps']} steps, {result['unreadable']} images unreadable.",
        "",
        f"| class | {' | '.join(names)} |",
        "| --- |" + " --- |" * len(names),
    ]
    rows = {**result["per_class"], "**mean**": result["metrics"]}
    for name, values in rows.items():
        cells = ["-" if values.get(n) is None else f"{100 * values[n]:.2f} %" for n in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
