"""The rasterizers against hand-drawn masks, exact integer geometry and scikit-image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay
from skimage.measure import points_in_poly
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from cekernels import (
    ImplementationError,
    fill_boxes,
    fill_masked,
    fill_polygons,
    rasterize_boxes,
    rasterize_polygons,
    to_fixed_point,
)

Point = tuple[int, int]
Contour = Sequence[Point]
Sample = Sequence[Contour]

RULES = pytest.mark.parametrize("fill_rule", ["nonzero", "evenodd"])
quick = settings(max_examples=100, deadline=None, derandomize=True)


def pack(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices, contour offsets and sample offsets of a batch."""
    contours = [contour for sample in samples for contour in sample]
    vertices = [vertex for contour in contours for vertex in contour]
    return (
        torch.tensor(vertices, dtype=torch.int32).reshape(-1, 2),
        offsets([len(contour) for contour in contours]),
        offsets([len(sample) for sample in samples]),
    )


def offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int64)


def polygons(
    samples: Sequence[Sample], height: int, width: int, fill_rule: Any = "nonzero"
) -> Tensor:
    mask, area = rasterize_polygons(*pack(samples), height, width, fill_rule=fill_rule)
    assert mask.shape == (len(samples), 1, height, width)
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    assert area.dtype == torch.int64
    assert torch.equal(area, mask.sum((1, 2, 3)))
    return mask[:, 0]


def boxes(
    samples: Sequence[Sequence[tuple[int, int, int, int]]], height: int, width: int
) -> Tensor:
    flat = torch.tensor([box for sample in samples for box in sample], dtype=torch.int32)
    mask, area = rasterize_boxes(
        flat.reshape(-1, 4), offsets([len(sample) for sample in samples]), height, width
    )
    assert mask.shape == (len(samples), 1, height, width)
    assert torch.equal(area, mask.sum((1, 2, 3)))
    return mask[:, 0]


def drawn(mask: Tensor) -> list[str]:
    return ["".join("#" if inside else "." for inside in row) for row in mask.tolist()]


