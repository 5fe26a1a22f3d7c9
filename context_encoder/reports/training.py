"""The report of training runs: curves, sheets of samples and settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_encoder.config import TrainConfig
from context_encoder.reports.chart import Series, line_chart
from context_encoder.reports.document import Cell, Document, Picture, Section, Table
from context_encoder.runs import RunError, find_checkpoint, read_config
from context_encoder.utils.text import read_rows

__all__ = ["training_report"]

# Quantities of metrics.jsonl that are shown first, and their names; the others follow as they are.
_NAMES = {
    "psnr": "PSNR in the hole, dB",
    "accuracy": "accuracy",
    "l1": "mean L1",
    "l2": "mean L2",
    "loss": "loss",
    "loss_rec": "reconstruction loss",
    "loss_adv": "adversarial loss",
    "loss_d": "loss of the discriminator",
}
_OMITTED = ("split", "step", "epoch")
_SHEETS = 2


@dataclass(frozen=True)
class _Run:
    name: str
    config: TrainConfig
    #: Lines of metrics.jsonl.
    lines: list[dict[str, Any]]
    #: How many lines could not be read.
    damaged: int
    sheets: list[Path]


def training_report(paths: Sequence[Path], title: str | None = None) -> Document:
    """Curves, sheets of samples and settings of some runs, overlaid.

    Args:
        paths: run folders.
        title: of the report; None: the names of the runs.

    Raises:
        RunError: a folder holds no run.
        OSError: its files cannot be read.
    """
    names = [path.resolve().name for path in paths]
    count = Counter(names)
    runs = [
        _read(path, name if count[name] == 1 else f"{path.resolve().parent.name}/{name}")
        for path, name in zip(paths, names, strict=True)
    ]
    sections = [
        Section("Results", tables=[_results(runs)]),
        *(_curves(runs, split, text) for split, text in (("val", "Validation"),
                                                         ("train", "Training"))),
        *(
            Section(
                f"Samples of {run.name}",
                ["Held-out images: original, masked, filled."],
                pictures=[Picture.read(path, path.stem.replace("_", " ")) for path in run.sheets],
            )
            for run in runs
            if run.sheets
        ),
        _settings(runs),
    ]  # fmt: skip
    facts = [
        f"{run.name}: {run.damaged} lines of metrics.jsonl could not be read and are left out"
        for run in runs
        if run.damaged
    ]
    used = [s for s in sections if s.tables or s.charts or s.pictures]
    return Document(title or f"Training: {', '.join(run.name for run in runs)}", facts, used)


def _read(path: Path, name: str) -> _Run:
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise RunError(f"{path} is not a run folder: it has no metrics.jsonl")
    lines: list[dict[str, Any]] = []
    damaged = 0
    for _, row in read_rows(metrics):
        try:
            lines.append({**(row or {}), "step": float((row or {})["step"])})
        except (ValueError, TypeError, KeyError, OverflowError):
            damaged += 1
    if not lines:
        raise RunError(f"{path} has no metrics yet: its training has not reached its first report")
    sheets = sorted((path / "samples").glob("step_*.png"))
    try:
        config = read_config(find_checkpoint(path, "last"))
    except RunError:  # before its first checkpoint, the run has its configuration alone
        config = read_config(path)
    shown = sheets if len(sheets) <= _SHEETS else [sheets[0], sheets[-1]]
    return _Run(name, config, lines, damaged, shown)


def _curves(runs: Sequence[_Run], split: str, text: str) -> Section:
    found = dict.fromkeys(
        name
        for run in runs
        for line in run.lines
        if line.get("split") == split
        for name, value in line.items()
        if name not in _OMITTED and isinstance(value, (int, float))
    )
    order = [name for name in _NAMES if name in found]
    charts = []
    for name in (*order, *(name for name in found if name not in _NAMES)):
        series = [
            Series(
                run.name,
                [
                    (line["step"], float(line[name]))
                    for line in run.lines
                    if line.get("split") == split and isinstance(line.get(name), (int, float))
                ],
            )
            for run in runs
        ]
        chart = line_chart(_NAMES.get(name, name.replace("_", " ")), "step", "", series)
        if chart is not None:
            charts.append(chart)
    return Section(text, charts=charts)


def _results(runs: Sequence[_Run]) -> Table:
    """The best and the last validation of each run."""
    rows = []
    for run in runs:
        lines = [line for line in run.lines if line.get("split") == "val"]
        metric = "accuracy" if any("accuracy" in line for line in lines) else "psnr"
        scored = [line for line in lines if isinstance(line.get(metric), (int, float))]
        row = [Cell(run.name), Cell(run.config.model), Cell(run.config.pretext)]
        row.append(_number(max(line["step"] for line in run.lines), "{:.0f}"))
        for line in (max(scored, key=lambda line: line[metric]), scored[-1]) if scored else ():
            row += [_number(line[metric], "{:.3f}"), _number(line["step"], "{:.0f}")]
        rows.append(row + [Cell("")] * (8 - len(row)))
    headings = ["run", "network", "pretext", "steps", "best", "at step", "last", "at step"]
    return Table(headings, rows)


def _number(value: float, text: str) -> Cell:
    return Cell(text.format(value), float(value))


def _settings(runs: Sequence[_Run]) -> Section:
    """All settings; those that differ come first, in bold."""
    dumps = [run.config.model_dump(mode="json") for run in runs]
    names = list(dict.fromkeys(name for dump in dumps for name in dump))
    rows = []
    for name in names:
        values = [_text(dump.get(name)) for dump in dumps]
        differs = len(set(values)) > 1
        rows.append([Cell(name, strong=differs), *(Cell(v, strong=differs) for v in values)])
    rows.sort(key=lambda row: not row[0].strong)
    facts = ["Settings that differ are in bold."] if len(runs) > 1 else []
    return Section("Settings", facts, [Table(["option", *(run.name for run in runs)], rows)])


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
