"""Boxes that may hold an object: from a file, from selective search, or a dense grid."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from context_encoder.data import UnreadableImage, read_image
from context_encoder.data.images import stored_size
from context_encoder.transfer.voc import Item
from context_encoder.utils.files import make_folder, write_file
from context_encoder.utils.opencv import why_not
from context_encoder.utils.text import read_text, shortened

log = logging.getLogger("context_encoder")
FloatArray = NDArray[np.float64]


def read_proposals(path: Path) -> dict[str, FloatArray]:
    """Boxes ``(N, 4)`` by image name, x1, y1, x2, y2 counted from 0.

    * ``.npz``: an array for each name.
    * ``.json``: ``{"000001": [[x1, y1, x2, y2], ...], ...}``.
    * ``.mat``: as selective search's authors and Fast R-CNN have them: ``images``, the names, and
      ``boxes``, for each an array of (y1, x1, y2, x2) counted from 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the suffix is another one, or does not match the contents.
    """
    if not path.is_file():
        raise FileNotFoundError(f"proposals file {path} does not exist")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        elif path.suffix == ".json":
            found = {name: np.array(v) for name, v in json.loads(read_text(path)).items()}
        elif path.suffix == ".mat":
            from scipy.io import loadmat

            file = loadmat(path)
            names = [str(np.ravel(name)[0]) for name in file["images"].ravel()]
            found = {
                name: np.asarray(boxes, np.float64)[:, (1, 0, 3, 2)] - 1
                for name, boxes in zip(names, file["boxes"].ravel(), strict=True)
            }
        else:
            raise ValueError("the suffix must be .npz, .json or .mat")
        result = {k: np.asarray(v, np.float64).reshape(-1, 4) for k, v in found.items()}
    except Exception as error:  # the readers raise almost any type on damaged files
        raise ValueError(f"proposals file {path} cannot be used: {shortened(error)}") from error
    for name, boxes in result.items():
        if not (np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
            raise ValueError(f"proposals file {path}: boxes of {name} are not x1, y1, x2, y2")
    return result


def dense_grid(
    width: int,
    height: int,
    sides: Sequence[float] = (0.2, 0.3, 0.45, 0.65, 0.95),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    step: float = 0.25,
) -> FloatArray:
    """Boxes of several sizes and shapes all over an image, ``(N, 4)``.

    Args:
        width, height: of the image.
        sides: square roots of the boxes' areas, as fractions of the short side.
        ratios: ratios of height to width.
        step: distance of neighbouring boxes, as a fraction of the box's side.
    """
    boxes = []
    for side in sides:
        for ratio in ratios:
            w = min(side * min(width, height) / ratio**0.5, width)
            h = min(side * min(width, height) * ratio**0.5, height)
            columns = np.linspace(0, width - w, 1 + int(np.ceil((width - w) / (step * w) - 1e-9)))
            rows = np.linspace(0, height - h, 1 + int(np.ceil((height - h) / (step * h) - 1e-9)))
            x, y = (grid.ravel() for grid in np.meshgrid(columns, rows))
            boxes.append(np.stack([x, y, x + w - 1, y + h - 1], axis=1))
    result = np.unique(np.rint(np.concatenate(boxes)), axis=0)
    result[:, 2:] = np.maximum(result[:, :2], result[:, 2:])  # of less than a pixel
    return np.asarray(result)


def find_proposals(
    items: Sequence[Item], file: Path | None, cache: Path, limit: int
) -> dict[str, FloatArray]:
    """Boxes for every image, by name; an unreadable image has none.

    They come from the file, if one is given; otherwise from selective search's fast mode, if
    OpenCV has ximgproc (cached in ``cache``, as it takes seconds per image); otherwise
    from :func:`dense_grid`.

    Args:
        items: the images.
        file: see :func:`read_proposals`.
        cache: an ``.npz`` file.
        limit: largest number per image: the first ones of a file or of selective search, or an
            even selection from the grid.

    Raises:
        ValueError: the file lacks an image.
    """
    if file is not None:
        given = read_proposals(file)
        absent = [item.name for item in items if item.name not in given]
        if absent:
            raise ValueError(
                f"{file} has no proposals for {len(absent)} of {len(items)} images, "
                f"the first: {absent[0]}"
            )
        return {item.name: given[item.name][:limit] for item in items}
    missing = why_not("ximgproc")
    if missing is not None:
        log.info("proposals: a dense grid (no `proposals`, no selective search: %s)", missing)
        result = {}
        for item in items:
            try:
                grid = dense_grid(*stored_size(item.image))
            except UnreadableImage:
                grid = np.zeros((0, 4))
            keep = np.linspace(0, len(grid) - 1, min(limit, len(grid))).astype(int)
            result[item.name] = grid[keep]
        return result
    kept = read_proposals(cache) if cache.exists() else {}
    if any(item.name not in kept for item in items):
        try:
            _search(_selective_search(), items, kept)
        finally:  # keeps hours of work after an interruption
            _keep(cache, kept)
    nothing = np.zeros((0, 4))
    return {item.name: kept.get(item.name, nothing)[:limit] for item in items}


def _search(search: Any, items: Sequence[Item], kept: dict[str, FloatArray]) -> None:
    """Add boxes for readable images that have none yet."""
    for item in tqdm(items, unit="image", desc="selective search", dynamic_ncols=True):
        if item.name in kept:
            continue
        try:
            pixels = np.asarray(read_image(item.image, upright=False))[:, :, ::-1]
        except UnreadableImage:
            continue
        search.setBaseImage(np.ascontiguousarray(pixels))
        search.switchToSelectiveSearchFast()
        found = np.asarray(search.process(), np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2] - 1  # x, y, width, height
        kept[item.name] = found


def _keep(cache: Path, boxes: dict[str, FloatArray]) -> None:
    def save(path: Path) -> None:
        with path.open("wb") as file:  # given a name, NumPy would add a suffix
            np.savez_compressed(file, **boxes)  # type: ignore[arg-type]

    make_folder(cache.parent)
    write_file(cache, save)


def _selective_search() -> Any:
    ximgproc: Any = importlib.import_module("cv2.ximgproc")
    return ximgproc.segmentation.createSelectiveSearchSegmentation()
