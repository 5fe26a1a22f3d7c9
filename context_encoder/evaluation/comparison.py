"""Comparison of networks and baselines on the same holes.

This is the paper's Table 1 on your own photographs: every method fills the same holes of the same
crops. ``docs/evaluation.md`` explains the metrics.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from context_encoder.config import OpenConfig, in_words
from context_encoder.data import Crops
from context_encoder.data.crops import same_contents
from context_encoder.evaluation import perceptual
from context_encoder.evaluation.crops import held_out_crops, training_crops
from context_encoder.evaluation.fills import (
    BASELINES,
    BaselineName,
    MaskedBatch,
    Method,
    Run,
    baseline_methods,
    load_run,
    missing_for,
)
from context_encoder.evaluation.nearest_neighbours import check_candidates, same_photographs
from context_encoder.evaluation.tables import (
    Group,
    MethodResult,
    markdown,
    write_csv,
    write_json,
)
from context_encoder.masks import (
    MASKS,
    MaskName,
    build_mask_sampler,
    masks_with_fixed_hole,
    masks_without_files,
)
from context_encoder.pretexts.base import VALIDATION_SEED
from context_encoder.runs import Photos, Which
from context_encoder.utils.files import check_writable, make_folder, write_file
from context_encoder.utils.image_grid import save_sheet, shorten
from context_encoder.utils.metrics import hole_metrics, to_unit
from context_encoder.utils.registry import Registry

log = logging.getLogger("context_encoder")

# Increased when the metrics of the same fills change.
_FORMAT = 1
# Quantiles of the first network's PSNR.
_RANKS = (("best", 1.0), ("upper quartile", 0.75), ("median", 0.5), ("lower quartile", 0.25),
          ("worst", 0.0))  # fmt: skip
# The sheet must fit a screen.
_SHEET_COLUMNS = 6
_PACKAGES = (
    "torch numpy pillow scikit-image opencv-python-headless opencv-python torchmetrics".split()
)


class EvaluateConfig(OpenConfig):
    """Measure how well trained networks and baselines fill holes.

    Without `data`: the photographs that the first run held out, with the holes that training
    validates on. Existing results are not computed again, so an interrupted command continues
    when it is repeated.
    """

    selectors: ClassVar[Mapping[str, Registry[Any]]] = {"masks": MASKS}

    checkpoint: tuple[Path, ...] = Field(
        description="Run folders of training, or checkpoint folders in them; several are "
        "compared with each other."
    )
    data: Path | None = Field(
        None, description="Folder of photographs. Default: those the first run held out."
    )
    samples: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Crops to evaluate on. Default: one per photograph in `data`, or those "
        "that the first run was validated on.",
    )
    crop_scale: tuple[float, float] | None = Field(
        None,
        description="Range of a crop's side, as a fraction of the short side. Default: as in the "
        "first run's training.",
    )
    masks: tuple[MaskName, ...] | None = Field(
        None, description="Kinds of mask. Default: all that need no folder."
    )
    # With this seed and no `data`, crops and holes are those of the run's validation.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        VALIDATION_SEED, description="Seed of the masks."
    )
    area_bins: tuple[float, ...] = Field(
        (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1),
        description="Edges of the bins of masked area, as fractions of the image.",
    )
    blend: bool = Field(
        True, description="Also measure each network's fill with its seam removed, as in inpaint."
    )
    baselines: tuple[BaselineName, ...] | None = Field(
        None, description="Baselines. Default: all that the installed packages allow."
    )
    candidates: Path | None = Field(
        None,
        description="Folder of photographs for nearest-neighbour search. Default: those "
        "the first run was trained on.",
    )
    candidate_crops: Annotated[int, Field(ge=1)] = Field(
        256, description="Candidate crops, spread evenly over their photographs."
    )
    perceptual: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Measure the EfficientNet-Lite0 feature distance; auto: if its packages are "
        "installed.",
    )
    out: Path | None = Field(
        None, description="Folder for the results. Default: evaluation in the first run's folder."
    )
    which: Which = Field(
        "best", description="Checkpoint of each run: best on held-out photographs, or last."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="Images at a time.")
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        names = values.get("masks")
        if not isinstance(names, (list, tuple)):
            names = masks_without_files()
        return [("masks", MASKS.canonical(name)) for name in names if name in MASKS]


@dataclass(frozen=True)
class Evaluation:
    """Results of :func:`evaluate` and their folder."""

    groups: list[Group]
    #: Remarks for readers of the tables, as sentences.
    facts: list[str]
    out: Path
    #: Number of parts that already existed.
    reused: int
    parts: int


@dataclass(frozen=True)
class _Masks:
    """The masks of one kind; crops that are fully or not at all masked are left out."""

    kind: str
    masks: Tensor
    index: Tensor
    hole: int | None

    @property
    def digest(self) -> str:
        packed = self.masks.numpy().tobytes() + self.index.numpy().tobytes()
        return hashlib.sha256(packed).hexdigest()


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Fill the holes by every method, measure, and write tables and sheets.

    Raises:
        RunError: a checkpoint is missing or damaged, or its network does not fill holes.
        ImportError: a requested baseline or metric needs a package that is not installed.
        ValueError, OSError: options are incompatible, a folder has no photographs, or a folder
            cannot be written.
        InpaintError: a network's prediction is not finite.
    """
    _check(config)
    out = config.out or config.checkpoint[0] / "evaluation"
    check_writable(out, folder=True)
    baselines, with_distance, facts = _installed(config)
    runs = [
        load_run(path, name, config.which, config.device, config.batch_size)
        for path, name in zip(config.checkpoint, _names(config.checkpoint), strict=True)
    ]
    first = runs[0].loaded.config
    size = runs[0].inpainter.geometry.size
    for run in runs[1:]:
        if run.inpainter.geometry.size != size:
            raise ValueError(
                f"{run.loaded.path} takes {run.inpainter.geometry.size} pixels, "
                f"{runs[0].loaded.path} takes {size}: methods are compared on the same pixels; "
                "evaluate these runs one by one"
            )
    kinds, dropped = _kinds(config, runs)
    facts += dropped
    crops = held_out_crops(first, config.data, samples=config.samples, crop_scale=config.crop_scale)
    candidates = None
    if any(name.startswith("nn-") for name in baselines):
        candidates = training_crops(
            first, config.candidates, samples=config.candidate_crops, crop_scale=config.crop_scale
        )
        check_candidates(crops, candidates)
    masks = [_draw(config, kind, runs, len(crops), size) for kind in kinds]
    facts = [
        *_facts(config, runs, crops, candidates),
        *facts,
        *(
            f"{kind.kind} masks: {len(crops) - len(kind.index)} crops left out, where nothing or "
            "everything would be missing"
            for kind in masks
            if len(kind.index) < len(crops)
        ),
    ]
    for fact in facts:
        log.info("%s", fact)

    make_folder(out / "parts")
    methods = [
        *(method for run in runs for method in run.methods(config.blend)),
        *baseline_methods(baselines, runs, candidates),
    ]
    device = runs[0].inpainter.device
    distance = perceptual.FeatureDistance().to(device) if with_distance else None
    jobs = [
        (kind, method)
        for kind in masks
        for method in methods
        if method.masks is None or kind.kind in method.masks
    ]
    results: dict[str, list[MethodResult]] = {}
    reused = 0
    total = sum(len(kind.index) for kind, _ in jobs)
    with tqdm(total=total, unit="hole", dynamic_ncols=True) as bar:
        for kind, method in jobs:
            bar.set_description(f"{kind.kind}: {method.label}")
            key = _digest(
                format=_FORMAT,
                version=importlib.metadata.version("context-encoder"),
                crops=crops.digest,
                masks=kind.digest,
                method=method.name,
                depends_on=dict(method.depends_on),
                distance=with_distance,
            )
            part = out / "parts" / f"{kind.kind}-{method.name}-{key[:16]}.json"
            values = _read_part(part, key)
            if values is None:
                values = _measure(method, kind, crops, distance, config.batch_size, bar)
                write_file(part, json.dumps({"key": key, "values": values}) + "\n")
            else:
                reused += 1
                bar.update(len(kind.index))
            results.setdefault(kind.kind, []).append(
                MethodResult(method.name, method.label, values)
            )
    groups = [
        Group(
            kind.kind,
            [crops.names[i] for i in kind.index.tolist()],
            [crops.numbers[i] for i in kind.index.tolist()],
            kind.masks.float().mean((1, 2, 3))[kind.index].tolist(),
            results[kind.kind],
            kind.hole,
        )
        for kind in masks
    ]
    about = _about(config, runs, crops, candidates, facts)
    title = f"Inpainting quality: {', '.join(run.name for run in runs)}"
    write_file(out / "results.md", markdown(title, facts, groups, config.area_bins))
    write_csv(out / "results.csv", groups, config.area_bins)
    write_json(out / "results.json", about, groups, config.area_bins)
    for kind, group in zip(masks, groups, strict=True):
        fitting = [method for m, method in jobs if m is kind]
        _draw_sheet(out / f"{kind.kind}.png", kind, group, fitting, crops, runs[0])
    return Evaluation(groups, facts, out, reused, len(jobs))


