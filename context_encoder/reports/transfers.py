"""The reports of transfers: linear probes, and the runs that fine-tune networks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_encoder.reports.chart import Series, line_chart
from context_encoder.reports.document import Cell, Section, Table
from context_encoder.reports.naming import number, settings_section
from context_encoder.reports.training import QUANTITIES, curves, read_metrics
from context_encoder.runs import RunError
from context_encoder.utils.text import read_text

__all__ = ["is_transfer", "probe_sections", "transfer_sections"]


@dataclass(frozen=True)
class _Run:
    name: str
    #: Contents of ``results.json``; None: the run has not ended.
    results: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    #: Lines of metrics.jsonl.
    lines: list[dict[str, Any]]

    @property
    def command(self) -> str:
        return "transfer without results yet" if self.results is None else self.results["command"]


def is_transfer(path: Path) -> bool:
    """Whether a folder is the run of a transfer, and not of pretraining."""
    try:
        return "pretext" not in json.loads(read_text(path / "config.json"))
    except (OSError, ValueError, TypeError):
        return False


def transfer_sections(
    paths: Sequence[Path], names: Sequence[str]
) -> tuple[list[str], list[Section]]:
    """Results, curves and settings of transfers, those of the same kind beside each other.

    Args:
        paths: run folders of ``python -m context_encoder.transfer``, ended or not.
        names: of the runs.

    Returns:
        Remarks, and the parts of the report.

    Raises:
        RunError: a folder holds no such run, or its results are damaged.
        OSError: its files cannot be read.
    """
    facts: list[str] = []
    by_command: dict[str, list[_Run]] = {}
    for path, name in zip(paths, names, strict=True):
        lines, remarks = read_metrics(path, name)
        facts += remarks
        results = _read(path / "results.json") if (path / "results.json").exists() else None
        run = _Run(name, results, _read(path / "config.json"), lines)
        by_command.setdefault(run.command, []).append(run)
    sections = []
    for command, runs in by_command.items():
        every = {run.name: run.lines for run in runs}
        ended = [(run.name, run.results) for run in runs if run.results is not None]
        if ended:
            sections.append(_results(command, ended))
        tests = max(sum(line.get("split") == "test" for line in run.lines) for run in runs)
        if tests > 1:  # a run that was continued after it had ended
            sections.append(curves(f"Tests of {command}", every, "test"))
        sections.append(curves(f"Training of {command}", every, "train"))
        sections.append(
            settings_section(
                [run.name for run in runs],
                [run.settings for run in runs],
                f"Settings of {command}",
            )
        )
    return facts, sections


def _results(command: str, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Section:
    """Means, and the figures of each class."""
    try:
        metrics = list(dict.fromkeys(name for _, found in runs for name in found["metrics"]))
        headings = [QUANTITIES.get(name, name.replace("_", " ")) for name in metrics]
        means = Table(
            ["run", "network", *headings, "steps", "test images", "unreadable images"],
            [
                [
                    Cell(run),
                    Cell(found["network"]),
                    *(_percent(found["metrics"].get(name)) for name in metrics),
                    number(found["steps"], "{:.0f}"),
                    number(found["test_images"], "{:.0f}"),
                    number(found["unreadable"], "{:.0f}"),
                ]
                for run, found in runs
            ],
        )
        classes = dict.fromkeys(name for _, found in runs for name in found["per_class"])
        per_class = [
            Table(
                [f"class: {heading}", *(run for run, _ in runs)],
                [
                    [Cell(each), *(_percent(found["per_class"].get(each, {}).get(name))
                                   for _, found in runs)]
                    for each in classes
                ],
            )
            for name, heading in zip(metrics, headings, strict=True)
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the results.json of {runs[0][0]} or another run is damaged") from error
    return Section(
        f"Results of {command}", ["Means over the classes, then each class."], [means, *per_class]
    )


def probe_sections(paths: Sequence[Path], names: Sequence[str]) -> tuple[list[str], list[Section]]:
    """Accuracies of linear probes by layer, beside each other, and their settings.

    Args:
        paths: files ``probe.json``.
        names: of the probes.

    Returns:
        Remarks, and the parts of the report.

    Raises:
        RunError: a file is damaged.
        OSError: it cannot be read.
    """
    probes = {name: _read(path) for path, name in zip(paths, names, strict=True)}
    facts = []
    series, layers = [], list[str]()
    try:
        layers += dict.fromkeys(layer for found in probes.values() for layer in found["layers"])
        about = [
            [
                Cell(name),
                Cell(found["network"]),
                number(len(found["classes"]), "{:.0f}"),
                number(found["train_images"], "{:.0f}"),
                number(found["test_images"], "{:.0f}"),
                _percent(found["chance"]),
            ]
            for name, found in probes.items()
        ]
        best = {
            layer: max(
                found["layers"][layer]["accuracy"]
                for found in probes.values()
                if layer in found["layers"]
            )
            for layer in layers
        }
        rows = [
            [Cell(layer), *(_accuracy(found["layers"].get(layer), best[layer])
                            for found in probes.values())]
            for layer in layers
        ]  # fmt: skip
        for name, found in probes.items():
            points = [
                (layers.index(layer) + 1.0, 100 * values["accuracy"])
                for layer, values in found["layers"].items()
            ]
            series.append(Series(name, sorted(points)))
            if found["copies"]:
                facts.append(
                    f"WARNING: {name}: {found['copies']} test images are copies of training "
                    "images, so its figures are too good"
                )
            if found["unreadable"]:
                facts.append(f"{name}: {found['unreadable']} images could not be read")
        tested = {(tuple(found["classes"]), found["test_images"]) for found in probes.values()}
        settings = [found["config"] for found in probes.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{paths[0]} or another probe.json is damaged") from error
    if len(tested) > 1:
        facts.append("the probes differ in their classes or test images: do not compare figures")
    chart = line_chart(
        "accuracy, %", f"layers, 1: {layers[0]} to {len(layers)}: {layers[-1]}", "", series
    )
    headings = ["name", "network", "classes", "training images", "test images", "commonest class"]
    remark = (
        "Accuracy on the test images; ± the standard deviation over seeds; the best of each layer "
        "in bold."
    )
    return facts, [
        Section(
            "Linear probes",
            [remark],
            [Table(headings, about), Table(["layer", *probes], rows)],
            [] if chart is None else [chart],
        ),
        settings_section(list(probes), settings, "Settings of probes"),
    ]


def _accuracy(values: Mapping[str, Any] | None, best: float) -> Cell:
    if values is None:
        return Cell("")
    text = f"{100 * values['accuracy']:.2f} %"
    if values["deviation"] is not None:
        text += f" ± {100 * values['deviation']:.2f}"
    return Cell(text, values["accuracy"], values["accuracy"] == best)


def _percent(value: float | None) -> Cell:
    there = value is not None and math.isfinite(value)
    return number(100 * value if there and value is not None else None, "{:.2f} %")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    return found
