"""The report of training runs: curves, sheets of samples and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_encoder.config import TrainConfig
from context_encoder.reports.chart import Series, line_chart
from context_encoder.reports.document import Cell, Picture, Section, Table
from context_encoder.reports.naming import number, settings_section
from context_encoder.runs import RunError, find_checkpoint, read_config
from context_encoder.utils.text import read_rows

__all__ = ["QUANTITIES", "curves", "read_metrics", "training_sections"]

#: Quantities of metrics.jsonl that are shown first, and their names; others follow as they are.
QUANTITIES = {
    "psnr": "PSNR in the hole, dB",
    "accuracy": "accuracy",
    "l1": "mean L1",
    "l2": "mean L2",
    "loss": "loss",
    "loss_rec": "reconstruction loss",
    "loss_adv": "adversarial loss",
    "loss_d": "loss of the discriminator",
    "loss_class": "loss of the classes",
    "loss_box": "loss of the boxes",
    "ap_11_point": "average precision, 11 points",
    "ap_area": "average precision, area",
    "iou": "intersection over union",
}
_OMITTED = ("split", "step", "epoch")
_SHEETS = 2


@dataclass(frozen=True)
class _Run:
    name: str
    config: TrainConfig
    #: Lines of metrics.jsonl.
    lines: list[dict[str, Any]]
    sheets: list[Path]


def training_sections(
    paths: Sequence[Path], names: Sequence[str]
) -> tuple[list[str], list[Section]]:
    """Curves, sheets of samples and settings of some training runs, overlaid.

    Args:
        paths: run folders.
        names: of the runs.

    Returns:
        Remarks, and the parts of the report.

    Raises:
        RunError: a folder holds no run.
        OSError: its files cannot be read.
    """
    runs, facts = [], []
    for path, name in zip(paths, names, strict=True):
        lines, remarks = read_metrics(path, name)
        facts += remarks
        sheets = sorted((path / "samples").glob("step_*.png"))
        try:
            config = read_config(find_checkpoint(path, "last"))
        except RunError:  # before its first checkpoint, the run has its configuration alone
            config = read_config(path)
        shown = sheets if len(sheets) <= _SHEETS else [sheets[0], sheets[-1]]
        runs.append(_Run(name, config, lines, shown))
    every = {run.name: run.lines for run in runs}
    return facts, [
        Section("Results", tables=[_results(runs)]),
        curves("Validation", every, "val"),
        curves("Training", every, "train"),
        *(
            Section(
                f"Samples of {run.name}",
                ["Held-out images: original, masked, filled."],
                pictures=[Picture.read(path, path.stem.replace("_", " ")) for path in run.sheets],
            )
            for run in runs
            if run.sheets
        ),
        settings_section(
            [run.name for run in runs], [run.config.model_dump(mode="json") for run in runs]
        ),
    ]


def read_metrics(path: Path, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a run's metrics.jsonl, and a remark if some could not be read.

    Raises:
        RunError: there are none.
        OSError: the file cannot be read.
    """
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        inside = any(path.glob("*/metrics.jsonl"))
        more = f"; the runs in it: {path}/*" if inside else ""
        raise RunError(f"{path} is not a run folder: it has no metrics.jsonl{more}")
    lines: list[dict[str, Any]] = []
    damaged = 0
    for _, row in read_rows(metrics):
        try:
            lines.append({**(row or {}), "step": float((row or {})["step"])})
        except (ValueError, TypeError, KeyError, OverflowError):
            damaged += 1
    if not lines:
        raise RunError(f"{path} has no metrics yet: its training has not reached its first report")
    remark = f"{name}: {damaged} lines of metrics.jsonl could not be read and are left out"
    return lines, [remark] if damaged else []


def curves(title: str, runs: Mapping[str, list[dict[str, Any]]], split: str) -> Section:
    """A chart of each quantity in the lines of a split, with a curve per run.

    Args:
        title: of the section.
        runs: lines of metrics.jsonl by the name of the run.
        split: "train", "val" or "test".
    """
    found = dict.fromkeys(
        name
        for lines in runs.values()
        for line in lines
        if line.get("split") == split
        for name, value in line.items()
        if name not in _OMITTED and isinstance(value, (int, float))
    )
    order = [name for name in QUANTITIES if name in found]
    charts = []
    for name in (*order, *(name for name in found if name not in QUANTITIES)):
        series = [
            Series(
                run,
                [
                    (line["step"], float(line[name]))
                    for line in lines
                    if line.get("split") == split and isinstance(line.get(name), (int, float))
                ],
            )
            for run, lines in runs.items()
        ]
        chart = line_chart(QUANTITIES.get(name, name.replace("_", " ")), "step", "", series)
        if chart is not None:
            charts.append(chart)
    return Section(title, charts=charts)


def _results(runs: Sequence[_Run]) -> Table:
    """The best and the last validation of each run."""
    rows = []
    for run in runs:
        lines = [line for line in run.lines if line.get("split") == "val"]
        metric = "accuracy" if any("accuracy" in line for line in lines) else "psnr"
        scored = [line for line in lines if isinstance(line.get(metric), (int, float))]
        row = [Cell(run.name), Cell(run.config.model), Cell(run.config.pretext)]
        row.append(number(max(line["step"] for line in run.lines), "{:.0f}"))
        for line in (max(scored, key=lambda line: line[metric]), scored[-1]) if scored else ():
            row += [number(line[metric], "{:.3f}"), number(line["step"], "{:.0f}")]
        rows.append(row + [Cell("")] * (8 - len(row)))
    headings = ["run", "network", "pretext", "steps", "best", "at step", "last", "at step"]
    return Table(headings, rows)
