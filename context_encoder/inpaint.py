"""``python -m context_encoder.inpaint``: fill holes in images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from context_encoder.data.decode import MAX_MEGAPIXELS
from context_encoder.data.mask_images import InpaintError, InputOptions, MaskChannel
from context_encoder.inpainting.hole_filler import TEXTURE, HoleFiller, Texture, texture_strength
from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.inpainting.jobs import (
    Settings,
    check_hole,
    fill_file,
    fill_folder,
    plan_file,
    plan_folder,
)
from context_encoder.runs import Which
from context_encoder.utils.cli import DONE, FAILED, PARTLY, parse_arguments, run_command
from context_encoder.utils.options import with_options


@dataclass(frozen=True)
class Arguments:
    """Fill the masked part of an image, or of every image in a folder.

    Without --checkpoint, small holes are filled by linear prediction from the pixels around
    them; for larger ones the network that is included predicts the content, and the image's own
    patches supply the texture. With --checkpoint, a trained network of yours fills them. Pixels
    outside the mask come back bit for bit. The command prints what filled each hole. Exit
    status 3: some images of a folder were skipped, and are listed; 1: all were.
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
    out: Annotated[
        Path,
        arg(
            metavar="OUT",
            help="File to write: .png, .tif or .webp (lossless), or .jpg (quality 95, changes all "
            "pixels). For a folder of images: a folder, for PNG files of the same names.",
        ),
    ]
    checkpoint: Annotated[
        Path | None,
        arg(
            metavar="RUN",
            help="Run folder that training made, or a checkpoint folder in it: fill with its "
            "network, instead of the included one and texture.",
            help_behavior_hint="",
        ),
    ] = None
    mask: Annotated[
        Path | None,
        arg(
            metavar="MASK",
            help="Image of the same size, white = fill; or a copy of the image with what to fill "
            "painted over or erased. For a folder of images: one mask for all, or a folder with "
            "masks named like the images: x.png, x_mask.png or x_mask001.png for x.jpg.",
            help_behavior_hint="",
        ),
    ] = None
    invert_mask: Annotated[bool, arg(help="Fill what the mask keeps: black = fill.")] = False
    mask_channel: Annotated[
        MaskChannel, arg(help="What of the mask to read; auto chooses (docs/inputs.md).")
    ] = "auto"
    allow_unusual_mask: Annotated[
        bool,
        arg(
            help="Use a mask that fills nothing or more than 90 %, or that has the grey levels "
            "of a photograph, instead of refusing it."
        ),
    ] = False
    grow: Annotated[int, arg(metavar="N", help="Grow the hole by N pixels on all sides.")] = 0
    feather: Annotated[
        int,
        arg(
            metavar="N",
            help="Fade the fill into the image over N pixels around the hole, which change too.",
        ),
    ] = 0
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
    texture: Annotated[
        Texture | None,
        arg(
            metavar="STRENGTH",
            help="Texture of the image's own patches in larger holes: 0 (or off) to 1, the "
            "sharpest and least accurate. With --checkpoint too, the guide is the mean of its "
            "prediction and linear prediction.",
            help_behavior_hint=f"(default: {TEXTURE}; off with --checkpoint)",
        ),
    ] = None
    which: Annotated[
        Which, arg(help="Checkpoint of the run: best on held-out photographs, or last.")
    ] = "best"
    device: Annotated[str, arg(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto"
    blend: Annotated[
        bool,
        arg(
            help="Adapt brightness and colour of the fill to its surroundings (networks that "
            "correct the membrane do so themselves); --no-blend for the unchanged prediction."
        ),
    ] = True
    batch_size: Annotated[int, arg(help="Windows that the network fills at a time.")] = 16
    strip_metadata: Annotated[
        bool, arg(help="Leave EXIF and XMP out; colour profile and resolution are kept.")
    ] = False
    max_megapixels: Annotated[
        float, arg(metavar="N", help="Refuse images of more than N million pixels.")
    ] = MAX_MEGAPIXELS
    overwrite: Annotated[bool, arg(help="Replace files that are already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("inpaint", partial(parse_arguments, Arguments), _fill, arguments)


def _inpainter(args: Arguments) -> Inpainter | HoleFiller:
    """What the arguments ask to fill with."""
    if args.checkpoint is None:
        return HoleFiller(texture=TEXTURE if args.texture is None else args.texture)
    inpainter = Inpainter.from_run(
        args.checkpoint,
        which=args.which,
        device=args.device,
        blend=args.blend,
        batch_size=args.batch_size,
    )
    strength = 0.0 if args.texture is None else texture_strength(args.texture)
    return HoleFiller(inpainter, texture=strength) if strength else inpainter


def _check_options(args: Arguments) -> None:
    """InpaintError for a texture out of range, and for options that would have no effect."""
    if args.texture is not None:
        texture_strength(args.texture)
    if args.checkpoint is not None:
        return
    # tyro does not tell which options were given, so defaults pass.
    given = {
        "which": args.which != "best",
        "device": args.device not in ("auto", "cpu"),
        "no_blend": not args.blend,
    }
    for name, wrong in given.items():
        if wrong:
            raise InpaintError(f"`{name}` is for a network; name one with `checkpoint`")


def _fill(args: Arguments) -> int:
    check_hole(args.mask, args.box)
    _check_options(args)
    options = InputOptions(
        invert_mask=args.invert_mask,
        mask_channel=args.mask_channel,
        allow_unusual_mask=args.allow_unusual_mask,
        grow=args.grow,
        feather=args.feather,
        max_megapixels=args.max_megapixels,
    )
    settings = Settings(args.box or None, options, args.strip_metadata)
    # Everything that can be wrong with the arguments comes before the network, which takes long.
    many = args.image.is_dir()
    if many:
        jobs, notes = plan_folder(args.image, args.out, args.mask)
    else:
        jobs = [plan_file(args.image, args.out, args.mask, overwrite=args.overwrite)]
    inpainter = _inpainter(args)
    if not many:
        print(with_options("\n".join(fill_file(inpainter, jobs[0], settings))))
        print(f"saved {args.out}")
        return DONE
    result = fill_folder(inpainter, jobs, settings, overwrite=args.overwrite)
    print(f"filled {result.filled} of {len(jobs)} images, saved in {args.out}")
    for note in notes:
        print(note, file=sys.stderr)
    if result.skipped:
        lines = [f"skipped {len(result.skipped)}:", *result.skipped]
        print(with_options("\n  ".join(lines)), file=sys.stderr)
        return PARTLY if result.filled else FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
