"""``python -m context_encoder.weights export|import``: exchange of encoder weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.encoder.convert import export_run, import_file
from context_encoder.encoder.weights import Input, Names, Norm
from context_encoder.models import MODELS, default_features_model
from context_encoder.runs import Which
from context_encoder.utils.cli import name_argument, parse_arguments, run_command


@dataclass(frozen=True)
class Export:
    """Write the encoder of a run to a file for other programs."""

    checkpoint: tyro.conf.Positional[
        Annotated[Path, arg(metavar="RUN", help="Run folder, or a checkpoint folder in it.")]
    ]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .safetensors.")]
    names: Annotated[
        Names,
        arg(
            help="How to name the weights: as here; as torchvision's AlexNet (whose class they do "
            "not fit: it has other channels and no groups); as Caffe's bvlc_alexnet."
        ),
    ] = "native"
    which: Annotated[Which, arg(help="Checkpoint of the run: best or last.")] = "best"
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


@dataclass(frozen=True)
class Import:
    """Read encoder weights in any naming, report what fits, and write them in the native naming."""

    weights: tyro.conf.Positional[
        Annotated[Path, arg(metavar="FILE", help=".safetensors, or a state dict as .pth or .pt.")]
    ]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .safetensors.")]
    model: Annotated[
        Annotated[str, name_argument(MODELS)] | None,
        arg(
            help="Network whose encoder they are for. Default: the one that the file names, or "
            f"{default_features_model()}."
        ),
    ] = None
    image_size: Annotated[
        int | None, arg(metavar="PIXELS", help="Side of its input. Default: the file's, or its own")
    ] = None
    norm: Annotated[
        Norm | None,
        arg(help="Normalisation, where --model has a choice. Default: the file's, or lrn."),
    ] = None
    input: Annotated[
        Input | None,
        arg(
            help="Images they are for: own (RGB, value / 127.5 - 1), or caffe (BGR, value less "
            "104, 117, 123; as the authors' features model), converted. Default: the file's or own."
        ),
    ] = None
    partial: Annotated[
        bool, arg(help="Keep random weights where the file has none or another shape.")
    ] = False
    seed: Annotated[int, arg(help="Seed of the random weights.")] = 0
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    kinds = (
        Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")]
    )
    return run_command(
        "weights",
        partial(parse_arguments, kinds),
        _convert,
        arguments,
        renamed={"pictures": "input"},
    )


def _convert(args: Export | Import) -> None:
    if isinstance(args, Export):
        saved = export_run(
            args.checkpoint, args.out, names=args.names, which=args.which, overwrite=args.overwrite
        )
    else:
        report, saved = import_file(
            args.weights,
            args.out,
            model=args.model,
            image_size=args.image_size,
            norm=args.norm,
            pictures=args.input,
            partial=args.partial,
            seed=args.seed,
            overwrite=args.overwrite,
        )
        print(report)
    print(f"saved {saved.path}: {saved.tensors} tensors, {saved.bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
