"""Logic of the CUDA kernels, executed on the host by tests/helpers/cuda_host.

The same tests run the CPU kernels, compiled without torch. To run both under AddressSanitizer
and UndefinedBehaviorSanitizer, set CEKERNELS_SANITIZE=1, ASAN_OPTIONS=detect_leaks=0 and
LD_PRELOAD="$(g++ -print-file-name=libasan.so)".
"""

from __future__ import annotations

import ctypes
import os
import random as random_module
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cekernels import reference
from cekernels.reference.rasterize import _boxes as unchecked_boxes
from cekernels.reference.rasterize import _polygons as unchecked_polygons
from tests.helpers.cuda_host import CSRC, FLAGS, Kernels, build, sparse
from tests.helpers.implementation_cases import assert_close, random

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALL = (True, True, True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(build(tmp_path_factory.mktemp("cuda_host"), "cuda", FLAGS))


@pytest.fixture(scope="module")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(build(tmp_path_factory.mktemp("cpu_host"), "cpu", FLAGS))


@pytest.fixture(params=["cuda", "cuda reversed", "cpu"])
def kernels(
    library: Kernels, cpu_library: Kernels, request: pytest.FixtureRequest
) -> Iterator[Kernels]:
    """The CUDA kernels with the threads of a block started in either order, and the CPU kernels."""
    library.library.set_reversed(request.param == "cuda reversed")
    yield cpu_library if request.param == "cpu" else library
    library.library.set_reversed(False)


# --- the header itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 33, 256])
def test_a_missing_barrier_shows(library: Kernels, threads: int) -> None:
    function = library.library.run_neighbours
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_bool]
    given = torch.arange(100, 100 + threads, dtype=torch.int32)
    wrong = []
    for order in (False, True):
        library.library.set_reversed(order)
        found = torch.empty_like(given)
        function(given.data_ptr(), found.data_ptr(), threads, True)
        assert torch.equal(found, given.roll(-1))
        other = -given  # differs from what the run before left in shared memory
        function(other.data_ptr(), found.data_ptr(), threads, False)
        wrong.append(not torch.equal(found, other.roll(-1)))
    library.library.set_reversed(False)
    assert any(wrong)


# --- channel-wise linear --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    "shape", [(3, 2, 36, 36), (70, 3, 16, 16), (5, 2, 64, 64), (1, 1, 1, 1), (67, 2, 70, 5)]
)
def test_linear(kernels: Kernels, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, channels, n_out, n_in = shape
    x, w = random(batch, channels, n_in, dtype=dtype), random(channels, n_out, n_in, dtype=dtype)
    b, g = random(channels, n_out, dtype=dtype), random(batch, channels, n_out, seed=9, dtype=dtype)
    for relu in (False, True):
        y = kernels.channelwise_linear(x, w, b, relu)
        exact = reference.channelwise_linear(x.double(), w.double(), b.double(), relu)
        same = reference.channelwise_linear(x, w, b, relu)
        assert_close(y, same, exact, 2, roundings=8)
        gate = exact.to(dtype) if relu else None
        wide = None if gate is None else gate.double()
        exact_grads = reference.channelwise_linear_backward(
            g.double(), x.double(), w.double(), wide, *ALL
        )
        same = reference.channelwise_linear_backward(g, x, w, gate, *ALL)
        grads = kernels.channelwise_linear_backward(g, x, w, gate, *ALL)
        for found, pytorch, grad in zip(grads, same, exact_grads, strict=True):
            assert_close(found, pytorch, grad, 3, roundings=12)


def test_linear_on_integers_with_strides_is_exact(kernels: Kernels) -> None:
    x = torch.arange(7 * 3 * 41).remainder(7).float().reshape(7, 3, 41)[::2, 1:, 3:39]
    w = torch.arange(2 * 40 * 37).remainder(5).float().reshape(2, 40, 37)[:, 2:38, 1:]
    b, g = torch.arange(74.0).reshape(2, 37)[:, 1:], torch.ones(4, 3, 36)[:, 1:]
    y = kernels.channelwise_linear(x, w, b, True)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, True))
    expected = reference.channelwise_linear_backward(g, x, w, y, *ALL)
    found = kernels.channelwise_linear_backward(g, x, w, y, *ALL)
    for grad, right in zip(found, expected, strict=True):
        assert torch.equal(grad, right)
    for index in range(3):
        needs = (index == 0, index == 1, index == 2)
        alone = kernels.channelwise_linear_backward(g, x, w, y, *needs)[index]
        assert torch.equal(alone, expected[index])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 3, 0)])
