"""Triton's kernels as it compiles them for A100 and H100, executed by the machine of helpers/ptx.

Whole ops against float64 or exact integers, with the checks of the machine: races, divergence,
alignment, bounds, memory that was not written, copies and tensor-core products that are not waited
for. By default the paper's maps for both GPUs and the other tile sizes for one; with
CEKERNELS_COMPILE_ALL=1 every pair of tile sizes for both.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from cekernels import reference
from cekernels.triton import channelwise_linear as linear
from tests.helpers.implementation_cases import (
    INTERPRETED,
    assert_close,
    boxes,
    integers,
    polygons,
    random,
)
from tests.helpers.ptx.machine import Machine
from tests.helpers.ptx.memory import GpuError, Memory

if not INTERPRETED:
    from tests.helpers.ptx.triton_ops import TritonOnMachine
    from tests.helpers.triton_compile import implementation

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

EVERYTHING = os.environ.get("CEKERNELS_COMPILE_ALL") == "1"
CAPABILITIES = (80, 90)
ALL = (True, True, True)
# The dtype, and the torch.get_float32_matmul_precision(), that select a kind of products.
PRODUCTS = {
    "ieee": (torch.float32, "highest"),
    "tf32x3": (torch.float32, "high"),
    "tf32": (torch.float32, "medium"),
    "16 bit": (torch.bfloat16, "highest"),
}
LOCATIONS = (16, 25, 36, 100)  # per tile size one map; rows of 25 allow no vectors


def tiles(n_in: int, n_out: int, products: str) -> tuple[object, object]:
    return linear.forward_tiles(n_in, n_out, products), linear.backward_tiles(n_in, n_out, products)


def linear_cases() -> list[object]:
    found = []
    for products in PRODUCTS:
        for capability in CAPABILITIES:
            for n_in in LOCATIONS:
                for n_out in LOCATIONS:
                    square = n_in == n_out and (n_in == 36 or capability == 90)
                    if (square or EVERYTHING) and tiles(n_in, n_out, products) != (None, None):
                        name = f"{products}-sm_{capability}-{n_in}x{n_out}"
                        found.append(pytest.param(products, capability, n_in, n_out, id=name))
    return found


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(Memory(24 << 20))


@pytest.fixture
def on_gpu(machine: Machine) -> Iterator[Callable[[int], Any]]:
    """Runs ops on the machine: ``on_gpu(capability)(op, *arguments)``."""
    precision = torch.get_float32_matmul_precision()
    machine.memory.reset()
    yield lambda capability: TritonOnMachine(machine, capability)
    torch.set_float32_matmul_precision(precision)


def test_the_cases_have_every_tile_size() -> None:
    """Of all pairs of sizes that the kernels are chosen for."""
    limit = max(linear.LARGEST_FORWARD.values()) + 1
    for products in PRODUCTS:
        chosen = {tiles(i, o, products) for i in LOCATIONS for o in LOCATIONS}
        every = {tiles(i, o, products) for i in range(1, limit) for o in range(1, limit)}
        assert {c[0] for c in chosen} | {None} == {e[0] for e in every} | {None}
        assert {c[1] for c in chosen} | {None} == {e[1] for e in every} | {None}


# --- channel-wise linear --------------------------------------------------------------------------


def whole_numbers(batch: int, channels: int, n_in: int, n_out: int, dtype: torch.dtype) -> Any:
    """Input, weight, bias, gradient of the output; their output; the gradients."""
    sizes = ((batch, channels, n_in), (channels, n_out, n_in), (channels, n_out),
             (batch, channels, n_out))  # fmt: skip
    x, w, b, g = (integers(*s, dtype=dtype, seed=i, limit=2) for i, s in enumerate(sizes))
    y = reference.channelwise_linear(x.double(), w.double(), b.double(), True).to(dtype)
    grads = reference.channelwise_linear_backward(
        g.double(), x.double(), w.double(), y.double(), *ALL
    )
    return x, w, b, g, y, [grad.to(dtype) for grad in grads]


@pytest.mark.parametrize(("products", "capability", "n_in", "n_out"), linear_cases())
def test_linear(
    on_gpu: Callable[[int], Any], products: str, capability: int, n_in: int, n_out: int
) -> None:
    """Several programs along the batch, the last tile partly filled."""
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    forward, backward = tiles(n_in, n_out, products)
    x, w, b, g, y, grads = whole_numbers(144, 16 if n_in == 36 else 2, n_in, n_out, dtype)
    run = on_gpu(capability)
    if forward is not None:
        assert torch.equal(run(implementation.channelwise_linear, x, w, b, True), y)
    if backward is not None:
        found = run(implementation.channelwise_linear_backward, g, x, w, y, *ALL)
        assert all(map(torch.equal, found, grads))
    assert {report.name for report in run.reports if report.unwritten} == set()


def test_float16(on_gpu: Callable[[int], Any]) -> None:
    x, w, b, g, y, grads = whole_numbers(80, 2, 36, 36, torch.float16)
    run = on_gpu(90)
    assert torch.equal(run(implementation.channelwise_linear, x, w, b, True), y)
    found = run(implementation.channelwise_linear_backward, g, x, w, y, *ALL)
    assert all(map(torch.equal, found, grads))


@pytest.mark.parametrize("products", PRODUCTS)
def test_linear_against_float64(on_gpu: Callable[[int], Any], products: str) -> None:
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    x, w, b = (random(*s, seed=i) for i, s in enumerate([(144, 16, 36), (16, 36, 36), (16, 36)]))
    x, w, b = (t.to(dtype) for t in (x, w, b))
    same = (x, w)
    if products == "tf32":
        same = tuple(((t.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) for t in same)
    exact = reference.channelwise_linear(x.double(), w.double(), b.double(), True)
    peer = reference.channelwise_linear(*same, b, True)
    y = on_gpu(90)(implementation.channelwise_linear, x, w, b, True)
    assert_close(y, peer, exact, 2, {torch.float32: 12}.get(dtype, 1))


def test_linear_of_large_maps(on_gpu: Callable[[int], Any]) -> None:
    """Products by torch.bmm; bias and ReLU in one kernel."""
    x, w, b, _, y, _ = whole_numbers(5, 2, 150, 140, torch.float32)
    assert torch.equal(on_gpu(90)(implementation.channelwise_linear, x, w, b, True), y)


# --- masked losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (2, 2, 37, 41)], ids=str)
def test_loss(
    on_gpu: Callable[[int], Any], shape: tuple[int, ...], dtype: torch.dtype, capability: int
) -> None:
    """Loss, gradient and both in one pass, in vectors and in single elements."""
    p, t = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    mask = random(shape[0], 1, *shape[2:], seed=3) > 0.5
    p = torch.where(mask, p, float("nan"))
    area = mask.sum((1, 2, 3))
    weights = torch.where(mask, random(*mask.shape, seed=4).abs(), 0).expand(shape)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 2.0**-23 if dtype == torch.float16 else 0}
    run = on_gpu(capability)
    for power, normalize, m in ((2, "mask", mask), (1, "none", weights.contiguous())):
        exact, _ = reference.masked_loss(p.double(), t.double(), m, None, power, normalize)
        loss, scale = run(implementation.masked_loss, p, t, m, None, power, normalize)
        assert torch.allclose(loss.double(), exact, rtol=1e-5, atol=0)
        g = random(*loss.shape)
        right = reference.masked_loss_backward(g, scale, p, t, m, power)
        found = run(implementation.masked_loss_backward, g, scale, p, t, m, power)
        assert torch.allclose(found, right, **close)
        for known in (area, None):
            args = p, t, m, known if m is mask else None, power, normalize
            one_pass = run(implementation.masked_loss_and_gradient, *args)
            assert torch.allclose(one_pass[0].double(), exact, rtol=1e-5, atol=0)
            run(implementation.scale_gradient_, one_pass[2], g, m)
            assert torch.allclose(one_pass[2], right, **close)


def test_loss_of_channels_last(on_gpu: Callable[[int], Any]) -> None:
    """Operands in any layout; results in that of the first."""
    shape = (2, 3, 37, 41)
    plain = random(*shape, seed=1)
    last = random(*shape).to(memory_format=torch.channels_last)
    wider = torch.nn.functional.pad(plain, (2, 1, 1, 0)).to(memory_format=torch.channels_last)
    crop = wider[:, :, 1:, 2:-1]
    mask, g = random(2, 1, 37, 41, seed=3) > 0.5, random()
    run = on_gpu(90)
    for p, t in ((last, crop), (last, plain), (crop, last)):
        exact, scale = reference.masked_loss(p.double(), t.double(), mask, None, 2, "mask")
        right = reference.masked_loss_backward(g, scale.float(), p, t, mask, 2)
        loss, scale, grad = run(
            implementation.masked_loss_and_gradient, p, t, mask, None, 2, "mask"
        )
        run(implementation.scale_gradient_, grad, g, mask)
        twice = run(implementation.masked_loss_backward, g, scale, p, t, mask, 2)
        assert torch.allclose(loss.double(), exact, rtol=1e-5, atol=0)
        for found in (grad, twice):
            assert torch.allclose(found, right, rtol=1e-6, atol=0)
            assert found.stride() == right.stride()
        filled = run(implementation.fill_masked, p, mask, g.expand(3))
        expected = reference.fill_masked(p, mask, g.expand(3))
        assert torch.equal(filled, expected)
        assert filled.stride() == expected.stride()


def test_the_count_of_programs_orders_them(on_gpu: Callable[[int], Any]) -> None:
    """One launch; without the order of the count, the sums of the others would be a race."""
    p, t, mask = random(2, 3, 37, 41), random(2, 3, 37, 41, seed=1), random(2, 1, 37, 41) > 0
    args = p, t, mask, mask.sum((1, 2, 3)), 2, "mask"
    run = on_gpu(90)
    run(implementation.masked_loss_and_gradient, *args)
    assert len(run.launches) == 1
    run.change = functools.partial(re.sub, r"\.acq_rel", ".relaxed")
    with pytest.raises(GpuError) as raised:
        run(implementation.masked_loss_and_gradient, *args)
    assert raised.value.kind == "race"


# --- filling, rasterization, random numbers -------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64], ids=str
)
def test_shapes(on_gpu: Callable[[int], Any], dtype: torch.dtype, capability: int) -> None:
    """Polygons by both rules, boxes and a given mask, with and without an image."""
    height, width = 21, 70
    shape = polygons("star with a hole, none, two", height, width)
    image, value = (10 * random(3, 2, height, width)).to(dtype), torch.tensor([2, 3]).to(dtype)
    run = on_gpu(capability)
    right = reference.rasterize_polygons(*shape, height, width, "nonzero")
    assert all(map(torch.equal, run(implementation.rasterize_polygons, *shape, height, width,
                                    "nonzero"), right))  # fmt: skip
    right = reference.rasterize_polygons(*shape, height, width, "evenodd")
    filled, *masks = run(implementation.fill_polygons, image, value, *shape, "evenodd")
    assert all(map(torch.equal, masks, right))
    expected = reference.fill_masked(image, right[0], value)
    assert torch.equal(filled, expected)
    assert torch.equal(run(implementation.fill_masked, image, right[0], value), expected)
    corners, samples = boxes(height, width)
    image = torch.cat([image, image[:1]])
    boxed = reference.rasterize_boxes(corners, samples, height, width)
    filled, *masks = run(implementation.fill_boxes, image, value, corners, samples)
    assert all(map(torch.equal, masks, boxed))
    assert torch.equal(filled, reference.fill_masked(image, boxed[0], value))


def test_masks_alone(on_gpu: Callable[[int], Any]) -> None:
    """Odd shapes, in several tiles, and coordinates of any size."""
    height, width = 21, 300
    shapes = [
        polygons(name, height, width)
        for name in ("on the centres of pixels", "far outside", "degenerate")
    ]
    generator = torch.Generator().manual_seed(0)
    for reach in (400, 30_000, 2**31 - 1):
        vertices = torch.randint(-reach, reach, (150, 2), generator=generator).to(torch.int32)
        first, contours, samples = torch.tensor([0, 2, 2, 100, 150]), 4, torch.tensor([0, 3, 4])
        assert len(first) == contours + 1
        shapes.append((vertices, first, samples))
    for shape in shapes:
        for rule in ("nonzero", "evenodd"):
            right = reference.rasterize_polygons(*shape, height, width, rule)
            found = on_gpu(90)(implementation.rasterize_polygons, *shape, height, width, rule)
            assert all(map(torch.equal, found, right))


def test_edges_and_prefix_sums_are_ordered(on_gpu: Callable[[int], Any]) -> None:
    shape = polygons("star with a hole, none, two", 21, 70)
    for number in range(2):  # that before the edges, and that behind them
        seen = [0]

        def without(found: re.Match[str], number: int = number, seen: list[int] = seen) -> str:
            seen[0] += 1
            return "" if seen[0] == number + 1 else found[0]

        run = on_gpu(90)
        run.change = functools.partial(re.sub, r"bar\.sync\s+0;", without)
        with pytest.raises(GpuError) as raised:
            run(implementation.rasterize_polygons, *shape, 21, 70, "nonzero")
        assert raised.value.kind == "race"


def test_random_words(on_gpu: Callable[[int], Any]) -> None:
    rows, columns = torch.arange(5)[:, None], torch.arange(70)[None, :]
    arguments: tuple[Tensor | int, ...] = (rows, rows, columns, columns, 7, 2**31)
    found = on_gpu(90)(implementation.philox4x32, *arguments)
    assert torch.equal(found, reference.philox4x32(*arguments))


# --- what the machine would find ------------------------------------------------------------------


@pytest.mark.parametrize("products", ["tf32", "16 bit"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_orders_copies_and_products_is_not_superfluous(
    on_gpu: Callable[[int], Any], products: str, capability: int
) -> None:
    """Without all waits for copies, fences or barriers of one kind, a fault is found."""
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    x, w, b, *_ = whole_numbers(400, 16, 36, 36, dtype)
    patterns = {r"cp\.async\.wait_group[^;]*;": "copy not waited for", r"bar\.sync\s+0;": "race"}
    if capability == 90:
        patterns[r"fence\.proxy\.async[^;]*;"] = "no proxy fence"
    for pattern, kind in patterns.items():
        run = on_gpu(capability)
        run.change = functools.partial(re.sub, pattern, "")
        with pytest.raises(GpuError) as raised:
            run(implementation.channelwise_linear, x, w, b, True)
        assert raised.value.kind == kind
