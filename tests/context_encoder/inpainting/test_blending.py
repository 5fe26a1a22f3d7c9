"""Correction of the seam."""

from __future__ import annotations

import numpy as np

from context_encoder.inpainting.blending import remove_seam
from tests.helpers.known_networks import box_mask, noise


def test_a_shifted_prediction_is_shifted_back():
    mask = box_mask(20, 24, (5, 6, 14, 18), (10, 3, 12, 8))
    truth = np.full((20, 24, 3), (0.1, -0.3, 0.7), np.float32)
    image = np.where(mask[..., None], truth + np.array([0.5, -0.2, 0.05]), truth).astype(np.float32)
    assert np.allclose(remove_seam(image, mask), truth, atol=1e-4)


def test_the_correction_solves_laplaces_equation():
    rng = np.random.default_rng(3)
    hole = rng.random((9, 11)) < 0.6
    image = rng.normal(size=(9, 11, 2)).astype(np.float32)
    corrected = remove_seam(image, hole)
    assert np.array_equal(corrected[~hole], image[~hole])
    change = (corrected - image).astype(float)
    for y, x in np.argwhere(hole):
        total = np.zeros(2)
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < 9 and 0 <= u < 11:
                if hole[v, u]:
                    total += change[v, u] - change[y, x]
                else:
                    total += image[v, u] - image[y, x] - change[y, x]
        assert np.allclose(total, 0, atol=1e-3)


def test_without_known_pixels_or_without_a_hole_nothing_changes():
    hole = box_mask(6, 6, (0, 0, 6, 6))
    image = noise(6, 6, 3).astype(np.float32)
    assert np.allclose(remove_seam(image, hole), image)
    nothing = np.zeros((6, 6), bool)
    assert np.array_equal(remove_seam(image, nothing), image)
