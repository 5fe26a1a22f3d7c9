"""``python -m context_encoder.neighbours``: photographs whose context is like that of a hole.

The hole of a query is covered in every candidate as well, so that descriptors compare the same
part of the picture; the search is exact. The command draws the nearest neighbours by the encoder's
features, by HOG and by raw pixels side by side (as in Pathak et al. 2016, section 5.2);
:mod:`context_encoder.evaluate` fills holes with them (the first rows of the paper's Table 1).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cekernels import fill_masked
from context_encoder.cli import parse_config
from context_encoder.config import MaskName
from context_encoder.data import Crops, contents
from context_encoder.evaluation.crops import held_out_crops, training_crops
from context_encoder.masks import build_mask_sampler
from context_encoder.metrics import to_unit
from context_encoder.prepare import Processes, choose_device
from context_encoder.runs import LoadedModel, RunError, Which, load_model, run_root
from context_encoder.sheets import save_sheet, shorten

__all__ = [
    "HOG_MISSING",
    "Descriptor",
    "EncoderFeatures",
    "Hog",
    "Neighbours",
    "RawPixels",
    "check_candidates",
    "hog_available",
    "main",
    "same_photographs",
]

log = logging.getLogger("context_encoder")

HOG_MISSING = "HOG descriptors need scikit-image: pip install 'context-encoder[evaluation]'"
_BATCH = 64


class Descriptor(Protocol):
    """Measures how far the context of holes is from that of all candidates."""

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """Distances to each candidate.

        Args:
            image: float32 ``(B, 3, S, S)`` in [-1, 1]; what is under the mask changes nothing.
            mask: bool ``(B, 1, S, S)``, True in the hole.

        Returns:
            float32 ``(B, N)`` on the CPU, at least 0.
        """
        ...


class RawPixels:
    """Mean squared difference of the pixels outside the hole, on [-1, 1]."""

    def __init__(self, candidates: Crops) -> None:
        self._candidates = candidates

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`; 0 to all if nothing is outside the hole."""
        result = torch.zeros(len(image), len(self._candidates))
        for part in torch.arange(len(self._candidates)).split(_BATCH):
            candidates = self._candidates.floats(part)
            for i, hole in enumerate(mask):
                squared = (candidates - image[i]).square()
                total = torch.where(hole, 0, squared).sum((1, 2, 3))
                result[i, part] = total / (3 * (~hole).sum().clamp(min=1))
        return result


def hog_available() -> bool:
    """scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


class Hog:
    """Euclidean distance of histograms of oriented gradients (Dalal and Triggs 2005).

    9 orientations in 16 x 16 cells, blocks of 2 x 2 cells with L2-Hys normalisation. Only blocks
    that see nothing of the hole are compared. Where no block is free of it, raw pixels decide.

    Raises:
        ImportError: scikit-image is missing.
    """

    def __init__(self, candidates: Crops) -> None:
        if not hog_available():
            raise ImportError(HOG_MISSING)
        self._cell = max(2, candidates.images.shape[-1] // 16)
        self._raw = RawPixels(candidates)
        self._candidates = torch.cat(
            [
                self._describe(candidates.floats(part))
                for part in tqdm(
                    torch.arange(len(candidates)).split(_BATCH),
                    desc="HOG of the candidates",
                    leave=False,
                    dynamic_ncols=True,
                )
            ]
        )

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`."""
        descriptors = self._describe(torch.where(mask, 0, image))
        free = ~self._touched(mask)
        result = torch.empty(len(image), len(self._candidates))
        for i, blocks in enumerate(free):
            if bool(blocks.any()):
                difference = self._candidates[:, blocks] - descriptors[i, blocks]
                result[i] = difference.square().sum((1, 2)).sqrt()
            else:
                result[i] = self._raw.distances(image[i : i + 1], mask[i : i + 1])[0]
        return result

    def _describe(self, image: Tensor) -> Tensor:
        """Descriptors of all blocks, ``(B, blocks, 36)``."""
        from skimage.feature import hog

        described = [
            hog(
                picture,
                orientations=9,
                pixels_per_cell=(self._cell, self._cell),
                cells_per_block=(2, 2),
                block_norm="L2-Hys",
                channel_axis=-1,
                feature_vector=False,
            )
            for picture in image.permute(0, 2, 3, 1).numpy()
        ]
        return torch.stack(
            [torch.from_numpy(d).float().flatten(0, 1).flatten(1) for d in described]
        )

    def _touched(self, mask: Tensor) -> Tensor:
        """Which blocks see something of the hole, bool ``(B, blocks)``."""
        # A gradient reads the pixels beside its own.
        reach = F.max_pool2d(mask.float(), 3, stride=1, padding=1)
        return F.max_pool2d(reach, 2 * self._cell, stride=self._cell).flatten(1) > 0


