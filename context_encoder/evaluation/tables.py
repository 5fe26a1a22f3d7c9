"""Results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from context_encoder.utils.files import write_file

__all__ = [
    "METRICS",
    "Group",
    "MethodResult",
    "markdown",
    "summary",
    "write_csv",
    "write_json",
]

#: By name in JSON: heading, factor of the unit, format.
METRICS = {
    "l1": ("mean L1", 100.0, "{:.2f} %"),
    "l2": ("mean L2", 100.0, "{:.2f} %"),
    "psnr": ("PSNR", 1.0, "{:.2f} dB"),
    "ssim": ("SSIM", 1.0, "{:.3f}"),
    "feature_distance": ("EfficientNet-Lite0 feature distance", 1.0, "{:.3f}"),
}
_CSV_NAMES = {
    "l1": "l1_percent",
    "l2": "l2_percent",
    "psnr": "psnr_db",
    "ssim": "ssim",
    "feature_distance": "efficientnet_lite0_feature_distance",
}

# Pathak et al. 2016, table 1.
_PAPER = (
    ("NN-inpainting, HOG features", 19.92, 6.92, 12.79),
    ("NN-inpainting, context encoder's features", 15.10, 4.30, 14.70),
    ("context encoder, joint loss (earlier figures)", 10.33, 2.35, 17.59),
    ("context encoder, joint loss (arXiv, version 2)", 9.37, 1.96, 18.58),
)


@dataclass(frozen=True)
class MethodResult:
    """Metrics of one method for every image of one kind of mask."""

    name: str
    label: str
    #: Values per image, by the name of the metric, in the order of :attr:`Group.names`.
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Group:
    """One kind of mask: its images, and the results of all methods."""

    mask: str
    #: Photograph and crop of each image.
    names: Sequence[str]
    crops: Sequence[int]
    #: The missing fraction of each image, 0 to 1.
    areas: Sequence[float]
    methods: Sequence[MethodResult]
    #: Side of the central hole in pixels.
    hole: int | None = None

    def bins(self, edges: Sequence[float]) -> dict[tuple[float, float], list[int]]:
        """Images by covered area, ``from < area <= to``; empty bins are left out."""
        found = {
            (low, high): [i for i, area in enumerate(self.areas) if low < area <= high]
            for low, high in pairwise(edges)
        }
        return {key: members for key, members in found.items() if members}


def summary(
    group: Group, method: MethodResult, members: Sequence[int] | None = None
) -> dict[str, float]:
    """Means over images (all, or the ``members``), and the standard error of the mean PSNR.

    ``psnr_standard_error`` treats photographs as independent, but not crops of one photograph; it
    is missing if there is only one photograph.
    """
    members = range(len(group.names)) if members is None else members
    means = {name: fmean(values[i] for i in members) for name, values in method.values.items()}
    by_photograph: dict[str, list[float]] = {}
    for i in members:
        by_photograph.setdefault(group.names[i], []).append(method.values["psnr"][i])
    if len(by_photograph) > 1:
        # The linearised variance of a ratio of sums, as photographs differ in their crop counts.
        deviations = [
            sum(value - means["psnr"] for value in values) for values in by_photograph.values()
        ]
        count = len(deviations)
        means["psnr_standard_error"] = stdev(deviations) * math.sqrt(count) / len(members)
    return means


def markdown(title: str, facts: Sequence[str], groups: Sequence[Group], edges: Any) -> str:
    """The report: remarks, one table per kind of mask, and the paper's table."""
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    for group in groups:
        photographs = len(set(group.names))
        missing = f"{100 * fmean(group.areas):.1f} % missing on average"
        if group.hole is not None:
            missing = f"a square of {group.hole} x {group.hole} pixels, {missing}"
        lines += [
            f"## {group.mask} masks",
            "",
            f"{len(group.names)} crops of {photographs} photographs; {missing}.",
            "",
            *_means_table(group),
            "",
        ]
        bins = group.bins(edges)
        if len(bins) > 1:
            lines += ["PSNR (dB) by covered area:", "", *_bins_table(group, bins), ""]
    lines += [
        "## The paper's Table 1",
        "",
        "For orientation only: **other data** (Paris StreetView: 14,900 images for training, 100 "
        "for test), other networks, the central region of 128 x 128 pixels. Differences between "
        "rows may be compared with those above, the figures themselves may not.",
        "",
        *_table(
            ["method", "mean L1", "mean L2", "PSNR"],
            [
                [label, f"{l1:.2f} %", f"{l2:.2f} %", f"{psnr:.2f} dB"]
                for label, l1, l2, psnr in _PAPER
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def _means_table(group: Group) -> list[str]:
    present = [name for name in METRICS if name in group.methods[0].values]
    rows = []
    for method in group.methods:
        means = summary(group, method)
        cells = []
        for name in present:
            _, factor, pattern = METRICS[name]
            cell = pattern.format(factor * means[name])
            if name == "psnr" and "psnr_standard_error" in means:
                cell = f"{means[name]:.2f} ± {means['psnr_standard_error']:.2f} dB"
            cells.append(cell)
        rows.append([method.label, *cells])
    return _table(["method", *(METRICS[name][0] for name in present)], rows)


def _bins_table(group: Group, bins: Mapping[tuple[float, float], list[int]]) -> list[str]:
    heads = [
        f"{100 * low:g}-{100 * high:g} % (n={len(members)})"
        for (low, high), members in bins.items()
    ]
    rows = [
        [
            method.label,
            *(f"{summary(group, method, members)['psnr']:.2f}" for members in bins.values()),
        ]
        for method in group.methods
    ]
    return _table(["method", *heads], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]


def write_csv(path: Path, groups: Sequence[Group], edges: Sequence[float]) -> None:
    """Write means by kind of mask and method, over all areas and per bin of masked area."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    names = [_CSV_NAMES[name] for name in METRICS]
    head = "mask area_from area_to crops method label".split()
    writer.writerow([*head, *names, "psnr_standard_error_db"])
    for group in groups:
        everything = {(0.0, 1.0): list(range(len(group.names)))}
        for (low, high), members in [*everything.items(), *group.bins(edges).items()]:
            for method in group.methods:
                means = summary(group, method, members)
                figures = [
                    f"{METRICS[name][1] * means[name]:.6g}" if name in means else ""
                    for name in METRICS
                ]
                error = means.get("psnr_standard_error")
                figures.append("" if error is None else f"{error:.6g}")
                about = [group.mask, low, high, len(members), method.name, method.label]
                writer.writerow([*about, *figures])
    write_file(path, file.getvalue())


def write_json(
    path: Path, about: Mapping[str, Any], groups: Sequence[Group], edges: Sequence[float]
) -> None:
    """Write configuration, versions, means and the metrics of every image."""
    masks = {
        group.mask: {
            "hole": group.hole,
            "pictures": {
                "photograph": list(group.names),
                "crop": list(group.crops),
                "area": list(group.areas),
            },
            "methods": {
                method.name: {
                    "label": method.label,
                    "mean": summary(group, method),
                    "mean_by_area": [
                        {"from": low, "to": high, "crops": len(members)}
                        | summary(group, method, members)
                        for (low, high), members in group.bins(edges).items()
                    ],
                    "per_image": {name: list(values) for name, values in method.values.items()},
                }
                for method in group.methods
            },
        }
        for group in groups
    }
    write_file(path, json.dumps({**about, "masks": masks}, indent=1, allow_nan=False) + "\n")
