"""Results of an evaluation as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from context_encoder.evaluation.tables import METRICS, Group, MethodResult, summary
from context_encoder.reports import (
    Cell,
    Document,
    Picture,
    Section,
    Series,
    Table,
    line_chart,
)

__all__ = ["evaluation_report"]

# Of the metrics, those of which a smaller value is the better one.
_SMALLER = ("l1", "l2", "feature_distance")
# The curves that tell the methods apart; the tables have all metrics.
_DRAWN = ("psnr", "ssim", "feature_distance")


def evaluation_report(
    title: str,
    facts: Sequence[str],
    groups: Sequence[Group],
    edges: Sequence[float],
    sheets: Mapping[str, Sequence[Path]],
) -> Document:
    """Tables that can be sorted, curves by covered area and by the side of holes, and sheets.

    Args:
        title, facts: of the report.
        groups: kinds of mask with the results of all methods.
        edges: of the bins of covered area, as parts of 1.
        sheets: image files by the name of the group.

    Raises:
        OSError: a sheet cannot be read.
    """
    sections = []
    for group in groups:
        flat = len(group.flat_ones)
        said = [
            f"{len(group.names)} images of {len(set(group.names))} photographs, "
            f"{100 * fmean(group.areas):.1f} % missing on average; the best mean of each column is "
            "in bold."
        ]
        if flat:
            said.append(f"{flat} holes without contrast are left out of all figures.")
        pictures = [
            Picture.read(path, path.stem.replace("_", " ")) for path in sheets.get(group.mask, ())
        ]
        title_of = group.title[0].upper() + group.title[1:]
        sections.append(Section(title_of, said, [_table(group)], _charts(group, edges), pictures))
    return Document(title, facts, sections)


def _table(group: Group) -> Table:
    metrics = [name for name in METRICS if any(name in m.values for m in group.methods)]
    figures = {method.name: summary(group, method) for method in group.methods}
    best = {}
    for name in metrics:
        choose = min if name in _SMALLER else max
        found = [figures[m.name][name] for m in group.methods if name in figures[m.name]]
        best[name] = choose(found) if found else None
    rows = []
    for method in group.methods:
        row = [Cell(method.label)]
        for name in metrics:
            value = figures[method.name].get(name)
            row.append(_cell(name, value, value is not None and value == best[name]))
            if name == "psnr":
                row.append(_cell("psnr", figures[method.name].get("psnr_median")))
                row.append(_cell("psnr", figures[method.name].get("psnr_standard_error")))
        rows.append(row)
    headings = ["method"]
    for name in metrics:
        headings.append(METRICS[name][0])
        if name == "psnr":
            headings += ["median PSNR", "standard error"]
    return Table(headings, rows)


def _cell(metric: str, value: float | None, strong: bool = False) -> Cell:
    if value is None:
        return Cell("")
    _, factor, text = METRICS[metric]
    return Cell(text.format(value * factor), value, strong)


def _charts(group: Group, edges: Sequence[float]) -> list[Markup]:
    """Curves by covered area, and by the side of square holes."""
    by_area: dict[float, list[int]] = {
        fmean(group.areas[i] for i in members) * 100: members
        for members in group.bins(edges).values()
    }
    by_side = {float(side): members for side, members in group.by_side().items()}
    charts = []
    for name in _DRAWN:
        for bins, label in ((by_area, "missing, %"), (by_side, "side of the hole, pixels")):
            if len(bins) < 2:
                continue
            what, factor, _ = METRICS[name]
            series = [
                Series(method.label, _points(group, method, name, bins, factor))
                for method in group.methods
                if name in method.values
            ]
            unit = " (dB)" if name == "psnr" else ""
            chart = line_chart(f"{what}{unit}", label, "", series)
            if chart is not None:
                charts.append(chart)
    return charts


def _points(
    group: Group,
    method: MethodResult,
    metric: str,
    bins: Mapping[float, list[int]],
    factor: float,
) -> list[tuple[float, float]]:
    return [
        (x, factor * summary(group, method, members)[metric]) for x, members in sorted(bins.items())
    ]
