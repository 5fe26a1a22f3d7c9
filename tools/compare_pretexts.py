"""Comparison of pretexts and random weights by a linear probe.

    python tools/compare_pretexts.py --photos FOLDER --labelled FOLDER --out OUT

Every pretext trains the same encoder on the same photographs for the same number of steps, with
each seed; then a linear classifier is fitted to the frozen features of each layer. Completed runs
are skipped and interrupted ones resumed, so the command can be repeated until all are complete.
Results: OUT/pretexts.json and OUT/pretexts.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from context_encoder.runs import RunError, find_checkpoint, read_config

PRETEXTS: dict[str, tuple[str, ...] | None] = {
    "context encoder, region": ("--mask", "region"),
    "context encoder, block": ("--mask", "block"),
    "context encoder, central": ("--mask", "central"),
    "autoencoder": ("--pretext", "autoencoder"),
    "denoising autoencoder": ("--pretext", "denoising"),
    "relative patch": ("--pretext", "relative-patch"),
    "random initialisation": None,
}

FIRST = next(iter(PRETEXTS))
BOTTLENECK = "channelwise_fc"


@dataclass(frozen=True)
class Options:
    """Compare pretexts by a linear probe."""

    photos: Path
    """Folder of photographs to pretrain on."""
    labelled: Path
    """Folder with train/ and test/, each with one sub-folder per class."""
    out: Path
    """Output folder for runs and results."""
    steps: int = 1000
    """Pretraining steps."""
    seeds: int = 3
    """Number of seeds: 0, 1, ..."""
    layers: tuple[str, ...] = ("conv2", "conv3", BOTTLENECK)
    """Layers to probe; relative-patch networks end with the encoder and lack the bottleneck."""
    max_dims: int = 2048
    """Largest number of features per layer."""
    jobs: int = 1
    """Number of parallel trainings and probes, each with its share of the CPU's cores."""
    train_args: str = ""
    """Further options for every training, in one string."""


def name_of(pretext: str, seed: int) -> str:
    return f"{pretext.replace(', ', '-').replace(' ', '-')}-{seed}"


def run(command: list[str], log: Path, threads: int) -> float:
    """Run a module of the package; returns CPU seconds. SystemExit with its output on failure."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=file, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def pretrain(options: Options, pretext: str, seed: int, threads: int) -> tuple[float, float] | None:
    """Train or resume a run if needed; returns wall and CPU seconds, None without training."""
    arguments = PRETEXTS[pretext]
    if arguments is None:
        return None
    name = name_of(pretext, seed)
    folder, clock = options.out / "runs" / name, options.out / "runs" / f"{name}.seconds"
    wall, cpu = json.loads(clock.read_text()) if clock.exists() else (0.0, 0.0)
    command = ["context_encoder.train"]
    try:
        done = steps_of(folder)
        if done > options.steps:
            raise SystemExit(f"{folder} has already completed {done} steps; pass another --out")
        if done == options.steps:
            return wall, cpu
        command += ["--resume", str(folder)]
    except RunError:
        command += ["--data", str(options.photos), "--out", str(folder), *arguments]
        command += ["--seed", str(seed), "--val-fraction", "0.05", *options.train_args.split()]
    command += ["--steps", str(options.steps), "--val-every", str(options.steps)]
    started = time.monotonic()
    cpu += run(command, options.out / "logs" / f"{name}.log", threads)
    wall += time.monotonic() - started
    clock.write_text(json.dumps([wall, cpu]))
    return wall, cpu


def steps_of(run: Path) -> int:
    return int(json.loads((find_checkpoint(run, "last") / "state.json").read_text())["step"])


def probe(options: Options, pretext: str, seed: int, threads: int) -> dict[str, Any]:
    """Results of the probe for a run, or for new weights with random initialisation."""
    name = name_of(pretext, seed)
    folder = options.out / "probes" / name
    if PRETEXTS[pretext] is None:
        config = read_config(find_checkpoint(options.out / "runs" / name_of(FIRST, seed), "last"))
        source, steps = ["--model", config.model, "--image-size", str(config.size)], 0
    else:
        checkpoint = find_checkpoint(options.out / "runs" / name, "last")
        source, steps = ["--checkpoint", str(checkpoint)], options.steps
    command = ["context_encoder.transfer", "probe", "--data", str(options.labelled), *source]
    layers = [n for n in options.layers if n != BOTTLENECK or pretext != "relative patch"]
    command += ["--layers", *layers, "--max-dims", str(options.max_dims), "--seeds", str(seed)]
    asked = json.dumps({"steps": steps, "command": command})
    key = folder / "asked.json"
    if not key.exists() or key.read_text() != asked:
        run([*command, "--out", str(folder)], options.out / "logs" / f"{name}.log", threads)
        key.write_text(asked)
    result: dict[str, Any] = json.loads((folder / "probe.json").read_text())
    return result


def revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def mean_and_deviation(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def table(options: Options, rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| pretraining | " + " | ".join(options.layers) + " | wall time | CPU time |",
        "| --- " * (len(options.layers) + 3) + "|",
    ]
    for pretext, row in rows.items():
        cells = [
            mean_and_deviation([100 * a for a in row["layers"][n]])
            if n in row["layers"]
            else "none"
            for n in options.layers
        ]
        for clock in ("wall_seconds", "cpu_seconds"):
            cells.append(f"{statistics.fmean(row[clock]):.0f} s" if row[clock] else "none")
        lines.append(f"| {pretext} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    tasks = [(pretext, seed) for seed in range(options.seeds) for pretext in PRETEXTS]
    trained = [task for task in tasks if PRETEXTS[task[0]] is not None]
    untrained = [task for task in tasks if PRETEXTS[task[0]] is None]

    def work(task: tuple[str, int]) -> tuple[tuple[float, float] | None, dict[str, Any]]:
        seconds = pretrain(options, *task, threads)
        result = probe(options, *task, threads)
        best = max(layer["accuracy"] for layer in result["layers"].values())
        print(f"{name_of(*task)}: best layer {100 * best:.1f} %", flush=True)
        return seconds, result

    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(trained, pool.map(work, trained), strict=True))
        # Last, as their configuration comes from the other runs.
        found |= dict(zip(untrained, pool.map(work, untrained), strict=True))

    rows: dict[str, dict[str, Any]] = {}
    for (pretext, _), (seconds, result) in found.items():
        row = rows.setdefault(pretext, {"layers": {}, "wall_seconds": [], "cpu_seconds": []})
        for layer, values in result["layers"].items():
            row["layers"].setdefault(layer, []).append(values["accuracy"])
        if seconds is not None:
            row["wall_seconds"].append(round(seconds[0], 1))
            row["cpu_seconds"].append(round(seconds[1], 1))
    some = found[tasks[0]][1]
    record = {
        "command": " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "git": revision(),
        "steps": options.steps,
        "seeds": list(range(options.seeds)),
        "train_images": some["train_images"],
        "test_images": some["test_images"],
        "chance": some["chance"],
        "machine": {
            "torch": torch.__version__,
            "cpus": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        },
        "accuracy": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pretexts.json").write_text(json.dumps(record, indent=2) + "\n")
    text = table(options, rows)
    (options.out / "pretexts.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
