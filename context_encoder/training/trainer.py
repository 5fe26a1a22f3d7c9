"""The training loop: batches, Adam, validation, checkpoints, whatever the pretext.

What the pretexts differ in is in :mod:`context_encoder.pretexts`. Nothing in a step waits for the
device: losses are summed there and read every ``log_every`` steps. What a step sees depends on
(seed, step) alone, so a resumed run goes on exactly.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from context_encoder.config import TrainConfig
from context_encoder.data import PhotoFolder, load_crops, make_loader
from context_encoder.pretexts import PRETEXTS, Samples
from context_encoder.runs import (
    Checkpoint,
    Photos,
    RunFolder,
    load_weights,
)
from context_encoder.runs.checkpoint import load_optimizer, optimizer_tensors
from context_encoder.utils.device import Processes
from context_encoder.utils.image_grid import save_sheet

log = logging.getLogger(__name__)

_VALIDATION_BATCH = 32
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteError(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    steps: int
    interrupted: bool
    seconds: float
    metrics: dict[str, float]
    best: dict[str, float]
    sheet: Path | None
    unreadable: int


class Trainer:
    """One training run.

    Args:
        config: resolved (see :func:`resolve`).
        photos: the files.
        device: this process's.
        processes: those that train together.
        checkpoint: to go on from, or None.
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
        self._digest = photos.digest()  # of maybe a million names: once, not at every save
        self.run: RunFolder | None = None
        self.device = device
        self.processes = processes
        self.step = 0
        self.stop_requested = False
        #: What asked for it, for the log; empty if nothing did.
        self.stop_reason = ""
        self.unreadable: set[str] = set()
        self._unreported: list[tuple[str, str]] = []
        self.best: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.sheet: Path | None = None

        torch.manual_seed(config.seed)
        self.pretext = PRETEXTS[config.pretext](config, device)
        self.model = self.pretext.model
        self._parts = self.pretext.parts()

        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._memory_format = memory_format
        self._optimizers: dict[str, Optimizer] = {}
        for name, part in self._parts.items():
            part.module.to(device, memory_format=memory_format)  # type: ignore[call-overload]
            self._optimizers[name] = self._adam(part.module, part.lr)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        # Dropout must differ between processes; weights must not, and are drawn by now.
        torch.manual_seed(config.seed + processes.rank)
        self._restored = checkpoint is not None
        if checkpoint is not None:
            self._restore(checkpoint)
        self._networks = {name: self._wrap(part.module) for name, part in self._parts.items()}
        self._sums: Tensor | None = None
        self._summed = 0

    # --- set-up -------------------------------------------------------------------------------

    def _adam(self, module: nn.Module, lr: float) -> Optimizer:
        return Adam(
            module.parameters(),
            lr=lr,
            betas=(self.config.beta1, 0.999),
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def _wrap(self, module: nn.Module) -> nn.Module:
        wrapped: nn.Module = torch.compile(module) if self.config.compile else module  # type: ignore[assignment]
        if self.processes.world_size > 1:
            index = None if self.device.index is None else [self.device.index]
            wrapped = DistributedDataParallel(wrapped, device_ids=index)
        return wrapped

    def _loader(self) -> Iterator[Any]:
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
        return iter(
            make_loader(
                data,
                batch_size=config.batch_size,
                workers=config.workers or 0,
                start_step=self.step,
                num_steps=config.steps - self.step,
                rank=self.processes.rank,
                world_size=self.processes.world_size,
                pin_memory=self.device.type == "cuda",
            )
        )

    def _load_validation(self) -> Tensor:
        """Held-out pictures, uint8 ``(N, 3, S, S)``."""
        config, photos = self.config, self.photos
        assert config.resize is not None
        crops = load_crops(
            photos.val,
            photos.val_root,
            size=self.pretext.crop_size(config),
            resize=config.resize,
            crop_scale=config.crop_scale,
            samples=config.val_samples,
            description="reading held-out photographs",
        )
        self._note_unreadable(list(crops.unreadable))
        return crops.images

    # --- one step -----------------------------------------------------------------------------

    def _to_float(self, image: Tensor) -> Tensor:
        floating = image.to(self.device, non_blocking=True).float().div_(127.5).sub_(1)
        return floating.contiguous(memory_format=self._memory_format)

    def _lr_factor(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / (config.warmup_steps + 1))
        if config.lr_schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step on a batch of the loader: the losses, 0-dimensional, still on the device."""
        samples = Samples(
            self._to_float(batch["image"]),
            batch["epoch"].to(self.device, non_blocking=True),
            batch["index"].to(self.device, non_blocking=True),
        )
        losses = self.pretext.losses(samples, self)
        self.backward(losses["loss"])
        self.update("model")
        self._scaler.update()
        return {name: loss.detach() for name, loss in losses.items()}

    @property
    def world_size(self) -> int:
        """See :class:`context_encoder.pretexts.Learner`, whose methods follow."""
        return self.processes.world_size

    def network(self, name: str) -> nn.Module:
        return self._networks[name]

    def autocast(self) -> torch.autocast:
        dtype = _AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def update(self, name: str) -> None:
        optimizer = self._optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self._parts[name].lr * self._lr_factor()
        self._scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    # --- the loop -----------------------------------------------------------------------------

    def fit(self, run: RunFolder | None) -> Outcome:
        """Train to the last step, or until ``stop_requested`` is set.

        Args:
            run: where results go, started; None in all processes but the first.

        Raises:
            NonFiniteError: the loss is not finite; the last checkpoint is from before.
        """
        config, first = self.config, self.processes.first
        self.run = run
        started = time.monotonic()
        validation = self._load_validation() if first else None
        writer = (
            SummaryWriter(self.run.path / "tensorboard", purge_step=self.step + 1)
            if self.run
            else None
        )
        for network in self._networks.values():
            network.train()
        loader = self._loader() if self.step < config.steps else iter(())
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            unit="step",
            disable=not first,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        # A new run has nothing to go on from, even before its first step.
        saved = self.step if self._restored else -1
        mark = time.monotonic()
        try:
            with bar:
                while self.step < config.steps and not self._stopping():
                    batch = next(loader)
                    self._note_unreadable(batch["unreadable"])
                    losses = self.train_step(batch)
                    self.step += 1
                    self._accumulate(losses)
                    bar.update()
                    last = self.step == config.steps
                    if self.step % config.log_every == 0 or last:
                        means = self._read_losses(losses.keys())
                        self._report_unreadable()
                        now = time.monotonic()
                        speed = self._summed * config.batch_size / (now - mark)
                        self._summed, mark = 0, now
                        bar.set_postfix(loss=f"{means['loss']:.4f}", img_s=f"{speed:.0f}")
                        values = {
                            **means,
                            "images_per_s": round(speed, 1),
                            "lr": self._optimizers["model"].param_groups[0]["lr"],
                        }
                        self._log("train", values, writer)
                    if self.step % config.val_every == 0 or last:
                        paused = time.monotonic()
                        self._validate_and_save(validation, writer)
                        saved = self.step
                        mark += time.monotonic() - paused
            interrupted = self.step < config.steps
            if interrupted and self.stop_reason and first:
                log.info("%s: stopped after step %d, saving", self.stop_reason, self.step)
            if interrupted and self.step > saved:
                if self._summed:
                    self._read_losses(losses.keys())
                self._report_unreadable()
                self._save()
        finally:
            if writer is not None:
                writer.close()
        return Outcome(
            self.step,
            config.steps,
            interrupted,
            time.monotonic() - started,
            self.latest,
            self.best,
            self.sheet,
            len(self.unreadable),
        )

    def _stopping(self) -> bool:
        if self.processes.world_size == 1:
            return self.stop_requested
        # All processes must leave the loop at the same step; asking costs a wait, so seldom.
        if self.step % self.config.log_every:
            return False
        flag = torch.tensor(float(self.stop_requested), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def _accumulate(self, losses: dict[str, Tensor]) -> None:
        values = torch.stack([value.float() for value in losses.values()])
        self._sums = values if self._sums is None else self._sums + values
        self._summed += 1

    def _read_losses(self, names: Any) -> dict[str, float]:
        """Mean losses since the last call; the one place where a step waits for the device."""
        assert self._sums is not None
        means = self._sums / self._summed
        if self.processes.world_size > 1:
            dist.all_reduce(
                means, dist.ReduceOp.AVG if self.device.type == "cuda" else dist.ReduceOp.SUM
            )
            if self.device.type != "cuda":
                means /= self.processes.world_size
        self._sums = None
        values = dict(zip(names, means.tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} is {value} within the {self.config.log_every} steps up to step "
                    f"{self.step}; the checkpoints of earlier steps are kept. Lower --lr, or use "
                    "--amp bf16 or off in place of fp16."
                )
        return values

    def _log(self, split: str, values: dict[str, float], writer: SummaryWriter | None) -> None:
        if self.run is not None:
            self.run.log(split, self.step, values)
        if writer is not None:
            for name, value in values.items():
                writer.add_scalar(f"{split}/{name}", value, self.step)

    def _note_unreadable(self, failures: list[tuple[str, str]]) -> None:
        for name, reason in failures:
            if name not in self.unreadable:
                self.unreadable.add(name)
                if not self.processes.first:
                    self._unreported.append((name, reason))
                    continue
                log.warning("skipped %s: %s", name, reason)
                if self.run is not None:
                    self.run.log_unreadable(Path(name), reason)

    def _report_unreadable(self) -> None:
        """Tell the first process what the others could not read."""
        if self.world_size == 1:
            return
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, self._unreported)
        self._unreported = []
        if self.processes.first:
            for failures in gathered:
                self._note_unreadable(failures)

    # --- validation and checkpoints -----------------------------------------------------------

    def _validate_and_save(self, images: Tensor | None, writer: SummaryWriter | None) -> None:
        """What the first process does; where it meets NonFiniteError, all raise it."""
        failure: list[NonFiniteError | None] = [None]
        try:
            if images is not None:
                self._validate(images, writer)
            self._save()
        except NonFiniteError as error:
            failure = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    @torch.no_grad()
    def _validate(self, images: Tensor, writer: SummaryWriter | None) -> None:
        self.model.eval()
        rows = self.config.sample_rows
        per_image: dict[str, list[Tensor]] = {}
        shown: dict[str, list[Tensor]] = {}
        for index in torch.arange(len(images)).split(_VALIDATION_BATCH):
            on_device = index.to(self.device)
            samples = Samples(self._to_float(images[index]), torch.zeros_like(on_device), on_device)
            metrics, columns = self.pretext.validate(samples)
            for name, values in metrics.items():
                per_image.setdefault(name, []).append(values)
            if index[0] < rows:
                for title, pictures in columns:
                    shown.setdefault(title, []).append(pictures.cpu())
        self.model.train()
        means = {name: float(torch.cat(values).mean()) for name, values in per_image.items()}
        if not all(map(math.isfinite, means.values())):
            raise NonFiniteError(
                f"the output for held-out pictures is not finite at step {self.step}; the "
                "checkpoints of earlier steps are kept. Lower --lr."
            )
        self.latest = means
        self._log("val", self.latest, writer)
        if self.run is not None:
            sheet = [(title, torch.cat(pictures)[:rows]) for title, pictures in shown.items()]
            self.sheet = self.run.sample_path(self.step)
            save_sheet(self.sheet, sheet, panels=2 if len(sheet[0][1]) % 2 == 0 else 1)

    def _save(self) -> None:
        if self.run is None:
            return
        checkpoint = self._checkpoint()
        for name, tensor in checkpoint.model.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"weights {name} are not finite at step {self.step}; the checkpoints of "
                    "earlier steps are kept. Lower --lr."
                )
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
        for name, optimizer in self._optimizers.items():
            training |= optimizer_tensors(name, optimizer)
        state = {
            "step": self.step,
            "metrics": self.latest,
            "best": self.best,
            "scaler": self._scaler.state_dict(),
            "unreadable": sorted(self.unreadable),
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
                f"{len(self.photos.train)} now (or other names); a run continues with the same ones"
            )
        source = Path("the checkpoint")
        weights = {"model": checkpoint.model, "discriminator": checkpoint.discriminator}
        for name, part in self._parts.items():
            load_weights(part.module, weights[name] or {}, source)
            load_optimizer(name, self._optimizers[name], checkpoint.training)
        self.step = int(checkpoint.state["step"])
        self.best = dict(checkpoint.state["best"])
        self.latest = dict(checkpoint.state["metrics"])
        self.unreadable = set(checkpoint.state["unreadable"])
        if checkpoint.state["scaler"]:
            self._scaler.load_state_dict(checkpoint.state["scaler"])
        if self.processes.first:
            torch.set_rng_state(checkpoint.training["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in checkpoint.training:
                torch.cuda.set_rng_state(checkpoint.training["random.cuda"], self.device)
        else:
            # Only the first process's generators are saved; the others start afresh.
            torch.manual_seed(self.config.seed + self.processes.rank + (self.step << 16))