class EncoderFeatures:
    """Cosine distance of a network's features of the picture with its hole covered.

    Candidates are encoded anew for each mask that is not the one before.

    Args:
        candidates: what to search.
        run: the network; its encoder is enough.
        layer: a stage of encoder or bottleneck, see
            :meth:`context_encoder.models.ContextEncoder.features`; None: the encoder's output.

    Raises:
        ValueError: the network has no such layer, or takes pictures of another size.
    """

    def __init__(self, candidates: Crops, run: LoadedModel, layer: str | None = None) -> None:
        model = run.model
        size = model.image_size
        if size != candidates.images.shape[-1]:
            raise ValueError(
                f"{run.path} takes pictures of {size} pixels, these have "
                f"{candidates.images.shape[-1]}"
            )
        bottleneck = getattr(model, "bottleneck", None)
        layers = [
            name
            for part in (model.encoder, bottleneck)
            if part
            for name, _ in part.named_children()
        ]
        if layer is not None and layer not in layers:
            raise ValueError(f"{run.path} has no layer {layer!r}; it has {', '.join(layers)}")
        self._model, self._layer, self._candidates = model, layer, candidates
        self._device = next(model.parameters()).device
        self._fill = torch.tensor(run.config.fill_color(), device=self._device)
        self._mask: Tensor | None = None
        self._features: Tensor | None = None

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`."""
        return torch.cat(
            [self._distances(image[i : i + 1], mask[i : i + 1]) for i in range(len(image))]
        )

    def _distances(self, image: Tensor, mask: Tensor) -> Tensor:
        if self._features is None or self._mask is None or not torch.equal(mask, self._mask):
            parts = torch.arange(len(self._candidates)).split(_BATCH)
            self._features = torch.cat(
                [self._encode(self._candidates.floats(part), mask) for part in parts]
            )
            self._mask = mask.clone()
        similarity = self._encode(image, mask) @ self._features.T
        return (1 - similarity).clamp(min=0).cpu()

    @torch.inference_mode()
    def _encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features of unit length, ``(B, C)``."""
        holes = mask.to(self._device).expand(len(image), -1, -1, -1)
        given = fill_masked(image.to(self._device), holes, self._fill)
        features = (
            self._model.encoder(given)
            if self._layer is None
            else self._model.features(given)[self._layer]
        )
        return F.normalize(features.flatten(1).float(), dim=1)


class Neighbours:
    """Exact search among candidates, which never returns the query's own photograph.

    Each neighbour is another photograph: of several crops of one, the nearest counts.

    Args:
        candidates: what to search.
        descriptor: made for these candidates.
    """

    def __init__(self, candidates: Crops, descriptor: Descriptor) -> None:
        self.candidates = candidates
        self.descriptor = descriptor
        self._contents = [contents(path) for path in candidates.paths]

    def __call__(
        self, image: Tensor, mask: Tensor, paths: Sequence[Path], k: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The nearest candidates of each query, nearest first; equally near ones in their order.

        Args:
            image, mask: see :class:`Descriptor`.
            paths: the files of the queries. Candidates from files of the same bytes are left out.
            k: how many.

        Returns:
            numbers of the candidates, int64 ``(B, k)``, and their distances, float32 ``(B, k)``.

        Raises:
            ValueError: fewer than ``k`` photographs are left for a query.
        """
        distances = self.descriptor.distances(image, mask)
        numbers = torch.empty(len(image), k, dtype=torch.int64)
        for i, (order, path) in enumerate(
            zip(distances.argsort(dim=1, stable=True).tolist(), paths, strict=True)
        ):
            best: dict[str, int] = {}  # of each other photograph, the nearest crop
            for number in order:
                if self._contents[number] != contents(path):
                    best.setdefault(self._contents[number], number)
                if len(best) == k:
                    break
            else:
                raise _too_few(path, len(best), k)
            numbers[i] = torch.tensor(list(best.values()))
        return numbers, distances.gather(1, numbers)


def same_photographs(queries: Crops, candidates: Crops) -> int:
    """How many pairs of a query and a candidate are of one photograph, which search leaves out."""
    found = Counter(contents(path) for path in candidates.paths)
    return sum(found[contents(path)] for path in queries.paths)


def check_candidates(queries: Crops, candidates: Crops, k: int = 1) -> None:
    """ValueError if there are fewer than ``k`` other photographs to search for some query."""
    searched = {contents(path) for path in candidates.paths}
    for path in queries.paths:
        left = len(searched - {contents(path)})
        if left < k:
            raise _too_few(path, left, k)


def _too_few(path: Path, left: int, k: int) -> ValueError:
    return ValueError(
        f"{left} of the photographs to search are others than {path}, {k} are needed; name a "
        "folder with more photographs by --candidates"
    )


class NeighboursConfig(BaseModel):
    """Draw the nearest neighbours of holes' contexts: by encoder features, HOG and raw pixels.

    Without --data, the queries are photographs that the run held out, and the candidates those
    that it was trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path = Field(
        description="Run folder that training made, or a checkpoint folder in it."
    )
    data: Path | None = Field(
        None, description="Folder of query photographs. Default: those the run held out."
    )
    candidates: Path | None = Field(
        None, description="Folder of photographs to search. Default: those the run trained on."
    )
    candidate_crops: Annotated[int, Field(ge=1)] = Field(
        256, description="Crops of candidates, spread evenly over their photographs."
    )
    queries: Annotated[int, Field(ge=1)] = Field(6, description="Rows of the sheet.")
    k: Annotated[int, Field(ge=1)] = Field(4, description="Neighbours by each descriptor.")
    mask: MaskName = Field("central", description="Kind of hole: central, block, region or blob.")
    layer: str | None = Field(
        None, description="Layer of encoder or bottleneck. Default: the encoder's output."
    )
    out: Path | None = Field(
        None,
        description="PNG to write, and a JSON file beside it. Default: in the run folder.",
    )
    which: Which = Field(
        "best", description="Checkpoint of the run: best on held-out photographs, or last."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the masks.")
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")


def draw_sheet(config: NeighboursConfig) -> Path:
    """Search and write the sheet and its JSON file; returns the sheet's path.

    Raises:
        RunError, ValueError, OSError: something cannot be used; the message says what to do.
    """
    if config.mask in ("folder", "voc"):
        raise ValueError(f"--mask {config.mask}: choose central, block, region or blob")
    device = choose_device(config.device, Processes())
    run = load_model(config.checkpoint, which=config.which, device=device)
    # Never into a checkpoint: the next save replaces that folder.
    out = config.out or (run_root(config.checkpoint) or Path()) / f"neighbours_{config.mask}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    queries = held_out_crops(run.config, config.data, samples=config.queries)
    candidates = training_crops(run.config, config.candidates, samples=config.candidate_crops)
    for name, reason in (*queries.unreadable, *candidates.unreadable):
        log.warning("skipped %s: %s", name, reason)
    check_candidates(queries, candidates, config.k)
    descriptors: dict[str, Descriptor] = {
        "encoder": EncoderFeatures(candidates, run, config.layer),
        "raw pixels": RawPixels(candidates),
    }
    if hog_available():
        descriptors["HOG"] = Hog(candidates)
    else:
        log.warning("HOG is left out: %s", HOG_MISSING)

    index = torch.arange(len(queries))
    sampler = build_mask_sampler(config.mask, queries.images.shape[-1], config.seed)
    mask, _ = sampler(torch.zeros_like(index), index)
    image = torch.where(mask, 0, queries.floats(index))
    given = torch.where(mask, torch.tensor(run.config.fill_color()).view(1, 3, 1, 1), image)
    columns = [("query", to_unit(given))]
    captions = [[shorten(name) for name in queries.names]]
    found: dict[str, list[list[dict[str, str | float]]]] = {}
    for name in ("encoder", "HOG", "raw pixels"):
        if name not in descriptors:
            continue
        search = Neighbours(candidates, descriptors[name])
        numbers, distances = search(image, mask, queries.paths, config.k)
        found[name] = [
            [
                {"photograph": candidates.names[n], "crop": candidates.numbers[n], "distance": d}
                for n, d in zip(row, values, strict=True)
            ]
            for row, values in zip(numbers.tolist(), distances.tolist(), strict=True)
        ]
        for rank in range(config.k):
            columns.append((f"{name} {rank + 1}", to_unit(candidates.floats(numbers[:, rank]))))
            captions.append([f"{value:.3g}" for value in distances[:, rank].tolist()])
    excluded = same_photographs(queries, candidates)
    layer = config.layer or "encoder's output"
    title = (
        f"Nearest neighbours of the context of {config.mask} holes, by {layer} of {run.path} "
        f"(step {run.step}), HOG and raw pixels\n"
        f"among {len(candidates)} crops of {candidates.photographs} photographs; the hole is "
        f"covered in these too when they are compared; {excluded} pairs of the same file left out; "
        "below each: its distance"
    )
    save_sheet(out, columns, title=title, captions=captions)
    record = {
        "checkpoint": str(run.path),
        "step": run.step,
        "layer": layer,
        "mask": config.mask,
        "seed": config.seed,
        "same_file_pairs_left_out": excluded,
        "candidates": {"crops": len(candidates), "photographs": candidates.photographs},
        "unreadable": dict((*queries.unreadable, *candidates.unreadable)),
        "queries": [
            {"photograph": name, "crop": number, **{key: rows[i] for key, rows in found.items()}}
            for i, (name, number) in enumerate(zip(queries.names, queries.numbers, strict=True))
        ],
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 2 misused, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = parse_config(NeighboursConfig, "python -m context_encoder.neighbours", arguments)
        print(f"look at {draw_sheet(config)}")
        return 0
    except (RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
