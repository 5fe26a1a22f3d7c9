"""Names of what a report compares, and the table of their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context_encoder.reports.document import Cell, Section, Table

__all__ = ["number", "settings_section", "short_names"]

# Folders and files that are called the same in every run.
_ALIKE = ("evaluation", "results.json", "probe.json")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of some paths, as many as tell them apart.

    Raises:
        ValueError: a path is named twice.
    """
    every = []
    for path in paths:
        parts = list(path.resolve().parts)
        while len(parts) > 2 and parts[-1] in _ALIKE:
            parts.pop()
        every.append(parts)
    for count in range(1, max((len(parts) for parts in every), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in every]
        unclear = {name for name in names if names.count(name) > 1}
        if not unclear:
            # Only where the last part is not enough, more of them.
            last = [parts[-1] for parts in every]
            return [
                parts[-1] if last.count(parts[-1]) == 1 else name
                for parts, name in zip(every, names, strict=True)
            ]
    twice = next(path for path, parts in zip(paths, every, strict=True) if every.count(parts) > 1)
    raise ValueError(f"{twice} is named twice")


def settings_section(
    names: Sequence[str], settings: Sequence[Mapping[str, Any]], title: str = "Settings"
) -> Section:
    """A table of all settings; those that differ come first, in bold.

    Args:
        names: of what is compared.
        settings: the JSON values of each.
        title: of the section.
    """
    rows = []
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [_text(one.get(name)) for one in settings]
        differs = len(set(values)) > 1
        rows.append([Cell(name, strong=differs), *(Cell(v, strong=differs) for v in values)])
    rows.sort(key=lambda row: not row[0].strong)
    facts = ["Settings that differ are in bold."] if len(names) > 1 else []
    return Section(title, facts, [Table(["option", *names], rows)])


def number(value: float | None, text: str) -> Cell:
    """A number as a cell; an empty cell for None."""
    return Cell("") if value is None else Cell(text.format(value), float(value))


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
