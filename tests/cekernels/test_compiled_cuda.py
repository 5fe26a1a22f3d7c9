"""Every kernel of csrc/cuda as nvcc compiles it, executed by the machine of tests/helpers/ptx.

Whole ops, from the host code that chooses a kernel to its results, against float64 or exact
integers. During each launch the machine looks for races, divergence, misaligned and out-of-bounds
accesses and reads of memory that was not written.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from cekernels import reference
from tests.helpers.implementation_cases import (
    assert_close,
    boxes,
    integers,
    layouts,
    polygons,
    random,
)
from tests.helpers.ptx.cuda import ARCHITECTURES, SOURCES, Build, CompiledKernels, readable
from tests.helpers.ptx.machine import Machine
from tests.helpers.ptx.memory import Memory

IEEE, TF32X3, TF32 = range(3)
ALL = (True, True, True)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = [
    pytest.param(torch.float32, IEEE, id="ieee"),
    pytest.param(torch.float32, TF32X3, id="tf32x3"),
    pytest.param(torch.float32, TF32, id="tf32"),
    pytest.param(torch.float64, IEEE, id="float64"),
    pytest.param(torch.bfloat16, IEEE, id="bfloat16"),
    pytest.param(torch.float16, IEEE, id="float16"),
]
every_kind = pytest.mark.parametrize(("dtype", "products"), KINDS)

# Kernels whose padding is read without having been written (kStride in channelwise_linear.cu). The
# values are NaN here, and the results are exact: nothing depends on them.
READ_PADDING = re.compile(r"backward_square<TensorCore<\w+, 36, \d>")


@pytest.fixture(scope="module")
def compiled(cuda_build: Build) -> CompiledKernels:
    return CompiledKernels(cuda_build, Machine(Memory(24 << 20)), ARCHITECTURES[-1])


@pytest.fixture
def kernels(compiled: CompiledKernels) -> CompiledKernels:
    """The compiled ops, with empty memory."""
    compiled.memory.reset()
    return compiled


@pytest.mark.parametrize("source", SOURCES)
def test_architectures_share_their_code(cuda_build: Build, source: str) -> None:
    """What is executed here for one architecture holds for the others; where the code comes to
    differ, the tests below have to run for each."""
    assert cuda_build.same(source)


# --- channel-wise linear --------------------------------------------------------------------------


def whole_numbers(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input, weight, bias and gradient of the output."""
    batch, channels, n_out, n_in = shape
    sizes = ((batch, channels, n_in), (channels, n_out, n_in), (channels, n_out),
             (batch, channels, n_out))  # fmt: skip
    return tuple(integers(*s, dtype=dtype, seed=i, limit=2) for i, s in enumerate(sizes))


def check_linear(
    kernels: CompiledKernels, operands: tuple[Tensor, ...], products: int, needs: tuple[bool, ...]
) -> None:
    """Both directions on small integers, whose sums every dtype represents."""
    x, w, b, g = operands
    wide = [t.double() for t in operands]
    y = reference.channelwise_linear(*wide[:3], True).to(x.dtype)
    right = reference.channelwise_linear_backward(wide[3], *wide[:2], y.double(), *ALL)
    x, w, b, g, gate = kernels.on_gpu(x, w, b, g, y)
    assert torch.equal(kernels.channelwise_linear(x, w, b, True, products), y)
    grads = kernels.channelwise_linear_backward(g, x, w, gate, *needs, products)
    for found, grad, needed in zip(grads, right, needs, strict=True):
        assert torch.equal(found, grad.to(x.dtype) if needed else found.new_empty(0))


@every_kind
@pytest.mark.parametrize("n", [16, 36, 64, 20])
def test_linear(kernels: CompiledKernels, n: int, dtype: torch.dtype, products: int) -> None:
    """Several tiles and slices, the last ones partly filled."""
    check_linear(kernels, whole_numbers((67, 3, n, n), dtype), products, ALL)


@every_kind
def test_linear_of_any_layout(kernels: CompiledKernels, dtype: torch.dtype, products: int) -> None:
    """Operands that do not allow vector accesses: strided, permuted, one element off alignment."""
    x, w, b, g = whole_numbers((9, 3, 36, 36), dtype)
    needs = [(True, False, False), (False, True, False), (False, False, True)]
    found = [[t for t in layouts(o) if t.stride(-1) == 1] for o in (x, w, g)]
    for i, (x_, w_, g_) in enumerate(zip(*found, strict=False)):
        check_linear(kernels, (x_, w_, b, g_), products, needs[i % 3])
    odd = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert odd.data_ptr() % (4 * x.element_size()) != 0
    check_linear(kernels, (odd, w, b, g), products, ALL)


