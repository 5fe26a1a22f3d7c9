"""Moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["moving_average"]


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and statistics (Polyak and Juditsky 1992).

    ``update_parameters(network)`` after step n moves it by the larger of 1 - ``decay`` and
    9 / (10 + n), so that the first steps are soon forgotten; it does not synchronize with the
    device. ``module`` is the averaged network, a copy on the same device.

    Args:
        network: the network that is trained.
        decay: at least 0, below 1.
    """

    @torch.no_grad()
    def move(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        share = (9 / (10 + torch.as_tensor(count))).clamp(min=1 - decay)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)

    return AveragedModel(network, multi_avg_fn=move, use_buffers=True)
