"""The moving average against its recursion, computed with numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from context_encoder.optimization import MovingAverage


@pytest.mark.parametrize("captured", [False, True])
def test_weights_and_statistics_follow_the_recursion(captured: bool) -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    statistics = network[1]
    assert isinstance(statistics, nn.BatchNorm1d)
    weight = network[0].weight
    assert isinstance(weight, nn.Parameter)
    average = MovingAverage(network, decay=0.8, captured=captured)
    mean, variance = 0.0, 0.0
    for step in range(40):
        value, seen = float(step % 7), float(step % 5)
        weight.data.fill_(value)
        statistics.running_mean.fill_(seen)  # type: ignore[union-attr]
        statistics.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        average.update(network)
        # The first update is a copy; the average then moves by 9 / (10 + n), 1/5 at least.
        share = 1.0 if step == 0 else max(1 - 0.8, 9 / (10 + step))
        mean += share * (value - mean)
        variance += share * (seen - variance)
        assert average.module[0].weight.item() == pytest.approx(mean, rel=1e-5)
        assert average.module[1].running_mean.item() == pytest.approx(variance, rel=1e-5)
        assert average.module[1].num_batches_tracked.item() == step
    assert weight.item() == 39 % 7
    assert not any(p.grad_fn for p in average.module.parameters())


def test_it_is_a_copy() -> None:
    network = nn.Linear(2, 2)
    average = MovingAverage(network, decay=0.5)
    average.update(network)
    before = average.module.weight.clone()
    with torch.no_grad():
        network.weight.add_(1)
    assert torch.equal(average.module.weight, before)
