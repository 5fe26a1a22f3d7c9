"""Sheets of fills: from best to worst, for comparison, and for a reader who must not know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from context_encoder.evaluation.fills import MaskedBatch, Method
from context_encoder.evaluation.tables import Group
from context_encoder.utils.files import write_file
from context_encoder.utils.image_grid import save_sheet, shorten
from context_encoder.utils.metrics import to_unit

__all__ = [
    "COLUMNS",
    "Cases",
    "draw_blind_sheets",
    "draw_comparison",
    "draw_range",
    "hash_order",
    "most_fills",
]

#: A row must fit a screen, and its images must be large enough to judge.
COLUMNS = 6
_ROWS = 4
_CASES = 16
_MIN_SIDE = 192

# Quantiles of a method's PSNR.
_RANKS = (("best", 1.0), ("upper quartile", 0.75), ("median", 0.5), ("lower quartile", 0.25),
          ("worst", 0.0))  # fmt: skip


@dataclass(frozen=True)
class Cases:
    """What the sheets of one group are drawn from."""

    group: Group
    #: The methods, in the order of :attr:`Group.methods`.
    methods: Sequence[Method]
    #: The originals in [-1, 1], and the same with blank holes, of some of the group's images.
    holes: Callable[[Sequence[int]], tuple[Tensor, MaskedBatch]]
    #: Colour of the hole in the column "input", RGB in [-1, 1].
    color: tuple[float, float, float]
    #: Called with the number of fills after each of them; see :func:`most_fills`.
    progress: Callable[[int], object]
    # Fills by method and image: several sheets show the same ones.
    _filled: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def column(self, method: Method, members: Sequence[int]) -> Tensor:
        """The fills of some images on [0, 1]."""
        new = [i for i in members if (method.name, i) not in self._filled]
        if new:
            image, holes = self.holes(new)
            filled = to_unit(torch.where(holes.mask, method.fill(holes), image))
            self._filled.update({(method.name, i): f for i, f in zip(new, filled, strict=True)})
            self.progress(len(new))
        return torch.stack([self._filled[method.name, i] for i in members])

    def given(self, members: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Originals and inputs of some images on [0, 1]."""
        image, holes = self.holes(members)
        color = torch.tensor(self.color).view(1, 3, 1, 1)
        return to_unit(image), to_unit(torch.where(holes.mask, color, image))

    def psnr(self, method: Method, members: Sequence[int]) -> list[str]:
        """Captions with the PSNR of each image."""
        (result,) = (found for found in self.group.methods if found.name == method.name)
        return [f"{result.values['psnr'][i]:.2f} dB" for i in members]

    def captions(self, members: Sequence[int]) -> tuple[list[str], list[str]]:
        """Captions of original and input."""
        group = self.group
        if group.sides is not None:
            sizes = [f"hole of {group.sides[i]} px" for i in members]
        else:
            sizes = [f"{100 * group.areas[i]:.0f} % missing" for i in members]
        return [shorten(group.names[i]) for i in members], sizes


def most_fills(images: int, methods: int, shown: int) -> int:
    """The fills that the sheets of a group need at most.

    Args:
        images: of the group.
        methods: of the group, all of which are in the first sheet.
        shown: methods in the sheets for comparison.
    """
    return min(images, len(_RANKS)) * methods + min(images, _CASES) * min(shown, COLUMNS - 1)


def hash_order(group: Group) -> list[int]:
    """The images of a group in the order of a hash of their names, flat holes left out.

    The order of SHA-256 of "<photograph>:<crop>". It does not depend on any result.
    """
    return sorted(group.counted, key=lambda i: _hash(f"{group.names[i]}:{group.crops[i]}"))