@every_kind
def test_linear_against_float64(
    kernels: CompiledKernels, dtype: torch.dtype, products: int
) -> None:
    """Rounding: at most that of the same operands in PyTorch, plus some of one element."""
    x, w, b = (random(*s, seed=i) for i, s in enumerate([(21, 2, 36), (2, 36, 36), (2, 36)]))
    x, w, b = (t.to(dtype) for t in (x, w, b))
    same = (x, w)
    if products == TF32:
        same = tuple(((t.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) for t in same)
    exact = reference.channelwise_linear(x.double(), w.double(), b.double(), False)
    peer = reference.channelwise_linear(*same, b, False)
    y = kernels.channelwise_linear(*kernels.on_gpu(x, w, b), False, products)
    assert_close(y, peer, exact, 2, {torch.float64: 16, torch.float32: 12}.get(dtype, 1))


@every_kind
def test_linear_keeps_nan(kernels: CompiledKernels, dtype: torch.dtype, products: int) -> None:
    """A NaN in the input affects its row of one channel alone, and passes the ReLU."""
    x, w, b, _ = whole_numbers((5, 3, 36, 36), dtype)
    x[2, 1, 7] = float("nan")
    y = kernels.channelwise_linear(*kernels.on_gpu(x, w, b), True, products)
    affected = torch.zeros(5, 3, 1, dtype=torch.bool)
    affected[2, 1] = True
    assert torch.equal(y.isnan(), affected.expand(y.shape))


def test_linear_of_other_sizes(kernels: CompiledKernels) -> None:
    """Rectangular maps, several tiles of 64, and no gradient of the weight."""
    for shape, needs in (((5, 2, 70, 36), ALL), ((70, 1, 3, 65), (False, False, True))):
        check_linear(kernels, whole_numbers(shape, torch.float32), IEEE, needs)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_linear_of_other_sizes_with_few_channels(
    kernels: CompiledKernels, dtype: torch.dtype
) -> None:
    """Blocks share the batch for the gradients of weight and bias; a further launch adds up."""
    for shape, needs in (((139, 2, 20, 24), ALL), ((139, 1, 3, 5), (False, True, False))):
        before = len(kernels.reports)
        check_linear(kernels, whole_numbers(shape, dtype), IEEE, needs)
        assert len(kernels.reports) - before == 1 + sum(needs[:2]) + 1


def test_shared_memory_is_asked_for_once_per_device(kernels: CompiledKernels) -> None:
    """The stand-in for the runtime refuses launches that did not, as CUDA does."""
    x, w, _, _ = kernels.on_gpu(*whole_numbers((1, 2, 36, 36), torch.float64))
    library = kernels.library

    def asked() -> int:
        before = library.count_attributes_set()
        kernels.channelwise_linear_backward(x, x, w, None, *ALL, IEEE)
        assert kernels.reports[-1].shared > 48 << 10
        return int(library.count_attributes_set() - before)

    try:
        asked()
        assert asked() == 0
        for device, again in ((1, 0), (63, 0), (64, 1)):  # beyond 64 devices it is not recorded
            library.set_device(device)
            assert (asked(), asked()) == (1, again)
    finally:
        library.set_device(0)
    assert asked() == 0


# --- masked losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["bool", "weights"])
@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (3, 2, 5, 7), (1, 2, 97, 90)], ids=str)
def test_loss(
    kernels: CompiledKernels, shape: tuple[int, ...], dtype: torch.dtype, weighted: bool
) -> None:
    """Loss, gradient and both in one pass; vectors and single elements, one and several pieces."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    p, t = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    channels = shape[1] if weighted else 1
    mask = random(shape[0], channels, *shape[2:], seed=3) > 0.5
    if weighted:
        mask = torch.where(mask, random(*mask.shape, seed=4).abs(), 0).to(sums)
    p = torch.where(mask != 0, p, float("nan"))  # not read, or without effect
    area = mask.double().sum((1, 2, 3)).to(sums)
    p_, t_, mask_, area_ = kernels.on_gpu(p, t, mask, area)
    # Gradients in float16 may be subnormal.
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 2.0**-23 if dtype == torch.float16 else 0}
    for power, normalize in ((2, "mask"), (1, "none"), (1, "all")):
        exact, _ = reference.masked_loss(p.double(), t.double(), mask, None, power, normalize)
        loss, scale = kernels.masked_loss(p_, t_, mask_, None, power, normalize)
        assert torch.allclose(loss.double(), exact, rtol=8 * torch.finfo(sums).eps, atol=0)
        g = random(*loss.shape, dtype=sums)
        (g_,) = kernels.on_gpu(g)
        right = reference.masked_loss_backward(g, scale, p, t, mask, power)
        found = kernels.masked_loss_backward(g_, scale, p_, t_, mask_, power)
        assert torch.allclose(found, right, **close)
        one_pass = kernels.masked_loss_and_gradient(p_, t_, mask_, area_, power, normalize)
        assert torch.allclose(one_pass[0].double(), exact, rtol=1e-5, atol=0)
        kernels.scale_gradient_(one_pass[2], g_, mask_)
        right = reference.masked_loss_backward(g, one_pass[1], p, t, mask, power)
        assert torch.allclose(one_pass[2], right, **close)


def layouts_of_images(shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Prediction and target as networks have them: channels_last, a crop of it, one of each."""
    p, t = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    last, other = (x.to(memory_format=torch.channels_last) for x in (p, t))
    wider = torch.nn.functional.pad(t, (2, 1, 1, 0)).to(memory_format=torch.channels_last)
    crop = wider[:, :, 1:, 2:-1]
    return [(last, other), (last, crop), (crop, last), (last, t), (p, other)]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (2, 3, 71, 63)], ids=str)
