"""Windows of an image: the inputs of the network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_encoder.inpainting.windows import WindowGeometry, plan_windows, reflect_indices
from tests.helpers.known_networks import box_mask


def times_filled(mask, holes):
    times = np.zeros(mask.shape, int)
    for hole in holes:
        for window in hole.windows:
            top, left, bottom, right = window.box
            assert window.pixels.shape == (bottom - top, right - left)
            times[top:bottom, left:right] += window.pixels
    return times


def check_plan(mask, geometry):
    """Check the properties of every plan; returns its windows."""
    holes = plan_windows(mask, geometry)
    assert np.array_equal(times_filled(mask, holes), mask)
    windows = [window for hole in holes for window in hole.windows]
    for window in windows:
        assert window.side >= geometry.size
        # The filled part is within the region that the network predicts, after scaling too.
        top, left, height, width = geometry.region
        y0, x0, y1, x1 = window.box
        scale = geometry.size / window.side
        assert top <= (y0 - window.top) * scale
        assert (y1 - window.top) * scale <= top + height
        assert left <= (x0 - window.left) * scale
        assert (x1 - window.left) * scale <= left + width
        if geometry.anywhere:
            for start, length in ((window.top, mask.shape[0]), (window.left, mask.shape[1])):
                if window.side <= length:
                    assert 0 <= start <= length - window.side
                else:  # the image is in its middle
                    assert -start == (window.side - length) // 2
        assert 0 <= window.missing <= 1
    return windows


GEOMETRIES = (
    WindowGeometry(16, (0, 0, 16, 16)),
    WindowGeometry(16, (4, 4, 8, 8)),
    WindowGeometry(15, (2, 5, 7, 4)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    spots=st.integers(1, 12),
    geometry=st.sampled_from(GEOMETRIES),
)
def test_every_masked_pixel_is_filled_once(seed, height, width, spots, geometry):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.3])
    for _ in range(spots):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 25), x : x + rng.integers(1, 25)] = True
    check_plan(mask, geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    "mask",
    [
        box_mask(1, 1, (0, 0, 1, 1)),
        box_mask(1, 300, (0, 1, 1, 299)),
        box_mask(300, 2, (0, 0, 299, 2)),
        ~box_mask(40, 40, (39, 39, 40, 40)),
        np.indices((60, 60)).sum(0) % 2 == 0,
        np.eye(90, dtype=bool),
    ],
    ids=["pixel", "row", "column", "all but one", "chessboard", "diagonal"],
)
def test_extreme_masks_are_filled_once(mask, geometry):
    check_plan(mask, geometry)


def test_a_small_hole_gets_a_native_window_around_it():
    mask = box_mask(100, 120, (40, 50, 48, 60))
    (hole,) = plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32)))
    (window,) = hole.windows
    assert (window.side, window.top, window.left) == (32, 28, 39)
    assert window.missing == pytest.approx(80 / 32**2)


def test_a_window_at_the_corner_is_shifted_inside():
    mask = box_mask(100, 120, (0, 117, 2, 120))
    (hole,) = plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert (hole.windows[0].top, hole.windows[0].left, hole.windows[0].side) == (0, 88, 32)


def test_a_large_hole_is_one_sixth_of_its_window_at_most():
    mask = box_mask(300, 300, (100, 90, 160, 150))
    (window,) = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert window.missing <= 1 / 6
    assert window.side == np.ceil(60 * 6**0.5)


def test_a_scratch_is_tiled_at_native_resolution():
    mask = box_mask(200, 400, (100, 10, 103, 390))
    windows = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert {window.side for window in windows} == {32}
    assert all(window.box[3] - window.box[1] <= 16 for window in windows)


def test_small_holes_that_are_near_share_a_window():
    near = box_mask(100, 100, (40, 40, 42, 42), (50, 44, 51, 48))
    (hole,) = plan_windows(near, WindowGeometry(32, (0, 0, 32, 32)))
    assert hole.parts == 2
    assert hole.box == (40, 40, 51, 48)
    far = box_mask(100, 100, (10, 10, 12, 12), (60, 10, 62, 12))
    assert len(plan_windows(far, WindowGeometry(32, (0, 0, 32, 32)))) == 2


def test_other_holes_count_as_missing():
    alone = box_mask(300, 300, (100, 100, 108, 108))
    crowded = alone | box_mask(300, 300, (100, 112, 160, 172))
    geometry = WindowGeometry(32, (0, 0, 32, 32))
    (only,) = check_plan(alone, geometry)
    small = check_plan(crowded, geometry)[0]
    assert small.box == only.box
    assert small.side > only.side == 32
    cut = crowded[small.top :, small.left :][: small.side, : small.side]
    assert small.missing == pytest.approx(cut.mean())


def test_missing_counts_the_reflected_picture():
    # The window is twice as large as the image, whose hole touches its edge.
    mask = box_mask(20, 20, (0, 0, 4, 20))
    (window,) = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    padded = np.pad(mask, 20, mode="symmetric")
    seen = padded[20 + window.top :, 20 + window.left :][: window.side, : window.side]
    assert window.side == 32
    assert seen.shape == (32, 32)
    assert window.missing == pytest.approx(seen.mean())


def test_a_centre_network_gets_the_hole_in_its_region_even_in_the_corner():
    geometry = WindowGeometry(32, (10, 10, 12, 12))
    mask = box_mask(100, 100, (0, 0, 4, 4))
    (window,) = check_plan(mask, geometry)
    assert window.missing == pytest.approx((8 * 8 - 4 * 4) / 32**2)  # mirrored, not in the region
    assert (window.top, window.left, window.side) == (-10, -10, 32)
    # Too large for the region by one pixel: scaled.
    (window,) = check_plan(box_mask(100, 100, (40, 40, 53, 52)), geometry)
    assert 32 * 13 / 12 <= window.side <= 32 * 13 / 12 + 3


@pytest.mark.parametrize(("start", "count", "length"), [(-7, 20, 3), (2, 9, 5), (0, 4, 1)])
def test_reflect_indices_is_numpys_symmetric_padding(start, count, length):
    padded = np.pad(np.arange(length), 40, mode="symmetric")
    expected = padded[40 + start : 40 + start + count]
    assert np.array_equal(reflect_indices(start, count, length), expected)


def test_an_empty_mask_needs_no_window():
    assert plan_windows(np.zeros((5, 5), bool), WindowGeometry(16, (0, 0, 16, 16))) == []