def px(*points: tuple[float, float]) -> list[Point]:
    """A contour given in pixels."""
    return [(round(256 * x), round(256 * y)) for x, y in points]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return px((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def winding(sample: Sample, x: int, y: int) -> int:
    """The winding number of a point, in Python integers and without division."""
    limit, total = 2**28, 0
    for contour in sample:
        clamped = [(min(max(x, -limit), limit), min(max(y, -limit), limit)) for x, y in contour]
        for (x0, y0), (x1, y1) in zip(clamped, [*clamped[1:], *clamped[:1]], strict=True):
            turn = (x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)
            if y0 <= y < y1:
                total += turn >= 0
            elif y1 <= y < y0:
                total -= turn <= 0
    return total


def by_winding(sample: Sample, height: int, width: int, fill_rule: str) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    for i, j in itertools.product(range(height), range(width)):
        number = winding(sample, 256 * j + 128, 256 * i + 128)
        mask[i, j] = number != 0 if fill_rule == "nonzero" else number % 2 == 1
    return mask


# --- hand-drawn ---------------------------------------------------------------------------------


def test_a_centre_on_the_left_or_top_edge_is_inside_on_the_right_or_bottom_outside() -> None:
    square = rectangle(0.5, 0.5, 2.5, 2.5)  # its edges run through centres
    assert drawn(polygons([[square]], 4, 4)[0]) == ["##..", "##..", "....", "...."]
    assert drawn(boxes([[(128, 128, 640, 640)]], 4, 4)[0]) == ["##..", "##..", "....", "...."]
    beyond = rectangle(0.5 + 1 / 256, 0.5 + 1 / 256, 2.5 + 1 / 256, 2.5 + 1 / 256)
    assert drawn(polygons([[beyond]], 4, 4)[0]) == ["....", ".##.", ".##.", "...."]


def test_triangles() -> None:
    lower_left = px((0, 0), (4, 4), (0, 4))  # the diagonal, its right edge, passes through centres
    assert drawn(polygons([[lower_left]], 4, 4)[0]) == ["....", "#...", "##..", "###."]
    upper_right = px((0, 0), (4, 0), (4, 4))  # here it is the left edge
    assert drawn(polygons([[upper_right]], 4, 4)[0]) == ["####", ".###", "..##", "...#"]
    flat = px((0, 1), (6, 1), (3, 3))
    assert drawn(polygons([[flat]], 4, 6)[0]) == ["......", ".####.", "..##..", "......"]


def test_fill_rules() -> None:
    outer, inner = rectangle(0, 0, 5, 4), rectangle(1, 1, 4, 3)
    ring, full = ["#####", "#...#", "#...#", "#####"], ["#####"] * 4
    assert drawn(polygons([[outer, inner]], 4, 5, "evenodd")[0]) == ring
    assert drawn(polygons([[outer, inner]], 4, 5, "nonzero")[0]) == full
    assert drawn(polygons([[outer, inner[::-1]]], 4, 5, "nonzero")[0]) == ring
    left, right = rectangle(0, 0, 3, 2), rectangle(2, 0, 5, 2)
    assert drawn(polygons([[left, right]], 2, 5, "nonzero")[0]) == ["#####"] * 2
    assert drawn(polygons([[left, right]], 2, 5, "evenodd")[0]) == ["##.##"] * 2
    twice_around = [*outer, *outer]
    assert drawn(polygons([[twice_around]], 4, 5, "nonzero")[0]) == full
    assert drawn(polygons([[twice_around]], 4, 5, "evenodd")[0]) == ["....."] * 4


def test_a_pentagram_has_a_hole_by_evenodd_only() -> None:
    corners = [(math.sin(2 * math.pi * k / 5), -math.cos(2 * math.pi * k / 5)) for k in range(5)]
    star = px(*((16 + 14 * x, 16 + 14 * y) for x, y in corners[::2] + corners[1::2]))
    evenodd, nonzero = (polygons([[star]], 32, 32, rule)[0] for rule in ("evenodd", "nonzero"))
    assert nonzero[16, 16]
    assert not evenodd[16, 16]
    assert nonzero[4, 16]
    assert evenodd[4, 16]


def test_what_encloses_no_centre_is_empty() -> None:
    line, point = px((0, 0), (4, 4)), px((2.5, 2.5))
    sliver = px((0, 1.6), (4, 1.6), (4, 2.4), (0, 2.4))
    samples: list[Sample] = [[], [[]], [line], [point], [sliver], [line * 3, [], point]]
    assert not polygons(samples, 4, 4).any()
    assert not boxes([[], [(512, 0, 512, 999)], [(512, 512, 0, 0)], [(0, 512, 999, 0)]], 4, 4).any()


def test_empty_batches_and_masks() -> None:
    assert polygons([], 3, 4).shape == (0, 3, 4)
    assert boxes([], 3, 4).shape == (0, 3, 4)
    for height, width in ((0, 4), (3, 0), (0, 0)):
        assert polygons([[rectangle(0, 0, 9, 9)]], height, width).shape == (1, height, width)
        assert boxes([[(0, 0, 999, 999)]], height, width).shape == (1, height, width)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_offsets_leave_no_vertices_contours_or_boxes_out(impl: Any) -> None:
    """Two squares of 64 pixels: offsets of one would drop the other."""
    vertices, contours, samples = pack([[rectangle(0, 0, 8, 8), rectangle(8, 8, 16, 16)]])
    for wrong in ([0, 4], [0, 4, 7], [1, 4, 8], [4, 8]):
        with pytest.raises(ValueError, match=r"contour_offsets must be .* within 0\.\.8, .*got"):
            rasterize_polygons(vertices, torch.tensor(wrong), samples, 16, 16, impl=impl)
    for wrong in ([0, 1], [1, 2], [1, 1, 2], [0]):
        with pytest.raises(ValueError, match=r"sample_offsets must be .* within 0\.\.2, .*got"):
            rasterize_polygons(vertices, contours, torch.tensor(wrong), 16, 16, impl=impl)
    assert rasterize_polygons(vertices, contours, samples, 16, 16, impl=impl)[1].item() == 128
    flat = torch.tensor([[0, 0, 256, 256], [256, 256, 512, 512], [512, 512, 768, 768]]).int()
    for wrong in ([1, 2, 3], [0, 1, 2], [0]):
        with pytest.raises(ValueError, match=r"sample_offsets must be .* within 0\.\.3, .*got"):
            rasterize_boxes(flat, torch.tensor(wrong), 3, 3, impl=impl)
    assert rasterize_boxes(flat, torch.tensor([0, 3, 3]), 3, 3, impl=impl)[1].tolist() == [3, 0]


# --- against exact geometry -----------------------------------------------------------------------

NEAR = st.integers(-3 * 256, 11 * 256)
ON_CENTRES = st.integers(-3, 10).map(lambda pixel: 256 * pixel + 128)
FAR = st.sampled_from([-(2**31), -(2**28) - 1, -(2**28), -(2**20), 2**20, 2**28, 2**31 - 1])
COORDINATE = st.one_of(ON_CENTRES, NEAR, NEAR, FAR)
CONTOUR = st.lists(st.tuples(COORDINATE, COORDINATE), max_size=7)
SAMPLE = st.lists(CONTOUR, max_size=3)


@RULES
@quick
@given(samples=st.lists(SAMPLE, max_size=3), height=st.integers(1, 7), width=st.integers(1, 9))
def test_any_polygons_match_the_winding_number(
    fill_rule: str, samples: list[Sample], height: int, width: int
) -> None:
    masks = polygons(samples, height, width, fill_rule)
    for mask, sample in zip(masks, samples, strict=True):
        assert drawn(mask) == drawn(by_winding(sample, height, width, fill_rule))


@RULES
@quick
@given(sample=SAMPLE, data=st.data())
def test_order_start_and_direction_do_not_matter(
    fill_rule: str, sample: list[list[Point]], data: st.DataObject
) -> None:
    expected = polygons([sample], 6, 7, fill_rule)
    shuffled = data.draw(st.permutations(sample))
    turns = [data.draw(st.integers(0, max(len(contour) - 1, 0))) for contour in shuffled]
    turned = [contour[k:] + contour[:k] for contour, k in zip(shuffled, turns, strict=True)]
    assert torch.equal(polygons([turned], 6, 7, fill_rule), expected)
    reversed_all = [contour[::-1] for contour in sample]
    assert torch.equal(polygons([reversed_all], 6, 7, fill_rule), expected)
    repeated = [[vertex for vertex in contour for _ in range(2)] for contour in sample]
    assert torch.equal(polygons([repeated], 6, 7, fill_rule), expected)


BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)


@quick
@given(samples=st.lists(st.lists(BOX, max_size=4), max_size=3))
def test_boxes_are_the_union_of_half_open_rectangles(
    samples: list[list[tuple[int, int, int, int]]],
) -> None:
    masks = boxes(samples, 6, 8)
    for mask, sample in zip(masks, samples, strict=True):
        expected = [
            "".join(
                "#" if any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in sample) else "."
                for x in range(128, 8 * 256, 256)
            )
            for y in range(128, 6 * 256, 256)
        ]
        assert drawn(mask) == expected
    as_polygons = [
        [
            [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            for x0, y0, x1, y1 in sample
            if x0 < x1 and y0 < y1
        ]
        for sample in samples
    ]
    assert torch.equal(polygons(as_polygons, 6, 8), masks)


@pytest.mark.parametrize("seed", range(4))
def test_a_triangulation_covers_every_pixel_exactly_once(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = 24, 31
    inner = generator.integers(1, [256 * width, 256 * height], (60, 2))
    inner[::3] = inner[::3] // 256 * 256 + 128  # vertices on centres
    corners = [[0, 0], [256 * width, 0], [256 * width, 256 * height], [0, 256 * height]]
    points = np.unique(np.concatenate([inner, corners]), axis=0)
    triangles = [[[tuple(v) for v in points[t]]] for t in Delaunay(points).simplices.tolist()]
    covered = polygons(triangles, height, width).sum(0)
    assert torch.equal(covered, torch.ones_like(covered))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_image_away_from_the_edges(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = 20, 25
    contour = generator.integers(-512, 256 * 27, (12, 2))
    contour += (contour % 256 == 128).astype(contour.dtype)  # no centre in line with a vertex
    centres = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) * 256 + 128
    expected = points_in_poly(centres.reshape(-1, 2), contour).reshape(height, width)
    mask = polygons([[[tuple(v) for v in contour.tolist()]]], height, width, "evenodd")[0]
    assert torch.equal(mask, torch.from_numpy(expected))


def test_a_whole_batch_at_full_size() -> None:
    B, size, corners = 64, 227, 200
    angle = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / corners)
    radius = torch.linspace(5, 105, B, dtype=torch.float64)[:, None]
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    vertices = to_fixed_point(113.5 + radius[..., None] * circle).reshape(-1, 2)
    mask, area = rasterize_polygons(
        vertices, torch.arange(B + 1) * corners, torch.arange(B + 1), size, size
    )
    exact = corners / 2 * math.sin(2 * math.pi / corners) * radius[:, 0] ** 2
    assert ((area - exact).abs() < 2 * math.pi * radius[:, 0]).all()  # less than the circumference
    assert torch.equal(area, mask.sum((1, 2, 3)))
    assert torch.equal(
        mask, mask.flip(2)
    )  # circles are symmetric about the image's horizontal centre line
    assert (mask[1:] >= mask[:-1]).all()  # each circle lies inside the next


def test_moving_by_whole_pixels_moves_the_mask() -> None:
    shape = px((1.3, 0.7), (6.1, 2.2), (4.4, 6.9), (0.2, 5.5))
    base = polygons([[shape]], 8, 8)[0]
    moved = polygons([[[(x + 3 * 256, y + 2 * 256) for x, y in shape]]], 11, 12)[0]
    assert torch.equal(moved[2:10, 3:11], base)
    assert moved.sum() == base.sum() > 10


def test_layout_of_the_arguments_does_not_matter() -> None:
    samples = [[rectangle(0, 0, 2, 2), px((1, 1), (5, 2), (3, 5))], [px((0, 5), (2, 0), (5, 5))]]
    packed = pack(samples)
    spread = [t.repeat_interleave(2, dim=-1)[..., ::2] for t in packed]
    assert not any(t.is_contiguous() for t in spread)
    assert torch.equal(rasterize_polygons(*spread, 5, 6)[0], rasterize_polygons(*packed, 5, 6)[0])
    one = torch.tensor([0, 0, 512, 512], dtype=torch.int32).expand(3, 4)
    every_second = torch.tensor([0, 9, 1, 9, 3])[::2]
    assert rasterize_boxes(one, every_second, 4, 4)[1].tolist() == [4, 4]


def test_to_fixed_point() -> None:
    pixels = torch.tensor([0.0, 1.0, -1.5, 0.5 / 256, 1.5 / 256, 2.4 / 256, 300.25])
    expected = [0, 256, -384, 0, 2, 2, 76864]
    for dtype in (torch.float32, torch.float64):
        fixed = to_fixed_point(pixels.to(dtype))
        assert fixed.dtype == torch.int32
        assert fixed.tolist() == expected
    assert to_fixed_point(torch.tensor([300.25], dtype=torch.float16)).tolist() == [76864]
    assert to_fixed_point(torch.tensor([[3, -4]])).tolist() == [[768, -1024]]
    far = torch.tensor([1e9, -1e9, 3e38])
    assert to_fixed_point(far).tolist() == [2**28, -(2**28), 2**28]
    assert to_fixed_point(torch.zeros(0, 2)).shape == (0, 2)
    for bad in (math.nan, math.inf, -math.inf):
        message = r"^to_fixed_point: pixels must be finite, got 1 .* of 4, the first at .* \(1, 0\)"
        with pytest.raises(ValueError, match=message):
            to_fixed_point(torch.tensor([[0.0, 1.0], [bad, 2.0]]))
    # a graph reads no values
    compiled = torch.compile(to_fixed_point, fullgraph=True, backend="eager")
    assert compiled(torch.tensor([1.0, math.inf])).tolist() == [256, 2**28]
    for wrong in (1.5, torch.tensor([True]), torch.tensor([1j])):
        with pytest.raises(TypeError, match=r"^to_fixed_point: pixels must be .*, got "):
            to_fixed_point(wrong)  # type: ignore[arg-type]


# --- filling ------------------------------------------------------------------------------------


def draw_image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=generator) * 200 + 1).to(dtype)


