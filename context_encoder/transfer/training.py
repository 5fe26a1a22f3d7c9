"""The training loop that the three transfers to PASCAL VOC share.

What a step sees depends on (seed, step) alone, so a resumed run goes on exactly.
"""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from context_encoder.data import SampleStream, UnreadableImage, read_image, start_worker
from context_encoder.runs import (
    Checkpoint,
    RunError,
    RunFolder,
    find_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    read_checkpoint,
    run_root,
)
from context_encoder.training.signals import stop_on_signal
from context_encoder.training.trainer import NonFiniteError
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.results import markdown
from context_encoder.transfer.task import Task
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.files import write_file

log = logging.getLogger("context_encoder")


C = TypeVar("C", bound=TransferConfig)


class _Samples(Dataset[Any]):
    """Training samples by (epoch, index); a file that cannot be read gives way to the next."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[tuple[str, str]]]:
        epoch, index = key
        items = self.task.items
        failures: list[tuple[str, str]] = []
        for shift in range(len(items)):
            item = items[(index + shift) % len(items)]
            try:
                # Annotations are of the pixels as they are stored.
                image = read_image(item.image, upright=False)
            except UnreadableImage as error:
                failures.append((str(error.path), error.reason))
                continue
            return self.task.sample(
                image, item, np.random.default_rng((self.seed, epoch, index))
            ), failures
        raise ValueError(f"none of the {len(items)} pictures can be read, as {failures[0]}")


def _collate(samples: list[tuple[Any, list[tuple[str, str]]]]) -> tuple[list[Any], Any]:
    return [sample for sample, _ in samples], [f for _, failures in samples for f in failures]


class Training:
    """One run of a task, on one device."""

    def __init__(
        self, config: TransferConfig, task: Task, device: torch.device, digest: str
    ) -> None:
        self.config = config
        self.task = task
        self.device = device
        self.digest = digest
        self.step = 0
        self.stop_requested = False
        self.stop_reason = ""
        self.unreadable: dict[str, str] = {}
        task.model.to(device)
        self._optimizer = self._sgd()

    def _sgd(self) -> torch.optim.SGD:
        config = self.config
        named = [(n, p) for n, p in self.task.model.named_parameters() if p.requires_grad]
        biases = [p for n, p in named if n.endswith("bias")]
        others = [p for n, p in named if not n.endswith("bias")]
        decay = config.weight_decay if config.bias_decay else 0.0
        return torch.optim.SGD(
            [
                {"params": others, "factor": 1.0},
                {"params": biases, "factor": config.bias_lr, "weight_decay": decay},
            ],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; ValueError if the pictures are others."""
        if checkpoint.state["digest"] != self.digest:
            raise ValueError("the training pictures have changed; a run continues with the same")
        load_weights(self.task.model, checkpoint.model, Path("the checkpoint"))
        load_optimizer("model", self._optimizer, checkpoint.training)
        self.step = int(checkpoint.state["step"])
        self.unreadable = dict(checkpoint.state["unreadable"])

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model=self.task.model.state_dict(),
            discriminator=None,
            training=optimizer_tensors("model", self._optimizer),
            state={"step": self.step, "digest": self.digest, "unreadable": self.unreadable},
        )

    def fit(self, run: RunFolder) -> bool:
        """Train to the last step or until ``stop_requested``; whether the last step was reached.

        Raises:
            NonFiniteError: the loss is no finite number.
        """
        config = self.config
        self.task.model.train()
        self.task.encoder.eval()
        loader: DataLoader[Any] = DataLoader(
            _Samples(self.task, config.seed),
            batch_size=config.batch_size,
            sampler=SampleStream(
                len(self.task.items),
                seed=config.seed,
                batch_size=config.batch_size,
                start_step=self.step,
                num_steps=config.steps - self.step,
            ),
            collate_fn=_collate,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )
        batches = iter(loader)
        sums: dict[str, Tensor] = {}
        summed, mark, saved = 0, time.monotonic(), self.step
        with tqdm(total=config.steps, initial=self.step, unit="step", dynamic_ncols=True) as bar:
            while self.step < config.steps and not self.stop_requested:
                samples, failures = next(batches)
                self._note(failures, run)
                losses = self._train_step(samples)
                for name, value in losses.items():
                    sums[name] = sums[name] + value if name in sums else value
                self.step += 1
                summed += 1
                bar.update()
                last = self.step == config.steps or self.stop_requested
                saving = last or self.step % config.save_every == 0
                # Before every checkpoint: what made a loss that is not finite is not saved.
                if saving or self.step % config.log_every == 0:
                    means = {name: float(value) / summed for name, value in sums.items()}
                    if not all(map(math.isfinite, means.values())):
                        raise NonFiniteError(
                            f"the loss is not finite at step {self.step}: {means}; lower --lr. "
                            "Earlier checkpoints are kept."
                        )
                    speed = summed * config.batch_size / (time.monotonic() - mark)
                    bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
                    lr = self._optimizer.param_groups[0]["lr"]
                    run.log("train", self.step, {**means, "lr": lr, "images_per_s": speed})
                    sums, summed, mark = {}, 0, time.monotonic()
                if saving:
                    run.save("last", self._checkpoint(), config)
                    saved = self.step
        if self.stop_requested and saved < self.step:
            run.save("last", self._checkpoint(), config)
        return self.step == config.steps

    def _train_step(self, samples: list[Any]) -> dict[str, Tensor]:
        config = self.config
        # Dropout is a function of (seed, step) too.
        torch.manual_seed((config.seed * 1_000_003 + self.step) % 2**63)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
            losses = self.task.losses(samples, self.device)
        next(iter(losses.values())).backward()
        if config.clip is not None:
            clip_grad_norm_(
                [p for group in self._optimizer.param_groups for p in group["params"]], config.clip
            )
        decayed = config.lr
        if config.lr_step is not None:
            decayed *= config.lr_gamma ** (self.step // config.lr_step)
        for group in self._optimizer.param_groups:
            group["lr"] = decayed * group["factor"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in losses.items()}

    def _note(self, failures: list[tuple[str, str]], run: RunFolder) -> None:
        for name, reason in failures:
            if name not in self.unreadable:
                self.unreadable[name] = reason
                log.warning("skipped %s: %s", name, reason)
                run.log_unreadable(Path(name), reason)


def run_task(config: C, command: str, make: Any, digest: str) -> int:
    """Train, judge, write ``results.json`` and ``results.md``. Returns the exit status.

    Args:
        config: of the run.
        command: its name.
        make: called with the network to start from, returns the :class:`Task`; only once
            everything else is known to be there.
        digest: changes when the training pictures do.
    """
    device = choose_device(config.device, Processes())
    out = config.out or Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    checkpoint = None
    if config.resume is not None:
        root = run_root(config.resume)
        if root is None:
            raise RunError(f"--resume {config.resume} is a checkpoint outside its run folder")
        out = root
        checkpoint = read_checkpoint(find_checkpoint(config.resume, "last"))
    run = RunFolder(out, None if checkpoint is None else int(checkpoint.state["step"]))
    config = config.model_copy(update={"out": out, "resume": None})
    network = config.load(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task: Task = make(network)
    training = Training(config, task, device, digest)
    if checkpoint is not None:
        training.restore(checkpoint)
    run.start(config)
    parameters = sum(p.numel() for p in task.model.parameters())
    log.info("%s: %s from %s", out, command, config.describe())
    log.info(
        "  %d pictures, %.2f M parameters, steps %d to %d on %s",
        len(task.items), parameters / 1e6, training.step, config.steps, device,
    )  # fmt: skip
    with stop_on_signal(training), logging_redirect_tqdm():
        if not training.fit(run):
            log.info(
                "%s: stopped at step %d, saved; go on with", training.stop_reason, training.step
            )
            log.info("  python -m context_encoder.transfer %s --resume %s", command, out)
            return 0
    task.model.eval()
    with torch.no_grad():
        result = task.evaluate(device)
    result = {
        "command": command,
        "network": config.describe(),
        "steps": training.step,
        "unreadable": len(training.unreadable) + int(result.pop("unreadable")),
        **result,
    }
    run.log("test", training.step, result["metrics"])
    write_file(out / "results.json", json.dumps(result, indent=2) + "\n")
    write_file(out / "results.md", markdown(result))
    log.info("%s", markdown(result))
    log.info("written to %s", out)
    return 0
