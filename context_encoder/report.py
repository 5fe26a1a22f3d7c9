"""``python -m context_encoder.report``: runs and results as one HTML file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.evaluation.report import comparison_sections
from context_encoder.reports import (
    Document,
    Section,
    is_transfer,
    probe_sections,
    short_names,
    training_sections,
    transfer_sections,
)
from context_encoder.utils.cli import parse_arguments, run_command
from context_encoder.utils.files import check_new_file, make_folder, write_file

_Sections = Callable[[Sequence[Path], Sequence[str]], tuple[list[str], list[Section]]]
#: What is compared, in the order of the report, with the title of a report of nothing else.
_KINDS: dict[_Sections, str] = {
    comparison_sections: "Inpainting quality",
    training_sections: "Training",
    transfer_sections: "Transfer",
    probe_sections: "Linear probes",
}


@dataclass(frozen=True)
class Arguments:
    """Write training runs, transfers and evaluations to one HTML file, beside each other.

    Of training runs: curves, sheets of samples and settings. Of evaluations: the figures of all
    methods on the same holes. The file needs nothing else and loads nothing.
    """

    checkpoint: tyro.conf.Positional[
        Annotated[
            tuple[Path, ...],
            arg(
                metavar="RUN [RUN ...]",
                help="Folders of training runs, transfers, probes or evaluations; or the files "
                "results.json and probe.json in them.",
            ),
        ]
    ]
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="File to write: .html. Default: report.html in the first folder."),
    ] = None
    title: Annotated[str | None, arg(help="Title. Default: the names of the runs.")] = None
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("report", partial(parse_arguments, Arguments), _report, arguments)


def _report(args: Arguments) -> None:
    if not args.checkpoint:
        raise ValueError("name one folder of a run or more")
    first = args.checkpoint[0]
    out = args.out or (first.parent if first.is_file() else first) / "report.html"
    if args.out is not None or first.exists():
        check_new_file(out, [".html", ".htm"], overwrite=args.overwrite)
    names = short_names(args.checkpoint)
    found: dict[_Sections, list[tuple[Path, str]]] = {}
    for path, name in zip(args.checkpoint, names, strict=True):
        make, file = _kind(path)
        found.setdefault(make, []).append((file, name))
    facts, sections = [], []
    for make in _KINDS:
        if make in found:
            remarks, parts = make(*zip(*found[make], strict=True))
            facts += remarks
            sections += [part for part in parts if part.tables or part.charts or part.pictures]
    what = _KINDS[next(iter(found))] if len(found) == 1 else "Comparison"
    text = Document(args.title or f"{what}: {', '.join(names)}", facts, sections).html()
    make_folder(out.parent)
    write_file(out, text)
    print(f"saved {out}: {out.stat().st_size / 2**20:.1f} MiB")


def _kind(path: Path) -> tuple[_Sections, Path]:
    """What a path holds, and the folder or file to read.

    A folder of pretraining may hold an evaluation in a folder below, which is named by itself.
    """
    if path.is_file() and (path.parent / "metrics.jsonl").exists():
        path = path.parent
    if path.is_file():
        return (probe_sections if path.name == "probe.json" else comparison_sections), path
    if (path / "metrics.jsonl").exists():
        return (transfer_sections if is_transfer(path) else training_sections), path
    for name, make in (("probe.json", probe_sections), ("results.json", comparison_sections)):
        if (path / name).is_file():
            return make, path / name
    return training_sections, path  # which says what is missing


if __name__ == "__main__":
    sys.exit(main())
