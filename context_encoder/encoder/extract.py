"""Features of whole images, from any layer of a network.

An image is scaled so that its short side is the network's input, S pixels, and its middle square
is used, either complete or with a hole, whose surroundings the features then describe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cekernels import fill_masked
from context_encoder.config import fill_color
from context_encoder.data import (
    UnreadableImage,
    read_square,
    sample_loader,
    to_input,
)
from context_encoder.data.images import relative_name
from context_encoder.data.shards import ImageFile
from context_encoder.encoder.backbone import layer_names
from context_encoder.masks import MaskSampler
from context_encoder.models import Backbone

#: The layer that is the input itself.
PIXELS = "pixels"


class FeatureError(ValueError):
    """Options or files do not allow feature extraction; the message says why."""


@torch.no_grad()
def encode_batch(
    model: Backbone,
    images: Tensor,
    layers: Sequence[str],
    pool: int | Mapping[str, int] | None = None,
    *,
    mask: Tensor | None = None,
    fill: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The outputs of some layers for a batch of images.

    Args:
        model: from :func:`load_backbone`, on any device.
        images: uint8 ``(B, 3, S, S)``, RGB, S the network's ``image_size``; any device.
        layers: names of stages, such as ``conv1`` or ``pool5``, see :func:`layer_names`; or
            ``pixels``, the input to the network.
        pool: average each larger map to ``pool`` x ``pool`` cells; a mapping gives the cells per
            layer; None: no averaging.
        mask: bool ``(B, 1, S, S)``, True where the image is to be hidden; None for nowhere.
        fill: the hidden part's colour, RGB on [-1, 1]; None for the mean colour of ImageNet.

    Returns:
        By layer, float32 ``(B, C, h, w)`` on the network's device.

    Raises:
        TypeError, ValueError: images have another type or size, the network lacks a layer, or
            ``pool`` is below 1.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (B, 3, S, S), got {images.dtype}")
    sides = dict.fromkeys(layers, pool) if pool is None or isinstance(pool, int) else pool
    if any(side is not None and side < 1 for side in sides.values()):
        raise ValueError(f"pool must be at least 1, got {pool}")
    names = layer_names(model)
    unknown = [name for name in layers if name not in (*names, PIXELS)]
    if unknown or not layers:
        raise ValueError(
            f"the network has no layer {', '.join(unknown) or '(none was named)'}; its layers: "
            f"{', '.join(names)}"
        )
    device = next(model.parameters()).device
    x = to_input(images.to(device))
    if mask is not None:
        color = fill_color() if fill is None else fill
        x = fill_masked(x, mask.to(device), torch.tensor(color, device=device))
    outputs = {PIXELS: x, **model.features(x)}
    chosen = {}
    for name in layers:
        value, side = outputs[name].float(), sides[name]
        if side is not None and max(value.shape[2:]) > side:
            value = average_to_grid(value, side)
        chosen[name] = value
    return chosen


def average_to_grid(value: Tensor, side: int) -> Tensor:
    """Adaptive average pooling of ``(B, C, H, W)`` to ``(B, C, side, side)``.

    Matrix products are many times faster on CPUs than torch's own pooling.
    """
    rows, columns = (_averages(n, side).to(value) for n in value.shape[2:])
    return rows @ (value @ columns.T)


def _averages(length: int, cells: int) -> Tensor:
    """``(cells, length)``: row i averages from floor(i n / cells) to ceil((i + 1) n / cells)."""
    matrix = torch.zeros(cells, length)
    for i in range(cells):
        start, end = i * length // cells, -(-(i + 1) * length // cells)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@dataclass(frozen=True)
class Features:
    """Features, one row per readable image."""

    #: For each layer ``(N, C, h, w)``, on the CPU.
    values: dict[str, Tensor]
    #: The files of the rows, relative to ``root``.
    files: list[str]
    #: Their indices in the given list.
    kept: list[int]
    #: Files that could not be read, and the reasons.
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class Masking:
    """A mask for every image, and its fill colour."""

    masks: MaskSampler
    fill: tuple[float, float, float]


def extract_features(
    model: Backbone,
    paths: Sequence[ImageFile],
    layers: Sequence[str],
    *,
    root: Path | None = None,
    pool: int | Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
    workers: int = 0,
    hole: Masking | None = None,
    progress: bool = True,
) -> Features:
    """Features of image files, in memory.

    Args:
        model: from :func:`load_backbone`, on any device.
        paths: the files, or images in shards.
        layers, pool: see :func:`encode_batch`.
        root: the folder that names are relative to; None for the deepest common folder.
        dtype: float32 or float16, of the result.
        batch_size: images at a time.
        workers: processes that read images; 0: this one.
        hole: masks that hide a part of each image, or None.
        progress: whether to show a progress bar.

    Raises:
        ValueError: as :func:`encode_batch`; there is no path or no readable image; or values are
            too large for ``dtype``.
    """
    if batch_size < 1:
        raise FeatureError(f"batch_size must be at least 1, got {batch_size}")
    if not paths:
        raise FeatureError("no image files were given")
    paths = list(paths)
    root = root or Path(os.path.commonpath([os.path.dirname(str(path)) for path in paths]))
    values: dict[str, list[Tensor]] = {}
    read: list[tuple[str, str | None]] = []
    with tqdm(total=len(paths), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for batch in encode_files(
            *(model, paths, root, layers, pool, dtype, batch_size, workers, hole, 0)
        ):
            for layer, value in batch.values.items():
                values.setdefault(layer, []).append(value)
            read += batch.files
            bar.update(len(batch.files))
    unreadable = [(name, reason) for name, reason in read if reason is not None]
    if len(unreadable) == len(read):
        name, reason = unreadable[0]
        raise FeatureError(
            f"none of the {len(paths)} images can be read, as {root / name}: {reason}"
        )
    kept = [number for number, (_, reason) in enumerate(read) if reason is None]
    return Features(
        {layer: torch.cat(parts) for layer, parts in values.items()},
        [read[number][0] for number in kept],
        kept,
        unreadable,
    )


class _Squares(Dataset[tuple[str, Tensor | str]]):
    """Name and centre square, uint8 ``(3, S, S)``, per file; or name and reason if unreadable."""

    def __init__(self, paths: Sequence[ImageFile], root: Path, size: int) -> None:
        self.paths, self.root, self.size = paths, root, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[str, Tensor | str]:
        path = self.paths[number]
        name = relative_name(path, self.root)
        try:
            return name, read_square(path, self.size)
        except UnreadableImage as error:
            return name, error.reason


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of features, one row per readable image."""

    values: dict[str, Tensor]
    #: All files in order, each with None or the reason why it is unreadable.
    files: list[tuple[str, str | None]]


