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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from context_encoder.config import TrainConfig, in_words
from context_encoder.data import Crops, ImageFile, find_images
from context_encoder.data.images import relative_name
from context_encoder.evaluation import perceptual
from context_encoder.evaluation.crops import held_out_crops, training_crops
from context_encoder.evaluation.fills import (
    BASELINES,
    BaselineName,
    MaskedBatch,
    Method,
    Run,
    baseline_methods,
    default_baselines,
    includes_network,
    load_run,
    missing_for,
)
from context_encoder.evaluation.leaks import HASH_MISSING, find_copies, hash_available
from context_encoder.evaluation.nearest_neighbours import check_candidates, same_photographs
from context_encoder.evaluation.options import EvaluateConfig, check_options
from context_encoder.evaluation.report import evaluation_report
from context_encoder.evaluation.schedule import Work, announcement, measure, work_bar
from context_encoder.evaluation.sheets import (
    COLUMNS,
    Cases,
    draw_blind_sheets,
    draw_comparison,
    draw_range,
    most_fills,
)
from context_encoder.evaluation.squares import draw_squares, load_native_crops
from context_encoder.evaluation.tables import (
    Group,
    MethodResult,
    markdown,
    write_csv,
    write_json,
)
from context_encoder.masks import (
    MASKS,
    build_mask_sampler,
    masks_with_fixed_hole,
    masks_without_files,
)
from context_encoder.pretexts.base import VALIDATION_SEED
from context_encoder.runs import Photos
from context_encoder.utils.files import (
    check_new_file,
    check_writable,
    make_folder,
    read_text,
    write_file,
)
from context_encoder.utils.metrics import FLAT_CONTRAST, hole_contrast, hole_metrics, to_unit

log = logging.getLogger("context_encoder")

# Increased when the metrics of the same fills change.
_FORMAT = 2
#: Name of the group of square holes.
_SQUARES = "squares"
# Baselines in the order in which a sheet for comparison takes them.
_SHOWN: tuple[BaselineName, ...] = ("hole-filler", "fsr", "membrane", "shiftmap", "telea")
_PACKAGES = (
    "torch numpy pillow scikit-image opencv-contrib-python-headless opencv-contrib-python "
    "torchmetrics ImageHash"
).split()


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
    sheets: list[Path]


@dataclass(frozen=True)
class _Masks:
    """The masks of one kind; crops that are fully or not at all masked are left out."""

    kind: str
    masks: Tensor
    index: Tensor
    hole: int | None
    sides: list[int] | None = None

    @property
    def digest(self) -> str:
        packed = self.masks.numpy().tobytes() + self.index.numpy().tobytes()
        return hashlib.sha256(packed).hexdigest()


