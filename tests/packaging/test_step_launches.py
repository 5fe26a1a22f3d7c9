"""The count of a training step's operations, and its table in the documentation."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools/step_launches.py"))


def test_views_and_allocations_launch_nothing(tool: dict[str, Any]) -> None:
    x = torch.ones(4, 6)
    with tool["Count"]() as found:
        x.view(24).t().unsqueeze(0)  # three views
        torch.empty(3)
        torch.empty_like(x)
        x.contiguous()  # is so already
        x.mul(2).add_(1)
        torch._foreach_add_([x, x], 1)
    assert found.dispatched.total() == 8
    assert found.launching == {"mul": 1, "add_": 1, "_foreach_add_": 1}


def test_casts_and_copies_and_what_they_move(tool: dict[str, Any]) -> None:
    x = torch.ones(4, 6)
    with tool["Count"]() as found:
        x.bfloat16()
        x.clone()
        x.t().contiguous()
    assert found.kinds == {"casts": 1, "copies": 2}
    assert found.moved == {"casts": 24 * (4 + 2), "copies": 2 * 24 * (4 + 4)}


def test_saved_memory_is_that_held_at_a_time(tool: dict[str, Any]) -> None:
    weight = torch.ones(10, requires_grad=True)
    saved = tool["Saved"]([weight])
    with saved:
        for _ in range(2):  # the first graph is gone before the second
            y = (weight * 2).exp()  # saves its result
            z = y * y  # saves y, which is there already
            z.sum().backward()
            del y, z
    assert saved.most == 40


def test_the_page_has_the_table_of_the_results(tool: dict[str, Any]) -> None:
    result = json.loads(tool["OUT"].read_text())
    rows = tool["table"](result)
    assert f"{tool['BEGIN']}\n{rows}\n{tool['END']}" in tool["PAGE"].read_text()
    for row in result["after"].values():
        assert row["captured"] < 10 < row["launching"] <= row["dispatched"]
