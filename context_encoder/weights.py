"""``python -m context_encoder.weights export|import``: encoder weights out, for others, and in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.config import ModelName
from context_encoder.encoder.weights import (
    Input,
    Names,
    Norm,
    WeightsError,
    export_encoder,
    load_encoder,
    weights_metadata,
)
from context_encoder.runs import RunError, Which, load_model
from context_encoder.utils.files import make_folder, save_tensors


@dataclass(frozen=True)
class Export:
    """Write the encoder of a run to a file that others can load."""

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
    """Read encoder weights from a file of any naming, say what fits, and write them as native."""

    weights: tyro.conf.Positional[
        Annotated[Path, arg(metavar="FILE", help=".safetensors, or a state dict as .pth or .pt.")]
    ]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .safetensors.")]
    model: Annotated[ModelName, arg(help="Network whose encoder they are for.")] = "alexnet"
    image_size: Annotated[
        int | None, arg(metavar="PIXELS", help="Side of its input. Default: the file's, or its own")
    ] = None
    norm: Annotated[
        Norm | None, arg(help="Normalisation of alexnet models. Default: the file's, or lrn.")
    ] = None
    input: Annotated[
        Input | None,
        arg(
            help="Pictures they are for: own (RGB, value / 127.5 - 1), or caffe (BGR, value less "
            "104, 117, 123; as the authors' features model), converted. Default: the file's or own."
        ),
    ] = None
    partial: Annotated[
        bool, arg(help="Leave weights random that the file lacks or has in another shape.")
    ] = False
    seed: Annotated[int, arg(help="Seed of those.")] = 0
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 2 misused."""
    args: Export | Import = tyro.cli(
        Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")],
        prog="python -m context_encoder.weights",
        args=arguments,
    )
    try:
        if args.out.suffix != ".safetensors":
            raise WeightsError(f"--out {args.out} must end in .safetensors")
        if args.out.exists() and not args.overwrite:
            raise WeightsError(f"{args.out} is already there; replace it with --overwrite")
        if isinstance(args, Export):
            loaded = load_model(args.checkpoint, which=args.which)
            tensors = export_encoder(loaded.model.encoder, args.names)
            metadata = weights_metadata(loaded.config.model, loaded.model, args.names)
            metadata |= {"pretext": loaded.config.pretext, "step": str(loaded.step)}
        else:
            backbone, report = load_encoder(
                args.weights,
                model=args.model,
                image_size=args.image_size,
                norm=args.norm,
                pictures=args.input,
                partial=args.partial,
                seed=args.seed,
            )
            print(report)
            tensors = export_encoder(backbone.encoder)
            metadata = weights_metadata(args.model, backbone, "native")
        make_folder(args.out.parent)
        save_tensors(args.out, tensors, metadata)
    except (WeightsError, RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"saved {args.out}: {len(tensors)} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