MASK = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
MASKS = {
    "bool": MASK,
    "uint8": MASK.to(torch.uint8) * 255,
    "weights": MASK * 0.25,
    "each channel": torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.4,
    "expanded": MASK[:1].expand(2, 1, 4, 5),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    "value",
    [7, 7.0, True, (1, 2, 3), [1.0, 2.0, 3.0], torch.tensor([1.0, 2.0, 3.0]), torch.tensor(7.0)],
    ids=repr,
)
def test_fill_masked_puts_the_value_of_each_channel(kind: str, value: Any) -> None:
    image, mask = draw_image(2, 3, 4, 5), MASKS[kind]
    filled = fill_masked(image, mask, value)
    constant = torch.as_tensor(value, dtype=torch.float32).expand(3)
    for b, c, i, j in itertools.product(range(2), range(3), range(4), range(5)):
        inside = mask[b, c if mask.shape[1] > 1 else 0, i, j] != 0
        assert filled[b, c, i, j] == (constant[c] if inside else image[b, c, i, j])
    assert filled.is_contiguous()
    assert filled.data_ptr() != image.data_ptr()


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_fill_masked_keeps_the_image_s_dtype(dtype: torch.dtype) -> None:
    image = draw_image(2, 3, 4, 5, dtype=dtype)
    for value in (9, 9.0, (9, 9.0, np.int64(9)), torch.tensor([9, 9, 9])):
        filled = fill_masked(image, MASK, value)
        assert filled.dtype == dtype
        assert torch.equal(filled, torch.where(MASK, torch.tensor(9, dtype=dtype), image))
    flags = image > 100
    assert torch.equal(fill_masked(flags, MASK, True), flags | MASK)


