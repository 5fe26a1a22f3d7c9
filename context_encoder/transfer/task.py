"""Interface between a transfer and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from context_encoder.transfer.voc import Item


class Task(ABC):
    """A transfer: network, samples, loss and evaluation.

    Attributes:
        model: encoder and head.
        encoder: the pretrained part; kept in eval mode, so that the statistics of batch
            normalisation do not change.
        items: training images.
    """

    model: nn.Module
    encoder: nn.Module
    items: Sequence[Item]

    @abstractmethod
    def sample(self, image: Image.Image, item: Item, rng: np.random.Generator) -> Any:
        """A training sample of an image; all randomness comes from ``rng``."""

    @abstractmethod
    def losses(self, samples: list[Any], device: torch.device) -> dict[str, Tensor]:
        """The losses of a batch, 0-dimensional; "loss" is minimized."""

    @abstractmethod
    def evaluate(self, device: torch.device) -> dict[str, Any]:
        """Contents of ``results.json``: "metrics", "per_class" {class: {name: value}}, and more."""
