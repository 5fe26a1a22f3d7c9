from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from context_encoder import HoleFiller, Inpainter
from context_encoder.inpainting.neighbourhoods import neighbourhoods
from context_encoder.utils.bounding_box import bounding_box
from tests.helpers.known_networks import noise


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_disjoint_and_hold_every_hole_with_its_surroundings(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.zeros((1500, 2000), bool)
    for _ in range(random.integers(1, 12)):
        y, x = random.integers(0, 1450), random.integers(0, 1950)
        mask[y : y + random.integers(1, 50), x : x + random.integers(1, 50)] = True
    boxes = neighbourhoods(mask)
    covered = np.zeros(mask.shape, int)
    for box in boxes:
        covered[box] += 1
    assert covered.max() == 1
    assert covered[mask].all()
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask)[:: max(1, int(mask.sum()) // 200)]:
        near[max(0, y - 128) : y + 129, max(0, x - 128) : x + 129] = True
    assert covered[near].all()


def test_an_empty_mask_has_no_neighbourhood() -> None:
    empty = np.zeros((20, 30), bool)
    assert neighbourhoods(empty) == []
    assert bounding_box(empty) == (slice(0, 1), slice(0, 1))
    image = noise(20, 30, 3)
    result = HoleFiller()(image, empty)
    np.testing.assert_array_equal(result.image, image)
    assert not result.report.large


def test_bounding_box() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3, 25] = mask[7, 28] = True
    assert bounding_box(mask) == (slice(3, 8), slice(25, 29))
    assert bounding_box(mask, 4) == (slice(0, 12), slice(21, 30))


def test_far_holes_are_filled_as_if_each_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbourhood of a hole has all that fills it."""
    image = noise(420, 900, 3)
    mask = np.zeros((420, 900), bool)
    mask[30:50, 60:90] = mask[300:303, 800:840] = True
    assert len(neighbourhoods(mask)) == 2
    filler = HoleFiller(texture=0)
    result = filler(image, mask)
    monkeypatch.setattr(
        "context_encoder.inpainting.hole_filler.neighbourhoods",
        lambda mask: [(slice(0, 420), slice(0, 900))],
    )
    whole = filler(image, mask)
    assert result.report == whole.report
    difference = np.asarray(result.image).astype(int) - np.asarray(whole.image)
    assert np.abs(difference).max() <= 1  # of the membrane's iterations
    assert not difference[~mask].any()


@pytest.mark.parametrize("texture", [None, 0, 0.7])
def test_progress_can_be_a_function(texture: float | None, run: Path) -> None:
    filler = Inpainter.from_run(run) if texture is None else HoleFiller(texture=texture)
    image = noise(90, 120, 3)
    mask = np.zeros((90, 120), bool)
    mask[20:50, 30:60] = mask[80:83, 100:103] = True
    done: list[float] = []
    filler(image, mask, progress=done.append)
    assert sum(done) == pytest.approx(mask.sum(), rel=1e-6)

    def stop(pixels: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        filler(image, mask, progress=stop)