def test_fill_masked_replaces_what_is_not_finite_and_keeps_double_precision() -> None:
    image = draw_image(2, 3, 4, 5, dtype=torch.float64).masked_fill(MASK, math.nan)
    assert fill_masked(image, MASK, 0.1)[MASK.expand_as(image)].unique().tolist() == [0.1]
    assert fill_masked(image, MASK, [0.1] * 3)[MASK.expand_as(image)].unique().tolist() == [0.1]


SHAPES = pack([[px((0, 0), (5, 1), (2, 4)), rectangle(3, 2, 5, 4)], [rectangle(1, 1, 3, 3)]])
BOXES = (
    torch.tensor([[0, 0, 512, 512], [256, 256, 900, 700], [0, 512, 640, 1024]], dtype=torch.int32),
    torch.tensor([0, 2, 3]),
)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_filling_shapes_is_rasterizing_and_filling(dtype: torch.dtype) -> None:
    image, value = draw_image(2, 3, 4, 5, dtype=dtype), (1, 2, 3)
    for rule in ("nonzero", "evenodd"):
        mask, area = rasterize_polygons(*SHAPES, 4, 5, fill_rule=rule)  # type: ignore[arg-type]
        ours = fill_polygons(image, value, *SHAPES, fill_rule=rule)  # type: ignore[arg-type]
        for a, b in zip(ours, (fill_masked(image, mask, value), mask, area), strict=True):
            assert torch.equal(a, b)
    mask, area = rasterize_boxes(*BOXES, 4, 5)
    assert area.tolist() == [mask[0].sum(), mask[1].sum()] == [9, 4]
    ours = fill_boxes(image, value, *BOXES)
    for a, b in zip(ours, (fill_masked(image, mask, value), mask, area), strict=True):
        assert torch.equal(a, b)


