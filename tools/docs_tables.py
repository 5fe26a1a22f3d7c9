"""Tables of masks, models, pretexts, presets and transfers in the documentation.

``python tools/docs_tables.py`` writes them, from the registries, between the lines
``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from context_encoder.config import PRESETS, PRETEXTS, preset
from context_encoder.masks import MASKS
from context_encoder.models import MODELS
from context_encoder.pretexts import find_pretext
from context_encoder.transfer.registry import TRANSFERS

ROOT = Path(__file__).parents[1]


def masks() -> Iterator[tuple[str, ...]]:
    yield "`--mask`", "what is missing"
    for name, spec in MASKS.items():
        yield f"`{name}`", spec.summary


def models() -> Iterator[tuple[str, ...]]:
    yield "`--model`", "network", "recipe"
    for name, spec in MODELS.items():
        yield f"`{name}`", spec.summary, f"`{next(iter(spec.presets))}`"


def pretexts() -> Iterator[tuple[str, ...]]:
    yield "`--pretext`", "in", "out", "best checkpoint by"
    for name, spec in PRETEXTS.items():
        metric = find_pretext(name).best_metric
        yield f"`{name}`", spec.takes, spec.gives, metric.upper() if metric == "psnr" else metric


def presets() -> Iterator[tuple[str, ...]]:
    yield "preset", "network", "pretext", "masks", "reconstruction + adversarial loss", "from"
    for name, its in PRESETS.items():
        config = preset(name)
        spec = PRETEXTS[config.pretext]
        size = config.size or MODELS[config.model].image_size
        masks = f"`{config.mask}`" if "mask" in spec.uses else "none"
        rec, adv = (getattr(config, f"lambda_{kind}") for kind in ("rec", "adv"))
        weights = f"{rec:g} + {adv:g}" if spec.fills_holes else "-"
        yield (
            f"`{name}`", f"`{config.model}`, {size} px", f"`{config.pretext}`", masks, weights,
            its.source,
        )  # fmt: skip


def transfers() -> Iterator[tuple[str, ...]]:
    yield "command", "data", "what is reported"
    for name, spec in TRANSFERS.items():
        yield f"`{name}`", spec.data, spec.reports


#: Which table stands where.
PLACES: dict[tuple[str, str], Callable[[], Iterator[tuple[str, ...]]]] = {
    ("README.md", "masks"): masks,
    ("docs/recipes.md", "presets"): presets,
    ("docs/recipes.md", "models"): models,
    ("docs/recipes.md", "pretexts"): pretexts,
    ("docs/transfer.md", "transfers"): transfers,
}


def markdown(rows: Iterator[tuple[str, ...]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    rule = "| " + " | ".join(["---"] * (head.count(" | ") + 1)) + " |"
    return "\n".join([head, rule, *body])


def with_tables(file: str, text: str) -> str:
    """A page's text with its tables anew; ValueError if it lacks a marker."""
    for (place, marker), rows in PLACES.items():
        if place == file:
            pattern = rf"(<!-- table: {marker} -->\n).*?(\n<!-- end of table -->)"
            if len(re.findall(pattern, text, re.DOTALL)) != 1:
                raise ValueError(f"{file} needs the lines of the table {marker!r} once")
            table = markdown(rows())
            text = re.sub(
                pattern, lambda found, t=table: found[1] + t + found[2], text, flags=re.DOTALL
            )
    return text


def main() -> None:
    for file in dict.fromkeys(file for file, _ in PLACES):
        path = ROOT / file
        path.write_text(with_tables(file, path.read_text()))


if __name__ == "__main__":
    main()
