"""Images to fill, one or a folder: checks before the network is loaded, and the work."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from context_encoder.data.images import UnreadableImage, list_images, relative_name
from context_encoder.data.mask_images import InpaintError, InputOptions
from context_encoder.inpainting.encode import check_output
from context_encoder.inpainting.hole_filler import HoleFiller
from context_encoder.inpainting.inpainter import SHOWN_HOLES, Inpainted, Inpainter
from context_encoder.inpainting.pairing import pair_masks
from context_encoder.utils.files import check_writable, make_folder


class Job(NamedTuple):
    """One image to fill."""

    image: Path
    #: Relative to the folder it comes from.
    name: str
    #: The mask, or the reason why there is none.
    mask: Path | InpaintError | None
    out: Path


class Plan(NamedTuple):
    """The images of a folder to fill."""

    jobs: list[Job]
    #: Remarks, as sentences.
    notes: list[str]


@dataclass(frozen=True)
class Settings:
    """What holds for all images of a command."""

    boxes: Sequence[Sequence[int]] | None = None
    options: InputOptions = field(default_factory=InputOptions)
    strip_metadata: bool = False


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
        out: file for the result, of a format that is written.
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


def plan_folder(folder: Path, out: Path, mask: Path | None) -> Plan:
    """Plan the inpainting of a folder of images.

    Args:
        folder: the images, any nesting.
        out: folder for the results; images in it are not filled again.
        mask: one mask for all images, or a folder with the masks (see
            :mod:`context_encoder.inpainting.pairing`), also that of the images: an image there
            without a mask is taken for its own, of which a part is erased; None if boxes are given.

    Raises:
        InpaintError: there is no image in ``folder`` besides masks and results, ``out`` is a
            file or ``folder`` itself, or no mask belongs to an image.
        FileNotFoundError, NotADirectoryError: there is no such folder.
        WriteError: nothing can be written in ``out``.
    """
    if out.exists() and not out.is_dir():
        raise InpaintError(f"`out` {out} is a file, {folder} a folder; name a folder")
    if out.resolve() == folder.resolve():
        raise InpaintError("`out` is the folder of the images itself; name another one")
    check_writable(out, folder=True)
    masks = mask if mask is not None and mask.is_dir() else None
    together = masks is not None and masks.resolve() == folder.resolve()
    aside = [out]
    if masks is not None and folder.resolve() in masks.resolve().parents:
        aside.append(masks)
    # Results of an earlier run, and masks, are not to be filled.
    images = {relative_name(path, folder): path for path in _outside(folder, aside)}
    pairs: dict[str, list[Path | InpaintError | None]] = {name: [mask] for name in images}
    notes: list[str] = []
    if masks is not None:
        found = {relative_name(path, masks): path for path in _outside(masks, [out])}
        pairs, unused = _paired(images, found, masks, together=together)
        if unused and not together:
            shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
            notes.append(f"{len(unused)} masks belong to no image: {shown}")
    if not pairs:
        raise InpaintError(f"no image in {folder} besides the masks and results")
    count = Counter(map(_stem, pairs))
    jobs = []
    for name, chosen in pairs.items():
        for one in chosen:
            # Images that differ only in their suffix keep it in the output's name, and several
            # results of one image are named like their masks.
            stem = _stem(name) if count[_stem(name)] == 1 else name
            told = name
            if len(chosen) > 1 and isinstance(one, Path):
                stem = str(Path(name).parent / one.stem)
                told = f"{name} with {one.name}"
            jobs.append(Job(images[name], told, one, out / f"{stem}.png"))
    return Plan(jobs, notes)


def _outside(folder: Path, aside: Sequence[Path]) -> list[Path]:
    """The images of a folder that lie in none of some others."""
    closed = [other.resolve() for other in aside]
    return [
        path
        for path in list_images(folder)
        if not any(other in path.resolve().parents for other in closed)
    ]


def _paired(
    images: dict[str, Path], masks: dict[str, Path], where: Path, *, together: bool
) -> tuple[dict[str, list[Path | InpaintError | None]], list[str]]:
    """The masks of each image, and the masks that belong to none."""
    if together:
        of = pair_masks(list(images), [])
        for name in images:
            for base, found in pair_masks([n for n in images if n != name], [name]).items():
                if found:
                    of[base].append(name)
        used = {mask for found in of.values() for mask in found}
        of = {name: found or [name] for name, found in of.items() if name not in used}
    else:
        of = pair_masks(list(images), list(masks))
    used = {mask for found in of.values() for mask in found}
    if images and masks and not used:
        raise InpaintError(
            f"no mask in {where} belongs to an image: an image a.jpg takes a mask a.*, a_mask*.* "
            f"or a.mask.* of the same sub-folder; there are images {_some(images)} and masks "
            f"{_some(masks)}"
        )
    pairs: dict[str, list[Path | InpaintError | None]] = {}
    for name, found in of.items():
        stems = {_stem(mask) for mask in found}
        if not found:
            stem = _stem(name)
            why = InpaintError(f"no mask {stem}.* in {where}, nor {stem}_mask*.*")
            pairs[name] = [why]
        elif len(stems) < len(found):
            which = " and ".join(masks[mask].name for mask in found)
            pairs[name] = [InpaintError(f"more than one mask: {which}")]
        else:
            pairs[name] = [masks[mask] for mask in found]
    return pairs, sorted(set(masks) - used)


def _some(names: dict[str, Path]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (", …" if len(names) > len(first) else "")


@dataclass(frozen=True)
class FolderResult:
    """Results of inpainting a folder of images."""

    filled: int
    #: One sentence per skipped image.
    skipped: tuple[str, ...]


def fill_file(
    inpainter: Inpainter | HoleFiller, job: Job, settings: Settings | None = None
) -> list[str]:
    """Fill one image and save it; returns one line per hole, and the remarks.

    Raises:
        Errors of :meth:`Inpainter.__call__` and :meth:`Inpainted.save`, and the error that the job
        has instead of a mask.
    """
    if isinstance(job.mask, InpaintError):
        raise job.mask
    settings = settings or Settings()
    reading = asdict(settings.options)
    result: Inpainted[Any] = inpainter(
        job.image, job.mask, boxes=settings.boxes, progress=True, **reading
    )
    make_folder(job.out.parent)
    remarks = result.save(job.out, strip_metadata=settings.strip_metadata)
    return [*result.report.lines(SHOWN_HOLES), *remarks]


def fill_folder(
    inpainter: Inpainter | HoleFiller,
    jobs: Sequence[Job],
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
) -> FolderResult:
    """Fill images and save them; a report is printed above a progress bar.

    No image ends the work: whatever goes wrong with one is its line in ``skipped``. An error that
    this package does not raise itself is a bug: its line says so, with the place.

    Args:
        inpainter: the network, or what fills holes without one.
        jobs: from :func:`plan_folder`.
        settings: what holds for all images; boxes if the jobs have no masks.
        overwrite: replace existing files.
    """
    filled, skipped = 0, []
    for job in tqdm(jobs, unit="image", dynamic_ncols=True):
        try:
            if job.out.exists() and not overwrite:
                raise InpaintError(f"{job.out} is already there; `overwrite` replaces it")
            lines = fill_file(inpainter, job, settings)
        except Exception as error:
            reason = " ".join(_reason(error, job).split())
            skipped.append(f"{job.name}: {reason}")
            tqdm.write(f"{job.name}: skipped")
            continue
        filled += 1
        for line in lines:
            tqdm.write(f"{job.name}: {line}")
    return FolderResult(filled, tuple(skipped))


def _reason(error: Exception, job: Job) -> str:
    """Why an image was not filled."""
    if isinstance(error, UnreadableImage) and error.path == job.image:
        return error.reason
    if isinstance(error, InpaintError | UnreadableImage | OSError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory; `max_megapixels` leaves images of this size out"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}); "
        "this is a bug, please report it"
    )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
