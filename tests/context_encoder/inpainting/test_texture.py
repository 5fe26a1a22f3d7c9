"""Texture synthesis as a whole: what it restores, what it leaves alone, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.texture import Settings, add_texture, with_texture

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def pattern(height: int = 90, width: int = 110) -> Image:
    """Bricks: exactly periodic, with edges that no membrane continues."""
    y, x = np.mgrid[:height, :width]
    row = y // 6
    mortar = (y % 6 == 0) | ((x + 5 * (row % 2)) % 10 == 0)
    return np.where(mortar[..., None], (40, 50, 60), (180, 90, 60)).astype(np.float32)


def square(height: int = 90, width: int = 110) -> Mask:
    mask = np.zeros((height, width), bool)
    mask[33:57, 41:65] = True
    return mask


def membrane(image: Image, mask: Mask) -> Image:
    return remove_seam(np.where(mask[..., None], np.float32(0), image), mask)


def error(filled: Image, image: Image, mask: Mask) -> float:
    return float(np.abs(filled - image)[mask].mean())


def test_bricks_are_laid_on() -> None:
    image, mask = pattern(), square()
    guide = membrane(image, mask)
    filled = add_texture(image, mask, guide, strength=1.0)
    assert error(filled, image, mask) < 0.02 * error(guide, image, mask)
    assert np.array_equal(filled[~mask], image[~mask])


def test_strength_takes_more_of_the_detail_than_of_the_coarse_structure() -> None:
    image, mask = pattern(), square()
    guide = membrane(image, mask)
    none, part, full = (add_texture(image, mask, guide, strength=s) for s in (0.0, 0.6, 1.0))
    np.testing.assert_allclose(none, guide, atol=1e-3)
    change = full - guide
    coarse = ndimage.gaussian_filter(change, (Settings.detail_sigma,) * 2 + (0,))
    expected = guide + 0.36 * coarse + 0.6 * (change - coarse)
    np.testing.assert_allclose(part[mask], expected[mask], atol=1e-3)


def test_the_hole_is_not_looked_at() -> None:
    image, mask = pattern(), square()
    guide = membrane(image, mask)
    other = image.copy()
    other[mask] = np.nan
    assert np.array_equal(add_texture(other, mask, guide), add_texture(image, mask, guide))


def test_one_seed_one_result_whatever_the_threads() -> None:
    image, mask = pattern(), square()
    image += np.random.default_rng(0).normal(0, 8, image.shape).astype(np.float32)
    guide = membrane(image, mask)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(add_texture(image, mask, guide, seed=3))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], add_texture(image, mask, guide, seed=4))


def test_pixels_far_from_a_hole_make_no_difference() -> None:
    image, mask = pattern(90, 400), square(90, 400)
    guide = membrane(image, mask)
    other = image.copy()
    other[:, 300:] = 0
    filled, again = (add_texture(i, mask, guide) for i in (image, other))
    assert np.array_equal(filled[mask], again[mask])


@pytest.mark.parametrize("shape", [(5, 5), (6, 200), (12, 13)])
def test_without_whole_patches_the_guide_stays(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 3)).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1] = True
    guide = membrane(image, mask)
    assert np.array_equal(add_texture(image, mask, guide)[mask], guide[mask])
    assert not with_texture(mask).any()


def test_holes_at_borders_and_several_holes() -> None:
    image = pattern(120, 300)
    mask = np.zeros(image.shape[:2], bool)
    mask[:14, :17] = mask[100:, 280:] = mask[50:70, 140:170] = True
    guide = membrane(image, mask)
    filled = add_texture(image, mask, guide, strength=1.0)
    assert np.array_equal(with_texture(mask), mask)
    assert np.isfinite(filled).all()
    assert error(filled, image, mask) < error(guide, image, mask)


def test_progress_adds_up_and_can_cancel() -> None:
    image, mask = pattern(), square()
    guide = membrane(image, mask)
    seen: list[float] = []
    add_texture(image, mask, guide, progress=seen.append)
    assert len(seen) > 3
    assert sum(seen) == pytest.approx(mask.sum())

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_texture(image, mask, guide, progress=stop)


def test_nothing_to_fill() -> None:
    image = pattern()
    empty = np.zeros(image.shape[:2], bool)
    assert np.array_equal(add_texture(image, empty, image), image)
