"""Moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """An exponential moving average of weights and statistics (Polyak and Juditsky 1992).

    The first update copies the network; the one after n others moves the average by the larger of
    1 - ``decay`` and 9 / (10 + n), so that the first steps are soon forgotten. An update does not
    synchronize with the device, unlike that of ``torch.optim.swa_utils.AveragedModel``.

    Args:
        network: the network that is trained.
        decay: at least 0, below 1.
        captured: whether :meth:`move` is captured in a CUDA graph. The amount then is in a tensor,
            which costs a launch per weight instead of one for all.

    Attributes:
        module: the averaged network, on the same device.
        updates: number of updates.
    """

    def __init__(self, network: nn.Module, decay: float, *, captured: bool = False) -> None:
        self.module = copy.deepcopy(network)
        self.updates = 0
        self._decay = decay
        self._share: float | Tensor = 1.0
        if captured:
            numbers = [v for v in network.state_dict().values() if v.is_floating_point()]
            self._share = torch.ones((), dtype=numbers[0].dtype, device=numbers[0].device)

    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights."""
        self.advance()
        self.move(network)

    def advance(self) -> None:
        """Count an update, and set by how much :meth:`move` moves the average."""
        share = 1.0 if not self.updates else max(1 - self._decay, 9 / (10 + self.updates))
        self.updates += 1
        if isinstance(self._share, Tensor):
            self._share.fill_(share)
        else:
            self._share = share

    @torch.no_grad()
    def move(self, network: nn.Module) -> None:
        """The part of an update on the device, which may be captured in a CUDA graph."""
        ours, theirs = self.module.state_dict(), network.state_dict()
        numbers = [name for name, value in ours.items() if value.is_floating_point()]
        share = [self._share] * len(numbers) if isinstance(self._share, Tensor) else self._share
        torch._foreach_lerp_([ours[n] for n in numbers], [theirs[n] for n in numbers], share)
        counts = [name for name in ours if name not in set(numbers)]
        if counts:
            torch._foreach_copy_([ours[n] for n in counts], [theirs[n] for n in counts])
