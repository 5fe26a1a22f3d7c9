"""``python -m context_encoder.features``: features of whole images, from any layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from context_encoder.data import list_images
from context_encoder.encoder.backbone import choose_backbone, fill_color_of, last_of_encoder
from context_encoder.encoder.store import check_store, extract_folder
from context_encoder.masks import MASKS, masks_without_files
from context_encoder.models import MODELS, default_features_model
from context_encoder.utils.cli import DONE, FAILED, name_argument, parse_arguments, run_command
from context_encoder.utils.device import Processes, choose_device


@dataclass(frozen=True)
class Arguments:
    """Write features of all images in a folder, from any layers of a network.

    The output is a file (.npz or .safetensors) with one array per layer, (images, channels,
    height, width), and FILE.json with the names of the images, row by row. After Ctrl-C, the same
    command continues. Images that cannot be read are skipped, counted and named.
    Exit status 1: no image could be read.
    """

    data: Annotated[Path, arg(metavar="FOLDER", help="Folder of images, any nesting.")]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .npz or .safetensors.")]
    checkpoint: Annotated[
        Path | None, arg(metavar="RUN", help="Run or checkpoint folder, of any pretext.")
    ] = None
    weights: Annotated[
        Path | None, arg(metavar="FILE", help="Instead: a file of encoder weights.")
    ] = None
    random: Annotated[bool, arg(help="Instead: random weights of --seed.")] = False
    model: Annotated[
        Annotated[str, name_argument(MODELS)] | None,
        arg(
            help="Network for --weights and --random; a run knows its own. Default: the one that "
            f"the file names, or {default_features_model()}."
        ),
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
    dtype: Annotated[Literal["float32", "float16"], arg(help="Output dtype.")] = "float32"
    mask: Annotated[
        Annotated[str, name_argument(MASKS.only(masks_without_files))] | None,
        arg(help="Kind of mask that hides a part of every image; features describe the rest."),
    ] = None
    seed: Annotated[int, arg(help="Seed of random weights and masks.")] = 0
    batch_size: Annotated[int, arg(help="Images at a time.")] = 32
    workers: Annotated[int, arg(help="Processes that read images; 0 for none.")] = 0
    device: Annotated[str, arg(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto"
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command(
        "features",
        partial(parse_arguments, Arguments),
        _extract,
        arguments,
        when_interrupted="repeat the command to continue",
    )


def _extract(args: Arguments) -> int:
    # Arguments are checked before the network is loaded, which takes long.
    check_store(
        args.out,
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    model = choose_backbone(
        args.checkpoint,
        weights=args.weights,
        random=args.random,
        model=args.model,
        image_size=args.image_size,
        seed=args.seed,
    )
    layers = args.layers.split(",") if args.layers else [last_of_encoder(model)]
    paths = list_images(args.data)
    found = extract_folder(
        model,
        args.data,
        paths,
        args.out,
        layers,
        source=str(args.checkpoint or args.weights or f"random weights, seed {args.seed}"),
        dtype=args.dtype,
        mask=args.mask,
        fill=fill_color_of(args.checkpoint),
        device=choose_device(args.device, Processes()),
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    if found.unreadable:
        print(f"skipped {len(found.unreadable)} that cannot be read:", file=sys.stderr)
        for name, reason in found.unreadable[:10]:
            print(f"  {name}: {reason}", file=sys.stderr)
    if not found.files:
        print(f"stopped: none of the {len(paths)} images can be read", file=sys.stderr)
        return FAILED
    size = args.out.stat().st_size / 2**20
    print(f"saved {args.out}: {len(found.files)} images, {', '.join(layers)}, {size:.1f} MiB")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
