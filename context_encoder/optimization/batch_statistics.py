"""Batch normalisation over all processes that train together.

As torch's SyncBatchNorm, which refuses CPUs: mean and variance are those of the whole batch, so
that the number of processes does not change what is trained. Source: Ioffe and Szegedy 2015.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["share_batch_statistics", "without_running_statistics"]


def share_batch_statistics(network: nn.Module) -> None:
    """Let the batch normalisations of a network use the statistics of all processes.

    Weights and their names stay. In eval mode nothing changes. All processes must have batches of
    the same size, and call the network equally often.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _BatchNorm2d
        elif isinstance(module, nn.BatchNorm1d):
            module.__class__ = _BatchNorm1d


@contextlib.contextmanager
def without_running_statistics(network: nn.Module) -> Iterator[None]:
    """In training mode, batch normalisations leave their running statistics as they are."""
    tracking = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class _Gather(torch.autograd.Function):
    """The values of all processes, stacked; the gradient is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(values, value.contiguous())
        return torch.stack(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _Shared(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1]
        # Each process's mean and variance, which lose no digits, as sums of squares would.
        variance, mean = torch.var_mean(x, axes, correction=0)
        means, variances = _Gather.apply(torch.stack([mean, variance])).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._track(mean.detach(), variance.detach(), count * len(means))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        result: Tensor = x * scale.view(shape) + shift.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = self.momentum
        if rate is None:
            rate = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var), rate)


class _BatchNorm1d(_Shared, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Shared, nn.BatchNorm2d):
    pass
