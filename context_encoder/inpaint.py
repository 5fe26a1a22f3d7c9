"""``python -m context_encoder.inpaint``: fill holes in images with a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.inpainting.jobs import (
    check_hole,
    fill_file,
    fill_folder,
    plan_file,
    plan_folder,
)
from context_encoder.runs import Which
from context_encoder.utils.cli import DONE, FAILED, parse_arguments, run_command
from context_encoder.utils.options import with_options


@dataclass(frozen=True)
class Arguments:
    """Fill the masked part of an image, or of every image in a folder, with a trained network.

    Pixels outside the mask keep every bit. One line per hole reports what was
    done. Exit status 1: no image of the folder could be filled.
    """

    image: tyro.conf.Positional[
        Annotated[
            Path,
            arg(
                metavar="IMAGE",
                help="Image of any size and format, or folder of images (with subfolders).",
            ),
        ]
    ]
    checkpoint: Annotated[
        Path,
        arg(metavar="RUN", help="Run folder that training made, or a checkpoint folder in it."),
    ]
    out: Annotated[
        Path,
        arg(
            metavar="OUT",
            help="File to write: .png, .tif or .webp (lossless). For a folder of images: a "
            "folder, for PNG files of the same names.",
        ),
    ]
    mask: Annotated[
        Path | None,
        arg(
            metavar="MASK",
            help="Image of the same size, white = fill. For a folder of images: one mask for "
            "all, or a folder with a mask of the same name (any suffix) for each.",
        ),
    ] = None
    box: tyro.conf.UseAppendAction[
        Annotated[
            tuple[tuple[int, int, int, int], ...],
            arg(
                metavar="X0 Y0 X1 Y1",
                help="Rectangle to fill instead of a mask, in pixels from the upper left corner, "
                "X1 and Y1 exclusive. May be given several times.",
            ),
        ]
    ] = ()
    which: Annotated[
        Which, arg(help="Checkpoint of the run: best on held-out photographs, or last.")
    ] = "best"
    device: Annotated[str, arg(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto"
    blend: Annotated[
        bool,
        arg(
            help="Adapt brightness and colour of the fill to its surroundings; --no-blend for "
            "the unchanged prediction."
        ),
    ] = True
    batch_size: Annotated[int, arg(help="Windows that the network fills at a time.")] = 16
    overwrite: Annotated[bool, arg(help="Replace files that are already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("inpaint", partial(parse_arguments, Arguments), _fill, arguments)


def _fill(args: Arguments) -> int:
    check_hole(args.mask, args.box)
    # Arguments are checked before the network is loaded, which takes long.
    many = args.image.is_dir()
    if many:
        jobs = plan_folder(args.image, args.out, args.mask)
    else:
        jobs = [plan_file(args.image, args.out, args.mask, overwrite=args.overwrite)]
    inpainter = Inpainter.from_run(
        args.checkpoint,
        which=args.which,
        device=args.device,
        blend=args.blend,
        batch_size=args.batch_size,
    )
    boxes = args.box or None
    if not many:
        print("\n".join(fill_file(inpainter, jobs[0], boxes=boxes)))
        print(f"saved {args.out}")
        return DONE
    result = fill_folder(inpainter, jobs, boxes=boxes, overwrite=args.overwrite)
    print(f"filled {result.filled} of {len(jobs)} images, saved in {args.out}")
    if result.skipped:
        lines = [f"skipped {len(result.skipped)}:", *result.skipped]
        print(with_options("\n  ".join(lines)), file=sys.stderr)
    return DONE if result.filled else FAILED


if __name__ == "__main__":
    sys.exit(main())