def test_empty_linear(kernels: Kernels, shape: tuple[int, int, int, int]) -> None:
    batch, channels, n_out, n_in = shape
    x, w, b = random(batch, channels, n_in), random(channels, n_out, n_in), random(channels, n_out)
    y = kernels.channelwise_linear(x, w, b, False)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, False))
    g = torch.ones_like(y)
    expected = reference.channelwise_linear_backward(g, x, w, None, *ALL)
    for found, grad in zip(
        kernels.channelwise_linear_backward(g, x, w, None, *ALL), expected, strict=True
    ):
        assert torch.equal(found, grad)


# --- masked losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    "shape", [(2, 3, 12, 16), (3, 2, 5, 7), (1, 1, 1, 1), (1, 2, 97, 90), (2, 41, 7, 5)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(kernels: Kernels, shape: tuple[int, ...], dtype: torch.dtype, weighted: bool) -> None:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    p, t = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    for power, channels in ((1, shape[1]), (2, 1)):
        mask = random(shape[0], channels, *shape[2:], seed=3) > 0.5
        if weighted:
            mask = torch.where(mask, random(*mask.shape, seed=4).abs(), 0).to(sums)
        p = torch.where(mask != 0, p, float("nan")) if power == 2 else p
        for normalize in ("mask", "all", "sum", "none"):
            found, scale = kernels.masked_loss(p, t, mask, None, power, normalize)
            exact, _ = reference.masked_loss(p.double(), t.double(), mask, None, power, normalize)
            assert torch.allclose(found.double(), exact, rtol=8 * torch.finfo(sums).eps, atol=0)
            g = random(*found.shape, dtype=sums)
            grad = kernels.masked_loss_backward(g, scale, p, t, mask, power)
            right = reference.masked_loss_backward(g, scale, p, t, mask, power)
            assert torch.allclose(grad, right, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_loss_takes_misaligned_and_strided_operands(kernels: Kernels) -> None:
    p, t = random(2, 3, 10, 21)[..., 1:], random(2, 3, 12, 16)[:, :, 1:11]
    t = torch.cat([t, t], 3)[..., 3:23]
    mask = random(1, 1, 10, 20, seed=5).expand(2, 1, 10, 20) > 0
    area = mask.sum((1, 2, 3))
    for known in (None, area, area.double()):
        loss, scale = kernels.masked_loss(p, t, mask, known, 2, "mask")
        right = reference.masked_loss(p, t, mask, known, 2, "mask")
        assert torch.allclose(loss, right[0], rtol=1e-6)
        assert torch.equal(scale, right[1])
    grad = kernels.masked_loss_backward(torch.ones(()), scale, p, t, mask, 2)
    right = reference.masked_loss_backward(torch.ones(()), scale, p, t, mask, 2)
    assert torch.allclose(grad, right, rtol=1e-6)


# --- rasterization and filling --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_shapes_are_bit_identical(kernels: Kernels, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    samples, contours, count = (int(integers(1, n, 1)) for n in (4, 6, 90))
    height, width = int(integers(1, 20, 1)), (5, 31, 40, 300)[seed % 4]
    reach = (256 * width, 20000, 2**31 - 1)[seed % 3]
    vertices = integers(-reach // 3, reach, count, 2)
    vertices = (vertices // 128 * 128 if seed % 2 else vertices).to(torch.int32)
    first = torch.zeros(1, dtype=torch.int64)
    contour_offsets = torch.cat([first, integers(0, count + 1, contours).sort()[0]])
    sample_offsets = torch.cat([first, integers(0, contours + 1, samples).sort()[0]])
    image, value = random(samples, 2, height, width + 3)[..., 1 : width + 1], torch.tensor([2.0, 3])
    for rule in ("nonzero", "evenodd"):
        shape = (vertices, contour_offsets, sample_offsets)
        right = unchecked_polygons(*shape, height, width, rule)
        found = kernels.rasterize_polygons(*shape, height, width, rule)
        filled = kernels.fill_polygons(image, value, *shape, rule)
        for a, b in zip((*found, *filled[1:]), right + right, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(filled[0], reference.fill_masked(image, right[0], value))
    boxes = vertices[: count // 2 * 2].reshape(-1, 4).contiguous()
    sample_offsets = sample_offsets.clamp(max=len(boxes))
    right = unchecked_boxes(boxes, sample_offsets, height, width)
    found = kernels.rasterize_boxes(boxes, sample_offsets, height, width)
    filled = kernels.fill_boxes(image, value, boxes, sample_offsets)
    for a, b in zip((*found, *filled[1:]), right + right, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(filled[0], reference.fill_masked(image, right[0], value))


def test_wild_offsets_stay_in_memory(kernels: Kernels) -> None:
    vertices = torch.zeros(4, 2, dtype=torch.int32)
    wild = torch.tensor([-(2**62), 2**62, -5, 3])
    mask, area = kernels.rasterize_polygons(vertices, wild, torch.tensor([-9, 2**40]), 8, 8, "")
    assert area.item() == mask.sum().item()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.int64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, *FLOATING])
def test_fill_masked(kernels: Kernels, dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    image = (10 * random(2, 3, 7, 13)).to(dtype)[..., 2:11]
    for channels in (1, 3):
        mask = (-random(2, channels, 7, 9).clamp(min=0)).to(mask_dtype)
        value = torch.tensor([1, 0, 2]).to(dtype)
        found = kernels.fill_masked(image, mask, value)
        assert torch.equal(found, reference.fill_masked(image, mask, value))


# --- any layout -----------------------------------------------------------------------------------
#
# Values are small integers: sums are exact and results compare equal.


def numbers(*shape: int, seed: int, dtype: torch.dtype, limit: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator).to(dtype)


def poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else 77


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, limit: int = 1) -> Tensor:
    """Numbers of ``shape`` with a dense last dimension; the others have any order and any stride,
    some are broadcast, at any storage offset, with poison between."""
    leading = range(len(shape) - 1)
    broadcast = [draw(st.booleans()) and draw(st.booleans()) for _ in leading]
    stored = [1 if b else n for b, n in zip((*broadcast, False), shape, strict=True)]
    order = [*draw(st.permutations(leading)), len(shape) - 1]
    padded = [n + draw(st.sampled_from([0, 0, 1, 3])) for n in stored]
    first = draw(st.sampled_from([0, 0, 1, 2, 5]))
    strides, count = [0] * len(shape), 1
    for d in reversed(order):
        strides[d], count = count, count * padded[d]
    memory = torch.full((first + count,), poison(dtype)).to(dtype)
    view = memory.as_strided(stored, strides, first)
    view.copy_(numbers(*stored, seed=draw(st.integers(0, 2**32)), dtype=dtype, limit=limit))
    return view.expand(shape)


any_example = settings(
    max_examples=int(os.environ.get("CEKERNELS_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
counts = st.one_of(st.integers(0, 5), st.sampled_from([7, 16, 33, 36, 65]))
any_dtype = st.sampled_from(FLOATING)


@any_example
@given(st.data(), any_dtype)
def test_linear_of_any_layout(kernels: Kernels, data: st.DataObject, dtype: torch.dtype) -> None:
    batch, channels = data.draw(counts), data.draw(st.integers(0, 3))
    n_out, n_in = data.draw(counts), data.draw(counts)
    x = data.draw(layouts((batch, channels, n_in), dtype))
    w = data.draw(layouts((channels, n_out, n_in), dtype))
    b = data.draw(st.none() | layouts((channels, n_out), dtype))
    g = data.draw(layouts((batch, channels, n_out), dtype))
    relu = data.draw(st.booleans())
    if batch * channels * n_out > 0:  # the bindings skip empty operands
        y = kernels.channelwise_linear(x, w, b, relu)
        assert torch.equal(y, reference.channelwise_linear(x, w, b, relu))
    gate = data.draw(layouts((batch, channels, n_out), dtype)) if relu else None
    needs = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    expected = reference.channelwise_linear_backward(g, x, w, gate, *ALL)
    if any(grad.numel() > 0 for grad, needed in zip(expected, needs, strict=True) if needed):
        found = kernels.channelwise_linear_backward(g, x, w, gate, *needs)
        for grad, right, needed in zip(found, expected, needs, strict=True):
            assert torch.equal(grad, right if needed else right.new_empty(0))


@st.composite
def images(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Mostly small sizes; sometimes a plane of several pieces, or a wide one."""
    size = draw(st.sampled_from([(5, 5)] * 6 + [(1, 300), (97, 90), (2, 8200)]))
    height, width = (draw(st.integers(0, n)) if n < 9 else n for n in size)
    return draw(st.integers(0, 3)), draw(st.integers(0, 3)), height, width


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@any_example
@given(st.data(), any_dtype, images(), st.sampled_from([1, 2]))
def test_loss_of_any_layout(
    kernels: Kernels, data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...], power: int
) -> None:
    batch, channels, *size = shape
    sums = sum_dtype(dtype)
    p, t = (data.draw(layouts(shape, dtype, limit=3)) for _ in range(2))
    mask_dtype = data.draw(st.sampled_from([torch.bool, torch.uint8, sums]))
    mask_channels = data.draw(st.sampled_from([1, channels]))
    mask = data.draw(layouts((batch, mask_channels, *size), mask_dtype))
    normalize = data.draw(st.sampled_from(["mask", "all", "sum", "none"]))
    area_dtype = data.draw(st.sampled_from([None, torch.int64, torch.float32, torch.float64]))
    area = None if area_dtype is None else data.draw(layouts((batch,), area_dtype, limit=9))
    loss, scale = kernels.masked_loss(p, t, mask, area, power, normalize)
    right = reference.masked_loss(p, t, mask, area, power, normalize)
    assert torch.equal(scale, right[1])
    exact = {"rtol": 4 * torch.finfo(sums).eps, "atol": 0}  # sums are exact, scaling rounds
    torch.testing.assert_close(loss, right[0], **exact)

    each = data.draw(st.booleans())
    g = data.draw(layouts((batch, 2) if each else (1, 2), sums, limit=2))[:, 0]
    g = g if each else g[0]
    grad = kernels.masked_loss_backward(g, scale, p, t, mask, power)
    rounding = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0}
    right_grad = reference.masked_loss_backward(g, scale, p, t, mask, power)
    torch.testing.assert_close(grad, right_grad, **rounding)

    known = area is not None or normalize != "mask"
    if known and kernels.has_one_pass:
        found = kernels.masked_loss_and_gradient(p, t, mask, area, power, normalize)
        assert torch.equal(found[0], loss)
        assert torch.equal(found[1], scale)
        one = torch.ones((), dtype=sums)
        torch.testing.assert_close(
            found[2], reference.masked_loss_backward(one, scale, p, t, mask, power), **rounding
        )
        first = data.draw(st.sampled_from([0, 1, 8]))
        grad = torch.full((first + p.numel() + 1,), poison(dtype), dtype=dtype)
        made = grad[first:-1].view(shape).copy_(found[2])
        kernels.scale_gradient_(made, g, mask)
        torch.testing.assert_close(
            made, torch.where(mask != 0, found[2] * g.reshape(-1, 1, 1, 1), 0).to(dtype), **rounding
        )
        assert grad[:first].isnan().all()
        assert grad[-1].isnan()


@any_example
@given(st.data(), images())
def test_fill_masked_of_any_layout(
    kernels: Kernels, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    batch, channels, *size = shape
    dtype = data.draw(
        st.sampled_from([torch.bool, torch.uint8, torch.int16, torch.int64, *FLOATING])
    )
    image = data.draw(layouts(shape, dtype))
    mask_dtype = data.draw(st.sampled_from([torch.bool, torch.uint8, *FLOATING]))
    mask = data.draw(layouts((batch, data.draw(st.sampled_from([1, channels])), *size), mask_dtype))
    mask = -mask if mask_dtype.is_floating_point else mask  # with -0.0
    value = data.draw(layouts((channels,), dtype))
    found = kernels.fill_masked(image, mask, value)
    assert torch.equal(found, reference.fill_masked(image, mask, value))


@st.composite
def offsets(draw: st.DrawFn, pieces: int, total: int, ordered: bool) -> Tensor:
    wild = st.integers(-3, total + 3) | st.sampled_from([-(2**63), 2**63 - 1])
    number = st.integers(0, total) if ordered else wild
    cuts = draw(st.lists(number, min_size=pieces + 1, max_size=pieces + 1))
    return torch.tensor(sorted(cuts) if ordered else cuts)


@any_example
@given(st.data(), st.booleans())
def test_shapes_of_any_layout(kernels: Kernels, data: st.DataObject, ordered: bool) -> None:
    """Unordered offsets give an unspecified mask; nothing is read beyond the vertices."""
    samples, contours = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    count = data.draw(st.integers(0, 12) | st.sampled_from([300, 1100]))
    height, width = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40) | st.just(270))
    reach = data.draw(st.sampled_from([600, 256 * width + 900, 2**31 - 1]))
    step = data.draw(st.sampled_from([1, 64, 128, 256]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    size = (2 * count, 2)
    points = torch.randint(-(reach // 3), reach, size, generator=generator) // step * step
    points = points.to(torch.int32)
    contour_offsets = data.draw(offsets(contours, len(points), ordered))
    image = data.draw(layouts((samples, data.draw(st.integers(0, 3)), height, width),
                              data.draw(st.sampled_from([torch.uint8, *FLOATING]))))  # fmt: skip
    value = data.draw(layouts((image.shape[1],), image.dtype))
    for boxes in (False, True):
        total = count if boxes else contours
        sample_offsets = data.draw(offsets(samples, total, ordered))
        if boxes:
            shape: tuple[Tensor, ...] = (points.reshape(-1, 4), sample_offsets)
            found = kernels.rasterize_boxes(*shape, height, width)
            filled = kernels.fill_boxes(image, value, *shape)
        else:
            rule = data.draw(st.sampled_from(["nonzero", "evenodd"]))
            shape = (points, contour_offsets, sample_offsets)
            found = kernels.rasterize_polygons(*shape, height, width, rule)
            filled = kernels.fill_polygons(image, value, *shape, rule)
        if ordered and boxes:
            right = unchecked_boxes(*shape, height, width)
            assert all(map(torch.equal, found, right))
        elif ordered:
            right = unchecked_polygons(*shape, height, width, rule)
            assert all(map(torch.equal, found, right))
        assert torch.equal(found[1], found[0].sum((1, 2, 3)))
        assert all(map(torch.equal, filled[1:], found))
        assert torch.equal(filled[0], reference.fill_masked(image, found[0], value))


# --- more than 2**31 elements ---------------------------------------------------------------------


def far(values: Tensor, dim: int) -> Tensor:
    """The same values with a stride of more than 2**31 elements in ``dim``."""
    strides = list(values.contiguous().stride())
    strides[dim] = 2**31 + 24
    memory = sparse(strides[dim] * (values.shape[dim] - 1) + values.numel(), values.dtype)
    return memory.as_strided(values.shape, strides).copy_(values)


@pytest.mark.parametrize("dim", [0, 1])
def test_linear_far_apart(kernels: Kernels, dim: int) -> None:
    x, w, g = (
        numbers(*s, seed=i, dtype=torch.float32)
        for i, s in enumerate(((2, 2, 6), (2, 5, 6), (2, 2, 5)))
    )
    y = kernels.channelwise_linear(far(x, dim), far(w, dim), None, True)
    assert torch.equal(y, reference.channelwise_linear(x, w, None, True))
    found = kernels.channelwise_linear_backward(
        far(g, dim), far(x, dim), far(w, dim), far(y, dim), *ALL
    )
    expected = reference.channelwise_linear_backward(g, x, w, y, *ALL)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_images_far_apart(kernels: Kernels, dim: int) -> None:
    p, t, image = (numbers(2, 2, 2, 8, seed=i, dtype=torch.float32) for i in range(3))
    mask = numbers(2, 2, 2, 8, seed=3, dtype=torch.uint8)
    one, operands = torch.ones(()), (far(p, dim), far(t, dim), far(mask, dim))
    loss, scale = kernels.masked_loss(*operands, None, 2, "sum")
    assert torch.equal(loss, reference.masked_loss(p, t, mask, None, 2, "sum")[0])
    grad = kernels.masked_loss_backward(one, scale, *operands, 2)
    assert torch.equal(grad, reference.masked_loss_backward(one, scale, p, t, mask, 2))
    if kernels.has_one_pass:
        assert torch.equal(grad, kernels.masked_loss_and_gradient(*operands, None, 2, "sum")[2])
        kernels.scale_gradient_(grad, 3 * one, operands[2])
        assert torch.equal(grad, reference.masked_loss_backward(3 * one, scale, p, t, mask, 2))
    value = torch.tensor([7.0, 9.0])
    filled = kernels.fill_masked(far(image, dim), operands[2], value)
    assert torch.equal(filled, reference.fill_masked(image, mask, value))
    boxes = torch.tensor([[0, 0, 1024, 256], [512, 256, 2048, 512]]).int()
    filled, cover, _ = kernels.fill_boxes(far(image, dim), value, boxes, torch.tensor([0, 1, 2]))
    assert torch.equal(filled, reference.fill_masked(image, cover, value))


@pytest.fixture
def ends_only(kernels: Kernels) -> Iterator[None]:
    """Run only the first and the last block of a grid, or task of a loop."""
    kernels.library.set_ends_only(True)
    kernels.ends_only = True
    yield
    kernels.library.set_ends_only(False)
    kernels.ends_only = False


@pytest.mark.usefixtures("ends_only")
def test_results_of_more_than_2_to_the_31_elements(kernels: Kernels) -> None:
    samples, size = 2**31 // 256**2 + 2, (256, 256)
    image = torch.arange(256.0).expand(samples, 1, *size)
    mask = (torch.arange(256) % 2 == 1).expand(samples, 1, *size)
    value, one = torch.tensor([-1.0]), torch.ones(())
    row = reference.fill_masked(image[:1, :, :1], mask[:1, :, :1], value).flatten()

    def check(result: Tensor, right: Tensor) -> None:
        assert torch.equal(result[0, 0, 0], right)
        assert torch.equal(result[-1, 0, -1], right)
        assert not result[samples // 2, 0, 100].any(), "only the two ends are computed"

    check(kernels.fill_masked(image, mask, value), row)
    grad = kernels.masked_loss_backward(one, one, image, torch.zeros(1, 1, 1, 256).expand_as(image),
                                        mask, 2)  # fmt: skip
    slope = torch.where(mask[0, 0, 0], 2 * torch.arange(256.0), 0)
    check(grad, slope)
    if kernels.has_one_pass:
        *_, grad = kernels.masked_loss_and_gradient(
            image, torch.zeros(1, 1, 1, 256).expand_as(image), mask, None, 2, "sum"
        )
        check(grad, slope)
        kernels.scale_gradient_(grad, 2 * one, mask)
        check(grad, 2 * slope)
    box = torch.tensor([[0, 0, 128 * 256, 2**16]]).int().expand(samples, 4).contiguous()
    filled, cover, area = kernels.fill_boxes(image, value, box, torch.arange(samples + 1))
    check(cover, torch.arange(256) < 128)
    check(filled, torch.where(torch.arange(256) < 128, -1.0, torch.arange(256.0)))
    assert area[0] > 0
    assert area[-1] == area[0]


@pytest.mark.parametrize("height", [2**31 - 1, 2**31 - 9, 2**31 - 17])
def test_the_tallest_images(library: Kernels, height: int) -> None:
    """The row counter of a tile, advanced past the last row, exceeds 2**31."""
    box = torch.tensor([[0, 0, 256, 512]], dtype=torch.int32)
    library.library.set_ends_only(True)
    mask, area = library.rasterize_boxes(box, torch.tensor([0, 1]), height, 1)
    library.library.set_ends_only(False)
    assert mask[0, 0, :4, 0].tolist() == [True, True, False, False]
    assert not mask[0, 0, -32:].any()
    assert area.tolist() == [2]


@pytest.mark.parametrize("limit", [2, 2**31, 2**33, 2**62])
def test_quotients(library: Kernels, limit: int) -> None:
    function = library.library.quotient
    function.argtypes, function.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    generator = random_module.Random(limit)
    for _ in range(300):
        a, b = generator.randrange(2**63), generator.randrange(1, limit)
        for numerator in (a, a % (8 * b), b - 1, b, 2**63 - 1):
            assert function(numerator, b) == numerator // b


# --- compiled by nvcc -----------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*.cu")), ids=lambda p: p.stem)
def test_nvcc_keeps_every_kernel_in_registers(source: Path, tmp_path: Path) -> None:
    """No spills and no arrays in local memory on A100, H100 and, if nvcc supports it, B200."""
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    architectures = [a for a in ("80", "90", "100") if f"compute_{a}" in known]
    command = ["nvcc", "-O3", "-Xptxas=-v", "-fatbin", str(source), "-o", str(tmp_path / "fatbin")]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)", run.stderr)
    assert {architecture for _, architecture in entries} == set(architectures)
    used = re.findall(
        r"Function properties for (\w+)\n"
        r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        run.stderr,
    )
    assert {name for name, *_ in used} >= {name for name, _ in entries}
    assert not [line for line in used if line[1:] != ("0", "0", "0")]
