"""Results of earlier evaluations, and what of them was measured on the same holes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from context_encoder.evaluation.tables import METRICS, Group, MethodResult
from context_encoder.utils.text import read_text

__all__ = ["Earlier", "merged", "read_results", "same_holes"]


@dataclass(frozen=True)
class Earlier:
    """The contents of a ``results.json`` of ``evaluate``."""

    name: str
    path: Path
    #: Configuration, versions, remarks, runs, data.
    about: Mapping[str, Any]
    groups: Sequence[Group]

    @property
    def crops(self) -> str:
        """Digest of the crops' pixels."""
        return str(self.about["data"]["digest"])

    def sheets(self, mask: str) -> list[Path]:
        """The sheets of a kind of mask that lie beside the file."""
        here = self.path.parent
        paths = [here / f"{mask}.png", *sorted((here / "sheets").glob(f"{mask}-*.png"))]
        return [path for path in paths if path.is_file()]


def read_results(path: Path, name: str) -> Earlier:
    """Read a ``results.json``.

    Args:
        path: the file.
        name: what to call it.

    Raises:
        ValueError: it is not one that ``evaluate`` wrote.
        OSError: it cannot be read.
    """
    try:
        about = json.loads(read_text(path))
        groups = [_group(mask, found) for mask, found in about.pop("masks").items()]
        for key in ("config", "versions", "facts", "runs"):
            about[key]
        earlier = Earlier(name, path, about, groups)
        _ = earlier.crops
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a results.json of context_encoder.evaluate, or is damaged"
        ) from error
    return earlier


def _group(mask: str, found: Mapping[str, Any]) -> Group:
    pictures = found["pictures"]
    group = Group(
        mask,
        [str(name) for name in pictures["photograph"]],
        [int(number) for number in pictures["crop"]],
        [float(area) for area in pictures["area"]],
        [
            MethodResult(
                name,
                str(method["label"]),
                {metric: _numbers(values) for metric, values in method["per_image"].items()},
            )
            for name, method in found["methods"].items()
        ],
        found["hole"],
        [bool(flat) for flat in pictures.get("flat", ())],
        pictures.get("side"),
        found.get("digest"),
    )
    count = len(group.names)
    lengths = {len(group.crops), len(group.areas), len(group.flat) or count}
    lengths |= {len(values) for method in group.methods for values in method.values.values()}
    if lengths != {count} or not count or not group.methods:
        raise ValueError("figures for another number of images")
    if any("psnr" not in method.values or set(method.values) - set(METRICS)
           for method in group.methods):  # fmt: skip
        raise ValueError("other metrics")
    return group


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def same_holes(one: tuple[Earlier, Group], other: tuple[Earlier, Group]) -> bool:
    """Whether two groups are the same holes of the same crops, pixel by pixel.

    In files without a digest of the masks, the covered area of each image stands for its mask.
    """
    (first, a), (second, b) = one, other
    if first.crops != second.crops or (a.mask, a.sides) != (b.mask, b.sides):
        return False
    if a.digest is not None and b.digest is not None:
        return a.digest == b.digest
    return (list(a.names), list(a.crops), list(a.areas)) == (
        list(b.names),
        list(b.crops),
        list(b.areas),
    )


def merged(parts: Sequence[tuple[Earlier, Group]]) -> Group:
    """The methods of several groups with the same holes, as one group.

    A method that gave the same figures in several of them appears once. Where labels are equal and
    figures are not, the label also has the name of the results.
    """
    found: list[tuple[Earlier, MethodResult]] = []
    for earlier, group in parts:
        for method in group.methods:
            if not any(_same_figures(method, other) for _, other in found):
                found.append((earlier, method))
    labels = [method.label for _, method in found]
    return replace(
        parts[0][1],
        methods=[
            replace(
                method,
                name=f"{earlier.name}/{method.name}",
                label=f"{method.label} ({earlier.name})"
                if labels.count(method.label) > 1
                else method.label,
            )
            for earlier, method in found
        ],
    )


def _same_figures(one: MethodResult, other: MethodResult) -> bool:
    return (one.label, one.values["psnr"]) == (other.label, other.values["psnr"]) and set(
        one.values
    ) <= set(other.values)
