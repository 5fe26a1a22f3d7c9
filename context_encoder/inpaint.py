"""``python -m context_encoder.inpaint``: fill holes in pictures with a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.data.images import UnreadableImage
from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.folder import fill_folder, plan_folder
from context_encoder.inpainting.image_io import check_output
from context_encoder.inpainting.inpainter import SHOWN_HOLES, Inpainter
from context_encoder.runs import Which


@dataclass(frozen=True)
class Arguments:
    """Fill the masked part of a picture, or of every picture in a folder, with a trained network.

    Pixels outside the mask come back bit for bit. A line tells for each hole what was
    done. Exit status: 0 done (of a folder: at least one picture), 1 no picture of the folder could
    be filled, 2 misused.
    """

    image: tyro.conf.Positional[
        Annotated[
            Path,
            arg(
                metavar="IMAGE",
                help="Picture of any size and format, or folder of pictures (with subfolders).",
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
            help="File to write: .png, .tif or .webp (lossless). For a folder of pictures: a "
            "folder, for PNG files of the same names.",
        ),
    ]
    mask: Annotated[
        Path | None,
        arg(
            metavar="MASK",
            help="Picture of the same size, white = fill. For a folder of pictures: one mask for "
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
            "the bare prediction."
        ),
    ] = True
    batch_size: Annotated[int, arg(help="Windows that the network fills at a time.")] = 16
    overwrite: Annotated[bool, arg(help="Replace files that are already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, see :class:`Arguments`."""
    args = tyro.cli(Arguments, prog="python -m context_encoder.inpaint", args=arguments)
    try:
        if args.image.is_dir():
            return _fill_folder(args)
        _fill_file(args)
        return 0
    except (InpaintError, UnreadableImage, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _check_hole_arguments(args: Arguments) -> None:
    if (args.mask is None) == (not args.box):
        raise InpaintError(
            "say what to fill: either --mask FILE (white = fill) or --box X0 Y0 X1 Y1"
            + ("" if args.mask is None else ", not both")
        )
    if args.mask is not None and not args.mask.exists():
        raise InpaintError(f"mask {args.mask} does not exist")


def _load(args: Arguments) -> Inpainter:
    try:
        return Inpainter.from_run(
            args.checkpoint,
            which=args.which,
            device=args.device,
            blend=args.blend,
            batch_size=args.batch_size,
        )
    except ValueError as error:
        raise InpaintError(str(error)) from error


def _fill_file(args: Arguments) -> None:
    # Everything that can be wrong with the arguments comes before the network, which takes long.
    _check_hole_arguments(args)
    if not args.image.exists():
        raise InpaintError(f"picture {args.image} does not exist")
    if args.mask is not None and args.mask.is_dir():
        raise InpaintError(f"--mask {args.mask} is a folder, {args.image} a file; name the mask")
    if args.out.is_dir():
        raise InpaintError(
            f"--out {args.out} is a folder; name a file, such as "
            f"{args.out / args.image.with_suffix('.png').name}"
        )
    check_output(args.out)
    if args.out.exists() and not args.overwrite:
        raise InpaintError(f"{args.out} is already there; replace it with --overwrite")
    result = _load(args)(args.image, args.mask, boxes=args.box or None)
    for line in result.report.lines(SHOWN_HOLES):
        print(line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result.save(args.out)
    print(f"saved {args.out}")


def _fill_folder(args: Arguments) -> int:
    _check_hole_arguments(args)
    if args.out.exists() and not args.out.is_dir():
        raise InpaintError(f"--out {args.out} is a file, {args.image} a folder; name a folder")
    if args.out.resolve() == args.image.resolve():
        raise InpaintError("--out is the folder of the pictures itself; name another one")
    jobs = plan_folder(args.image, args.out, args.mask)
    result = fill_folder(_load(args), jobs, boxes=args.box or None, overwrite=args.overwrite)
    print(f"filled {result.filled} of {len(jobs)} pictures, saved in {args.out}")
    if result.skipped:
        print("\n  ".join([f"skipped {len(result.skipped)}:", *result.skipped]), file=sys.stderr)
    return 0 if result.filled else 1


if __name__ == "__main__":
    sys.exit(main())
