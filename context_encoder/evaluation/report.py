"""Results of an evaluation as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from context_encoder.evaluation.earlier import Earlier, merged, read_results, same_holes
from context_encoder.evaluation.tables import METRICS, Group, MethodResult, summary
from context_encoder.reports import (
    Cell,
    Document,
    Picture,
    Section,
    Series,
    Table,
    line_chart,
    settings_section,
)

__all__ = ["comparison_sections", "evaluation_report"]

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
    sections = [
        _section(
            group,
            edges,
            [
                Picture.read(path, path.stem.replace("_", " "))
                for path in sheets.get(group.mask, ())
            ],
        )
        for group in groups
    ]
    return Document(title, facts, sections)


def comparison_sections(
    paths: Sequence[Path], names: Sequence[str]
) -> tuple[list[str], list[Section]]:
    """The methods of several evaluations beside each other, where they filled the same holes.

    Args:
        paths: files ``results.json`` that ``evaluate`` wrote.
        names: of the evaluations.

    Returns:
        Remarks, and the parts of the report. Evaluations of other holes get parts of their own,
        and a remark.

    Raises:
        ValueError: a file is not one that ``evaluate`` wrote.
        OSError: a file cannot be read.
    """
    every = [read_results(path, name) for path, name in zip(paths, names, strict=True)]
    facts, sections = [], []
    for mask in dict.fromkeys(group.mask for one in every for group in one.groups):
        kinds: list[list[tuple[Earlier, Group]]] = []
        for part in ((one, group) for one in every for group in one.groups if group.mask == mask):
            place = next((kind for kind in kinds if same_holes(kind[0], part)), None)
            if place is None:
                kinds.append([part])
            else:
                place.append(part)
        if len(kinds) > 1:
            apart = "; ".join(", ".join(one.name for one, _ in kind) for kind in kinds)
            facts.append(
                f"WARNING: {kinds[0][0][1].title}: not all evaluations are of the same holes of "
                f"the same images, so these are in tables of their own, and figures of different "
                f"tables must not be compared: {apart}"
            )
        for kind in kinds:
            group = merged(kind)
            pictures = [
                Picture.read(path, f"{one.name}: {path.stem}")
                for one, _ in kind
                for path in one.sheets(mask)
            ]
            edges = kind[0][0].about["config"].get("area_bins", [0, 1])
            beside = ", ".join(one.name for one, _ in kind) if len(kinds) > 1 else ""
            sections.append(_section(group, edges, pictures, beside, paired=len(every) > 1))
    facts += [f"{one.name}: {fact.strip()}" for one in every for fact in one.about["facts"]]
    settings = [
        {
            "file": str(one.path),
            "weights": {
                run: str(found.get("weights_sha256"))[:12]
                for run, found in one.about["runs"].items()
            },
            **one.about["versions"],
            **one.about["config"],
        }
        for one in every
    ]
    return facts, [
        *sections,
        settings_section([one.name for one in every], settings, "Settings of evaluations"),
    ]


def _section(
    group: Group,
    edges: Sequence[float],
    pictures: Sequence[Picture],
    beside: str = "",
    *,
    paired: bool = False,
) -> Section:
    """A kind of mask: figures, curves and sheets."""
    flat = len(group.flat_ones)
    said = [
        f"{len(group.names)} images of {len(set(group.names))} photographs, "
        f"{100 * fmean(group.areas):.1f} % missing on average; the best mean of each column is "
        "in bold."
    ]
    if flat:
        said.append(f"{flat} holes without contrast are left out of all figures.")
    title = group.title[0].upper() + group.title[1:] + (f" of {beside}" if beside else "")
    tables = [_table(group)]
    if paired and len(group.methods) > 1 and group.counted:
        said.append(
            f"The second table compares with {group.methods[0].label}, image by image: the mean "
            "difference, its standard error, and the share of the images with a higher PSNR."
        )
        tables.append(_differences(group))
    return Section(title, said, tables, _charts(group, edges), pictures)


def _differences(group: Group) -> Table:
    """PSNR of all other methods against the first, in pairs."""
    first, *others = group.methods
    rows = []
    for method in others:
        pairs = zip(method.values["psnr"], first.values["psnr"], strict=True)
        apart = [a - b for a, b in pairs]
        figures = summary(group, MethodResult(method.name, method.label, {"psnr": apart}))
        share = fmean(apart[i] > 0 for i in group.counted)
        error = figures.get("psnr_standard_error")
        rows.append(
            [
                Cell(method.label),
                Cell(f"{figures['psnr']:+.2f} dB", figures["psnr"]),
                _cell("psnr", error),
                Cell(f"{100 * share:.0f} %", share),
            ]
        )
    return Table(["method", "difference in PSNR", "standard error", "better"], rows)


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
