"""Linear probe: how well a linear classifier does on the frozen features of each layer.

The protocol of Zhang et al. 2016 (Colorful image colorization, section 3.2), made deterministic:
each layer's map is averaged down to a grid of at most ``max_dims`` numbers, these are
standardised, and multinomial logistic regression is fitted by full-batch L-BFGS. The L2 penalty
is chosen on a part of the training pictures that is held out, then the classifier is fitted to
all of them. What is reported is the accuracy on the test pictures, which nothing was chosen on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from context_encoder.cli import parse_config
from context_encoder.data import list_images
from context_encoder.evaluation.crops import same_contents
from context_encoder.features import PIXELS, Features, extract_features, weights_digest
from context_encoder.models import Backbone
from context_encoder.prepare import Processes, choose_device
from context_encoder.transfer.backbone import BackboneConfig

log = logging.getLogger("context_encoder")

_TEST_FOLDERS = ("test", "val", "valid", "validation")


class ProbeConfig(BackboneConfig):
    """Linear probe of every layer on a labelled image folder: one sub-folder a class.

    --data FOLDER holds train/ and test/ (or val/), each with the class folders; a folder with the
    class folders alone is split. The layer "pixels" is the picture itself, for comparison.
    """

    data: Path | None = Field(
        None, description="Folder with train/ and test/ or val/, or with class folders to split."
    )
    train: Path | None = Field(None, description="Training folder, in place of --data.")
    test: Path | None = Field(None, description="Test folder, in place of --data.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Part of each class that is the test set, where --data must be split."
    )
    layers: tuple[str, ...] = Field(
        (), description="Layers to probe. Default: pixels, all of encoder and bottleneck."
    )
    max_dims: Annotated[int, Field(ge=1)] = Field(
        2048, description="Largest number of features of a layer; 9216 is usual for ImageNet."
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0), description="L2 penalties to choose from."
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Part of the training pictures that the penalty is chosen on."
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(
        100, description="L-BFGS iterations of one fit."
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (0,), description="Of the splits, and of the weights where these are random."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(128, description="Pictures at a time.")
    cache: Path | None = Field(
        None, description="Folder in which features are kept for the next call."
    )
    out: Path = Field(Path("probe"), description="Folder for probe.json and probe.md.")

    @model_validator(mode="after")
    def _folders(self) -> ProbeConfig:
        pair = self.train is not None and self.test is not None
        if (self.data is None) != pair or (self.train is None) != (self.test is None):
            raise ValueError("give --data FOLDER, or both --train FOLDER and --test FOLDER")
        for name, values in (("l2", self.l2), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} takes one or more different numbers, got {values}")
        return self


@dataclass(frozen=True)
class Labelled:
    """Files with their class numbers."""

    root: Path
    files: list[Path]
    labels: list[int]

    def subset(self, chosen: Sequence[int]) -> Labelled:
        return Labelled(
            self.root, [self.files[i] for i in chosen], [self.labels[i] for i in chosen]
        )


@dataclass(frozen=True)
class Folders:
    """What the folders hold; ``test`` is None where the training folder must be split."""

    classes: list[str]
    train: Labelled
    test: Labelled | None


def find_folders(config: ProbeConfig) -> Folders:
    """List the pictures by class.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is missing or a file.
        ValueError: no class folders, fewer than two, or training and test classes differ.
    """
    if config.data is None:
        assert config.train is not None
        train, test = config.train, config.test
    else:
        train, test = config.data, None
        if (config.data / "train").is_dir():
            train = config.data / "train"
            there = [name for name in _TEST_FOLDERS if (config.data / name).is_dir()]
            if not there:
                raise FileNotFoundError(
                    f"{config.data} has train/ but no {'/, '.join(_TEST_FOLDERS)}/ beside it"
                )
            test = config.data / there[0]
    classes = _class_names(train)
    if test is None:
        return Folders(classes, _list_classes(train, classes), None)
    if _class_names(test) != classes:
        one, other = set(classes), set(_class_names(test))
        raise ValueError(
            f"the classes in {train} and {test} differ: "
            f"only in the first: {', '.join(sorted(one - other)) or 'none'}; "
            f"only in the second: {', '.join(sorted(other - one)) or 'none'}"
        )
    return Folders(classes, _list_classes(train, classes), _list_classes(test, classes))


def _class_names(folder: Path) -> list[str]:
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder with one sub-folder a class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise ValueError(
            f"{folder} holds {len(names)} sub-folders; expected one for each of at least 2 classes"
        )
    return names


def _list_classes(folder: Path, classes: Sequence[str]) -> Labelled:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list_images(folder / name)
        files += found
        labels += [label] * len(found)
    return Labelled(folder, files, labels)


def stratified(labels: Sequence[int], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of two sides, ``part`` of each class (at least one of it) on the second.

    Raises:
        ValueError: a class has only one member.
    """
    rng = np.random.default_rng(seed)
    first: list[int] = []
    second: list[int] = []
    values = np.asarray(labels)
    for label in np.unique(values):
        members = rng.permutation(np.flatnonzero(values == label))
        if len(members) < 2:
            raise ValueError(f"class {label} has 1 readable picture; splitting needs 2 or more")
        count = min(max(1, round(part * len(members))), len(members) - 1)
        second += members[:count].tolist()
        first += members[count:].tolist()
    return sorted(first), sorted(second)


