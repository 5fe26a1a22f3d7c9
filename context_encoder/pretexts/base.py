"""What a pretext is to the trainer: networks to train, a training step, and how to judge them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from context_encoder.config import TrainConfig
from context_encoder.config.build import build_context_encoder
from context_encoder.models import Backbone
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
    index: Tensor  #: int64 ``(B,)``, with the epoch the key of every draw


@dataclass(frozen=True)
class Part:
    """A network that is trained, and its rate before the schedule."""

    module: nn.Module
    lr: float


class Pretext(ABC):
    """A task to learn from. One object a run; made after the run's seed is set.

    Args:
        config: resolved, see :func:`context_encoder.training.resolve`.
        device: that of the run; tables of random draws go there, networks are moved by the
            trainer.
    """

    #: The validation metric by which the best checkpoint is chosen, higher being better.
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
            ValueError: they do not fit each other or the model.
        """
        return {}

    @classmethod
    def crop_size(cls, config: TrainConfig) -> int:
        """Side in pixels of the crops that a resolved configuration trains on."""
        assert config.size is not None
        return config.size

    @classmethod
    def build(cls, config: TrainConfig) -> Backbone:
        """The network of a resolved configuration with fresh weights: what checkpoints hold."""
        return build_context_encoder(config)

    @classmethod
    def fixed_hole(cls, config: TrainConfig, output_side: int) -> tuple[int, int, int, int] | None:
        """The one region (top, left, height, width) that is missing in every training sample.

        Args:
            config: resolved.
            output_side: of what its network predicts, in pixels.

        Returns:
            None if holes are anywhere, or there are none.
        """
        return None

    def parts(self) -> dict[str, Part]:
        """All that is trained: "model", and what a pretext needs beside it."""
        return {"model": Part(self.model, self.config.lr)}

    @abstractmethod
    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        """One training step, from the batch to the updates of all :meth:`parts`.

        Learning rates are set; the loss scale is adjusted afterwards. Nothing may wait for the
        device.

        Args:
            samples: the batch.
            learner: calls the networks and changes their weights.

        Returns:
            The losses for the log, ``()`` each, detached: "loss", which the model minimizes, first.
        """

    @abstractmethod
    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        """Judge the network, in eval mode, on held-out images (``epoch`` is 0).

        Returns:
            Figures of each image, ``(B,)``, and the columns of its row on the sheet.
        """

    @abstractmethod
    def describe(self) -> str:
        """What is learned from, in some words."""

    @abstractmethod
    def summary(self, metrics: dict[str, float]) -> list[str]:
        """Lines that tell the last validation's figures."""

    @abstractmethod
    def advice(self, run: Path) -> list[str]:
        """Lines that tell what to do next with a finished run."""


def feature_advice(run: Path) -> list[str]:
    """What to do with a network that was trained for its features only."""
    return [
        "next, take features of images of your own from it:",
        "  python -m context_encoder.features --data FOLDER --layers conv3 --out features.npz "
        f"--checkpoint {run}",
    ]
