"""The choice of a method for each hole."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from context_encoder.inpainting.fill import fill_holes, separate_small_holes
from tests.context_encoder.inpainting.test_texture import pattern

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def holes() -> tuple[Mask, Mask]:
    """Small and large ones."""
    small, large = np.zeros((2, 120, 200), bool)
    small[5:8, 5:8] = small[90:102, 10:22] = small[63, 20:190] = True
    large[20:50, 100:125] = large[100:113, 150:163] = True
    return small, large


def test_holes_are_told_apart_by_their_width() -> None:
    small, large = holes()
    found = separate_small_holes(small | large)
    assert np.array_equal(found[0], small)
    assert np.array_equal(found[1], large)
    assert not separate_small_holes(small)[1].any()


def test_the_network_is_asked_for_large_holes_only() -> None:
    small, large = holes()
    image = pattern(120, 200)
    asked = []

    def network(given: Image, mask: Mask) -> Image:
        asked.append(mask)
        assert not given[large].any()
        return np.where(mask[..., None], np.float32(100), given)

    without = fill_holes(image, small, network)
    assert not asked
    assert np.abs(without - image)[small].mean() < 8
    filled = fill_holes(image, small | large, network)
    assert len(asked) == 1
    assert np.array_equal(asked[0], large)
    assert np.array_equal(filled[~(small | large)], image[~(small | large)])


def test_the_hole_is_not_looked_at_and_progress_adds_up() -> None:
    small, large = holes()
    mask, image = small | large, pattern(120, 200)
    other = image.copy()
    other[mask] = np.nan
    seen: list[float] = []
    filled = fill_holes(other, mask, None, progress=seen.append)
    assert np.array_equal(filled[mask], fill_holes(image, mask, None)[mask])
    assert sum(seen) == pytest.approx(mask.sum())
    assert filled[mask].min() >= 0
    assert filled[mask].max() <= 255
