"""Patch matching and voting: the C++ kernels against the reference bit for bit, and both against
brute force and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from cekernels import _backends, patch_match, patch_vote

BUILT = _backends.unavailable("cpp")
needs_cpp = pytest.mark.skipif(BUILT is not None, reason=f"C++: {BUILT}")
IMPLS = ["reference", pytest.param("cpp", marks=needs_cpp)]


class Case:
    """A random image with a rectangular hole, and a random field for it."""

    def __init__(self, seed: int, radius: int, channels: int, levels: int = 1021) -> None:
        rng = np.random.default_rng(seed)
        height, width = (int(n) for n in rng.integers(4 * radius + 8, 40, 2))
        step = 1020 // (levels - 1)
        self.radius = radius
        self.image = torch.from_numpy(
            (rng.integers(0, levels, (height, width, channels)) * step).astype(np.int16)
        )
        self.guide = torch.from_numpy(rng.integers(0, 1021, (height, width, 3)).astype(np.int16))
        mask = np.zeros((height, width), bool)
        top, left = rng.integers(0, 4, 2)
        mask[top : top + 5, left : left + 4] = True
        touched = ndimage.maximum_filter(mask, 2 * radius + 1, mode="constant")
        whole = np.zeros_like(mask)
        whole[radius : height - radius, radius : width - radius] = True
        source = whole & ~touched
        drawn = rng.choice(np.flatnonzero(source), mask.shape)
        self.mask, self.source = torch.from_numpy(mask), torch.from_numpy(source)
        self.target = torch.from_numpy(whole & touched)
        self.field = torch.from_numpy(np.where(whole & touched, drawn, -1).astype(np.int32))
        depth = np.rint(3 * ndimage.distance_transform_edt(mask))
        self.depth = torch.from_numpy(depth.astype(np.int16))

    def match(self, **settings: object) -> tuple[Tensor, Tensor]:
        settings = {"radius": self.radius, **settings}
        return patch_match(self.image, self.guide, self.source, self.field, **settings)  # type: ignore[arg-type]


@needs_cpp
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize(("channels", "levels"), [(3, 1021), (5, 5)], ids=["3", "5-with-ties"])
def test_cpp_gives_the_bits_of_the_reference(
    seed: int, radius: int, channels: int, levels: int
) -> None:
    case = Case(seed, radius, channels, levels)
    settings = {"guide_weight": 7 * seed, "max_offset": 20 * seed, "sweeps": 3, "seed": -seed}
    found, cost = case.match(impl="cpp", **settings)
    expected, expected_cost = case.match(impl="reference", **settings)
    assert torch.equal(found, expected)
    assert torch.equal(cost, expected_cost)
    for best in (False, True):
        votes = [
            patch_vote(case.image, found, cost, case.mask, case.depth, radius=radius,
                       max_offset=20 * seed, best=best, impl=impl)
            for impl in ("cpp", "reference")
        ]  # fmt: skip
        assert torch.equal(*votes)


@pytest.mark.parametrize("impl", IMPLS)
def test_cost_is_what_its_definition_says(impl: str) -> None:
    case = Case(3, 2, 5)
    found, cost = case.match(sweeps=2, guide_weight=24, max_offset=50, impl=impl)
    image, guide = case.image.numpy().astype(np.int64), case.guide.numpy().astype(np.int64)
    width = image.shape[1]

    def patch(pixels: np.ndarray, centre: int) -> np.ndarray:
        y, x = divmod(centre, width)
        return pixels[y - 2 : y + 3, x - 2 : x + 3]

    for centre in case.target.flatten().nonzero()[:, 0].tolist():
        to, source = patch(image, centre), patch(image, int(found.flatten()[centre]))
        apart = to[..., :3].sum((0, 1)) - source[..., :3].sum((0, 1))
        offset = np.clip(np.floor(apart / 25 + 0.5), -50, 50).astype(np.int64)
        moved = source.copy()
        moved[..., :3] += offset
        squares = ((to - moved) ** 2).sum()
        penalty = (offset**2 * 25 // 8).sum()
        guided = ((moved[..., :3].sum((0, 1)) - patch(guide, centre).sum((0, 1))) ** 2).sum()
        assert cost.flatten()[centre] == squares + penalty + guided * 24 // (16 * 25)


@pytest.mark.parametrize("impl", IMPLS)
def test_sweeps_never_make_a_match_worse_and_take_whole_sources_only(impl: str) -> None:
    case = Case(1, 3, 3)
    _, before = case.match(sweeps=0, impl=impl)
    found, after = case.match(sweeps=5, impl=impl)
    assert (after <= before).all()
    assert (after < before).any()
    assert torch.equal(found >= 0, case.target)
    assert case.source.flatten()[found[case.target].long()].all()


@pytest.mark.parametrize("impl", IMPLS)
def test_sweeps_may_be_divided_among_calls(impl: str) -> None:
    case = Case(2, 2, 3)
    whole = case.match(sweeps=4, first_sweep=3, seed=5, impl=impl)
    case.field, _ = case.match(sweeps=3, first_sweep=3, seed=5, impl=impl)
    rest = case.match(sweeps=1, first_sweep=6, seed=5, impl=impl)
    assert torch.equal(whole[0], rest[0])
    assert torch.equal(whole[1], rest[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_many_sweeps_find_what_brute_force_finds(impl: str) -> None:
    case = Case(4, 1, 3)
    corner = np.s_[:14, :14]
    case.image, case.guide, case.source = (
        part[corner].contiguous() for part in (case.image, case.guide, case.source)
    )
    case.source[-1], case.source[:, -1] = False, False
    case.target = case.target[corner]
    start = int(case.source.flatten().nonzero()[0])
    case.field = torch.where(case.target, start, -1).int()
    case.field[-1], case.field[:, -1] = -1, -1
    case.target = case.field >= 0
    _, cost = case.match(sweeps=400, guide_weight=0, max_offset=0, impl=impl)
    image = case.image.numpy().astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1)).reshape(
        image.shape[0] - 2, image.shape[1] - 2, -1
    )
    sources = windows[case.source.numpy()[1:-1, 1:-1]]
    least = [
        int(((sources - windows[y - 1, x - 1]) ** 2).sum(1).min())
        for y, x in case.target.nonzero().tolist()
    ]
    assert (cost[case.target].numpy() >= least).all()
    assert (cost[case.target].numpy() == least).mean() > 0.9


@pytest.mark.parametrize("impl", IMPLS)
def test_periodic_texture_is_continued(impl: str) -> None:
    y, x = np.mgrid[:32, :32]
    pattern = np.stack(((y % 4) * 300, (x % 4) * 300, ((x + y) % 2) * 1000), 2).astype(np.int16)
    case = Case(0, 2, 3)
    case.mask = torch.zeros(32, 32, dtype=torch.bool)
    case.mask[14:18, 14:18] = True
    touched = ndimage.maximum_filter(case.mask.numpy(), 5)
    whole = np.zeros_like(touched)
    whole[2:-2, 2:-2] = True
    case.source = torch.from_numpy(whole & ~touched)
    position = np.arange(32 * 32).reshape(32, 32)
    case.field = torch.from_numpy(np.where(touched, position - 8 * 32 - 8, -1).astype(np.int32))
    case.image = torch.from_numpy(pattern).clone()
    case.guide = case.image.clone()
    _, cost = case.match(sweeps=1, impl=impl)
    assert not cost.any()
    depth = torch.zeros(32, 32, dtype=torch.int16)
    blank = case.image.clone()
    blank[case.mask] = 500
    for best in (False, True):
        voted = patch_vote(
            blank, case.field, cost, case.mask, depth, radius=2, max_offset=0, best=best, impl=impl
        )
        assert torch.equal(voted, case.image)


@needs_cpp
@pytest.mark.parametrize("threads", [1, 3])
def test_cpp_does_not_depend_on_threads(threads: int) -> None:
    case = Case(5, 3, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, cost = case.match(sweeps=3, seed=9, impl="cpp")
    finally:
        torch.set_num_threads(before)
    expected, expected_cost = case.match(sweeps=3, seed=9, impl="reference")
    assert torch.equal(found, expected)
    assert torch.equal(cost, expected_cost)


@needs_cpp
def test_bad_arguments_are_named() -> None:
    case = Case(0, 1, 3)
    with pytest.raises(TypeError, match="image must have dtype int16"):
        patch_match(case.image.float(), case.guide, case.source, case.field)
    with pytest.raises(ValueError, match="image must have 3 to 16 channels"):
        patch_match(case.image[..., :2], case.guide, case.source, case.field)
    with pytest.raises(ValueError, match=r"radius must be in 0\.\.7, got 8"):
        case.match(radius=8)
    with pytest.raises(ValueError, match=r"field must have shape"):
        patch_match(case.image, case.guide, case.source, case.field[1:])
    case.field[0, 0] = 0
    with pytest.raises(RuntimeError, match="field must name patches that lie whole in the image"):
        case.match(impl="cpp")
