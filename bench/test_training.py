"""Whole training steps, and data loading by itself.

Error of a step: relative difference between its first reconstruction loss and the float64 loss of
the same weights, images and masks. Data loading has no error, as crops are random; their shape is
checked.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional as F
from torch.profiler import profile

from bench.harness import Call, Problem, Row, UnavailableError
from bench.plain import PlainTraining, load_photo
from context_encoder.config import TrainConfig, preset
from context_encoder.data import PhotoFolder, make_loader
from context_encoder.models import default_image_size
from context_encoder.runs import Photos
from context_encoder.training.resolve import resolve
from context_encoder.training.trainer import Trainer
from context_encoder.utils.device import Processes

# Three of the paper: features from random regions; the centre, joint loss; random regions, joint
# loss. The fourth is a small network for machines without a GPU.
_PRESETS = ("features-region", "inpaint-center", "inpaint-region", "laptop")
_CPU_BATCH = {"features-region": 4, "inpaint-center": 16, "inpaint-region": 4, "laptop": 16}
_BATCHES = 4
#: Environment variable: measure compiled training steps also on a CPU (minutes of compilation).
_COMPILE = "BENCH_COMPILE_TRAINING"

_LOADING = _PRESETS
_LOADED = 4


def rows(device: str) -> list[Row]:
    result = []
    gpu = device == "cuda"
    for name in _PRESETS:
        config = preset(name)
        batch = config.batch_size if gpu else _CPU_BATCH[name]
        size = config.size or default_image_size(config.model)
        for dtype in ("float32", "tf32") if gpu else ("float32",):
            result.append(
                Row(
                    *("training_step", f"{batch}x3x{size}x{size}", dtype, "step", device, name),
                    {"batch": batch, "side": size},
                    seconds=2.0,
                    compiled=gpu or os.environ.get(_COMPILE, "") not in ("", "0"),
                    wall_only=True,
                )
            )
    for name in _LOADING:
        for mode in ("decode", "cached"):
            row = Row("data_loading", f"{_LOADED} photos", "uint8", mode, "cpu", name, seconds=1.0)
            result.append(row)
    return result


def providers(row: Row) -> tuple[str, ...]:
    if row.op == "data_loading":
        return ("package", "plain") if row.mode == "decode" else ("package",)
    ours = ["trainer", "trainer compile"]
    if row.device == "cuda":
        ours += ["trainer graph", "trainer graph compile"]
        ours += [name.replace("trainer", "trainer bf16") for name in ours]
    return (*ours, "plain", "plain compile")


def _config(name: str, **update: Any) -> tuple[TrainConfig, Photos]:
    config = preset(name).model_copy(update={"dropout": 0.0, "workers": 0, **update})
    photos = Photos.from_config(config)
    return resolve(config, photos), photos


def _photo_folder(config: TrainConfig, photos: Photos, **options: Any) -> PhotoFolder:
    assert config.size is not None
    assert config.resize is not None
    return PhotoFolder(
        photos.train,
        root=photos.train_root,
        size=config.size,
        resize=config.resize,
        crop_scale=config.crop_scale,
        flip=config.flip,
        seed=0,
        train=True,
        **options,
    )


class StepProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        self.items = int(row.axes["batch"])
        self.config, self.photos = _config(row.kind, batch_size=self.items, device=row.device)
        data = _photo_folder(self.config, self.photos)
        loader = make_loader(data, batch_size=self.items, num_steps=_BATCHES)
        self.batches: list[Any] = list(loader)
        first = self._trainer()
        # Copies of the initial weights.
        self.model = copy.deepcopy(first.model)
        self.discriminator = copy.deepcopy(first.pretext.discriminator)
        self._mask = torch.empty(0)

    def _trainer(self, **update: Any) -> Trainer:
        config = self.config.model_copy(update=update)
        return Trainer(config, self.photos, torch.device(self.row.device), Processes())

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        compiled, bf16 = provider.endswith("compile"), "bf16" in provider
        if compiled and not self.row.compiled:
            raise UnavailableError(f"minutes of compilation on a CPU; {_COMPILE}=1 measures it")
        self.limit = 2e-2 if bf16 else 2e-3 if self.row.dtype == "tf32" else 1e-4
        batches = itertools.cycle(self.batches)
        if provider.startswith("trainer"):
            graph = "graph" in provider
            trainer = self._trainer(compile=compiled, graph=graph, amp="bf16" if bf16 else "off")
            first = self.batches[0]
            device = torch.device(self.row.device)
            self._mask, _ = trainer.pretext.masks(
                first["epoch"].to(device), first["index"].to(device)
            )
            kept: list[dict[str, Tensor]] = []

            def train() -> dict[str, Tensor]:
                losses = trainer.train_step(next(batches))
                if not kept:  # a captured step overwrites its losses, and the first are checked
                    kept.append({name: loss.clone() for name, loss in losses.items()})
                    return kept[0]
                return losses

            return train, {}
        region = self.model.output_region
        plain = PlainTraining(
            *(self.config, self.model, self.discriminator, region, self.row.device, compiled)
        )
        self._mask = torch.empty(0)

        def step() -> dict[str, float]:
            losses = plain.train_step(next(batches))
            if not self._mask.numel():
                self._mask = plain.mask
            return losses

        return step, {}

    def error(self, outputs: Any) -> float:
        """Error of the first step, the only one that starts from known weights."""
        expected = self._exact_loss(self._mask.cpu())
        return abs(float(outputs["loss_rec"]) - expected) / expected

    @torch.no_grad()
    def _exact_loss(self, mask: Tensor) -> float:
        """The reconstruction loss in float64, computed from its definition."""
        config = self.config
        image = self.batches[0]["image"].double() / 127.5 - 1
        fill = torch.tensor(config.fill_color(), dtype=torch.float64).view(1, 3, 1, 1)
        hole = mask.double()
        weights = hole
        if config.overlap:
            width = 2 * config.overlap + 1
            grown = F.max_pool2d(hole, width, stride=1, padding=config.overlap)
            weights = hole + config.overlap_weight * (grown - hole)
        model = copy.deepcopy(self.model).cpu().double()
        prediction = model(hole * fill + (1 - hole) * image)
        top, left, height, width = self.model.output_region
        inside = (..., slice(top, top + height), slice(left, left + width))
        weights = weights[inside]
        squared = (prediction - image[inside]).square()
        return float((weights * squared).sum() / (3 * weights.sum()))

    def details(self, profiler: profile) -> dict[str, Any]:
        """Shares of the groups of operations in the time of a step."""
        gpu = self.row.device == "cuda"
        seconds: dict[str, float] = defaultdict(float)
        for event in profiler.events():
            own = event.self_device_time_total if gpu else event.self_cpu_time_total
            seconds[_group(event)] += own
        total = sum(seconds.values())
        return {"time_shares": {name: own / total for name, own in seconds.items()}}


_GROUPS = {
    "cekernels": ("cekernels::",),
    "optimizer": ("Optimizer.step", "_fused_adam"),
    "convolution": ("conv",),
    "normalisation": ("batch_norm", "local_response_norm"),
}


def _group(event: FunctionEvent | None) -> str:
    """The group of the outermost operation that belongs to one."""
    group, ancestor = "other", event
    while ancestor is not None:
        for name, patterns in _GROUPS.items():
            if any(pattern in ancestor.name for pattern in patterns):
                group = name
        ancestor = ancestor.cpu_parent
    return group


class LoadingProblem(Problem):
    items = _LOADED

    def __init__(self, row: Row) -> None:
        self.row = row
        self.config, self.photos = _config(row.kind)
        assert self.config.size is not None
        assert self.config.resize is not None
        self.size, self.resize = self.config.size, self.config.resize

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        files = self.photos.train
        numbers = itertools.count()
        if provider == "plain":
            draw = random.Random(0)
            scale = self.config.crop_scale
            return lambda: [
                load_photo(files[next(numbers) % len(files)], self.size, self.resize, scale, draw)
                for _ in range(_LOADED)
            ], {}
        cached = self.row.mode == "cached"
        options = {} if cached else {"cache_bytes": 0}
        data = _photo_folder(self.config, self.photos, **options)
        if cached:
            for index in range(len(data)):
                data[0, index]

        def call() -> list[Tensor]:
            keys = (divmod(next(numbers), len(data)) for _ in range(_LOADED))
            return [data[key]["image"] for key in keys]

        return call, {}

    def error(self, outputs: Any) -> None:
        expected = (3, self.size, self.size)
        if len(outputs) != _LOADED or any(tuple(image.shape) != expected for image in outputs):
            raise AssertionError(f"expected {_LOADED} images of shape {expected}")


def problem(row: Row) -> StepProblem | LoadingProblem:
    return LoadingProblem(row) if row.op == "data_loading" else StepProblem(row)


def test_training(
    row: Row, timing: str, provider: str, race: Callable[[Row, str, str], None]
) -> None:
    race(row, timing, provider)
