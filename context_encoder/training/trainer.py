"""Pretraining: the loop with a pretext's networks, photographs, validation and checkpoints.

The differences between pretexts are in :mod:`context_encoder.pretexts`. The inputs of a step
depend on (seed, step) alone, so a resumed run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from context_encoder.config import TrainConfig
from context_encoder.data import PhotoFolder, Replacements, make_loader, to_input
from context_encoder.optimization import Learner, warmup_and_decay
from context_encoder.pretexts import Samples, find_pretext
from context_encoder.runs import (
    Checkpoint,
    Photos,
    load_weights,
)
from context_encoder.runs.checkpoint import load_optimizer, optimizer_tensors
from context_encoder.training.loop import TrainingLoop, check_weights
from context_encoder.training.validation import load_held_out, validate
from context_encoder.utils.device import Processes
from context_encoder.utils.image_grid import save_sheet


class Trainer(TrainingLoop):
    """One run of pretraining.

    Args:
        config: resolved (see :func:`resolve`).
        photos: the files.
        device: that of this process.
        processes: the processes that train together.
        checkpoint: the checkpoint to resume, or None.

    Attributes:
        pretext: the task, with its networks.
        model: the network that checkpoints hold.
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
    ) -> None:
        self.config = config
        self.photos = photos
        self._digest = photos.digest()  # once: there may be a million names
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
                {name: self._adam(part.module, part.lr) for name, part in self._parts.items()},
                device,
                amp=config.amp,
                compile=config.compile,
                processes=processes,
            ),
            steps=config.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            save_every=config.val_every,
        )
        # Dropout must differ between processes. Weights must not; they are drawn already.
        torch.manual_seed(config.seed + processes.rank)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _adam(self, module: nn.Module, lr: float) -> Optimizer:
        return Adam(
            module.parameters(),
            lr=lr,
            betas=(self.config.beta1, 0.999),
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    # --- steps --------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self.processes.first:
            size = self.pretext.crop_size(self.config)
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
            self.replaced += replaced
            yield batch, batch["unreadable"]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step on a batch of the loader; calls the pretext's ``train_step``."""
        config, device = self.config, self.device
        samples = Samples(
            to_input(batch["image"].to(device, non_blocking=True), self._memory_format),
            batch["epoch"].to(device, non_blocking=True),
            batch["index"].to(device, non_blocking=True),
        )
        cosine = config.lr_schedule == "cosine"
        self.learner.set_learning_rates(
            warmup_and_decay(
                self.step, config.steps, warmup_steps=config.warmup_steps, cosine=cosine
            )
        )
        losses = self.pretext.train_step(samples, self.learner)
        self.learner.adjust_loss_scale()
        return losses

    # --- validation and checkpoints -----------------------------------------------------------

    def validate(self) -> None:
        assert self.held_out is not None
        found = validate(self.pretext, self.held_out, self.device, self.step)
        self.latest = found.metrics
        self.record("val", found.metrics)
        if self.run is not None:
            self.sheet = self.run.sample_path(self.step)
            save_sheet(self.sheet, found.sheet, panels=2 if len(found.sheet[0][1]) % 2 == 0 else 1)

    def save(self) -> None:
        if self.run is None:
            return
        checkpoint = self._checkpoint()
        check_weights(checkpoint.model, self.step)
        figure = self.pretext.best_metric
        if figure in self.latest and self.latest[figure] > self.best.get(figure, -math.inf):
            self.best = {"step": self.step, **self.latest}
            checkpoint.state["best"] = self.best
            self.run.save("best", checkpoint, self.config)
        self.run.save("last", checkpoint, self.config)

    def _checkpoint(self) -> Checkpoint:
        training = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            training["random.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, optimizer in self.learner.optimizers.items():
            training |= optimizer_tensors(name, optimizer)
        state = {
            "step": self.step,
            "metrics": self.latest,
            "best": self.best,
            "scaler": self.learner.scaler.state_dict(),
            "unreadable": sorted(self.unreadable),
            "replaced": self.replaced,
            "photos": {"count": len(self.photos.train), "digest": self._digest},
            "torch": torch.__version__,
        }
        discriminator = self._parts.get("discriminator")
        return Checkpoint(
            model=self.model.state_dict(),
            discriminator=None if discriminator is None else discriminator.module.state_dict(),
            training=training,
            state=state,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        then = checkpoint.state["photos"]
        if then["digest"] != self._digest:
            raise ValueError(
                f"the training photographs have changed: {then['count']} files then, "
                f"{len(self.photos.train)} now (or other names); resume with the same ones"
            )
        source = Path("the checkpoint")
        weights = {"model": checkpoint.model, "discriminator": checkpoint.discriminator}
        for name, part in self._parts.items():
            load_weights(part.module, weights[name] or {}, source)
            load_optimizer(name, self.learner.optimizers[name], checkpoint.training)
        self.mark_resumed(int(checkpoint.state["step"]))
        self.best = dict(checkpoint.state["best"])
        self.latest = dict(checkpoint.state["metrics"])
        self.unreadable = set(checkpoint.state["unreadable"])
        self.replaced = int(checkpoint.state.get("replaced", 0))
        if checkpoint.state["scaler"]:
            self.learner.scaler.load_state_dict(checkpoint.state["scaler"])
        if self.processes.first:
            torch.set_rng_state(checkpoint.training["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in checkpoint.training:
                torch.cuda.set_rng_state(checkpoint.training["random.cuda"], self.device)
        else:
            # Only the generators of the first process are saved; the others are seeded anew.
            torch.manual_seed(self.config.seed + self.processes.rank + (self.step << 16))