def draw_range(path: Path, cases: Cases, by: Method) -> Path:
    """Every method on five cases from the best to the worst of one of them."""
    group = cases.group
    (psnr,) = (found.values["psnr"] for found in group.methods if found.name == by.name)
    order = sorted(group.counted or range(len(psnr)), key=psnr.__getitem__)
    places = {label: order[round(rank * (len(order) - 1))] for label, rank in _RANKS}
    members = list(places.values())
    names, sizes = cases.captions(members)
    original, given = cases.given(members)
    columns, captions = [("original", original), ("input", given)], [names, sizes]
    for method in cases.methods:
        columns.append((_two_lines(method.label), cases.column(method, members)))
        captions.append(cases.psnr(method, members))
    save_sheet(
        path,
        columns,
        title=f"{group.title}: cases by the PSNR of {by.label}, best to worst "
        f"of {len(order)}; below each: its PSNR in the hole",
        rows=[label.replace(" ", "\n") for label in places],
        captions=captions,
        max_columns=COLUMNS,
    )
    return path


def draw_comparison(folder: Path, cases: Cases, methods: Sequence[Method]) -> list[Path]:
    """Original, input and up to four methods on 16 cases that a hash chooses, four per sheet."""
    methods = methods[: COLUMNS - 2]
    chosen = hash_order(cases.group)[:_CASES]
    paths = []
    for start in range(0, len(chosen), _ROWS):
        members = chosen[start : start + _ROWS]
        names, sizes = cases.captions(members)
        original, given = cases.given(members)
        columns, captions = [("original", original), ("input", given)], [names, sizes]
        for method in methods:
            columns.append((_two_lines(method.label), cases.column(method, members)))
            captions.append(cases.psnr(method, members))
        paths.append(folder / f"{cases.group.mask}-{1 + start // _ROWS}.png")
        save_sheet(
            paths[-1],
            columns,
            title=f"{cases.group.title}: {len(chosen)} cases, chosen by a hash of their names; "
            "below each: its PSNR in the hole",
            captions=captions,
            min_side=_MIN_SIDE,
        )
    return paths


def draw_blind_sheets(
    folder: Path, cases: Cases, methods: Sequence[Method], seed: int
) -> list[Path]:
    """The input and up to five methods on the same 16 cases, the methods in an order of each row.

    The columns have letters only; ``<group>-key.json`` says which method each letter of each row
    is. The original is not shown. The order is that of a hash of seed, case and method.
    """
    methods = methods[: COLUMNS - 1]
    group = cases.group
    chosen = hash_order(group)[:_CASES]
    letters = "ABCDE"[: len(methods)]
    fills = torch.stack([cases.column(method, chosen) for method in methods])
    _, given = cases.given(chosen)
    key: dict[str, Mapping[str, str]] = {}
    shuffled = torch.empty_like(fills)
    for row, i in enumerate(chosen):
        case = f"{seed}:{group.names[i]}:{group.crops[i]}"
        drawn = [_hash(f"{case}:{method.name}") for method in methods]
        order = sorted(range(len(methods)), key=drawn.__getitem__)
        shuffled[:, row] = fills[order, row]
        key[str(row + 1)] = {
            letter: methods[m].name for letter, m in zip(letters, order, strict=True)
        }
    paths = []
    for start in range(0, len(chosen), _ROWS):
        rows = slice(start, start + _ROWS)
        numbers = [str(start + 1 + row) for row in range(len(chosen[rows]))]
        columns = [("input", given[rows])]
        captions = [["" for _ in numbers]]
        for letter, pictures in zip(letters, shuffled, strict=True):
            columns.append((letter, pictures[rows]))
            captions.append([f"{number} {letter}" for number in numbers])
        paths.append(folder / f"{group.mask}-{1 + start // _ROWS}.png")
        save_sheet(
            paths[-1],
            columns,
            title=f"{group.title}: which fill is the best in each row? "
            "The same letter is another method in another row.",
            rows=numbers,
            captions=captions,
            min_side=_MIN_SIDE,
        )
    write_file(folder / f"{group.mask}-key.json", json.dumps(key, indent=1) + "\n")
    return paths


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _two_lines(label: str) -> str:
    words = label.split(" ")
    if len(label) < 20 or len(words) == 1:
        return label
    cut = min(
        range(1, len(words)),
        key=lambda i: max(len(" ".join(words[:i])), len(" ".join(words[i:]))),
    )
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])
