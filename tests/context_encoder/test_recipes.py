"""The pieces of Python in docs/recipes.md, as they stand there, in one folder one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.small_runs import save_photos

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- snippet: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def test_each_has_about_five_lines() -> None:
    assert list(SNIPPETS) == ["fill", "train", "features", "masks", "op"]
    section = PAGE.partition("## Python in five lines")[2].partition("\n## ")[0]
    assert section.count("```python") == len(SNIPPETS)
    for code in SNIPPETS.values():
        assert len([line for line in code.splitlines() if line.strip()]) <= 6


def test_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / "photos", 8)
    given = np.asarray(Image.open("photos/0.png"))
    Image.fromarray(given).save("photo.png")
    mask = np.zeros(given.shape[:2], np.uint8)
    mask[20:40, 30:50] = 255
    Image.fromarray(mask).save("mask.png")

    def run(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(compile(SNIPPETS[name], f"docs/recipes.md, {name}", "exec"), names)
        return names

    run("fill")
    assert "hole 1 of 1: 20x20 px at (30, 20)" in capsys.readouterr().out
    filled = np.asarray(Image.open("filled.png"))
    np.testing.assert_array_equal(filled[mask == 0], given[mask == 0])
    assert (filled[mask > 0] != given[mask > 0]).any(1).mean() > 0.9

    run("train")
    assert (tmp_path / "runs/first/checkpoints/last").is_dir()
    features = run("features")["features"]
    assert features.values["conv3"].shape == (8, 128, 1, 1)
    assert features.files == [f"{i}.png" for i in range(8)]

    sampled = run("masks")
    masks, areas = sampled["masks"], sampled["areas"]
    assert masks.shape == (8, 1, 64, 64)
    assert masks.dtype == torch.bool
    assert areas.tolist() == masks.sum((1, 2, 3)).tolist()

    op = run("op")
    x = torch.randn(4, 128, 8, 8)
    weight, bias = op["layer"].weight.detach(), op["layer"].bias.detach()
    expected = torch.einsum("coi,bci->bco", weight, x.flatten(2)) + bias.view(128, 64)
    np.testing.assert_allclose(
        op["layer"](x).detach().flatten(2), expected.relu(), rtol=1e-4, atol=1e-4
    )
    assert op["layer"].weight.grad is not None