def encode_files(
    model: Backbone,
    paths: Sequence[ImageFile],
    root: Path,
    layers: Sequence[str],
    pool: int | Mapping[str, int] | None,
    dtype: torch.dtype,
    batch_size: int,
    workers: int,
    hole: Masking | None,
    first: int,
) -> Iterator[EncodedBatch]:
    """Yield batches of features, from the file with number ``first`` on."""
    model.eval()
    loader = sample_loader(
        _Squares(paths, root, model.image_size),
        batch_size=batch_size,
        sampler=range(first, len(paths)),
        collate=list,
        workers=workers,
    )
    number = first
    for batch in loader:
        images = [square for _, square in batch if isinstance(square, Tensor)]
        kept = [number + i for i, (_, square) in enumerate(batch) if isinstance(square, Tensor)]
        number += len(batch)
        values: dict[str, Tensor] = {}
        if images:
            mask = None
            if hole is not None:
                index = torch.tensor(kept)
                mask, _ = hole.masks(torch.zeros_like(index), index)
            fill = None if hole is None else hole.fill
            outputs = encode_batch(model, torch.stack(images), layers, pool, mask=mask, fill=fill)
            values = {name: value.to("cpu", dtype) for name, value in outputs.items()}
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise FeatureError(
                    f"{name} has values that {dtype} cannot hold, or that are not finite; "
                    "use float32, or another checkpoint"
                )
        yield EncodedBatch(values, [(name, s if isinstance(s, str) else None) for name, s in batch])
