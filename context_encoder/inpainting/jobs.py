"""Pictures to fill, one or all of a folder: what is checked before the network is loaded."""

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
    """One picture to fill."""

    image: Path
    #: Relative to the folder it comes from.
    name: str
    #: Or why there is none.
    mask: Path | InpaintError | None
    out: Path


def check_hole(mask: Path | None, boxes: Sequence[Sequence[int]]) -> None:
    """InpaintError unless a mask that is there, or boxes, say what to fill, and not both."""
    if (mask is None) == (not boxes):
        raise InpaintError(
            "say what to fill: either `mask` FILE (white = fill) or `box` X0 Y0 X1 Y1"
            + ("" if mask is None else ", not both")
        )
    if mask is not None and not mask.exists():
        raise InpaintError(f"mask {mask} does not exist")


def plan_file(image: Path, out: Path, mask: Path | None, *, overwrite: bool = False) -> Job:
    """What is to be done to one picture.

    Args:
        image: the picture.
        out: file for the result, of a lossless format.
        mask: its mask; None if boxes say what to fill.
        overwrite: whether ``out`` may be there already.

    Raises:
        InpaintError: something that cannot be used; says what to do.
        WriteError: ``out`` cannot be written.
    """
    if not image.exists():
        raise InpaintError(f"picture {image} does not exist")
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
    """What is to be done to a folder of pictures.

    Args:
        folder: the pictures, any nesting.
        out: folder for the results; what lies in it is not filled again.
        mask: one mask for all, or a folder with a mask of the same name (any suffix) for each;
            None if boxes say what to fill.

    Raises:
        InpaintError: no picture in ``folder`` besides masks and results, or ``out`` is a file or
            ``folder`` itself.
        FileNotFoundError, NotADirectoryError: there is no such folder.
        WriteError: nothing can be written in ``out``.
    """
    if out.exists() and not out.is_dir():
        raise InpaintError(f"`out` {out} is a file, {folder} a folder; name a folder")
    if out.resolve() == folder.resolve():
        raise InpaintError("`out` is the folder of the pictures itself; name another one")
    check_writable(out, folder=True)
    masks: dict[str, list[Path]] | None = None
    aside = [out.resolve()]
    if mask is not None and mask.is_dir():
        aside.append(mask.resolve())
        masks = {}
        for path in list_images(mask):
            masks.setdefault(_stem(relative_name(path, mask)), []).append(path)
    # Results of an earlier run, and masks, are no pictures to fill.
    images = [
        path
        for path in list_images(folder)
        if not any(other in path.resolve().parents for other in aside)
    ]
    if not images:
        raise InpaintError(f"no picture in {folder} besides the masks and results")
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
        # Pictures that differ in their suffix only keep it.
        target = out / f"{stem if count[stem] == 1 else name}.png"
        jobs.append(Job(image, name, chosen, target))
    return jobs


@dataclass(frozen=True)
class FolderResult:
    """What became of the pictures of a folder."""

    filled: int
    #: A sentence for each picture that was left out.
    skipped: tuple[str, ...]


def fill_file(
    inpainter: Inpainter | HoleFiller, job: Job, *, boxes: Sequence[Sequence[int]] | None = None
) -> list[str]:
    """Fill one picture and save it; returns a line for each hole.

    Raises:
        As :meth:`Inpainter.__call__` and :meth:`Inpainted.save`; what the job has in place of a
        mask.
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
    """Fill pictures and save them; what was done is told above a progress bar.

    Args:
        inpainter: the network, or what fills holes without one.
        jobs: from :func:`plan_folder`.
        boxes: see :meth:`Inpainter.__call__`; for all pictures, if the jobs have no masks.
        overwrite: replace files that are already there.
    """
    filled, skipped = 0, []
    for job in tqdm(jobs, unit="picture", dynamic_ncols=True):
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
