"""Linear prediction of holes: exactness where theory says so, and against a membrane and Telea."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.linear_prediction import predict_linearly

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def texture(height: int = 96, width: int = 120, seed: int = 0) -> Image:
    """Oblique stripes with a little noise, on [0, 255]."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    stripes = np.sin((x + 0.6 * y)[..., None] * np.array([0.7, 0.7, 0.5]))
    return (128 + 80 * stripes + noise).astype(np.float32)


def specks(height: int = 96, width: int = 120) -> Mask:
    mask = np.zeros((height, width), bool)
    rng = np.random.default_rng(1)
    for _ in range(25):
        y, x = rng.integers(0, height - 5), rng.integers(0, width - 5)
        mask[y : y + rng.integers(2, 6), x : x + rng.integers(2, 6)] = True
    return mask


def blanked(image: Image, mask: Mask) -> Image:
    return np.where(mask[..., None], np.float32(0), image)


def error(filled: Image, image: Image, mask: Mask) -> float:
    return float(np.sqrt(((filled - image)[mask] ** 2).mean()))


def test_stripes_are_continued_where_a_membrane_blurs_them() -> None:
    image, mask = texture(), specks()
    given = blanked(image, mask)
    filled = predict_linearly(given, mask)
    assert error(filled, image, mask) < 0.25 * error(remove_seam(given, mask), image, mask)
    assert np.array_equal(filled[~mask], image[~mask])


def test_the_hole_is_not_looked_at() -> None:
    image, mask = texture(), specks()
    other = image.copy()
    other[mask] = 1e6
    assert np.array_equal(
        predict_linearly(other, mask)[mask], predict_linearly(blanked(image, mask), mask)[mask]
    )


def test_a_constant_stays_constant() -> None:
    image = np.full((40, 50, 3), 77, np.float32)
    mask = np.zeros((40, 50), bool)
    mask[10:30, 15:40] = True
    np.testing.assert_allclose(predict_linearly(blanked(image, mask), mask), image, atol=1e-3)


@pytest.mark.parametrize(
    "box", [(0, 96, 40, 44), (30, 90, 20, 110), (0, 50, 0, 60)], ids=["scratch", "large", "corner"]
)
def test_every_shape_is_filled_with_finite_colors(box: tuple[int, int, int, int]) -> None:
    image = texture()
    mask = np.zeros(image.shape[:2], bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    filled = predict_linearly(blanked(image, mask), mask)
    assert np.isfinite(filled).all()
    assert filled.min() > -128
    assert filled.max() < 384


def test_all_but_one_pixel_missing() -> None:
    image = texture(9, 8)
    mask = np.ones((9, 8), bool)
    mask[3, 3] = False
    filled = predict_linearly(blanked(image, mask), mask)
    np.testing.assert_allclose(filled, np.broadcast_to(image[3, 3], filled.shape), rtol=1e-4)


def test_progress_counts_every_pixel() -> None:
    image, mask = texture(), specks()
    counted: list[int] = []
    predict_linearly(blanked(image, mask), mask, progress=counted.append)
    assert sum(counted) == mask.sum()


def test_threads_do_not_change_the_result() -> None:
    image, mask = texture(), specks()
    given, before = blanked(image, mask), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(predict_linearly(given, mask))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(result, results[0]) for result in results)
