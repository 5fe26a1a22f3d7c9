"""The CUDA kernels, executed on the host by tests/cuda_host: their logic, not their speed.

The same tests run the CPU kernels, compiled without torch. For both under AddressSanitizer and
UndefinedBehaviorSanitizer set CEKERNELS_SANITIZE=1, LD_PRELOAD="$(g++ -print-file-name=libasan.so)"
and ASAN_OPTIONS=detect_leaks=0.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from cuda_host import Kernels, build
from torch import Tensor

from cekernels import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALL = (True, True, True)


SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = SANITIZE if os.environ.get("CEKERNELS_SANITIZE") else ()


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
    """The CUDA kernels, the threads of a block started in either order, and the CPU kernels."""
    library.library.set_reversed(request.param == "cuda reversed")
    yield cpu_library if request.param == "cpu" else library
    library.library.set_reversed(False)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


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
        other = -given  # not what the barrier's run left in shared memory
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
        check(y, reference.channelwise_linear(x, w, b, relu), exact, 2)
        gate = exact.to(dtype) if relu else None
        wide = None if gate is None else gate.double()
        exact_grads = reference.channelwise_linear_backward(
            g.double(), x.double(), w.double(), wide, ALL
        )
        same = reference.channelwise_linear_backward(g, x, w, gate, ALL)
        grads = kernels.channelwise_linear_backward(g, x, w, gate, ALL)
        for found, pytorch, grad in zip(grads, same, exact_grads, strict=True):
            check(found, pytorch, grad, 3)


def check(found: Tensor, same_dtype: Tensor, exact: Tensor, factor: float) -> None:
    """The error against float64 is at most ``factor`` times that of PyTorch in the same dtype."""
    unit = 2 * torch.finfo(found.dtype).eps * exact.abs().max().item()
    allowed = factor * max((same_dtype.double() - exact).abs().max().item(), unit)
    assert (found.double() - exact).abs().max().item() <= allowed


def test_linear_on_integers_with_strides_is_exact(kernels: Kernels) -> None:
    x = torch.arange(7 * 3 * 41).remainder(7).float().reshape(7, 3, 41)[::2, 1:, 3:39]
    w = torch.arange(2 * 40 * 37).remainder(5).float().reshape(2, 40, 37)[:, 2:38, 1:]
    b, g = torch.arange(74.0).reshape(2, 37)[:, 1:], torch.ones(4, 3, 36)[:, 1:]
    y = kernels.channelwise_linear(x, w, b, True)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, True))
    expected = reference.channelwise_linear_backward(g, x, w, y, ALL)
    found = kernels.channelwise_linear_backward(g, x, w, y, ALL)
    for grad, right in zip(found, expected, strict=True):
        assert torch.equal(grad, right)
    for index in range(3):
        needs = (index == 0, index == 1, index == 2)
        alone = kernels.channelwise_linear_backward(g, x, w, y, needs)[index]
        assert torch.equal(alone, expected[index])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 3, 0)])
def test_empty_linear(kernels: Kernels, shape: tuple[int, int, int, int]) -> None:
    batch, channels, n_out, n_in = shape
    x, w, b = random(batch, channels, n_in), random(channels, n_out, n_in), random(channels, n_out)
    y = kernels.channelwise_linear(x, w, b, False)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, False))
    g = torch.ones_like(y)
    expected = reference.channelwise_linear_backward(g, x, w, None, ALL)
    for found, grad in zip(
        kernels.channelwise_linear_backward(g, x, w, None, ALL), expected, strict=True
    ):
        assert torch.equal(found, grad)


# --- masked losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (3, 2, 5, 7), (1, 1, 1, 1), (1, 2, 97, 90)])
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
    for given in (None, area, area.double()):
        loss, scale = kernels.masked_loss(p, t, mask, given, 2, "mask")
        right = reference.masked_loss(p, t, mask, given, 2, "mask")
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
        right = reference.rasterize_polygons(*shape, height, width, rule)
        found = kernels.rasterize_polygons(*shape, height, width, rule)
        filled = kernels.fill_polygons(image, value, *shape, rule)
        for a, b in zip((*found, *filled[1:]), right + right, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(filled[0], reference.fill_masked(image, right[0], value))
    boxes = vertices[: count // 2 * 2].reshape(-1, 4).contiguous()
    sample_offsets = sample_offsets.clamp(max=len(boxes))
    right = reference.rasterize_boxes(boxes, sample_offsets, height, width)
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