def _check(config: EvaluateConfig) -> None:
    """ValueError for incompatible options."""
    if not config.checkpoint:
        raise ValueError("`checkpoint` needs at least one run folder")
    edges = config.area_bins
    if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] < 0 or edges[-1] > 1:
        raise ValueError(f"`area_bins` must be two or more ascending parts of 1, got {edges}")
    if config.crop_scale is not None and not 0 < config.crop_scale[0] <= config.crop_scale[1] <= 1:
        raise ValueError(f"`crop_scale` must be 0 < from <= to <= 1, got {config.crop_scale}")


def _installed(config: EvaluateConfig) -> tuple[list[BaselineName], bool, list[str]]:
    """Baselines, whether to measure the feature distance, and remarks on missing packages."""
    facts = []
    chosen = []
    for name in config.baselines if config.baselines is not None else BASELINES:
        missing = missing_for(name)
        if missing is None:
            chosen.append(name)
        elif config.baselines is not None:
            raise ImportError(f"`baselines` {name}: {missing}")
        else:
            facts.append(f"{name} is skipped: {missing}")
    with_distance = config.perceptual != "off"
    if with_distance and not perceptual.available():
        if config.perceptual == "on":
            raise ImportError(f"`perceptual` on: {perceptual.MISSING}")
        facts.append(f"no feature distance: {perceptual.MISSING}")
        with_distance = False
    return chosen, with_distance, facts


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of runs: those of their folders, numbered where they are not unique."""
    names = []
    for path in paths:
        whole = path.resolve()
        inside = whole.parent.name == "checkpoints"
        names.append(f"{whole.parents[1].name}-{whole.name}" if inside else whole.name)
    taken: list[str] = [*names, *BASELINES]
    for name in names:
        taken += [f"{name}-blended", f"nn-features-{name}"]
    count = Counter(taken)
    return [
        name if count[name] == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)
    ]


def _kinds(config: EvaluateConfig, runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The kinds of mask that some run can fill, and sentences on the others."""
    wanted = list(dict.fromkeys(config.masks or masks_without_files()))
    confined = [run.name for run in runs if run.central_only]
    facts = [
        f"{name} was trained to predict the central region only: it is evaluated on central masks "
        "and on no others"
        for name in confined
    ]
    if len(confined) < len(runs):
        return wanted, facts
    possible = [name for name in wanted if MASKS[name].fixed_hole]
    if not possible:
        raise ValueError(
            f"`masks` {' '.join(wanted)}: {', '.join(confined)} can fill central holes only; use "
            f"`masks` {in_words(masks_with_fixed_hole())}"
        )
    return possible, facts


