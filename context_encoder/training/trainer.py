"""Pretraining: the loop with a pretext's networks, photographs, validation and checkpoints.

The differences between pretexts are in :mod:`context_encoder.pretexts`. The inputs of a step
depend on (seed, step) alone, so a resumed run continues exactly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from context_encoder.config import TrainConfig
from context_encoder.data import DecodedCache, PhotoFolder, Replacements, make_loader, to_input
from context_encoder.optimization import Learner, MovingAverage, warmup_and_decay
from context_encoder.pretexts import Samples, find_pretext
from context_encoder.runs import (
    Checkpoint,
    Photos,
    RunError,
    load_weights,
    parse_state,
)
from context_encoder.training.graph import CapturedStep, Recorder, Step, cuda_graph
from context_encoder.training.loop import LoopState, TrainingLoop, check_weights
from context_encoder.training.validation import load_held_out, validate
from context_encoder.utils.device import Processes
from context_encoder.utils.image_grid import save_sheet

# With an average, a checkpoint's network is the average; the trained weights are needed to go on.
_TRAINED = "trained."

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Photos(BaseModel):
    count: int
    digest: str
    contents: str | None = None


class _State(LoopState):
    """The state of a run in ``state.json``."""

    metrics: dict[str, Finite]
    best: dict[str, Finite]
    scaler: dict[str, Finite]
    replaced: Annotated[int, Field(ge=0)] = 0
    photos: _Photos


class Trainer(TrainingLoop):
    """One run of pretraining.

    Args:
        config: resolved (see :func:`resolve`).
        photos: the files.
        device: that of this process.
        processes: the processes that train together.
        checkpoint: the checkpoint to resume, or None.
        record: how the step is captured with `graph`.

    Attributes:
        pretext: the task, with its networks.
        model: the network that is trained.
        average: the moving average of its weights, which is validated and saved instead of them;
            None without `ema`.
        latest: metrics of the last validation; empty before the first.
        best: metrics of the best validation so far and its "step".
        held_out: validation images, uint8 ``(N, 3, S, S)``; None before :meth:`fit`, and in
            all processes but the first.
        sheet: the last sample sheet.
        replaced: samples so far whose file could not be read, so that another took its place; in
            this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        photos: Photos,
        device: torch.device,
        processes: Processes,
        checkpoint: Checkpoint | None = None,
        *,
        record: Recorder = cuda_graph,
    ) -> None:
        self.config = config
        self.photos = photos
        self._digest = photos.digest()  # once: there may be a million names
        self._contents_digest = photos.contents_digest()
        self.held_out: Tensor | None = None
        self.best: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.sheet: Path | None = None
        self.replaced = 0

        torch.manual_seed(config.seed)
        self.pretext = find_pretext(config.pretext)(config, device)
        self.model = self.pretext.model
        self._parts = self.pretext.parts()
        self._memory_format = (
            torch.channels_last if config.channels_last else torch.contiguous_format
        )
        for part in self._parts.values():
            part.module.to(device, memory_format=self._memory_format)  # type: ignore[call-overload]
        super().__init__(
            Learner(
                {name: part.module for name, part in self._parts.items()},
                {
                    name: self._adam(part.module, part.lr, device)
                    for name, part in self._parts.items()
                },
                device,
                amp=config.amp,
                compile=config.compile,
                accumulate=config.accumulate,
                rates_on_device=True,
                processes=processes,
            ),
            steps=config.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            val_every=config.val_every,
            save_every=config.save_every,
            save_minutes=config.save_minutes,
            timeout=config.timeout,
        )
        self.average: MovingAverage | None = None
        if config.ema:
            self.average = MovingAverage(self.model, config.ema, captured=config.graph)
        # Dropout must differ between processes. Weights must not; they are drawn already.
        torch.manual_seed(config.seed + processes.rank)
        if checkpoint is not None:
            self._restore(checkpoint)
        self._step = self._captured(record) if config.graph else self._on_device

    def _adam(self, module: nn.Module, lr: float, device: torch.device) -> Optimizer:
        return Adam(
            module.parameters(),
            lr=lr,
            betas=(self.config.beta1, 0.999),
            weight_decay=self.config.weight_decay,
            fused=True,
            capturable=self.config.graph and device.type == "cuda",
        )

    def _captured(self, record: Recorder) -> Step:
        networks = [part.module for part in self._parts.values()]
        if self.average is not None:
            networks.append(self.average.module)
        return CapturedStep(
            self._on_device,
            networks=networks,
            optimizers=self.learner.optimizers.values(),
            others=self.learner.scale_tensors,
            record=record,
            device=self.device,
        )

    # --- steps --------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self.processes.first:
            size = self.pretext.crop_size(self.config)
            with self.interruptible():
                crops = load_held_out(self.config, self.photos, size)
            self.note_unreadable(list(crops.unreadable))
            self.held_out = crops.images
        for name in self._parts:
            self.learner.network(name).train()

    def batches(self) -> Iterator[tuple[Any, list[tuple[str, str]]]]:
        config, photos = self.config, self.photos
        assert config.resize is not None
        data = PhotoFolder(
            photos.train,
            root=photos.train_root,
            size=self.pretext.crop_size(config),
            resize=config.resize,
            crop_scale=config.crop_scale,
            flip=config.flip,
            seed=config.seed,
            train=True,
            decoded=None
            if config.decoded_cache is None
            else DecodedCache(config.decoded_cache, round(config.decoded_cache_gb * 1e9)),
        )
        loader = make_loader(
            data,
            batch_size=config.batch_size,
            workers=config.workers or 0,
            start_step=self.step,
            num_steps=config.steps - self.step,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            pin_memory=self.device.type == "cuda",
        )
        return self._counted(iter(loader))

    def _counted(self, batches: Iterator[Any]) -> Iterator[tuple[Any, list[tuple[str, str]]]]:
        """Batches and their unreadable files; DataError if too many samples replace others."""
        limit = Replacements(len(self.photos.train), self.config.max_unreadable)
        for batch in batches:
            replaced = int((batch["source"] != batch["index"]).sum())
            limit.add(len(batch["index"]), replaced, batch["unreadable"])
            yield batch, batch["unreadable"]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step on a batch of the loader; calls the pretext's ``train_step``."""
        config = self.config
        self.replaced += int(np.count_nonzero(batch["source"].numpy() != batch["index"].numpy()))
        cosine = config.lr_schedule == "cosine"
        self.learner.set_learning_rates(
            warmup_and_decay(
                self.step, config.steps, warmup_steps=config.warmup_steps, cosine=cosine
            )
        )
        if self.average is not None:
            self.average.advance()
        image, epoch, index = (batch[name] for name in ("image", "epoch", "index"))
        return self._step(image=image, epoch=epoch, index=index)

    def _on_device(self, *, image: Tensor, epoch: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The step on the device, which `graph` captures: it reads no tensor on the host, and no
        number that changes between steps."""
        image, epoch, index = (t.to(self.device, non_blocking=True) for t in (image, epoch, index))
        samples = Samples(to_input(image, self._memory_format), epoch, index)
        losses = self.pretext.train_step(samples, self.learner)
        self.learner.adjust_loss_scale()
        if self.average is not None:
            self.average.move(self.model)
        return losses

    # --- validation and checkpoints -----------------------------------------------------------

    def validate(self) -> None:
        assert self.held_out is not None
        with self._averaged(), self.interruptible():
            found = validate(self.pretext, self.held_out, self.device, self.step)
        self.latest = found.metrics
        self.record("val", found.metrics)
        if self.run is not None:
            self.sheet = self.run.sample_path(self.step)
            save_sheet(self.sheet, found.sheet, panels=2 if len(found.sheet[0][1]) % 2 == 0 else 1)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones."""
        if self.average is None:
            yield
            return
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(trained)

    def save(self) -> None:
        if self.run is None:
            return
        checkpoint = self._contents()
        check_weights(checkpoint.model, self.step)
        figure = self.pretext.best_metric
        best = figure in self.latest and self.latest[figure] > self.best.get(figure, -math.inf)
        if best:
            self.best = checkpoint.state["best"] = {"step": self.step, **self.latest}
        folder = self.run.save("last", checkpoint, self.config)
        if best:
            self.run.mark_best(folder)
        self.run.prune()

    def _contents(self) -> Checkpoint:
        tensors, state = self.loop_state()
        state |= {
            "metrics": self.latest,
            "best": self.best,
            "scaler": self.learner.scaler.state_dict(),
            "replaced": self.replaced,
            "photos": {
                "count": len(self.photos.train),
                "digest": self._digest,
                "contents": self._contents_digest,
            },
            "torch": torch.__version__,
        }
        model = self.model.state_dict()
        if self.average is not None:
            tensors |= {f"{_TRAINED}{name}": value for name, value in model.items()}
            model = self.average.module.state_dict()
        discriminator = self._parts.get("discriminator")
        return Checkpoint(
            model=model,
            discriminator=None if discriminator is None else discriminator.module.state_dict(),
            training=tensors,
            state=state,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = parse_state(_State, checkpoint)
        then = state.photos
        if then.digest != self._digest:
            raise ValueError(
                f"the training photographs have changed: {then.count} files then, "
                f"{len(self.photos.train)} now (or other names); resume with the same ones"
            )
        if then.contents not in (None, self._contents_digest):
            raise ValueError(
                "the training photographs have changed: files of the same names have other "
                "contents; resume with the same ones"
            )
        if state.processes is None and "random.cpu" not in checkpoint.training:
            raise RunError(f"checkpoint {checkpoint.path} cannot be used: random.cpu is missing")
        if (checkpoint.discriminator is None) == ("discriminator" in self._parts):
            what = "lacks" if "discriminator" in self._parts else "has"
            raise RunError(f"checkpoint {checkpoint.path} {what} a discriminator")
        weights = {"model": checkpoint.model, "discriminator": checkpoint.discriminator}
        if self.average is not None:
            load_weights(self.average.module, checkpoint.model, checkpoint.path)
            self.average.updates = state.step
            tensors = checkpoint.training
            trained = {name for name in tensors if name.startswith(_TRAINED)}
            weights["model"] = {name.removeprefix(_TRAINED): tensors[name] for name in trained}
            others = {name: value for name, value in tensors.items() if name not in trained}
            checkpoint = replace(checkpoint, training=others)
        for name, part in self._parts.items():
            load_weights(part.module, weights[name] or {}, checkpoint.path)
        self.restore_loop(checkpoint, state)
        self.best, self.latest = dict(state.best), dict(state.metrics)
        self.replaced = state.replaced
        if state.scaler and self.learner.scaler.is_enabled():
            try:
                self.learner.scaler.load_state_dict(state.scaler)
            except (KeyError, TypeError, RuntimeError) as error:
                raise RunError(
                    f"checkpoint {checkpoint.path} cannot be used: scaler: {error}"
                ) from error
