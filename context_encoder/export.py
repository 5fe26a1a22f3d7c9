"""``python -m context_encoder.export``: trained networks as files for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.exporting import ExportError, export_network
from context_encoder.exporting.export import Format, Part, Precision
from context_encoder.runs import Which
from context_encoder.utils.cli import parse_arguments, run_command


@dataclass(frozen=True)
class Arguments:
    """Write a trained network to a file that runs without this package.

    A network for filling takes an image and a mask and gives the filled image, without texture; an
    encoder takes an image and gives features. Any batch size. The file is compared with the network
    in a process of its own before it is written, and says in its metadata what goes in and out.
    """

    to: Annotated[Format, arg(help="onnx, or pt2: a program of torch.export.")]
    checkpoint: tyro.conf.Positional[
        Annotated[
            Path | None,
            arg(metavar="RUN", help="Run or checkpoint folder. Default: the included network."),
        ]
    ] = None
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="File to write. Default: named after the network, here."),
    ] = None
    part: Annotated[
        Part | None,
        arg(help="What to export. Default: filling, if the run was trained for it."),
    ] = None
    size: Annotated[
        int | None,
        arg(
            metavar="PIXELS",
            help="Side of the square images to fill. Default: the network's. Networks that correct "
            "the membrane take larger ones, and scale their correction.",
        ),
    ] = None
    layers: Annotated[
        str | None,
        arg(metavar="A,B", help="Layers of the encoder. Default: its last."),
    ] = None
    precision: Annotated[
        Precision,
        arg(
            help="Of the weights in the file. fp16 halves it, int8 quarters it; refused if the "
            "fills lose more than 0.1 dB, or features change by more than 2 %."
        ),
    ] = "float32"
    which: Annotated[Which, arg(help="Checkpoint of the run: best or last.")] = "best"
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command(
        "export",
        partial(parse_arguments, Arguments),
        _export,
        arguments,
        failures=(ExportError,),
    )


def _export(args: Arguments) -> None:
    exported = export_network(
        args.checkpoint,
        to=args.to,
        out=args.out,
        part=args.part,
        size=args.size,
        layers=None if args.layers is None else args.layers.split(","),
        precision=args.precision,
        which=args.which,
        overwrite=args.overwrite,
    )
    print("\n".join(exported.lines()))


if __name__ == "__main__":
    sys.exit(main())