def filling(kind: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function that fills an image (2, 2, 4, 5), and the mask that it fills."""
    value = (1.0, 2.0)
    if kind == "polygons":
        mask = rasterize_polygons(*SHAPES, 4, 5)[0]
        return lambda image: fill_polygons(image, value, *SHAPES)[0], mask
    if kind == "boxes":
        return lambda image: fill_boxes(image, value, *BOXES)[0], rasterize_boxes(*BOXES, 4, 5)[0]
    return lambda image: fill_masked(image, MASK, value), MASK


@pytest.mark.parametrize("kind", ["masked", "polygons", "boxes"])
def test_gradient_is_the_image_s_outside_the_mask(kind: str) -> None:
    fill, mask = filling(kind)
    image = draw_image(2, 2, 4, 5, dtype=torch.float64).requires_grad_()
    upstream = draw_image(2, 2, 4, 5, dtype=torch.float64).masked_fill(mask, math.nan)
    (grad,) = torch.autograd.grad(fill(image), image, upstream)
    assert torch.equal(grad, torch.where(mask, 0.0, upstream))
    assert gradcheck(fill, image, check_forward_ad=True)
    assert gradgradcheck(fill, image)
    assert torch.equal(torch.func.grad(lambda x: fill(x).sum())(image), (~mask).expand(2, 2, 4, 5))
    assert not any(t.requires_grad for t in fill_boxes(image, 0.0, *BOXES)[1:])
    three = torch.stack([image, 2 * image, -image])
    batched = torch.func.vmap(fill)(three)
    assert torch.equal(batched, torch.stack([fill(each) for each in three]))


def test_a_forced_implementation_is_refused_under_a_transform() -> None:
    image = draw_image(2, 3, 4, 5)
    for f in (
        lambda x: fill_masked(x, MASK, 0.0, impl="cuda"),
        lambda x: fill_polygons(x, 0.0, *SHAPES, impl="cuda")[0],
    ):
        with pytest.raises(ImplementationError, match="impl='cuda' cannot handle"):
            torch.func.vmap(f)(image[None])


# --- registration and compilation -----------------------------------------------------------------


def test_opcheck() -> None:
    ops, image = torch.ops.cekernels, draw_image(2, 3, 4, 5).requires_grad_()
    value = torch.tensor([1.0, 2.0, 3.0])
    empty = pack([[], [[]]])
    opcheck(ops.rasterize_polygons.default, (*SHAPES, 4, 5, "nonzero"))
    opcheck(ops.rasterize_polygons.reference, (*empty, 3, 2, "evenodd"))
    opcheck(ops.rasterize_boxes.default, (*BOXES, 4, 5))
    opcheck(ops.fill_masked.default, (image, MASK, value))
    opcheck(ops.fill_masked.default, (image.detach().int(), MASKS["uint8"], value.int()))
    opcheck(ops.fill_polygons.default, (image, value, *SHAPES, "nonzero"))
    opcheck(ops.fill_boxes.default, (image.mT.contiguous().mT, value, *BOXES))


def test_compiled_with_dynamic_shapes_equals_eager_and_compiles_once() -> None:
    torch._dynamo.reset()

    def step(image: Tensor, height: int, width: int, shapes: Any, flat: Any) -> Any:
        mask, area = rasterize_polygons(*shapes, height, width, fill_rule="evenodd")
        other, _ = rasterize_boxes(*flat, height, width)
        filled, _, _ = fill_polygons(image, (1.0, 2.0, 3.0), *shapes)
        filled, _, _ = fill_boxes(filled, torch.tensor([1.0, 2.0, 3.0]), *flat)
        return fill_masked(filled, mask | other, 0.5), area

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for batch, height, width in ((5, 8, 9), (6, 10, 11), (7, 9, 12)):
        shapes = pack([[px((0, 0), (k, 3), (2, k + 1))] for k in range(3, 3 + batch)])
        flat = torch.tensor([[0, 0, 256 * k, 400] for k in range(batch)], dtype=torch.int32)
        boxes_and_offsets = (flat, torch.arange(batch + 1))
        results = []
        for f in (step, compiled):
            image = draw_image(batch, 3, height, width).requires_grad_()
            filled, area = f(image, height, width, shapes, boxes_and_offsets)
            results.append((filled, area, *torch.autograd.grad(filled.square().sum(), image)))
        torch.testing.assert_close(*results, rtol=0, atol=0)
    assert counter.frame_count == 1


def test_on_meta() -> None:
    image = draw_image(2, 3, 4, 5).to("meta")
    shapes, flat = [t.to("meta") for t in SHAPES], [t.to("meta") for t in BOXES]
    mask, area = rasterize_polygons(*shapes, 4, 5)  # type: ignore[arg-type]
    assert (mask.shape, mask.dtype, area.shape, area.dtype) == (
        (2, 1, 4, 5), torch.bool, (2,), torch.int64,
    )  # fmt: skip
    assert rasterize_boxes(*flat, 6, 7)[0].shape == (2, 1, 6, 7)  # type: ignore[arg-type]
    assert fill_masked(image, MASK.to("meta"), 0.0).shape == image.shape
    assert fill_boxes(image, 0.0, *flat)[0].shape == image.shape  # type: ignore[arg-type]


# --- refusals -----------------------------------------------------------------------------------

I64 = torch.tensor
V, CO, SO = SHAPES
POLYGONS = {"vertices": V, "contour_offsets": CO, "sample_offsets": SO, "height": 4, "width": 5}
BOX_ARGUMENTS = {"boxes": BOXES[0], "sample_offsets": BOXES[1], "height": 4, "width": 5}
IMAGE = draw_image(2, 3, 4, 5)
FILL = {"image": IMAGE, "mask": MASK, "value": 0.0}


def refusal(f: Callable[..., Any], good: dict[str, Any], *cases: tuple[Any, ...]) -> list[Any]:
    return [
        pytest.param(f, good, error, name, value, message, id=f"{f.__name__}-{name}-{k}")
        for k, (error, name, value, message) in enumerate(cases)
    ]


OFFSETS = r"must be non-decreasing within 0\.\."


@pytest.mark.parametrize(
    ("f", "good", "error", "name", "value", "message"),
    [
        *refusal(
            rasterize_polygons,
            POLYGONS,
            (TypeError, "vertices", [[0, 0]], r"must be a torch.Tensor, got list \[\[0, 0\]\]"),
            (ValueError, "vertices", V[0], r"must be \(V, 2\), got a int32 tensor of shape \(2,\)"),
            (ValueError, "vertices", V.T, r"must have shape \(2, 2\) \(\(V, 2\): x and y\), got"),
            (TypeError, "vertices", V.float(), r"must have dtype int32, got a float32"),
            (TypeError, "contour_offsets", [0, 3], r"must be a torch.Tensor, got list \[0, 3\]"),
            (ValueError, "contour_offsets", CO[None], r"must be 1-dimensional, got a int64"),
            (TypeError, "contour_offsets", CO.int(), r"must have dtype int64, got a int32"),
            (ValueError, "contour_offsets", CO[:0], r"must have at least one element"),
            (ValueError, "contour_offsets", CO.to("meta"), r"must be on the device of vertices"),
            (ValueError, "contour_offsets", I64([0, 7, 3, 11]), OFFSETS + r"11, .* got \[0, 7, 3"),
            (ValueError, "contour_offsets", I64([0, 3, 7, 12]), OFFSETS + r"11, the number of v"),
            (ValueError, "contour_offsets", I64([-1, 3, 7, 11]), OFFSETS + r"11, .*first -1"),
            (TypeError, "sample_offsets", SO.float(), r"must have dtype int64, got a float32"),
            (ValueError, "sample_offsets", SO[:0], r"must have at least one element"),
            (ValueError, "sample_offsets", SO.to("meta"), r"must be on the device of vertices"),
            (ValueError, "sample_offsets", I64([0, 4]), OFFSETS + r"3, the number of contours"),
            (ValueError, "sample_offsets", I64([2, 1]), OFFSETS + r"3, .* got \[2, 1\]"),
            (ValueError, "height", -1, r"must not be negative, got -1"),
            (ValueError, "width", -2, r"must not be negative, got -2"),
            (ValueError, "width", 2**31, r"must be in 0..2\*\*31 - 1, got 2147483648"),
            (ValueError, "height", 2**63, r"must be in 0..2\*\*31 - 1, got 92233"),
            (TypeError, "height", torch.tensor(3.7), r"must be an integer, got float32 tensor"),
            (TypeError, "height", torch.tensor([3]), r"must be an integer, got int64 tensor"),
            (TypeError, "height", torch.ones((), device="meta").int(), r"must be .* call .item"),
            (TypeError, "width", True, r"must be an integer, got bool True"),
            (TypeError, "height", np.float64(4), r"must be an integer, got float64"),
            (TypeError, "height", 4.0, r"must be an integer, got float 4.0"),
            (TypeError, "width", "5", r"must be an integer, got str '5'"),
            (ValueError, "fill_rule", "winding", r"must be one of 'nonzero', 'evenodd', got 'wi"),
            (ValueError, "impl", "opencv", r"must be one of 'auto', .* got 'opencv'"),
        ),
        *refusal(
            rasterize_boxes,
            BOX_ARGUMENTS,
            (TypeError, "boxes", None, r"must be a torch.Tensor, got NoneType None"),
            (ValueError, "boxes", BOXES[0][0], r"must be \(K, 4\), got a int32 .* \(4,\)"),
            (ValueError, "boxes", BOXES[0][:, :3], r"must have shape \(3, 4\) .*x0, y0, x1, y1"),
            (TypeError, "boxes", BOXES[0].long(), r"must have dtype int32, got a int64"),
            (ValueError, "sample_offsets", I64([0, 4]), OFFSETS + r"3, the number of boxes"),
            (ValueError, "sample_offsets", I64([]).long(), r"must have at least one element"),
            (TypeError, "height", None, r"must be an integer, got NoneType None"),
            (ValueError, "impl", "", r"must be one of 'auto', .* got ''"),
        ),
        *refusal(
            fill_masked,
            FILL,
            (TypeError, "image", 0.0, r"must be a torch.Tensor, got float 0.0"),
            (ValueError, "image", IMAGE[0], r"must be \(B, C, H, W\), got .* \(3, 4, 5\)"),
            (TypeError, "image", IMAGE * 1j, r"must be real, got a complex64"),
            (TypeError, "image", IMAGE.to_sparse(), r"must be dense, got a torch.sparse_coo"),
            (TypeError, "mask", None, r"must be a torch.Tensor, got NoneType None"),
            (ValueError, "mask", MASK[0], r"must be \(B, 1, H, W\) or .* shape \(1, 4, 5\)"),
            (TypeError, "mask", MASK * 1j, r"must have dtype bool, uint8, .* got a complex64"),
            (ValueError, "mask", MASK[:1], r"must have shape \(2, 1, 4, 5\) \(that of image, or"),
            (ValueError, "mask", MASK.to("meta"), r"must be on the device of image, cpu"),
            (ValueError, "mask", MASK.float().requires_grad_(), r"has no gradient here"),
            (TypeError, "value", None, r"must be a number, or one per .* got NoneType None"),
            (TypeError, "value", "grey", r"must be a number, or one per .* got str 'grey'"),
            (ValueError, "value", [1.0, 2.0], r"must have shape \(3,\) \(one number per channel\)"),
            (ValueError, "value", torch.zeros(1, 3), r"must have shape \(3,\) .* \(1, 3\)"),
            (ValueError, "value", torch.zeros(3, device="meta"), r"must be on the device of image"),
            (ValueError, "value", torch.zeros(3).requires_grad_(), r"has no gradient .*detach"),
            (ValueError, "impl", "where", r"must be one of 'auto', .* got 'where'"),
        ),
        *refusal(
            fill_masked,
            FILL | {"image": IMAGE.to(torch.uint8)},
            (TypeError, "value", 0.5, r"must be .* that fits an image of torch.uint8, got float"),
            (TypeError, "value", [1.0, 0.5, 2.0], r"must be .* fits an image of torch.uint8, got"),
            (TypeError, "value", torch.zeros(3), r"must be .* fits .* got float32 tensor"),
            (TypeError, "value", 300, r"must be .* that fits an image of torch.uint8, got int 300"),
            (TypeError, "value", -1, r"must be .* that fits an image of torch.uint8, got int -1"),
            (TypeError, "value", [0, -1, 0], r"must be .* that fits an image .* got list \[0, -1"),
            (TypeError, "value", 256.0, r"must be .* that fits an image .* got float 256.0"),
            (TypeError, "value", math.inf, r"must be .* that fits an image .* got float inf"),
            (TypeError, "value", torch.tensor(300), r"must be .* that fits .* got int64 tensor"),
            (TypeError, "value", torch.tensor([0, -1, 9]), r"must be .* that fits .* int64 tensor"),
            (TypeError, "value", (300, 0, 0), r"must be .* that fits an image .* got tuple \(300"),
        ),
        *refusal(
            fill_masked,
            FILL | {"image": IMAGE.half()},
            (TypeError, "value", 1e5, r"must be .* that fits an image of torch.float16, got float"),
            (TypeError, "value", torch.tensor(1e5), r"must be .* fits .* got float32 tensor"),
            (TypeError, "value", torch.tensor(1j), r"must be .* fits .* got complex64 tensor"),
        ),
        *refusal(
            fill_polygons,
            {"image": IMAGE, "value": 0.0} | dict(list(POLYGONS.items())[:3]),
            (ValueError, "image", IMAGE[0], r"must be \(B, C, H, W\), got .* \(3, 4, 5\)"),
            (ValueError, "image", IMAGE.to("meta"), r"must be on the device of sample_offsets"),
            (ValueError, "sample_offsets", SO[:2], r"must have B \+ 1 = 3 elements .* got 2"),
            (ValueError, "sample_offsets", I64([0, 2, 9]), OFFSETS + r"3, the number of contours"),
            (ValueError, "vertices", V[0], r"must be \(V, 2\)"),
            (ValueError, "value", [1.0], r"must have shape \(3,\)"),
            (ValueError, "fill_rule", None, r"must be one of 'nonzero', 'evenodd', got None"),
        ),
        *refusal(
            fill_boxes,
            {"image": IMAGE, "value": 0.0} | dict(list(BOX_ARGUMENTS.items())[:2]),
            (TypeError, "image", None, r"must be a torch.Tensor, got NoneType None"),
            (ValueError, "sample_offsets", SO[:1], r"must have B \+ 1 = 3 elements .* got 1"),
            (ValueError, "sample_offsets", I64([0, 2, 4]), OFFSETS + r"3, the number of boxes"),
            (TypeError, "boxes", BOXES[0].float(), r"must have dtype int32, got a float32"),
        ),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(
    f: Callable[..., Any],
    good: dict[str, Any],
    error: type[Exception],
    name: str,
    value: Any,
    message: str,
) -> None:
    f(**good)
    with pytest.raises(error, match=f"^{f.__name__}: {name} .*{message}"):
        f(**(good | {name: value}))
