"""The stream of samples."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from context_encoder.data import (
    SampleStream,
)


def stream(length: int = 10, **changes: Any) -> list[tuple[int, int]]:
    return list(SampleStream(length, **({"seed": 5, "batch_size": 4, "num_steps": 25} | changes)))


def test_every_index_comes_once_per_epoch() -> None:
    keys = stream()
    assert [epoch for epoch, _ in keys] == [n // 10 for n in range(100)]  # batches span epochs
    orders = [[i for e, i in keys if e == epoch] for epoch in range(10)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 10
    assert stream(seed=6) != keys


def test_order_is_uniform() -> None:
    # 2400 epochs of 4: each of the 24 orders about 100 times (standard deviation 9.8).
    keys = stream(4, num_steps=2400)
    orders = [tuple(i for _, i in keys[n : n + 4]) for n in range(0, len(keys), 4)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 2400
    assert 60 < min(counts) <= max(counts) < 140


@pytest.mark.parametrize("start", [0, 1, 2, 7, 24, 25])
def test_resuming_gives_the_tail(start: int) -> None:
    assert stream(start_step=start, num_steps=25 - start) == stream()[start * 4 :]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_give_the_stream_of_one(world_size: int) -> None:
    local = 4 // world_size
    parts = [stream(rank=r, world_size=world_size) for r in range(world_size)]
    merged = [
        key
        for step in range(25)
        for part in parts
        for key in part[step * local : (step + 1) * local]
    ]
    assert merged == stream()


def test_a_batch_may_hold_several_epochs() -> None:
    keys = stream(3, batch_size=8, num_steps=3)
    assert [epoch for epoch, _ in keys] == [n // 3 for n in range(24)]
    for epoch in range(8):
        assert sorted(i for e, i in keys if e == epoch) == [0, 1, 2]


def test_the_stream_has_no_end_unless_told() -> None:
    endless = SampleStream(3, seed=0, batch_size=2)
    assert len(list(itertools.islice(endless, 1000))) == 1000
    with pytest.raises(TypeError, match="no length"):
        len(endless)
    assert len(SampleStream(3, seed=0, batch_size=4, num_steps=5, rank=1, world_size=2)) == 10


def test_the_order_stays_the_same_between_versions() -> None:
    # A run resumed with a newer version must continue with the same samples.
    assert [i for _, i in stream(8, seed=0, batch_size=8, num_steps=2)] == [
        *(0, 3, 7, 5, 1, 2, 6, 4),
        *(3, 7, 4, 2, 1, 6, 5, 0),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"start_step": -1}, "start_step and num_steps"),
        ({"num_steps": -1}, "start_step and num_steps"),
        ({"batch_size": 0}, "positive multiple"),
        ({"batch_size": 3, "world_size": 2}, r"processes \(2\), got 3"),
        ({"rank": 2, "world_size": 2}, r"rank must be in range\(2\), got 2"),
        ({"rank": -1}, "rank must be"),
    ],
)
def test_stream_checks_its_arguments(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**changes)