def evaluate(
    config: EvaluateConfig, photographs: Mapping[str, ImageFile] | None = None
) -> Evaluation:
    """Fill the holes by every method, measure, and write tables and sheets.

    Args:
        config: the options.
        photographs: files by name, in place of ``config.data``; at their own resolution only.

    Raises:
        RunError: a checkpoint is missing or damaged, or its network does not fill holes.
        ImportError: a requested baseline or metric needs a package that is not installed.
        ValueError, OSError: options are incompatible, a folder has no photographs, or a folder
            cannot be written.
        InpaintError: a network's prediction is not finite.
    """
    check_options(config)
    native = config.native
    if photographs is not None and native is None:
        raise ValueError("`photographs` needs `crop` or `holes`")
    out = config.out or (config.checkpoint[0] if config.checkpoint else Path()) / "evaluation"
    check_writable(out, folder=True)
    if config.html is not None:
        check_new_file(config.html, [".html", ".htm"], overwrite=True, name="html")
    baselines, with_distance, facts = _installed(config)
    runs = [
        load_run(path, name, config.which, config.device, config.batch_size)
        for path, name in zip(config.checkpoint, _names(config.checkpoint), strict=True)
    ]
    first = runs[0].loaded.config if runs else TrainConfig()
    size = native or runs[0].inpainter.geometry.size
    if native is None:
        _check_sizes(runs)
    kinds, dropped = _kinds(config, runs)
    facts += dropped
    crops = _crops(config, first, photographs)
    candidates = None
    if any(name.startswith("nn-") for name in baselines):
        candidates = training_crops(
            first, config.candidates, samples=config.candidate_crops, crop_scale=config.crop_scale
        )
        check_candidates(crops, candidates)
    masks = [_draw(config, kind, runs, len(crops), size) for kind in kinds]
    if config.squares:
        masks.insert(0, _draw_squares(config, crops))
    methods = [
        *(m for run in runs for m in run.methods(config.blend, native=native is not None)),
        *baseline_methods(baselines, runs, candidates, first.fill_color()),
    ]
    shown = _shown(config, runs, methods)
    facts = [
        *_facts(config, runs, baselines, crops, candidates, given=photographs is not None),
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
    device = runs[0].inpainter.device if runs else torch.device("cpu")
    distance = perceptual.FeatureDistance().to(device) if with_distance else None
    jobs = [
        _Job(
            kind,
            method,
            crops,
            distance,
            config.batch_size if method.batched else 1,
            _digest(
                format=_FORMAT,
                version=importlib.metadata.version("context-encoder"),
                crops=crops.digest,
                masks=kind.digest,
                method=method.name,
                depends_on=dict(method.depends_on),
                distance=with_distance,
            ),
            out / "parts",
        )
        for kind in masks
        for method in methods
        if method.masks is None or kind.kind in method.masks
    ]
    results, reused = _results(jobs)
    groups = [
        Group(
            kind.kind,
            [crops.names[i] for i in kind.index.tolist()],
            [crops.numbers[i] for i in kind.index.tolist()],
            kind.masks.float().mean((1, 2, 3))[kind.index].tolist(),
            results[kind.kind],
            kind.hole,
            _flat(kind, crops),
            None if kind.sides is None else [kind.sides[i] for i in kind.index.tolist()],
            kind.digest,
        )
        for kind in masks
    ]
    about = _about(config, runs, crops, candidates, facts)
    title = f"Inpainting quality: {', '.join(run.name for run in runs) or 'without a run'}"
    write_file(out / "results.md", markdown(title, facts, groups, config.area_bins))
    write_csv(out / "results.csv", groups, config.area_bins)
    write_json(out / "results.json", about, groups, config.area_bins)
    drawn: dict[str, list[Path]] = {}
    blind: list[Path] = []
    fills = sum(most_fills(len(job.kind.index), 1, int(job.method in shown)) for job in jobs)
    with tqdm(total=fills, desc="drawing sheets", leave=False, dynamic_ncols=True) as bar:
        for kind, group in zip(masks, groups, strict=True):
            fitting = [job.method for job in jobs if job.kind is kind]
            holes = partial(_members, kind, crops)
            cases = Cases(group, fitting, holes, first.fill_color(), bar.update)
            columns = [method for method in shown if method in fitting]
            ranking = fitting[0] if runs or not columns else columns[0]
            drawn[kind.kind] = [
                draw_range(out / f"{kind.kind}.png", cases, ranking),
                *draw_comparison(out / "sheets", cases, columns),
            ]
            if config.blind:
                blind += draw_blind_sheets(out / "blind", cases, columns, config.seed)
    if config.html is not None:
        make_folder(config.html.parent)
        report = evaluation_report(title, facts, groups, config.area_bins, drawn)
        write_file(config.html, report.html())
    sheets = [*(path for paths in drawn.values() for path in paths), *blind]
    return Evaluation(groups, facts, out, reused, len(jobs), sheets)


@dataclass(frozen=True)
class _Job:
    """One method on the images of one kind of mask: a part of the results."""

    kind: _Masks
    method: Method
    crops: Crops
    distance: perceptual.FeatureDistance | None
    batch_size: int
    key: str
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind.kind}-{self.method.name}-{self.key[:16]}.json"

    def figures(self, index: Tensor) -> dict[str, list[float]]:
        """Metrics of some of the crops."""
        image, holes = _holes(self.kind, self.crops, index)
        output = to_unit(torch.where(holes.mask, self.method.fill(holes), image))
        original = to_unit(image)
        figures = hole_metrics(output, original, holes.mask)
        if self.distance is not None:
            device = next(self.distance.parameters()).device
            figures["feature_distance"] = self.distance(output.to(device), original.to(device))
        return {name: figure.tolist() for name, figure in figures.items()}

    def trial(self, count: int) -> None:
        """Measure the first images, for the time that it takes."""
        for index in self.kind.index[:count].split(self.batch_size):
            self.figures(index)


