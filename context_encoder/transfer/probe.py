"""Linear probe: accuracy of a linear classifier on the frozen features of each layer.

The protocol of Zhang et al. 2016 (Colorful image colorization, section 3.2), made deterministic:
each layer's map is averaged down to a grid of at most ``max_dims`` numbers, these are
standardised, and multinomial logistic regression is fitted by full-batch L-BFGS. The L2 penalty
is chosen on a held-out part of the training images, then the classifier is fitted to
all of them. The reported accuracy is that on the test images, which are used for nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from context_encoder.data import ImageFile
from context_encoder.data.crops import same_contents
from context_encoder.data.shards import identity
from context_encoder.encoder.backbone import weights_digest
from context_encoder.encoder.extract import PIXELS, Features, extract_features
from context_encoder.models import Backbone
from context_encoder.transfer.backbone import BackboneConfig
from context_encoder.transfer.labelled_folder import find_folders, stratified
from context_encoder.transfer.logistic import Standardizer, accuracy, fit_logistic
from context_encoder.transfer.registry import register_transfer
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.files import (
    check_writable,
    make_folder,
    read_text,
    save_tensors,
    write_file,
)

log = logging.getLogger("context_encoder")


class ProbeConfig(BackboneConfig):
    """Linear probe of every layer on a labelled image folder with one sub-folder per class.

    `data` FOLDER holds train/ and test/ (or val/), each with the class folders; a folder with the
    class folders alone is split. The layer "pixels" is the image itself, for comparison.
    """

    data: Path | None = Field(
        None,
        description="Folder with train/ and test/ or val/, or with class folders to split; each "
        "may be tar shards instead.",
    )
    train: Path | None = Field(None, description="Training folder, instead of `data`.")
    test: Path | None = Field(None, description="Test folder, instead of `data`.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Fraction of each class for testing, if `data` must be split."
    )
    layers: tuple[str, ...] = Field(
        (), description="Layers to probe. Default: pixels, all of encoder and bottleneck."
    )
    max_dims: Annotated[int, Field(ge=1)] = Field(
        2048, description="Largest number of features per layer; 9216 is usual for ImageNet."
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0), description="L2 penalties to choose from."
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Fraction of the training images for the choice of the penalty."
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(
        100, description="L-BFGS iterations per fit."
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (0,), description="Seeds of the splits, and of random weights."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(128, description="Images at a time.")
    cache: Path | None = Field(
        None, description="Folder in which features are cached for later calls."
    )
    out: Path = Field(Path("probe"), description="Folder for probe.json and probe.md.")
    overwrite: bool = Field(False, description="Replace the results of an earlier probe.")

    @model_validator(mode="after")
    def _folders(self) -> ProbeConfig:
        pair = self.train is not None and self.test is not None
        if (self.data is None) != pair or (self.train is None) != (self.test is None):
            raise ValueError("give `data` FOLDER, or both `train` FOLDER and `test` FOLDER")
        for name, values in (("l2", self.l2), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"`{name}` takes one or more different numbers, got {values}")
        return self


def grid_side(channels: int, height: int, max_dims: int) -> int:
    """Side of the largest square grid with ``channels * side**2 <= max_dims``, at least 1."""
    return max(1, min(height, math.isqrt(max_dims // channels)))


def extract(
    files: Sequence[ImageFile], network: Backbone, sides: Mapping[str, int], config: ProbeConfig
) -> Features:
    """Features of layers, averaged to ``sides[layer]`` cells per side, float32.

    They are read from the cache if it has them.

    Raises:
        ValueError: none of the files can be read.
    """
    cached = None
    if config.cache is not None:
        make_folder(config.cache)
        cached = config.cache / f"{_key(files, network, sides)}.safetensors"
        if cached.exists():
            try:
                found = Features(load_file(cached), **json.loads(read_text(_notes(cached))))
                log.info("features of %d images from %s", len(found.kept), cached)
                return found
            except (OSError, SafetensorError, ValueError, TypeError):
                log.warning("%s is damaged; extracting again", cached)
    features = extract_features(
        network, files, list(sides), pool=sides, batch_size=config.batch_size
    )
    if cached is not None:
        notes = {"files": features.files, "kept": features.kept, "unreadable": features.unreadable}
        write_file(_notes(cached), json.dumps(notes))
        save_tensors(cached, features.values)
    return features


def _notes(cached: Path) -> Path:
    return cached.with_suffix(".json")


def _key(files: Sequence[ImageFile], network: Backbone, sides: Mapping[str, int]) -> str:
    """A digest of the weights, the files and the layers with their sides."""
    settings = [list(sides.items()), network.image_size, weights_digest(network)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in files:
        digest.update(f"{identity(path)}\0".encode())
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class LayerResult:
    """Result of one layer with one seed."""

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
    """Choose the penalty on held-out training images, refit, and evaluate on the test images.

    Args:
        train, test: float ``(N, D)``, not standardised.
        train_labels, test_labels: int64 ``(N,)``.
        classes: number of classes.
        l2: penalties to choose from, tried from the strongest until the held-out accuracy falls;
            among equally good ones the strongest is chosen.
        holdout: fraction of each class of the training images that the choice uses.
        seed: seed of the selection of these images.
        max_iterations: largest number of iterations per fit.
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
        if value < best:  # weaker penalties only overfit more
            break
        if value > best:
            best, chosen = value, strength
    scale = Standardizer(train)
    (theta,) = fit_logistic(
        scale(train), train_labels, classes, [chosen], max_iterations=max_iterations
    )
    return LayerResult(accuracy(scale(test), test_labels, theta), best, chosen, int(train.shape[1]))


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Probe every layer with every seed.

    Returns:
        The contents of ``probe.json``.

    Raises:
        Errors of :func:`find_folders` and :meth:`BackboneConfig.load`.
        ValueError: a layer is unknown, or there are too few readable images.
    """
    device = choose_device(config.device, Processes())
    folders = find_folders(config.data, config.train, config.test)
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
                raise ValueError(f"no readable {name} image of class {which}")
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
    """The Markdown table of a result."""
    seeds = result["config"]["seeds"]
    lines = [
        f"Linear probe of {result['network']}: accuracy on {result['test_images']} test images, "
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
            f"WARNING: {result['copies']} test images are copies of training images (with the "
            "first seed), so these figures are too good.",
        ]
    if result["unreadable"]:
        lines += ["", f"{result['unreadable']} images could not be read and were left out."]
    return "\n".join(lines) + "\n"


@register_transfer(
    "probe",
    config=ProbeConfig,
    summary="accuracy of a linear classifier on each layer's frozen features",
    data="a folder with one sub-folder per class",
    reports="accuracy of a linear classifier on each layer",
)
def run(config: ProbeConfig) -> int:
    """Probe, log the table, and write it and ``probe.json``. Returns the exit status, 0.

    Raises:
        FileExistsError: there is an earlier probe and ``config.overwrite`` is not set.
        WriteError: the results cannot be written.
        Errors of :func:`probe`.
    """
    check_writable(config.out, folder=True)
    if (config.out / "probe.json").exists() and not config.overwrite:
        raise FileExistsError(
            f"{config.out} holds an earlier probe; name another folder with `out`, or replace it "
            "with `overwrite`"
        )
    result = probe(config)
    make_folder(config.out)
    write_file(config.out / "probe.json", json.dumps(result, indent=2) + "\n")
    table = markdown(result)
    write_file(config.out / "probe.md", table)
    log.info("%s", table)
    log.info("written to %s", config.out)
    return 0