def _draw(config: EvaluateConfig, kind: str, runs: Sequence[Run], count: int, size: int) -> _Masks:
    hole = None
    if MASKS[kind].fixed_hole:
        # The largest hole that all networks can fill; by default half of the side, as in the paper.
        regions = [run.inpainter.geometry.region for run in runs if run.central_only]
        hole = min([size // 2, *(min(region[2:]) for region in regions)])
    options = config.options(MASKS[kind].options).model_dump()
    sampler = build_mask_sampler(kind, size, config.seed, hole=hole, **options)
    index = torch.arange(count)
    masks, areas = sampler(torch.zeros_like(index), index)
    usable = ((areas > 0) & (areas < size * size)).nonzero()[:, 0]
    if not len(usable):
        raise ValueError(f"`masks` {kind}: all masks are empty or cover the whole image")
    return _Masks(kind, masks, usable, hole)


def _facts(
    config: EvaluateConfig, runs: Sequence[Run], crops: Crops, candidates: Crops | None
) -> list[str]:
    source = (
        f"photographs in {config.data}"
        if config.data is not None
        else f"photographs that {runs[0].name} held out"
    )
    facts = [f"{len(crops)} crops of {crops.photographs} {source}, {crops.images.shape[-1]} pixels"]
    facts += [
        f"{run.name}: {run.loaded.config.model} after {run.loaded.step} steps with "
        f"{run.loaded.config.mask} masks, {run.loaded.path}"
        for run in runs
    ]
    if candidates is not None:
        pairs = same_photographs(crops, candidates)
        facts.append(
            f"nearest neighbours among {len(candidates)} crops of {candidates.photographs} "
            f"photographs; {pairs} pairs of a crop and a candidate from the same photograph are "
            "left out of the search"
        )
    for name, part in (("photographs", crops), ("candidates", candidates)):
        if part is not None and part.upsampled:
            facts.append(
                f"{len(part.upsampled)} {name} are smaller than the network's input and were "
                "enlarged"
            )
        if part is not None and part.unreadable:
            facts.append(f"{len(part.unreadable)} {name} could not be read and were left out:")
            facts += [f"  {file}: {reason}" for file, reason in part.unreadable]
    for run in runs:
        facts += _leak(run, crops)
    if config.data is None and config.which == "best":
        facts.append(
            f"the checkpoint of {runs[0].name} was chosen as the best one on these photographs; "
            "`which` last, or `data` with others, is free of that"
        )
    return facts


def _leak(run: Run, crops: Crops) -> list[str]:
    """A warning if a network was trained on photographs that it is evaluated on."""
    try:
        trained_on = Photos.from_config(run.loaded.config).train
    except (ValueError, OSError) as error:
        return [f"whether {run.name} was trained on these photographs cannot be told: {error}"]
    seen = same_contents(set(crops.paths), trained_on)
    if not seen:
        return []
    return [
        f"WARNING: {run.name} was trained on {len(seen)} of the {crops.photographs} photographs, "
        "so its figures are too good"
    ]


def _about(
    config: EvaluateConfig,
    runs: Sequence[Run],
    crops: Crops,
    candidates: Crops | None,
    facts: Sequence[str],
) -> dict[str, Any]:
    def told(part: Crops) -> dict[str, Any]:
        return {
            "crops": len(part),
            "photographs": part.photographs,
            "upsampled": list(part.upsampled),
            "unreadable": dict(part.unreadable),
            "digest": part.digest,
        }

    versions = {"python": platform.python_version()}
    for name in ("context-encoder", *_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions,
        "device": str(runs[0].inpainter.device),
        "facts": list(facts),
        "runs": {
            run.name: {
                "checkpoint": str(run.loaded.path),
                "step": run.loaded.step,
                "weights_sha256": run.digest,
                "config": run.loaded.config.model_dump(mode="json"),
            }
            for run in runs
        },
        "data": told(crops),
        "candidates": None if candidates is None else told(candidates),
    }


def _digest(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_part(path: Path, key: str) -> dict[str, list[float]] | None:
    try:
        part = json.loads(path.read_text())
        return part["values"] if part["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _holes(kind: _Masks, crops: Crops, index: Tensor) -> tuple[Tensor, MaskedBatch]:
    """The originals in [-1, 1], and the same with their holes blanked."""
    image, mask = crops.floats(index), kind.masks[index]
    blanked = torch.where(mask, 0, image)
    return image, MaskedBatch(blanked, mask, [crops.paths[i] for i in index.tolist()])


def _measure(
    method: Method,
    kind: _Masks,
    crops: Crops,
    distance: perceptual.FeatureDistance | None,
    batch_size: int,
    bar: tqdm[Any],
) -> dict[str, list[float]]:
    """Metrics of every crop."""
    values: dict[str, list[float]] = {}
    for index in kind.index.split(batch_size):
        image, holes = _holes(kind, crops, index)
        output = to_unit(torch.where(holes.mask, method.fill(holes), image))
        original = to_unit(image)
        figures = hole_metrics(output, original, holes.mask)
        if distance is not None:
            device = next(distance.parameters()).device
            figures["feature_distance"] = distance(output.to(device), original.to(device))
        for name, figure in figures.items():
            values.setdefault(name, []).extend(figure.tolist())
        bar.update(len(index))
    return values


def _draw_sheet(
    path: Path, kind: _Masks, group: Group, methods: Sequence[Method], crops: Crops, first: Run
) -> None:
    """The originals, inputs and fills of crops from the first method's best to its worst."""
    psnr = group.methods[0].values["psnr"]
    order = sorted(range(len(psnr)), key=psnr.__getitem__)
    places = {label: order[round(rank * (len(order) - 1))] for label, rank in _RANKS}
    members = list(places.values())
    image, holes = _holes(kind, crops, kind.index[members])
    color = torch.tensor(first.loaded.config.fill_color()).view(1, 3, 1, 1)
    columns = [
        ("original", to_unit(image)),
        ("input", to_unit(torch.where(holes.mask, color, image))),
    ]
    captions = [
        [shorten(group.names[i]) for i in members],
        [f"{100 * group.areas[i]:.0f} % missing" for i in members],
    ]
    for method, result in zip(methods, group.methods, strict=True):
        columns.append(
            (
                _two_lines(method.label),
                to_unit(torch.where(holes.mask, method.fill(holes), image)),
            )
        )
        captions.append([f"{result.values['psnr'][i]:.2f} dB" for i in members])
    save_sheet(
        path,
        columns,
        title=f"{kind.kind} masks: cases by the PSNR of {group.methods[0].label}, best to worst "
        f"of {len(psnr)}; below each: its PSNR in the hole",
        rows=[label.replace(" ", "\n") for label in places],
        captions=captions,
        max_columns=_SHEET_COLUMNS,
    )


def _two_lines(label: str) -> str:
    words = label.split(" ")
    if len(label) < 20 or len(words) == 1:
        return label
    cut = min(
        range(1, len(words)),
        key=lambda i: max(len(" ".join(words[:i])), len(" ".join(words[i:]))),
    )
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])