def _results(jobs: Sequence[_Job]) -> tuple[dict[str, list[MethodResult]], int]:
    """The figures of every job by kind of mask, and how many were kept from before."""
    found = {job.key: _read_part(job.path, job.key) for job in jobs}
    missing = [job for job in jobs if found[job.key] is None]
    works = {job.key: Work(job.method.label, len(job.kind.index), job.trial) for job in missing}
    if missing:
        measure(list(works.values()))
        log.info("%s", announcement(list(works.values())))
    with work_bar(list(works.values())) as bar:
        for job in missing:
            bar.set_description(f"{job.kind.kind}: {job.method.label}")
            values = _measure(job, bar, works[job.key].seconds)
            write_file(job.path, json.dumps({"key": job.key, "values": values}) + "\n")
            found[job.key] = values
    results: dict[str, list[MethodResult]] = {}
    for job in jobs:
        figures = found[job.key]
        assert figures is not None
        result = MethodResult(job.method.name, job.method.label, figures)
        results.setdefault(job.kind.kind, []).append(result)
    return results, len(jobs) - len(missing)


def _check_sizes(runs: Sequence[Run]) -> None:
    """ValueError unless all networks take images of the same size."""
    first = runs[0]
    for run in runs[1:]:
        if run.inpainter.geometry.size != first.inpainter.geometry.size:
            raise ValueError(
                f"{run.loaded.path} takes {run.inpainter.geometry.size} pixels, "
                f"{first.loaded.path} takes {first.inpainter.geometry.size}: methods are compared "
                "on the same pixels; evaluate these runs one by one, or with `crop`"
            )


def _crops(
    config: EvaluateConfig, first: TrainConfig, photographs: Mapping[str, ImageFile] | None
) -> Crops:
    """The crops to evaluate on."""
    if config.native is None:
        return held_out_crops(
            first, config.data, samples=config.samples, crop_scale=config.crop_scale
        )
    if photographs is None:
        paths: Sequence[ImageFile]
        if config.data is not None:
            found = find_images(config.data)
            paths, root = found, found.root
        else:
            photos = Photos.from_config(first, instead="data")
            paths, root = photos.val, photos.val_root
        photographs = {relative_name(path, root): path for path in paths}
    return load_native_crops(
        list(photographs.values()), list(photographs), size=config.native, samples=config.samples
    )


def _shown(config: EvaluateConfig, runs: Sequence[Run], methods: Sequence[Method]) -> list[Method]:
    """The methods of the sheets for comparison, the first ones of which fit.

    Raises:
        ValueError: `columns` names none of the methods.
    """
    by_name = {method.name: method for method in methods}
    if config.columns is not None:
        wrong = [name for name in config.columns if name not in by_name]
        if wrong:
            raise ValueError(f"`columns` must be among {', '.join(by_name)}, got {wrong[0]}")
        return [by_name[name] for name in config.columns]
    ours = [f"{run.name}-blended" if config.blend else run.name for run in runs[:2]]
    return [by_name[name] for name in (*ours, *_SHOWN) if name in by_name][:COLUMNS]


def _installed(config: EvaluateConfig) -> tuple[list[BaselineName], bool, list[str]]:
    """Baselines, whether to measure the feature distance, and remarks on missing packages."""
    facts = []
    chosen = []
    usual = default_baselines(native=config.native is not None)
    for name in config.baselines if config.baselines is not None else usual:
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
        taken += [f"{name}-blended", f"{name}-textured", f"nn-features-{name}"]
    count = Counter(taken)
    return [
        name if count[name] == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)
    ]