def grid_side(channels: int, height: int, max_dims: int) -> int:
    """Side of the largest square grid with ``channels * side**2 <= max_dims``, at least 1."""
    return max(1, min(height, math.isqrt(max_dims // channels)))


def extract(
    files: Sequence[Path], network: Backbone, sides: Mapping[str, int], config: ProbeConfig
) -> Features:
    """Features of the layers that ``sides`` names, averaged to so many cells a side, float32.

    They are taken from the cache if it has them.

    Raises:
        ValueError: none of the files can be read.
    """
    cached = None
    if config.cache is not None:
        config.cache.mkdir(parents=True, exist_ok=True)
        cached = config.cache / f"{_key(files, network, sides)}.safetensors"
        if cached.exists():
            try:
                found = Features(load_file(cached), **json.loads(_notes(cached).read_text()))
                log.info("features of %d pictures from %s", len(found.kept), cached)
                return found
            except (OSError, SafetensorError, ValueError, TypeError):
                log.warning("%s is damaged; extracting again", cached)
    features = extract_features(
        network, files, list(sides), pool=sides, batch_size=config.batch_size
    )
    if cached is not None:
        notes = {"files": features.files, "kept": features.kept, "unreadable": features.unreadable}
        _notes(cached).write_text(json.dumps(notes))
        new = cached.with_suffix(".new")
        save_file(features.values, new)
        new.replace(cached)
    return features


def _notes(cached: Path) -> Path:
    return cached.with_suffix(".json")


def _key(files: Sequence[Path], network: Backbone, sides: Mapping[str, int]) -> str:
    """Changes when the weights, the files or what is taken of them do."""
    settings = [list(sides.items()), network.image_size, weights_digest(network)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:24]


class Standardizer:
    """Shifts and scales features to mean 0 and deviation 1 of the pictures it was made from."""

    def __init__(self, x: Tensor) -> None:
        self._mean = x.mean(0)
        deviation = x.std(0, correction=0)
        # A feature that never changes says nothing; it becomes 0 instead of noise.
        self._factor = torch.where(deviation > 1e-6 * (1 + self._mean.abs()), 1 / deviation, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._mean) * self._factor


def fit_logistic(
    x: Tensor, y: Tensor, classes: int, l2: Sequence[float], *, max_iterations: int = 100
) -> Iterator[Tensor]:
    """Multinomial logistic regression by full-batch L-BFGS with strong Wolfe line search.

    Minimises mean cross-entropy + l2 / 2 * |weights|^2; the biases are not penalised. Nothing in
    it is random. The search runs in coordinates in which the loss is about as curved in all
    directions (see :func:`_curvature`): that takes some 20 iterations in place of hundreds, and
    does not move the minimum.

    Args:
        x: float ``(N, D)``, standardised.
        y: int64 ``(N,)``, below ``classes``.
        classes: K.
        l2: the penalties; each fit begins where the one before ended.
        max_iterations: at most so many, for each.

    Yields:
        For each penalty, ``(D + 1, K)``: weights, and the biases in the last row.
    """
    covariance = x.T @ x / len(x)
    weights, biases = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    for strength in l2:
        factor = _curvature(covariance, classes, strength)
        # weights = factor^-T @ free
        free = (factor.T @ weights).requires_grad_(True)
        biases.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [free, biases],
            max_iter=max_iterations,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )
        weights = _fit(optimizer, free, biases, factor, x, y, strength)
        biases = biases.detach()
        yield torch.cat([weights, biases[None]])


def _fit(
    optimizer: torch.optim.LBFGS,
    free: Tensor,
    biases: Tensor,
    factor: Tensor,
    x: Tensor,
    y: Tensor,
    l2: float,
) -> Tensor:
    def weights() -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(factor.T, free, upper=True)
        return solved

    def closure() -> Tensor:
        optimizer.zero_grad()
        current = weights().T.contiguous()  # so that the product with x in backward is fast
        loss: Tensor = F.cross_entropy(F.linear(x, current, biases), y)
        loss = loss + l2 / 2 * current.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights().detach()


def _curvature(covariance: Tensor, classes: int, l2: float) -> Tensor:
    """Lower Cholesky factor of the loss's second derivative where all classes are as likely."""
    likely = 1 / classes
    diagonal = torch.full_like(covariance[0], l2 + 1e-5)  # 1e-5: for rounding
    factor: Tensor = torch.linalg.cholesky(
        likely * (1 - likely) * covariance + torch.diag(diagonal)
    )
    return factor


def accuracy(x: Tensor, y: Tensor, theta: Tensor) -> float:
    """Part of the pictures whose largest score is that of their class."""
    return float((torch.addmm(theta[-1], x, theta[:-1]).argmax(1) == y).float().mean())


@dataclass(frozen=True)
class LayerResult:
    """One layer with one seed."""

    accuracy: float
    holdout_accuracy: float
    l2: float
    dims: int


def probe_layer(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    l2: Sequence[float],
    holdout: float,
    seed: int,
    max_iterations: int = 100,
) -> LayerResult:
    """Choose the penalty on held-out training pictures, refit, and judge on the test pictures.

    Args:
        train, test: float ``(N, D)``, not standardised.
        train_labels, test_labels: int64 ``(N,)``.
        classes: number of classes.
        l2: penalties to choose from, tried from the strongest until the held-out accuracy falls;
            of equals the strongest is taken.
        holdout: part of each class of the training pictures to choose on.
        seed: of that choice of pictures.
        max_iterations: of one fit.
    """
    first, second = map(torch.tensor, stratified(train_labels.tolist(), holdout, seed))
    scale = Standardizer(train[first])
    x, y = scale(train[first]), train_labels[first]
    held_x, held_y = scale(train[second]), train_labels[second]
    best, chosen = -1.0, 0.0
    strengths = sorted(l2, reverse=True)
    fits = fit_logistic(x, y, classes, strengths, max_iterations=max_iterations)
    for strength, theta in zip(strengths, fits, strict=False):
        value = accuracy(held_x, held_y, theta)
        if value < best:  # weaker penalties fit the training pictures better still
            break
        if value > best:
            best, chosen = value, strength
    scale = Standardizer(train)
    (theta,) = fit_logistic(
        scale(train), train_labels, classes, [chosen], max_iterations=max_iterations
    )
    return LayerResult(accuracy(scale(test), test_labels, theta), best, chosen, int(train.shape[1]))


def run(config: ProbeConfig) -> dict[str, Any]:
    """Probe every layer with every seed.

    Returns:
        What ``probe.json`` holds.

    Raises:
        As :func:`find_folders` and :meth:`BackboneConfig.load`.
        ValueError: an unknown layer, or too few readable pictures.
    """
    device = choose_device(config.device, Processes())
    folders = find_folders(config)
    everything = folders.train.files + (folders.test.files if folders.test else [])
    labels = folders.train.labels + (folders.test.labels if folders.test else [])
    started = time.monotonic()
    results: dict[str, list[LayerResult]] = {}
    features: Features | None = None
    counts: list[tuple[int, int]] = []
    chance: list[float] = []
    copies: list[int] = []
    extraction = 0.0
    for seed in config.seeds:
        if features is None or config.is_random:
            begun = time.monotonic()
            network = config.load(seed).to(device).eval()
            sides = _choose_layers(network, config, device)
            features = extract(everything, network, sides, config)
            extraction += time.monotonic() - begun
            results = results or {name: [] for name in sides}
        y = torch.tensor([labels[i] for i in features.kept])
        if folders.test is None:
            fit, judged = stratified(y.tolist(), config.test_fraction, seed)
        else:
            border = len(folders.train.files)
            fit = [n for n, i in enumerate(features.kept) if i < border]
            judged = [n for n, i in enumerate(features.kept) if i >= border]
        for name, part in (("training", fit), ("test", judged)):
            absent = set(range(len(folders.classes))) - set(y[part].tolist())
            if absent:
                which = ", ".join(folders.classes[i] for i in sorted(absent))
                raise ValueError(f"no readable {name} picture of class {which}")
        counts.append((len(fit), len(judged)))
        commonest = int(torch.bincount(y[fit]).argmax())
        chance.append(float((y[judged] == commonest).float().mean()))
        files = [[everything[features.kept[n]] for n in part] for part in (judged, fit)]
        copies.append(len(same_contents(*files)))
        bar = tqdm(results, unit="layer", dynamic_ncols=True, desc=f"probe, seed {seed}")
        for name in bar:
            values = features.values[name].flatten(1)
            results[name].append(
                probe_layer(
                    values[fit].to(device),
                    y[fit].to(device),
                    values[judged].to(device),
                    y[judged].to(device),
                    classes=len(folders.classes),
                    l2=config.l2,
                    holdout=config.holdout,
                    seed=seed,
                    max_iterations=config.max_iterations,
                )
            )
            bar.set_postfix(layer=name, accuracy=f"{results[name][-1].accuracy:.3f}")
    assert features is not None
    for name, reason in features.unreadable:
        log.warning("skipped %s: %s", name, reason)
    return {
        "network": config.describe(),
        "config": config.model_dump(mode="json"),
        "classes": folders.classes,
        "train_images": counts[0][0],
        "test_images": counts[0][1],
        "unreadable": len(features.unreadable),
        "chance": statistics.fmean(chance),
        "copies": copies[0],
        "layers": {name: _summary(found) for name, found in results.items()},
        "seconds": {
            "features": round(extraction, 1),
            "all": round(time.monotonic() - started, 1),
        },
    }


def _choose_layers(network: Backbone, config: ProbeConfig, device: torch.device) -> dict[str, int]:
    """The layers to probe, and the side of each one's grid."""
    size = network.image_size
    with torch.no_grad():
        x = torch.zeros(1, 3, size, size, device=device)
        there = {PIXELS: x, **network.features(x)}
    unknown = [name for name in config.layers if name not in there]
    if unknown:
        raise ValueError(
            f"there is no layer {', '.join(unknown)}; this network has {', '.join(there)}"
        )
    sides = {name: grid_side(x.shape[1], x.shape[2], config.max_dims) for name, x in there.items()}
    return {name: sides[name] for name in config.layers or there}


def _summary(found: Sequence[LayerResult]) -> dict[str, Any]:
    values = [result.accuracy for result in found]
    return {
        "accuracy": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "accuracies": values,
        "holdout_accuracies": [result.holdout_accuracy for result in found],
        "l2": [result.l2 for result in found],
        "dims": found[0].dims,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    seeds = result["config"]["seeds"]
    lines = [
        f"Linear probe of {result['network']}: accuracy on {result['test_images']} test pictures, "
        f"{result['train_images']} to train on, {len(result['classes'])} classes, "
        f"seeds {', '.join(map(str, seeds))}. The commonest class alone: "
        f"{100 * result['chance']:.1f} %.",
        "",
        "| layer | features | accuracy | deviation over seeds | L2 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in result["layers"].items():
        deviation = "-" if row["deviation"] is None else f"{100 * row['deviation']:.2f}"
        l2 = ", ".join(f"{value:g}" for value in row["l2"])
        lines.append(
            f"| {name} | {row['dims']} | {100 * row['accuracy']:.2f} % | {deviation} | {l2} |"
        )
    if result["copies"]:
        lines += [
            "",
            f"WARNING: {result['copies']} test pictures are copies of training pictures (with the "
            "first seed), so these figures are too good.",
        ]
    if result["unreadable"]:
        lines += ["", f"{result['unreadable']} pictures could not be read and were left out."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    config = parse_config(ProbeConfig, "python -m context_encoder.transfer probe", arguments)
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"--out {config.out} is a file; name a folder")
    result = run(config)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "probe.json").write_text(json.dumps(result, indent=2) + "\n")
    table = markdown(result)
    (config.out / "probe.md").write_text(table)
    print(table, end="")
    log.info("written to %s", config.out)
    return 0
