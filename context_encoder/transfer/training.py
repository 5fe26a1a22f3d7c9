"""Training of the three transfers to PASCAL VOC.

The inputs of a step depend on (seed, step) alone, so a resumed run continues exactly.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.contrib.logging import logging_redirect_tqdm

from context_encoder.data import Readable, Replacements, SampleStream, read_image, sample_loader
from context_encoder.optimization import Learner, step_decay
from context_encoder.runs import (
    Checkpoint,
    RunError,
    RunFolder,
    contents_digest,
    find_checkpoint,
    load_weights,
    parse_state,
    read_checkpoint,
    run_root,
)
from context_encoder.training.failure import with_advice
from context_encoder.training.loop import LoopState, TrainingLoop, check_weights
from context_encoder.training.signals import stop_on_signal
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.results import markdown
from context_encoder.transfer.task import Task
from context_encoder.utils.cli import stopped_by
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.files import write_file

log = logging.getLogger("context_encoder")


C = TypeVar("C", bound=TransferConfig)


class _Samples(Dataset[Any]):
    """Training samples by (epoch, index); the next file replaces an unreadable one."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.seed = seed
        count = len(task.items)
        self._readable = Readable(count, self._image, self._name, f"{count} images")

    def _name(self, number: int) -> str:
        return str(self.task.items[number].image)

    def _image(self, number: int) -> Image.Image:
        # Annotations refer to the stored pixels, without EXIF orientation.
        return read_image(self.task.items[number].image, upright=False)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[tuple[str, str]], bool]:
        """The sample, newly found unreadable files, and whether it replaces another one."""
        epoch, index = key
        source, image, failures = self._readable(index)
        random = np.random.default_rng((self.seed, epoch, index))
        sample = self.task.sample(image, self.task.items[source], random)
        return sample, failures, source != index


def _collate(samples: list[Any]) -> tuple[list[Any], list[tuple[str, str]], int]:
    taken, failures, replaced = zip(*samples, strict=True)
    return list(taken), [f for found in failures for f in found], sum(replaced)


class Training(TrainingLoop):
    """One run of a task, on one device."""

    def __init__(
        self, config: TransferConfig, task: Task, device: torch.device, digest: str
    ) -> None:
        self.config = config
        self.task = task
        self.digest = digest
        self._contents = contents_digest([item.image for item in task.items])
        task.model.to(device)
        super().__init__(
            Learner(
                {"model": task.model},
                {"model": self._sgd()},
                device,
                amp=config.amp,
                clip=config.clip,
            ),
            steps=config.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            val_every=config.save_every,
            save_minutes=config.save_minutes,
        )

    def _sgd(self) -> torch.optim.SGD:
        config = self.config
        named = [(n, p) for n, p in self.task.model.named_parameters() if p.requires_grad]
        biases = [p for n, p in named if n.endswith("bias")]
        others = [p for n, p in named if not n.endswith("bias")]
        decay = config.weight_decay if config.bias_decay else 0.0
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": biases, "lr": config.lr * config.bias_lr, "weight_decay": decay},
        ]
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def prepare(self) -> None:
        self.task.model.train()
        self.task.encoder.eval()

    def batches(self) -> Iterator[tuple[list[Any], list[tuple[str, str]]]]:
        config = self.config
        loader = sample_loader(
            _Samples(self.task, config.seed),
            batch_size=config.batch_size,
            sampler=SampleStream(
                len(self.task.items),
                seed=config.seed,
                batch_size=config.batch_size,
                start_step=self.step,
                num_steps=config.steps - self.step,
            ),
            collate=_collate,
            workers=config.workers,
        )
        return self._counted(iter(loader))

    def _counted(self, batches: Iterator[Any]) -> Iterator[tuple[list[Any], list[tuple[str, str]]]]:
        limit = Replacements(len(self.task.items), self.config.max_unreadable)
        for samples, unreadable, replaced in batches:
            limit.add(len(samples), replaced, unreadable)
            yield samples, unreadable

    def train_step(self, batch: list[Any]) -> dict[str, Tensor]:
        config, learner = self.config, self.learner
        learner.set_learning_rates(step_decay(self.step, config.lr_step, config.lr_gamma))
        # Makes dropout a function of (seed, step).
        torch.manual_seed((config.seed * 1_000_003 + self.step) % 2**63)
        with learner.autocast():
            losses = self.task.losses(batch, self.device)
        learner.backward(losses["loss"])
        learner.update_weights("model")
        return {name: value.detach() for name, value in losses.items()}

    def validate(self) -> None:
        """No validation: VOC's split has no held-out part. :meth:`Task.evaluate` ends the run."""

    def save(self) -> None:
        if self.run is None:
            return
        weights = self.task.model.state_dict()
        check_weights(weights, self.step)
        tensors, state = self.loop_state()
        state |= {"digest": self.digest, "contents": self._contents}
        self.run.save("last", Checkpoint(weights, None, tensors, state), self.config)
        self.run.prune()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint.

        Raises:
            RunError: the checkpoint does not fit the task.
            ValueError: the images have changed.
        """
        state = parse_state(_State, checkpoint)
        if state.digest != self.digest or state.contents not in (None, self._contents):
            raise ValueError("the training images have changed; resume with the same ones")
        load_weights(self.task.model, checkpoint.model, checkpoint.path)
        self.restore_loop(checkpoint, state)


class _State(LoopState):
    digest: str
    contents: str | None = None


def run_task(config: C, command: str, make: Any, digest: str) -> int:
    """Train, evaluate, write ``results.json`` and ``results.md``. Returns the exit status.

    Args:
        config: configuration of the run.
        command: name of the transfer.
        make: called with the pretrained network after all other checks; returns the
            :class:`Task`.
        digest: a digest of the training images.
    """
    device = choose_device(config.device, Processes())
    out = config.out or Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    checkpoint = None
    if config.resume is not None:
        root = run_root(config.resume)
        if root is None:
            raise RunError(f"`resume` {config.resume} is a checkpoint outside its run folder")
        out = root
        checkpoint = read_checkpoint(find_checkpoint(config.resume, "last"))
    run = RunFolder(out, checkpoint, keep=config.keep)
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
        "  %d images, %.2f M parameters, steps %d to %d on %s",
        len(task.items), parameters / 1e6, training.step, config.steps, device,
    )  # fmt: skip
    with (
        contextlib.closing(run),
        with_advice(out, f"transfer {command}"),
        stop_on_signal(training),
        logging_redirect_tqdm(),
    ):
        if training.fit(run).interrupted:
            log.info("stopped at step %d of %d, saved; go on with", training.step, config.steps)
            log.info("  python -m context_encoder.transfer %s --resume %s", command, out)
            return stopped_by(signal.Signals[training.stop_reason or "SIGINT"])
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
