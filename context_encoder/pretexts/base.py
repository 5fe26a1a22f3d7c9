"""What a pretext is to the trainer: networks to train, a loss, and how to judge them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from context_encoder.config import TrainConfig
from context_encoder.config.build import build_context_encoder
from context_encoder.models import Backbone

#: Held-out pictures get the same holes, noise and patches in every run, whatever its seed.
VALIDATION_SEED = 20160427

#: A title and pictures ``(B, 3, H, W)`` on [0, 1].
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


class Learner(Protocol):
    """What the trainer offers to a pretext during a step."""

    @property
    def world_size(self) -> int:
        """The processes that train together."""

    def network(self, name: str) -> nn.Module:
        """A part as it is to be called in training: compiled and shared among processes."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision to run networks and losses in."""

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the parts."""

    def update(self, name: str) -> None:
        """Change a part's weights by its gradients, which are 0 afterwards."""


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
    def losses(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        """The losses of a batch, ``()`` each; the trainer minimizes ``loss`` by "model".

        Parts other than "model" are updated in here. Nothing may wait for the device.
        """

    @abstractmethod
    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        """Judge the network, in eval mode, on held-out pictures (``epoch`` is 0).

        Returns:
            Figures of each picture, ``(B,)``, and the columns of its row on the sheet.
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
        "next, take features of pictures of your own from it:",
        "  python -m context_encoder.features --data FOLDER --layers conv3 --out features.npz "
        f"--checkpoint {run}",
    ]