def test_loss_of_channels_last(
    kernels: CompiledKernels, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """No operand is copied, and the gradient has the layout of the prediction."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    mask = random(shape[0], 1, *shape[2:], seed=3) > 0.5
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 2.0**-23 if dtype == torch.float16 else 0}
    weights = torch.where(mask, random(*mask.shape, seed=4).abs(), 0).to(sums)
    layouts = layouts_of_images(shape, dtype)
    cases = [(*images, mask) for images in layouts] + [(*layouts[-2], weights)]
    for p, t, mask in cases:
        p_, t_, mask_ = kernels.on_gpu(p, t, mask)
        exact, _ = reference.masked_loss(p.double(), t.double(), mask, None, 2, "mask")
        g = random(dtype=sums)
        (g_,) = kernels.on_gpu(g)
        alone, _ = kernels.masked_loss(p_, t_, mask_, None, 2, "mask")
        assert torch.allclose(alone.double(), exact, rtol=1e-5, atol=0)
        loss, scale, grad = kernels.masked_loss_and_gradient(p_, t_, mask_, None, 2, "mask")
        assert torch.allclose(loss.double(), exact, rtol=1e-5, atol=0)
        kernels.scale_gradient_(grad, g_, mask_)
        right = reference.masked_loss_backward(g, scale, p, t, mask, 2)
        twice = kernels.masked_loss_backward(g_, scale, p_, t_, mask_, 2)
        for found in (grad, twice):
            assert torch.allclose(found, right, **close)
            assert found.stride() == right.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 70, 7, 7), (2, 33, 3, 1), (3, 9, 90, 50)], ids=str)
def test_loss_of_many_channels(
    kernels: CompiledKernels, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Blocks share the channels of a sample, or the pixels of channels_last images."""
    p, t = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    mask = random(shape[0], 1, *shape[2:], seed=3) > 0.5
    weights = random(*shape, seed=4).clamp(min=0)
    last = [x.to(memory_format=torch.channels_last) for x in (p, t)]
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    for (p_, t_), m in (((p, t), mask), ((p, t), weights), (last, mask), ((p, last[1]), weights)):
        given = kernels.on_gpu(p_, t_, m)
        for normalize in ("none", "mask"):
            exact, _ = reference.masked_loss(p.double(), t.double(), m, None, 2, normalize)
            alone, scale = kernels.masked_loss(*given, None, 2, normalize)
            assert kernels.reports[-1].grid > shape[0] * -(-shape[2] * shape[3] // 4096) or (
                p[0].numel() <= 1024
            )
            both = kernels.masked_loss_and_gradient(*given, None, 2, normalize)
            for found in (alone, both[0]):
                assert torch.allclose(found.double(), exact, rtol=1e-5, atol=0)
            g = random(*alone.shape, seed=5)
            (g_,) = kernels.on_gpu(g)
            right = reference.masked_loss_backward(g, scale, p_, t_, m, 2)
            assert torch.allclose(
                kernels.masked_loss_backward(g_, scale, *given, 2), right, **close
            )
            kernels.scale_gradient_(both[2], g_, given[2])
            assert torch.allclose(both[2], right, **close)


def test_launches_of_a_loss(kernels: CompiledKernels) -> None:
    """One; with the gradient of a mean over a mask of unknown area another one before it."""
    p, t, mask = kernels.on_gpu(
        random(2, 3, 9, 7), random(2, 3, 9, 7, seed=1), random(2, 1, 9, 7) > 0
    )
    (area,) = kernels.on_gpu(mask.sum((1, 2, 3)))
    for run, known, launches in (
        (kernels.masked_loss, area, 1), (kernels.masked_loss, None, 1),
        (kernels.masked_loss_and_gradient, area, 1), (kernels.masked_loss_and_gradient, None, 2),
    ):  # fmt: skip
        before = len(kernels.reports)
        run(p, t, mask, known, 2, "mask")
        assert len(kernels.reports) - before == launches


# --- filling and rasterization --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize(("height", "width"), [(6, 16), (5, 9)])
def test_fill(kernels: CompiledKernels, dtype: torch.dtype, height: int, width: int) -> None:
    """Vectors and single elements, of every size of image and mask elements."""
    image = (10 * random(2, 3, height, width)).to(dtype)
    value = torch.tensor([1, 0, 2]).to(dtype)
    for mask_dtype in (torch.bool, *FLOATING):
        channels = 1 if mask_dtype == torch.bool else 3
        mask = (-random(2, channels, height, width).clamp(min=0)).to(mask_dtype)
        last = image.to(memory_format=torch.channels_last)
        for given in (image, last, last[:, :, 1:, 2:]):
            some = mask[:, :, -given.shape[2] :, -given.shape[3] :]
            found = kernels.fill_masked(*kernels.on_gpu(given, some, value))
            right = reference.fill_masked(given, some, value)
            assert torch.equal(found, right)
            assert found.stride() == right.stride()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_fill_of_many_channels(kernels: CompiledKernels, dtype: torch.dtype) -> None:
    """Blocks share the channels, and threads beside each other take some of them."""
    for shape in ((1, 70, 7, 7), (2, 90, 4, 8)):
        image = (10 * random(*shape)).to(dtype)
        value = torch.arange(shape[1]).to(dtype)
        mask = random(shape[0], 1, *shape[2:], seed=1) > 0
        for given in (image, image.to(memory_format=torch.channels_last)):
            for some in (mask, mask.expand(shape).contiguous()):
                found = kernels.fill_masked(*kernels.on_gpu(given, some, value))
                assert torch.equal(found, reference.fill_masked(given, some, value))
                assert kernels.reports[-1].grid > shape[0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.int64], ids=str)
