"""Sheets of images: position of each image."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_encoder.utils.image_grid import save_sheet


def colours(path: Path, count: int) -> list[tuple[int, int, int, int]]:
    """Column, row, left and top of each image of one colour, found by its pixels."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    found = []
    for c in range(count):
        for r in range(2):
            colour = (10 * c + 5, 100 * r + 50, 7)
            rows, columns = np.nonzero((pixels == colour).all(-1))
            assert len(rows) == 128 * 128
            assert np.ptp(rows) == np.ptp(columns) == 127
            found.append((c, r, int(columns.min()), int(rows.min())))
    return found


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("limit", [None, 6, 4, 13])
def test_a_row_with_many_columns_goes_on_on_the_next_line(
    tmp_path: Path, limit: int | None, captions: bool
) -> None:
    columns = []
    for c in range(13):
        images = torch.empty(2, 3, 32, 32)
        for r in range(2):
            images[r] = torch.tensor([10 * c + 5, 100 * r + 50, 7]).view(3, 1, 1) / 255
        columns.append((f"method\n{c}", images))
    texts = [["one", "two"]] * 13 if captions else []
    path = tmp_path / "sheet.png"
    save_sheet(path, columns, rows=["best", "worst"], captions=texts, max_columns=limit)
    per_line = limit or 13
    places = colours(path, 13)
    left = {c: x for c, _, x, _ in places}
    top = {(c, r): y for c, r, _, y in places}
    for c in range(13):
        assert left[c] == left[c % per_line]  # in a grid
        assert top[c, 0] == top[c - c % per_line, 0]
    assert len(set(left.values())) == min(per_line, 13)
    # All images of a row are above those of the next row, with room for the text.
    assert max(y for (_, r), y in top.items() if r == 0) + 128 <= top[0, 1]
    gap = 28 * (per_line < 13) + 14 * captions
    lines = sorted(set(top.values()))
    assert all(b - a >= 128 + gap for a, b in pairwise(lines))
    with Image.open(path) as sheet:
        assert sheet.width <= (min(per_line, 13) + 1) * 140
