"""``python -m context_encoder.features``: features of whole pictures, from any layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from context_encoder.config import ModelName, TrainConfig
from context_encoder.data import (
    list_images,
)
from context_encoder.encoder import FeatureError, layer_names, load_backbone
from context_encoder.encoder.store import extract_folder
from context_encoder.models import Backbone
from context_encoder.runs import find_checkpoint, read_config
from context_encoder.utils.device import Processes, choose_device


@dataclass(frozen=True)
class Arguments:
    """Write features of all pictures in a folder, from any layers of a network.

    A file (.npz or .safetensors) with one array a layer, (pictures, channels, height, width), and
    FILE.json with the names of the pictures, row by row. Stopped with Ctrl-C, the same
    command goes on where it was. Pictures that cannot be read are left out, counted and named.
    Exit status: 0 done, 1 no picture could be read, 2 misused, 130 stopped.
    """

    data: Annotated[Path, arg(metavar="FOLDER", help="Folder of pictures, any nesting.")]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .npz or .safetensors.")]
    checkpoint: Annotated[
        Path | None, arg(metavar="RUN", help="Run or checkpoint folder, of any pretext.")
    ] = None
    weights: Annotated[
        Path | None, arg(metavar="FILE", help="Instead: a file of encoder weights.")
    ] = None
    random: Annotated[bool, arg(help="Instead: random weights of --seed.")] = False
    model: Annotated[
        ModelName | None,
        arg(help="Network for --weights and --random; a run knows its own. Default: alexnet."),
    ] = None
    image_size: Annotated[
        int | None,
        arg(metavar="PIXELS", help="Side of its input, for --weights and --random."),
    ] = None
    layers: Annotated[
        str | None,
        arg(metavar="A,B", help="Layers, such as conv1,pool5. Default: the encoder's last."),
    ] = None
    pool: Annotated[
        int | None,
        arg(metavar="N", help="Average maps that are larger to N x N cells (1: one vector)."),
    ] = None
    dtype: Annotated[Literal["float32", "float16"], arg(help="Of the numbers written.")] = "float32"
    mask: Annotated[
        Literal["central", "block", "region", "blob"] | None,
        arg(help="Hide this part of every picture, to describe what surrounds it."),
    ] = None
    seed: Annotated[int, arg(help="Of random weights and masks.")] = 0
    batch_size: Annotated[int, arg(help="Pictures at a time.")] = 32
    workers: Annotated[int, arg(help="Processes that read them; 0 for none.")] = 0
    device: Annotated[str, arg(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto"
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, see :class:`Arguments`."""
    args = tyro.cli(Arguments, prog="python -m context_encoder.features", args=arguments)
    try:
        return _extract_folder(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _extract_folder(args: Arguments) -> int:
    if args.out.suffix not in (".npz", ".safetensors"):
        raise FeatureError(f"--out {args.out} must end in .npz or .safetensors")
    if args.out.exists() and not args.overwrite:
        raise FeatureError(f"{args.out} is already there; replace it with --overwrite")
    for option, number, least in (
        ("--pool", args.pool, 1),
        ("--batch-size", args.batch_size, 1),
        ("--workers", args.workers, 0),
        ("--seed", args.seed, 0),
    ):
        if number is not None and number < least:
            raise FeatureError(f"{option} must be at least {least}, got {number}")
    model = _network(args)
    names = layer_names(model)
    layers = args.layers.split(",") if args.layers else [_last_of_encoder(model)]
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise FeatureError(
            f"--layers: the network has no layer {', '.join(unknown)}; it has {', '.join(names)}"
        )
    paths = list_images(args.data)
    device = choose_device(args.device, Processes())
    config = TrainConfig()
    if args.checkpoint is not None:
        config = read_config(find_checkpoint(args.checkpoint))
    found = extract_folder(
        model,
        args.data,
        paths,
        args.out,
        layers,
        source=str(args.checkpoint or args.weights or f"random weights, seed {args.seed}"),
        pool=args.pool,
        dtype=args.dtype,
        mask=args.mask,
        seed=args.seed,
        fill=config.fill_color(),
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
    )
    if found.unreadable:
        print(f"skipped {len(found.unreadable)} that cannot be read:", file=sys.stderr)
        for name, reason in found.unreadable[:10]:
            print(f"  {name}: {reason}", file=sys.stderr)
    if not found.files:
        print(f"error: none of the {len(paths)} pictures can be read", file=sys.stderr)
        return 1
    size = args.out.stat().st_size / 2**20
    print(f"saved {args.out}: {len(found.files)} pictures, {', '.join(layers)}, {size:.1f} MiB")
    return 0


def _network(args: Arguments) -> Backbone:
    given = [args.checkpoint is not None, args.weights is not None, args.random]
    if sum(given) != 1:
        raise FeatureError("say where the network comes from: --checkpoint, --weights or --random")
    if args.checkpoint is not None and (args.model, args.image_size) != (None, None):
        raise FeatureError(
            "--model and --image-size would do nothing: the run decides them; leave them out"
        )
    return load_backbone(
        args.checkpoint,
        weights=args.weights,
        model=args.model or "alexnet",
        image_size=args.image_size,
        seed=args.seed,
    )


def _last_of_encoder(model: Backbone) -> str:
    return [name for name, _ in model.encoder.named_children()][-1]


if __name__ == "__main__":
    sys.exit(main())
