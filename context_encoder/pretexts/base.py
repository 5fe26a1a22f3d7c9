"""Interface between pretexts and the trainer: networks, training step and validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from context_encoder.config import TrainConfig
from context_encoder.config.build import build_network
from context_encoder.models import Network
from context_encoder.optimization import Learner

#: Held-out images get the same holes, noise and patches in every run, whatever its seed.
VALIDATION_SEED = 20160427

#: A title and images ``(B, 3, H, W)`` on [0, 1].
Column = tuple[str, Tensor]


@dataclass(frozen=True)
class Samples:
    """A batch on the device."""

    image: Tensor  #: float32 ``(B, 3, S, S)`` on [-1, 1]
    epoch: Tensor  #: int64 ``(B,)``
    index: Tensor  #: int64 ``(B,)``; epoch and index are the key of every random draw


@dataclass(frozen=True)
class Part:
    """A network to train, and its learning rate before the schedule."""

    module: nn.Module
    lr: float


class Pretext(ABC):
    """A task to learn from: one object per run, created after the run's seed is set.

    Args:
        config: resolved, see :func:`context_encoder.training.resolve`.
        device: that of the run. Tables of random draws are moved there; the trainer moves the
            networks.
    """

    #: The validation metric that selects the best checkpoint; higher is better.
    best_metric: ClassVar[str]

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.model = self.build(config)

    @classmethod
    def resolve(cls, config: TrainConfig) -> dict[str, Any]:
        """Fill in the pretext's own options.

        Args:
            config: with ``size``.

        Raises:
            ValueError: the options do not fit each other or the model.
        """
        return {}

    @classmethod
    def crop_size(cls, config: TrainConfig) -> int:
        """Side in pixels of the crops that a resolved configuration trains on."""
        assert config.size is not None
        return config.size

    @classmethod
    def build(cls, config: TrainConfig) -> Network:
        """The network of a resolved configuration, as in checkpoints, with fresh weights."""
        return build_network(config)

    @classmethod
    def fixed_hole(cls, config: TrainConfig, output_side: int) -> tuple[int, int, int, int] | None:
        """The one region (top, left, height, width) that is missing in every training sample.

        Args:
            config: resolved.
            output_side: side of the network's prediction in pixels.

        Returns:
            None if holes may be anywhere, or there are none.
        """
        return None

    def parts(self) -> dict[str, Part]:
        """All networks to train: "model" and, for some pretexts, others."""
        return {"model": Part(self.model, self.config.lr)}

    @abstractmethod
    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        """One training step, from the batch to the updates of all :meth:`parts`.

        The caller sets the learning rates before and adjusts the loss scale afterwards. The step
        must not read a tensor on the host, make one from Python data, or depend on anything that
        changes between steps but the samples: with `graph`, it is recorded once and replayed. It
        computes gradients in :meth:`Learner.micro_batches`.

        Args:
            samples: the batch.
            learner: calls the networks and updates their weights.

        Returns:
            The losses for the log, ``()`` each, detached: "loss", which the model minimizes, first.
        """

    @abstractmethod
    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        """Evaluate the network, in eval mode, on held-out images (``epoch`` is 0).

        Returns:
            Metrics per image, ``(B,)`` each, and the columns of the sample sheet. A metric
            "contrast" is not averaged: images in which it is below
            :data:`context_encoder.utils.metrics.FLAT_CONTRAST` are left out of all means.
        """

    @abstractmethod
    def describe(self) -> str:
        """The task in a few words."""

    @abstractmethod
    def summary(self, metrics: dict[str, float]) -> list[str]:
        """Lines with the metrics of the last validation."""

    @abstractmethod
    def advice(self, run: Path) -> list[str]:
        """Lines with suggestions for a finished run."""


def feature_advice(run: Path) -> list[str]:
    """Suggestions for a network that was trained for its features only."""
    return [
        "next, extract features of your own images with it:",
        "  python -m context_encoder.features --data FOLDER --layers conv3 --out features.npz "
        f"--checkpoint {run}",
    ]