def _kinds(config: EvaluateConfig, runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The kinds of mask that some run can fill, and sentences on the others."""
    if config.native is not None:
        return list(dict.fromkeys(config.masks or ())), []
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
        confined = [run for run in runs if run.central_only and config.native is None]
        regions = [run.inpainter.geometry.region for run in confined]
        hole = min([size // 2, *(min(region[2:]) for region in regions)])
    options = config.options(MASKS[kind].options).model_dump()
    sampler = build_mask_sampler(kind, size, config.seed, hole=hole, **options)
    index = torch.arange(count)
    masks, areas = sampler(torch.zeros_like(index), index)
    usable = ((areas > 0) & (areas < size * size)).nonzero()[:, 0]
    if not len(usable):
        raise ValueError(f"`masks` {kind}: all masks are empty or cover the whole image")
    return _Masks(kind, masks, usable, hole)


def _draw_squares(config: EvaluateConfig, crops: Crops) -> _Masks:
    seed = 0 if config.seed == VALIDATION_SEED else config.seed
    masks, sides = draw_squares(crops, config.squares, count=config.holes_per_crop, seed=seed)
    return _Masks(_SQUARES, masks, torch.arange(len(crops)), None, sides)


def _flat(kind: _Masks, crops: Crops) -> list[bool]:
    """Whether the original has almost no contrast in the hole, for each image."""
    image, holes = _holes(kind, crops, kind.index)
    return (hole_contrast(to_unit(image), holes.mask) < FLAT_CONTRAST).tolist()


def _facts(
    config: EvaluateConfig,
    runs: Sequence[Run],
    baselines: Sequence[BaselineName],
    crops: Crops,
    candidates: Crops | None,
    *,
    given: bool,
) -> list[str]:
    if config.data is not None:
        source = f"photographs in {config.data}"
    elif given:
        source = "given photographs"
    elif runs:
        source = f"photographs that {runs[0].name} held out"
    else:
        source = "photographs that no training uses"
    facts = [f"{len(crops)} crops of {crops.photographs} {source}, {crops.images.shape[-1]} pixels"]
    if config.native is not None:
        facts[0] += ", at their own resolution unless they are more than 1.5 times larger"
    if config.squares:
        many = "holes" if config.holes_per_crop > 1 else "hole"
        sides = ", ".join(map(str, config.squares))
        facts.append(f"{config.holes_per_crop} square {many} per crop, of {sides} pixels in turns")
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
        facts += _leak(run.name, run.loaded.config, crops, config.leak_samples)
    if includes_network(baselines) and (config.data is not None or not runs):
        facts += _leak("the included network", TrainConfig(), crops, config.leak_samples)
        if config.data is not None or given:
            facts.append(
                "the included network was also trained on photographs that are not distributed "
                "(docs/model-card.md): whether these are among them cannot be told"
            )
    if runs and config.data is None and config.which == "best":
        facts.append(
            f"the checkpoint of {runs[0].name} was chosen as the best one on these photographs; "
            "`which` last, or `data` with others, is free of that"
        )
    return facts


def _leak(name: str, trained: TrainConfig, crops: Crops, most: int) -> list[str]:
    """A warning if a network was trained on photographs that it is evaluated on, or copies."""
    try:
        trained_on = Photos.from_config(trained).train
    except (ValueError, OSError) as error:
        return [f"whether {name} was trained on these photographs cannot be told: {error}"]
    copies = find_copies(crops.paths, trained_on, most=most)
    facts = []
    if copies.same:
        facts.append(
            f"WARNING: {name} was trained on {len(copies.same)} of the {crops.photographs} "
            "photographs, so its figures are too good"
        )
    if copies.similar:
        names = dict(zip(crops.paths, crops.names, strict=True))
        facts.append(
            f"WARNING: {name} was trained on what looks like {len(copies.similar)} of the "
            f"{crops.photographs} photographs in another encoding, size or cut, so its figures are "
            "too good:"
        )
        facts += [
            f"  {names[path]} is like {other} ({bits} of 256 bits of the hash differ)"
            for path, other, bits in copies.similar
        ]
    if most and not hash_available():
        facts.append(f"copies in another encoding or size were not looked for: {HASH_MISSING}")
    elif len(copies.same) < crops.photographs and copies.compared < copies.trained_on:
        facts.append(
            f"copies in another encoding or size were looked for among {copies.compared} of the "
            f"{copies.trained_on} training photographs of {name} (`leak_samples`)"
        )
    return facts


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
        "config": config.model_dump(mode="json", exclude={"html"}),
        "versions": versions,
        "device": str(runs[0].inpainter.device) if runs else "cpu",
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
        part = json.loads(read_text(path))
        return part["values"] if part["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _holes(kind: _Masks, crops: Crops, index: Tensor) -> tuple[Tensor, MaskedBatch]:
    """The originals in [-1, 1], and the same with their holes blanked."""
    image, mask = crops.floats(index), kind.masks[index]
    blanked = torch.where(mask, 0, image)
    return image, MaskedBatch(blanked, mask, [crops.paths[i] for i in index.tolist()])


def _members(kind: _Masks, crops: Crops, members: Sequence[int]) -> tuple[Tensor, MaskedBatch]:
    return _holes(kind, crops, kind.index[list(members)])


def _measure(job: _Job, bar: tqdm[Any], seconds: float) -> dict[str, list[float]]:
    """Metrics of every crop; the bar counts predicted seconds."""
    values: dict[str, list[float]] = {}
    for index in job.kind.index.split(job.batch_size):
        for name, figures in job.figures(index).items():
            values.setdefault(name, []).extend(figures)
        bar.update(seconds * len(index))
    return values
