"""Reduction of users' masks to the size of a network: thin parts stay, large ones do not grow."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from context_encoder.masks import FolderMasks
from context_encoder.masks.folder import reduce_mask

EIGHT = np.ones((3, 3))


def lines(rng: np.random.Generator, width: int = 1) -> np.ndarray:
    """Polygonal lines, ``width`` pixels wide, on an image of random size."""
    image = Image.new("1", tuple(rng.integers(200, 900, 2).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 6)):
        draw.line([tuple(rng.integers(0, image.size).tolist()) for _ in range(3)], 1, width)
    return np.asarray(image)


def cells(mask: np.ndarray, size: int) -> np.ndarray:
    """Whether the centre of a set pixel lies in the area of each pixel of the reduced mask."""
    assert size % 2  # then no centre lies on a border
    found = np.zeros((size, size), bool)
    places = zip(np.nonzero(mask), mask.shape, strict=True)
    rows, columns = ((2 * at + 1) * size // (2 * length) for at, length in places)
    found[rows, columns] = True
    return found


@pytest.mark.parametrize("seed", range(12))
def test_scratches_stay_where_they_are_and_in_one_piece(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for width in (1, 2, 4):
        mask = lines(rng, width)
        reduced = reduce_mask(mask, 63)
        there = cells(mask, 63)
        assert not (reduced.mask & ~there).any()  # nothing is missing that was not
        assert (ndimage.binary_dilation(reduced.mask, EIGHT) >= there).all()
        pieces = ndimage.label(mask, EIGHT)[1]
        assert ndimage.label(reduced.mask, EIGHT)[1] <= pieces
        assert reduced.lost == 0
        assert reduced.fraction == pytest.approx(mask.mean())


def test_a_scratch_between_two_rows_is_one_pixel_wide() -> None:
    mask = np.zeros((640, 640), bool)
    mask[319:321] = True  # half in row 31 of the reduced mask, half in row 32
    mask[100, 50:600] = True
    reduced = reduce_mask(mask, 64)
    assert reduced.thickened
    assert reduced.mask[10].tolist() == [5 <= column < 60 for column in range(64)]
    assert reduced.mask.sum(0).tolist() == [1 + (5 <= column < 60) for column in range(64)]


def test_large_parts_are_reduced_at_half_coverage() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        field = ndimage.gaussian_filter(rng.normal(size=(500, 700)), 40)
        mask = field > np.quantile(field, 0.7)
        half = np.asarray(Image.fromarray(mask).convert("L").resize((128, 128), 4)) >= 128
        reduced = reduce_mask(mask, 128)
        # A thin end of a shape may stay, or a neck; the area is that of the original.
        assert (reduced.mask != half).sum() <= 8
        assert reduced.mask.mean() == pytest.approx(mask.mean(), abs=2e-3)
        assert reduced.mask[half].all()


def test_dust_of_single_pixels_stays_and_smaller_dust_is_counted() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((1000, 1500), bool)
    mask[rng.integers(0, 1000, 40), rng.integers(0, 1500, 40)] = True
    reduced = reduce_mask(mask, 127)
    assert (ndimage.binary_dilation(reduced.mask, EIGHT) >= cells(mask, 127)).all()
    assert reduced.lost == 0
    far = np.zeros((3000, 3000), bool)
    far[7, 7] = far[2000:2002, 100:102] = True
    reduced = reduce_mask(far, 32)
    assert not reduced.mask.any()
    assert reduced.lost == 5


def test_the_log_says_what_the_reduction_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch, both = np.zeros((2, 3000, 3000), bool)
    scratch[1500] = both[:1500] = True
    both[2900, 7] = True
    Image.fromarray(scratch).save(tmp_path / "scratch.png")
    Image.fromarray(both).save(tmp_path / "both.png")
    with caplog.at_level(logging.INFO):
        sampler = FolderMasks(64, 0, tmp_path)
    assert sampler.skipped == []
    assert sorted(sampler.areas.tolist()) == [64, 32 * 64]
    assert "1 of 2 masks have parts thinner than a pixel at 64 x 64 pixels" in caplog.text
    assert "1.56% of the area is missing instead of 0.03%" in caplog.text
    assert "1 of 2 masks have specks" in caplog.text
