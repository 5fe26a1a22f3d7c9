from __future__ import annotations

import numpy as np
import pytest

from context_encoder.data.mask_images import InpaintError, feathered, grown
from context_encoder.demo.shapes import Area, Brush, Loaded, draw_mask


def distance_to_polyline(points: list[tuple[float, float]], width: int, height: int) -> np.ndarray:
    """Of every pixel's centre, computed from the definition."""
    y, x = np.mgrid[:height, :width] + 0.5
    best = np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / ((dx * dx + dy * dy) or 1), 0, 1)
        best = np.minimum(best, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return best


@pytest.mark.parametrize("width", [1, 5, 12.5, 40])
@pytest.mark.parametrize("points", [[(30.2, 40.7)], [(10, 10), (80.5, 33.3), (60, 90), (-20, 50)]])
def test_a_stroke_covers_what_is_within_its_radius(
    width: float, points: list[tuple[float, float]]
) -> None:
    mask = draw_mask([Brush(kind="brush", width=width, points=points)], {}, 120, 100)
    distance = distance_to_polyline(points, 120, 100)
    # A round end is a polygon, and coordinates are of 1/256 pixel.
    assert mask[distance < width / 2 * 0.98 - 0.01].all()
    assert not mask[distance > width / 2 + 0.01].any()
    assert mask.any() or width == 1


def test_an_area_is_its_inside() -> None:
    box = Area(kind="area", points=[(10, 20), (50, 20), (50, 60), (10, 60)])
    mask = draw_mask([box], {}, 120, 100)
    expected = np.zeros((100, 120), bool)
    expected[20:60, 10:50] = True
    np.testing.assert_array_equal(mask, expected)


def test_shapes_count_in_the_order_drawn() -> None:
    loaded = np.zeros((100, 120), bool)
    loaded[:, :60] = True
    stroke = {"kind": "brush", "width": 20, "points": [(30, 50)]}
    shapes = [Loaded(kind="loaded", number=3), Brush(**stroke, erase=True)]
    assert not draw_mask(shapes, {3: loaded}, 120, 100)[50, 30]
    assert draw_mask(shapes[::-1], {3: loaded}, 120, 100)[50, 30]
    assert draw_mask(shapes, {3: loaded}, 120, 100).sum() == pytest.approx(6000 - 314, abs=30)


def test_a_mask_that_is_gone_and_endless_drawings_are_refused() -> None:
    with pytest.raises(InpaintError, match="load it again"):
        draw_mask([Loaded(kind="loaded", number=1)], {}, 10, 10)
    many = Brush(kind="brush", width=1, points=[(1, 1)] * 200_001)
    with pytest.raises(InpaintError, match="points"):
        draw_mask([many], {}, 10, 10)


def test_growing_and_feathering_by_distance() -> None:
    mask = np.zeros((60, 60), bool)
    mask[30, 30] = mask[2, 3] = True
    y, x = np.mgrid[:60, :60]
    distance = np.minimum(np.hypot(y - 30, x - 30), np.hypot(y - 2, x - 3))
    np.testing.assert_array_equal(grown(mask, 5), distance <= 5)
    np.testing.assert_array_equal(grown(mask, 0), mask)
    np.testing.assert_allclose(feathered(mask, 4), np.clip(1 - distance / 5, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(feathered(mask, 0), mask)
