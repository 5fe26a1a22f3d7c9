"""What each part of the network that corrects the membrane contributes.

    python tools/ablation.py --out docs/results/ablation.json --runs RUNS

Trains every variant from scratch on the photographs that are included, with region masks and
with central holes of half the side, for every seed, and prints a table of the gains over the
membrane on held-out photographs. The file is written after each run; the same command goes on with
the runs that are missing. RUNS takes the run folders. Seeds come first, so an unfinished file
compares all variants.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from context_encoder.config import TrainConfig
from context_encoder.training import run_training
from context_encoder.utils.files import write_file

#: The network of the default run, and the same without one of its parts.
VARIANTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "without the channel-wise layer": {"channelwise": False},
    "without skip connections": {"skips": False},
    "from a mean colour instead of the membrane": {"start": "mean"},
    "without the mask as input": {"mask_channel": False},
}
MASKS = ("region", "central")


def train(
    variant: str, mask: str, seed: int, settings: dict[str, Any], runs: Path
) -> dict[str, Any]:
    """One run from scratch; its last validation."""
    out = runs / f"{'-'.join(variant.split())}-{mask}-{seed}"
    shutil.rmtree(out, ignore_errors=True)  # what an interrupted run has left
    config = TrainConfig(
        preset="membrane-unet",
        mask=mask,
        seed=seed,
        val_every=settings["steps"],
        out=out,
        **settings,
        **VARIANTS[variant],
    )
    started = time.process_time()
    run_training(config)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "val"][-1]
    kept = {name: last[name] for name in ("psnr", "psnr_membrane", "ssim", "images", "excluded")}
    cpu = round(time.process_time() - started)
    return {"variant": variant, "mask": mask, "seed": seed, **kept, "cpu_seconds": cpu}


def table(results: list[dict[str, Any]]) -> str:
    """Gains over the membrane in dB as Markdown: mean, and lowest to highest seed."""
    lines = ["| network | region masks | central holes |", "| --- | --- | --- |"]
    for variant in VARIANTS:
        cells = []
        for mask in MASKS:
            gains = [
                run["psnr"] - run["psnr_membrane"]
                for run in results
                if (run["variant"], run["mask"]) == (variant, mask)
            ]
            spread = f" ({min(gains):+.2f} to {max(gains):+.2f})" if len(gains) > 1 else ""
            cells.append(f"{statistics.mean(gains):+.2f}{spread}" if gains else "none")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("context_encoder").setLevel(logging.WARNING)

    settings = {
        name: getattr(args, name) for name in ("steps", "batch_size", "size", "amp", "device")
    }
    record: dict[str, Any] = {"settings": settings, "torch": torch.__version__, "runs": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
        if record["settings"] != settings:
            parser.error(f"{args.out} has other settings: {record['settings']}")
    done = {(run["variant"], run["mask"], run["seed"]) for run in record["runs"]}
    for seed in range(args.seeds):
        for mask in MASKS:
            for variant in VARIANTS:
                if (variant, mask, seed) not in done:
                    record["runs"].append(train(variant, mask, seed, settings, args.runs))
                    write_file(args.out, json.dumps(record, indent=1) + "\n")
    print(table(record["runs"]))


if __name__ == "__main__":
    main()
