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
from statistics import fmean, median, stdev
from typing import Any

from context_encoder.utils.files import write_file
from context_encoder.utils.metrics import FLAT_CONTRAST

__all__ = [
    "METRICS",
    "Group",
    "MethodResult",
    "markdown",
    "sides_table",
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

#: Table 1 of Pathak et al. 2016: method, mean L1 and L2 in percent, PSNR in dB.
PAPER = (
    ("NN-inpainting, HOG features", 19.92, 6.92, 12.79),
    ("NN-inpainting, context encoder's features", 15.10, 4.30, 14.70),
    ("context encoder, joint loss (earlier figures)", 10.33, 2.35, 17.59),
    ("context encoder, joint loss (arXiv, version 2)", 9.37, 1.96, 18.58),
)
#: Not in the paper: without any training, on the same 100 test images of Paris StreetView, scaled
#: to 128 x 128 pixels, the central 64 x 64 missing. None: not measured.
PAPER_BESIDE = (
    ("*Navier-Stokes (OpenCV)*", None, None, 16.98),
    ("*Telea (OpenCV)*", None, None, 17.23),
    ("*membrane (harmonic interpolation)*", 11.04, 2.22, 17.68),
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
    #: Whether the original has almost no contrast in the hole
    #: (:data:`context_encoder.utils.metrics.FLAT_CONTRAST`); empty: no image.
    flat: Sequence[bool] = ()
    #: Side of each image's square holes in pixels.
    sides: Sequence[int] | None = None
    #: Of the masks' pixels.
    digest: str | None = None

    @property
    def title(self) -> str:
        """What is missing."""
        return "square holes" if self.sides is not None else f"{self.mask} masks"

    @property
    def counted(self) -> list[int]:
        """The images that means and medians are taken over: those that are not flat."""
        flat = set(self.flat_ones)
        return [i for i in range(len(self.names)) if i not in flat]

    @property
    def flat_ones(self) -> list[int]:
        """The images whose holes are flat."""
        return [i for i, flat in enumerate(self.flat) if flat]

    def bins(self, edges: Sequence[float]) -> dict[tuple[float, float], list[int]]:
        """Images by covered area, ``from < area <= to``; flat ones and empty bins are left out."""
        found = {
            (low, high): [i for i in self.counted if low < self.areas[i] <= high]
            for low, high in pairwise(edges)
        }
        return {key: members for key, members in found.items() if members}

    def by_side(self) -> dict[int, list[int]]:
        """Images by the side of their holes in pixels, ascending; flat ones are left out."""
        if self.sides is None:
            return {}
        found: dict[int, list[int]] = {}
        for i in self.counted:
            found.setdefault(self.sides[i], []).append(i)
        return dict(sorted(found.items()))


def summary(
    group: Group, method: MethodResult, members: Sequence[int] | None = None
) -> dict[str, float]:
    """Means over images, the median PSNR, and the standard error of the mean PSNR.

    ``psnr_standard_error`` treats photographs as independent, but not crops of one photograph; it
    is missing if there is only one photograph.

    Args:
        group: the images.
        method: a method's figures of them.
        members: the images to take; None: all that are not flat. Nothing is returned for none.
    """
    members = group.counted if members is None else members
    if not members:
        return {}
    means = {name: fmean(values[i] for i in members) for name, values in method.values.items()}
    means["psnr_median"] = median(method.values["psnr"][i] for i in members)
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
            f"## {group.title[0].upper()}{group.title[1:]}",
            "",
            f"{len(group.names)} crops of {photographs} photographs; {missing}.{_flat(group)}",
            "",
            *_means_table(group),
            "",
        ]
        if group.sides is not None:
            both = "feature_distance" in group.methods[0].values
            what = f"PSNR (dB){' / feature distance' if both else ''} by the side of the hole:"
            lines += [what, "", *sides_table(group), ""]
            continue
        bins = group.bins(edges)
        if len(bins) > 1 or group.flat_ones:
            lines += ["PSNR (dB) by covered area:", "", *_bins_table(group, bins), ""]
    lines += [
        "## The paper's Table 1",
        "",
        "For orientation only: **other data** (Paris StreetView: 14,900 images for training, 100 "
        "for test), other networks, the central region of 128 x 128 pixels. Differences between "
        "rows may be compared with those above, the figures themselves may not. Rows in italics "
        "are not the paper's: methods that are not trained, on the same 100 images and holes. The "
        "published network is 0.90 dB ahead of the membrane.",
        "",
        *_table(
            ["method", "mean L1", "mean L2", "PSNR"],
            [
                [
                    label,
                    *(f"{x:.2f} %" if x is not None else "" for x in (l1, l2)),
                    f"{psnr:.2f} dB",
                ]
                for label, l1, l2, psnr in sorted((*PAPER, *PAPER_BESIDE), key=lambda row: row[3])
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def _flat(group: Group) -> str:
    """A sentence on flat holes, if there are any."""
    flat = len(group.flat_ones)
    if not flat:
        return ""
    return (
        f" {flat} of them {'is' if flat == 1 else 'are'} left out of all means and medians: the "
        f"original has a contrast below {255 * FLAT_CONTRAST:g} of 255 levels in the hole, which "
        "one colour fills with more than 42 dB."
    )


def _means_table(group: Group) -> list[str]:
    present = [name for name in METRICS if name in group.methods[0].values]
    heads = [METRICS[name][0] for name in present]
    heads.insert(present.index("psnr") + 1, "median PSNR")
    rows = []
    for method in group.methods:
        means = summary(group, method)
        cells = []
        for name in present:
            _, factor, pattern = METRICS[name]
            if not means:
                cells.append("-")
            elif name == "psnr" and "psnr_standard_error" in means:
                cells.append(f"{means[name]:.2f} ± {means['psnr_standard_error']:.2f} dB")
            else:
                cells.append(pattern.format(factor * means[name]))
            if name == "psnr":
                cells.append(pattern.format(means["psnr_median"]) if means else "-")
        rows.append([method.label, *cells])
    return _table(["method", *heads], rows)


def _bins_table(group: Group, bins: Mapping[tuple[float, float], list[int]]) -> list[str]:
    columns = {f"{100 * low:g}-{100 * high:g} %": members for (low, high), members in bins.items()}
    return _columns_table(group, columns, distance=False)


def sides_table(group: Group) -> list[str]:
    """Markdown lines: PSNR and feature distance of each method by the side of the hole."""
    columns = {f"{side} px": members for side, members in group.by_side().items()}
    return _columns_table(group, columns | {"all": group.counted}, distance=True)


def _columns_table(
    group: Group, columns: Mapping[str, Sequence[int]], *, distance: bool
) -> list[str]:
    """Means over some of the images in each column, and over flat ones in the last."""
    if group.flat_ones:
        columns = {**columns, "flat": group.flat_ones}
    rows = []
    for method in group.methods:
        cells = []
        for members in columns.values():
            means = summary(group, method, members)
            cell = f"{means['psnr']:.2f}" if means else "-"
            if distance and "feature_distance" in means:
                cell += f" / {means['feature_distance']:.4f}".replace("0.", ".", 1)
            cells.append(cell)
        rows.append([method.label, *cells])
    heads = [f"{name} (n={len(members)})" for name, members in columns.items()]
    return _table(["method", *heads], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]


def write_csv(path: Path, groups: Sequence[Group], edges: Sequence[float]) -> None:
    """Write means by kind of mask and method: over all areas, and by masked area or side.

    Flat holes count in none of them; the last rows of a kind of mask are their own means.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    names = [_CSV_NAMES[name] for name in METRICS]
    head = "mask part area_from area_to side crops method label".split()
    writer.writerow([*head, *names, "psnr_standard_error_db", "psnr_median_db"])
    for group in groups:
        parts: list[tuple[tuple[Any, ...], list[int]]] = [(("all", 0.0, 1.0, ""), group.counted)]
        if group.sides is None:
            parts += [(("area", *edge, ""), found) for edge, found in group.bins(edges).items()]
        parts += [(("side", "", "", side), found) for side, found in group.by_side().items()]
        if group.flat_ones:
            parts.append((("flat", "", "", ""), group.flat_ones))
        for part, members in parts:
            for method in group.methods:
                means = summary(group, method, members)
                figures = [
                    f"{METRICS[name][1] * means[name]:.6g}" if name in means else ""
                    for name in METRICS
                ]
                for name in ("psnr_standard_error", "psnr_median"):
                    figures.append(f"{means[name]:.6g}" if name in means else "")
                about = [group.mask, *part, len(members), method.name, method.label]
                writer.writerow([*about, *figures])
    write_file(path, file.getvalue())


def write_json(
    path: Path, about: Mapping[str, Any], groups: Sequence[Group], edges: Sequence[float]
) -> None:
    """Write configuration, versions, means and the metrics of every image."""
    masks = {
        group.mask: {
            "hole": group.hole,
            "digest": group.digest,
            "pictures": {
                "photograph": list(group.names),
                "crop": list(group.crops),
                "area": list(group.areas),
                "flat": [i in set(group.flat_ones) for i in range(len(group.names))],
            }
            | ({} if group.sides is None else {"side": list(group.sides)}),
            "methods": {
                method.name: {
                    "label": method.label,
                    "mean": summary(group, method),
                    "mean_by_area": [
                        {"from": low, "to": high, "crops": len(members)}
                        | summary(group, method, members)
                        for (low, high), members in group.bins(edges).items()
                    ],
                    "mean_by_side": [
                        {"side": side, "crops": len(members)} | summary(group, method, members)
                        for side, members in group.by_side().items()
                    ],
                    "mean_of_flat": summary(group, method, group.flat_ones),
                    "per_image": {name: list(values) for name, values in method.values.items()},
                }
                for method in group.methods
            },
        }
        for group in groups
    }
    write_file(path, json.dumps({**about, "masks": masks}, indent=1, allow_nan=False) + "\n")
