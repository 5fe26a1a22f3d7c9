"""Images to fill, one or a folder: checks before the network is loaded, and the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from context_encoder.data.images import UnreadableImage, list_images, relative_name
from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.hole_filler import HoleFiller
from context_encoder.inpainting.image_io import check_output
from context_encoder.inpainting.inpainter import SHOWN_HOLES, Inpainted, Inpainter
from context_encoder.utils.files import check_writable, make_folder


class Job(NamedTuple):
    """One image to fill."""

    image: Path
    #: Relative to the folder it comes from.
    name: str
    #: The mask, or the reason why there is none.
    mask: Path | InpaintError | None
    out: Path


def check_hole(mask: Path | None, boxes: Sequence[Sequence[int]]) -> None:
    """InpaintError unless either an existing mask or boxes are given."""
    if (mask is None) == (not boxes):
        raise InpaintError(
            "say what to fill: either `mask` FILE (white = fill) or `box` X0 Y0 X1 Y1"
            + ("" if mask is None else ", not both")
        )
    if mask is not None and not mask.exists():
        raise InpaintError(f"mask {mask} does not exist")


def plan_file(image: Path, out: Path, mask: Path | None, *, overwrite: bool = False) -> Job:
    """Plan the inpainting of one image.

    Args:
        image: the image.
        out: file for the result, of a lossless format.
        mask: its mask; None if boxes are given.
        overwrite: whether ``out`` may already exist.

    Raises:
        InpaintError: an argument cannot be used; the message says what to do.
        WriteError: ``out`` cannot be written.
    """
    if not image.exists():
        raise InpaintError(f"image {image} does not exist")
    if mask is not None and mask.is_dir():
        raise InpaintError(f"`mask` {mask} is a folder, {image} a file; name the mask")
    if out.is_dir():
        raise InpaintError(
            f"`out` {out} is a folder; name a file, such as {out / image.with_suffix('.png').name}"
        )
    check_output(out)
    if out.exists() and not overwrite:
        raise InpaintError(f"{out} is already there; replace it with `overwrite`")
    check_writable(out)
    return Job(image, image.name, mask, out)


def plan_folder(folder: Path, out: Path, mask: Path | None) -> list[Job]:
    """Plan the inpainting of a folder of images.

    Args:
        folder: the images, any nesting.
        out: folder for the results; images in it are not filled again.
        mask: one mask for all images, or a folder with a mask of the same name (any suffix) for
            each; None if boxes are given.

    Raises:
        InpaintError: there is no image in ``folder`` besides masks and results, or ``out`` is a
            file or ``folder`` itself.
        FileNotFoundError, NotADirectoryError: there is no such folder.
        WriteError: nothing can be written in ``out``.
    """
    if out.exists() and not out.is_dir():
        raise InpaintError(f"`out` {out} is a file, {folder} a folder; name a folder")
    if out.resolve() == folder.resolve():
        raise InpaintError("`out` is the folder of the images itself; name another one")
    check_writable(out, folder=True)
    masks: dict[str, list[Path]] | None = None
    aside = [out.resolve()]
    if mask is not None and mask.is_dir():
        aside.append(mask.resolve())
        masks = {}
        for path in list_images(mask):
            masks.setdefault(_stem(relative_name(path, mask)), []).append(path)
    # Results of an earlier run, and masks, are not to be filled.
    images = [
        path
        for path in list_images(folder)
        if not any(other in path.resolve().parents for other in aside)
    ]
    if not images:
        raise InpaintError(f"no image in {folder} besides the masks and results")
    names = [relative_name(path, folder) for path in images]
    count = Counter(map(_stem, names))
    jobs = []
    for image, name in zip(images, names, strict=True):
        chosen: Path | InpaintError | None = mask
        stem = _stem(name)
        if masks is not None:
            found = masks.get(stem, [])
            if len(found) == 1:
                chosen = found[0]
            else:
                which = " and ".join(path.name for path in found)
                chosen = InpaintError(
                    f"more than one mask: {which}" if found else f"no mask {stem}.* in {mask}"
                )
        # Images that differ only in their suffix keep it in the output's name.
        target = out / f"{stem if count[stem] == 1 else name}.png"
        jobs.append(Job(image, name, chosen, target))
    return jobs


@dataclass(frozen=True)
class FolderResult:
    """Results of inpainting a folder of images."""

    filled: int
    #: One sentence per skipped image.
    skipped: tuple[str, ...]


def fill_file(
    inpainter: Inpainter | HoleFiller, job: Job, *, boxes: Sequence[Sequence[int]] | None = None
) -> list[str]:
    """Fill one image and save it; returns one line per hole.

    Raises:
        Errors of :meth:`Inpainter.__call__` and :meth:`Inpainted.save`, and the error that the job
        has instead of a mask.
    """
    if isinstance(job.mask, InpaintError):
        raise job.mask
    result: Inpainted[Any] = inpainter(job.image, job.mask, boxes=boxes, progress=True)
    make_folder(job.out.parent)
    result.save(job.out)
    return list(result.report.lines(SHOWN_HOLES))


def fill_folder(
    inpainter: Inpainter | HoleFiller,
    jobs: Sequence[Job],
    *,
    boxes: Sequence[Sequence[int]] | None = None,
    overwrite: bool = False,
) -> FolderResult:
    """Fill images and save them; a report is printed above a progress bar.

    Args:
        inpainter: the network, or what fills holes without one.
        jobs: from :func:`plan_folder`.
        boxes: see :meth:`Inpainter.__call__`; for all images, if the jobs have no masks.
        overwrite: replace existing files.
    """
    filled, skipped = 0, []
    for job in tqdm(jobs, unit="image", dynamic_ncols=True):
        try:
            if job.out.exists() and not overwrite:
                raise InpaintError(f"{job.out} is already there; `overwrite` replaces it")
            lines = fill_file(inpainter, job, boxes=boxes)
        except (InpaintError, UnreadableImage, OSError) as error:
            if isinstance(error, UnreadableImage) and error.path == job.image:
                reason = error.reason
            else:
                reason = str(error)
            skipped.append(f"{job.name}: {reason}")
            continue
        filled += 1
        for line in lines:
            tqdm.write(f"{job.name}: {line}")
    return FolderResult(filled, tuple(skipped))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
