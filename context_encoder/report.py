"""``python -m context_encoder.report``: training runs as one HTML file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.reports import training_report
from context_encoder.utils.cli import parse_arguments, run_command
from context_encoder.utils.files import check_new_file, make_folder, write_file


@dataclass(frozen=True)
class Arguments:
    """Write curves, sheets of samples and settings of training runs to one HTML file.

    Several runs are overlaid. The file needs nothing else and loads nothing.
    """

    checkpoint: tyro.conf.Positional[
        Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help="Run folders.")]
    ]
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="File to write: .html. Default: report.html in the first run."),
    ] = None
    title: Annotated[str | None, arg(help="Title. Default: the names of the runs.")] = None
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("report", partial(parse_arguments, Arguments), _report, arguments)


def _report(args: Arguments) -> None:
    if not args.checkpoint:
        raise ValueError("name one run folder or more")
    out = args.out or args.checkpoint[0] / "report.html"
    if args.out is not None or args.checkpoint[0].is_dir():
        check_new_file(out, [".html", ".htm"], overwrite=args.overwrite)
    text = training_report(args.checkpoint, args.title).html()
    make_folder(out.parent)
    write_file(out, text)
    print(f"saved {out}: {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
