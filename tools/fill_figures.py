"""Figures of docs/filling.md: what fills of square holes are worth, beside other methods.

    python tools/fill_figures.py [FOLDER:COUNT ...] [--out docs/results/fills.json]

Chooses photographs and calls ``context_encoder.evaluate`` at their own resolution
(docs/evaluation.md). For the included photographs alone, ``python -m context_encoder.evaluate``
does the same. Photographs: of each FOLDER the COUNT files whose base names have the smallest
SHA-256, then the 8 included ones that the default run holds out, in the same order. Repeated with
another version of the package, only the rows that can have changed are measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from context_encoder.config import TrainConfig
from context_encoder.data import list_images
from context_encoder.evaluation.comparison import evaluate
from context_encoder.evaluation.fills import BaselineName
from context_encoder.evaluation.options import EvaluateConfig
from context_encoder.evaluation.squares import by_hash
from context_encoder.evaluation.tables import Group, sides_table, summary
from context_encoder.runs import Photos

CROP, HOLES = 256, (24, 48, 80, 112)
ROWS: tuple[BaselineName, ...] = (
    "membrane",
    "telea",
    "fsr",
    "shiftmap",
    "included-network",
    "linear-prediction",
    "hole-filler-no-network",
    "hole-filler",
)


def photographs(folders: Sequence[str]) -> dict[str, Path]:
    """Files by a unique name."""
    files: list[Path] = []
    for folder in folders:
        path, _, count = folder.rpartition(":")
        found = list_images(Path(path))
        files += [found[i] for i in by_hash([file.name for file in found])][: int(count)]
    included = Photos.from_config(TrainConfig()).val
    files += [included[i] for i in by_hash([file.name for file in included])]
    return {f"{file.parent.name}/{file.name}": file for file in files}


def results(group: Group) -> dict[str, Any]:
    """Means and medians by the side of the hole."""
    columns = {f"{side} px": members for side, members in group.by_side().items()}
    columns |= {"all": group.counted, "flat": group.flat_ones}
    names = {"psnr": "psnr", "psnr_median": "median psnr", "feature_distance": "distance"}
    return {
        "photographs": {column: len(members) for column, members in columns.items()},
        "fills": {
            method.name: {
                column: {
                    names[name]: round(value, 5)
                    for name, value in summary(group, method, members).items()
                    if name in names
                }
                for column, members in columns.items()
            }
            for method in group.methods
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER:COUNT")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--results", type=Path, default=Path("fill-figures"), help="working folder")
    options = parser.parse_args()
    config = EvaluateConfig(
        crop=CROP, holes=HOLES, baselines=ROWS, perceptual="on", blind=True, out=options.results
    )
    found = evaluate(config, photographs(options.folders))
    (group,) = found.groups
    print("\n".join([*found.facts, "", *sides_table(group)]))
    if options.out:
        machine = (
            f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        content = {"machine": machine} | results(group)
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
