"""All pictures of a folder filled one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from context_encoder.data.images import UnreadableImage, list_images, relative_name
from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.inpainter import SHOWN_HOLES, Inpainter
from context_encoder.utils.files import make_folder


class Job(NamedTuple):
    """One picture of a folder."""

    image: Path
    #: Relative to the folder.
    name: str
    #: Or why there is none.
    mask: Path | InpaintError | None
    out: Path


def plan_folder(folder: Path, out: Path, mask: Path | None) -> list[Job]:
    """What is to be done to a folder of pictures.

    Args:
        folder: the pictures, any nesting.
        out: folder for the results; what lies in it is not filled again.
        mask: one mask for all, or a folder with a mask of the same name (any suffix) for each;
            None if boxes say what to fill.

    Raises:
        InpaintError: no picture in ``folder`` besides masks and results.
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
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


def fill_folder(
    inpainter: Inpainter,
    jobs: Sequence[Job],
    *,
    boxes: Sequence[Sequence[int]] | None = None,
    overwrite: bool = False,
) -> FolderResult:
    """Fill pictures and save them; what was done is told above a progress bar.

    Args:
        inpainter: the network.
        jobs: from :func:`plan_folder`.
        boxes: see :meth:`Inpainter.__call__`; for all pictures, if the jobs have no masks.
        overwrite: replace files that are already there.
    """
    filled, skipped = 0, []
    for image, name, mask, out in tqdm(jobs, unit="picture", dynamic_ncols=True):
        try:
            if out.exists() and not overwrite:
                raise InpaintError(f"{out} is already there; --overwrite replaces it")
            if isinstance(mask, InpaintError):
                raise mask
            result = inpainter(image, mask, boxes=boxes)
            make_folder(out.parent)
            result.save(out)
        except (InpaintError, UnreadableImage, OSError) as error:
            if isinstance(error, UnreadableImage) and error.path == image:
                reason = error.reason
            else:
                reason = str(error)
            skipped.append(f"{name}: {reason}")
            continue
        filled += 1
        for line in result.report.lines(SHOWN_HOLES):
            tqdm.write(f"{name}: {line}")
    return FolderResult(filled, tuple(skipped))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