def test_shapes(kernels: CompiledKernels, dtype: torch.dtype) -> None:
    height, width = 21, 300
    shape = polygons("star with a hole, none, two", height, width)
    image, value = (10 * random(3, 2, height, width)).to(dtype), torch.tensor([2, 3]).to(dtype)
    image_, value_, *shape_ = kernels.on_gpu(image, value, *shape)
    for rule in ("nonzero", "evenodd"):
        right = reference.rasterize_polygons(*shape, height, width, rule)
        filled = kernels.fill_polygons(image_, value_, *shape_, rule)
        for a, b in zip(filled[1:], right, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(filled[0], reference.fill_masked(image, right[0], value))
    corners, samples = boxes(height, width)
    corners_, samples_ = kernels.on_gpu(corners, samples)
    (image_,) = kernels.on_gpu(torch.cat([image, image[:1]]))
    right = reference.rasterize_boxes(corners, samples, height, width)
    filled = kernels.fill_boxes(image_, value_, corners_, samples_)
    for a, b in zip(filled[1:], right, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(filled[0], reference.fill_masked(image_, right[0], value))


def test_masks_alone(kernels: CompiledKernels) -> None:
    height, width = 40, 33
    for name in ("on the centres of pixels", "far outside", "degenerate"):
        shape = polygons(name, height, width)
        right = reference.rasterize_polygons(*shape, height, width, "nonzero")
        found = kernels.rasterize_polygons(*kernels.on_gpu(*shape), height, width, "nonzero")
        assert all(map(torch.equal, found, right))
    corners, samples = boxes(height, width)
    found = kernels.rasterize_boxes(*kernels.on_gpu(corners, samples), height, width)
    assert all(map(torch.equal, found, reference.rasterize_boxes(corners, samples, height, width)))


# --- all of them ----------------------------------------------------------------------------------


def test_every_kernel_was_run(
    compiled: CompiledKernels, cuda_build: Build, request: pytest.FixtureRequest
) -> None:
    """By the tests above: whatever a change adds to csrc/cuda needs a case there."""
    config = request.config
    if config.option.keyword or any("::" in argument for argument in config.args):
        pytest.skip("some tests of this file were not selected")
    names = {report.name for report in compiled.reports}
    missing = {
        readable(name) for name in cuda_build.kernels(ARCHITECTURES[-1]) if name not in names
    }
    assert not missing
    for report in compiled.reports:
        if report.unwritten:
            assert READ_PADDING.match(readable(report.name)), report.unwritten
