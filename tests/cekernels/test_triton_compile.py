"""The Triton kernels cross-compiled for GPUs that this machine need not have.

The tests compile what the ops launch, with the tiles that the tables choose. By default a covering
subset (the paper's maps and the largest tiles for every GPU, the mixed ones for one); with
CEKERNELS_COMPILE_ALL=1 every pair of tile sizes for every GPU.
"""

from __future__ import annotations

import itertools
import os
import re

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from cekernels.triton import rasterize
from cekernels.triton.channelwise_linear import LARGEST_BACKWARD, LARGEST_FORWARD
from tests.helpers.implementation_cases import INTERPRETED
from tests.helpers.triton_compile import (
    SHARED_MEMORY,
    Compiled,
    compile_for,
    compiled_by_triton,
    implementation,
    launches,
    source_of,
)

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

CAPABILITIES = (80, 90, 100)
DESKTOP = sorted(set(SHARED_MEMORY) - set(CAPABILITIES))
EVERYTHING = os.environ.get("CEKERNELS_COMPILE_ALL") == "1"
# Kind of products, and the dtype and torch.get_float32_matmul_precision() that select it.
PRODUCTS = {
    "ieee": (torch.float32, "highest"),
    "tf32x3": (torch.float32, "high"),
    "tf32": (torch.float32, "medium"),
    "16 bit": (torch.bfloat16, "highest"),
}
SIZES = (16, 32, 64, 128)


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def check(compiled: Compiled, capability: int) -> None:
    assert compiled.stack == 0, f"{compiled.stack} bytes of registers spilled"
    assert compiled.shared <= SHARED_MEMORY[capability]


def sizes(largest: int, capability: int) -> list[tuple[int, int]]:
    """Pairs (N_in, N_out), each representing the tiles that it is padded to."""
    below = [n for n in SIZES if n <= largest]
    if EVERYTHING:
        return [(36, 36), *itertools.product(below, repeat=2)]
    if capability == 90:
        return [(36, 36), (largest, largest), (16, largest), (largest, 16)]
    return [(36, 36), (largest, largest)]


def cases(forward: bool) -> list[object]:
    found = []
    for capability, products in itertools.product(CAPABILITIES, PRODUCTS):
        largest = LARGEST_FORWARD[products] if forward else LARGEST_BACKWARD
        for n_in, n_out in sizes(largest, capability):
            name = f"sm_{capability}-{products}-{n_in}x{n_out}"
            found.append(pytest.param(capability, products, n_in, n_out, id=name))
    return found


def check_products(compiled: Compiled, products: str, capability: int, elements: int) -> None:
    check(compiled, capability)
    assert compiled.uses_tensor_cores() == (products != "ieee")
    row = elements * PRODUCTS[products][0].itemsize
    assert compiled.widest_load() == min(16, row & -row)


@pytest.fixture(autouse=True)
def _precision() -> object:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("capability", "products", "n_in", "n_out"), cases(forward=True))
def test_linear(capability: int, products: str, n_in: int, n_out: int) -> None:
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    (call,) = launches(
        implementation.channelwise_linear,
        empty(dtype, 1024, 256, n_in),
        empty(dtype, 256, n_out, n_in),
        empty(dtype, 256, n_out),
        True,
    )
    compiled = compile_for(call, capability)
    check_products(compiled, products, capability, n_in)
    assert compiled.widest_store() >= 8


@pytest.mark.parametrize(("capability", "products", "n_in", "n_out"), cases(forward=False))
def test_linear_backward(capability: int, products: str, n_in: int, n_out: int) -> None:
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    backward, *sums = launches(
        implementation.channelwise_linear_backward,
        empty(dtype, 1024, 256, n_out),
        empty(dtype, 1024, 256, n_in),
        empty(dtype, 256, n_out, n_in),
        empty(dtype, 1024, 256, n_out),
        *(True, True, True),
    )
    compiled = compile_for(backward, capability)
    check_products(compiled, products, capability, n_out)
    assert len(sums) == 2
    if (n_in, n_out) == (36, 36):
        for call in sums:
            check(compile_for(call, capability), capability)


@pytest.mark.parametrize("capability", DESKTOP)
@pytest.mark.parametrize("products", PRODUCTS)
def test_the_largest_tiles_fit_small_gpus(capability: int, products: str) -> None:
    dtype, precision = PRODUCTS[products]
    torch.set_float32_matmul_precision(precision)
    n = LARGEST_FORWARD[products]
    x, w, b = empty(dtype, 1024, 256, n), empty(dtype, 256, n, n), empty(dtype, 256, n)
    (forward,) = launches(implementation.channelwise_linear, x, w, b, True)
    x, w = empty(dtype, 1024, 256, LARGEST_BACKWARD), empty(dtype, 256, *(LARGEST_BACKWARD,) * 2)
    backward, *_ = launches(
        implementation.channelwise_linear_backward, x, x, w, x, True, True, True
    )
    for call in (forward, backward):
        check(compile_for(call, capability), capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_large_maps_go_to_cublas(capability: int) -> None:
    """Bias and ReLU then follow in one kernel."""
    x, w, b = empty(torch.float32, 64, 8, 256), empty(torch.float32, 8, 256, 256), None
    assert launches(implementation.channelwise_linear, x, w, b, False) == []
    b = empty(torch.float32, 8, 256)
    (call,) = launches(implementation.channelwise_linear, x, w, b, True)
    compiled = compile_for(call, capability)
    check(compiled, capability)
    assert compiled.widest_load() == 16


def loss_launches(dtype: torch.dtype, side: int) -> list[object]:
    p, one = empty(dtype, 64, 3, side, side), empty(torch.float32)
    m, area = empty(torch.bool, 64, 1, side, side), empty(torch.int64, 64)
    return [
        *launches(implementation.masked_loss, p, p, m, None, 2, "mask"),
        *launches(implementation.masked_loss_backward, one, one, p, p, m, 1),
        *launches(implementation.masked_loss_and_gradient, p, p, m, area, 2, "mask"),
        *launches(implementation.scale_gradient_, p, one, m),
    ]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_loss(capability: int, dtype: torch.dtype) -> None:
    """Loads are wide although predicated; on maps of odd size they take one element each."""
    for call in loss_launches(dtype, 128):
        compiled = compile_for(call, capability)
        check(compiled, capability)
        assert compiled.widest_load() == 16
        if call.arguments.get("grad") is not None:
            assert compiled.widest_store() == 16
    if capability == 90 or EVERYTHING:
        for call in loss_launches(dtype, 227):
            check(compile_for(call, capability), capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_rasterization(capability: int, dtype: torch.dtype) -> None:
    sides = (227, 128) if capability == 90 or EVERYTHING else (227,)
    for side in sides:
        image, value = empty(dtype, 64, 3, side, side), empty(dtype, 3)
        offsets = empty(torch.int64, 129), empty(torch.int64, 65)
        vertices, boxes = empty(torch.int32, 6400, 2), empty(torch.int32, 300, 4)
        calls = [
            *launches(implementation.rasterize_polygons, vertices, *offsets, side, side, "nonzero"),
            *launches(implementation.fill_polygons, image, value, vertices, *offsets, "evenodd"),
            *launches(implementation.fill_boxes, image, value, boxes, offsets[1]),
        ]
        assert len(calls) == 3, "one launch per call"
        for call in calls:
            check(compile_for(call, capability), capability)
    mask = empty(torch.bool, 64, 1, 128, 128)
    image = empty(dtype, 64, 3, 128, 128)
    (call,) = launches(implementation.fill_masked, image, mask, empty(dtype, 3))
    compiled = compile_for(call, capability)
    check(compiled, capability)
    assert compiled.widest_load() >= (16 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_random_words(capability: int) -> None:
    """One launch per batch, words written 16 bytes at a time."""
    rows, columns = empty(torch.int64, 64, 1), empty(torch.int64, 1, 200)
    args = (rows, rows, columns, columns, 7, 2**31)
    (call,) = launches(implementation.philox4x32, *args)
    compiled = compile_for(call, capability)
    check(compiled, capability)
    assert compiled.widest_store() == 16


def test_int64_offsets_where_int32_would_overflow() -> None:
    """A map of more than 2**31 elements, and one just below."""
    big, w = empty(torch.bfloat16, 2**21, 32, 36), empty(torch.bfloat16, 32, 36, 36)
    for batch, wide in ((2**21, True), (2**20, False)):
        (call,) = launches(implementation.channelwise_linear, big[:batch], w, None, False)
        assert call.arguments["WIDE"] is wide
        check(compile_for(call, 90), 90)
    p, m = empty(torch.bfloat16, 2**16, 3, 128, 128), empty(torch.bool, 2**16, 1, 128, 128)
    (first,) = launches(implementation.masked_loss, p, p, m, None, 2, "mask")
    assert first.arguments["WIDE"] is True
    check(compile_for(first, 90), 90)
    image, value = empty(torch.float32, 2**16, 3, 128, 128), empty(torch.float32, 3)
    (call,) = launches(implementation.fill_masked, image, m, value)
    assert call.arguments["WIDE"] is True
    check(compile_for(call, 90), 90)


def test_one_plane_of_more_pixels_than_int32_counts() -> None:
    """The number of a block is widened before it is multiplied; the loss has few, in a loop."""
    side = 46342
    p, m = empty(torch.bfloat16, 1, 1, side, side), empty(torch.bool, 1, 1, side, side)
    (call,) = launches(implementation.fill_masked, p, m, empty(torch.bfloat16, 1))
    assert call.arguments["WIDE"] is True
    products = re.findall(r"arith.muli .* : (i\d+) ", compiled_by_triton(call, 90).asm["ttir"])
    assert set(products) == {"i64"}


def test_one_pixel_with_int64_offsets() -> None:
    """A size of 1 becomes a constant in the compiler, not a tensor."""
    p = torch.empty_strided((2, 3, 1, 1), (2**31, 4, 4, 1), dtype=torch.float32, device="meta")
    m, one, value = empty(torch.bool, 2, 1, 1, 1), empty(torch.float32), empty(torch.float32, 3)
    wide_mask = torch.empty_strided((2, 1, 1, 1), (2**31, 1, 1, 1), dtype=torch.bool, device="meta")
    calls = [
        *launches(implementation.masked_loss, p, p, m, None, 2, "mask")[:1],
        *launches(implementation.masked_loss_backward, one, one, p, p, m, 1),
        *launches(implementation.scale_gradient_, empty(torch.float32, 2, 3, 1, 1), one, wide_mask),
        *launches(implementation.fill_masked, p, m, value),
    ]
    assert len(calls) == 4
    for call in calls:
        assert call.arguments["WIDE"] is True
        check(compile_for(call, 90), 90)


def kernels_of(batch: int, *, training: bool) -> set[str]:
    """What Triton compiles for a fill, or a training step too, with this batch size."""
    calls = []
    for dtype in (torch.float32, torch.bfloat16):
        x, w, b = empty(dtype, batch, 256, 36), empty(dtype, 256, 36, 36), empty(dtype, 256, 36)
        calls += launches(implementation.channelwise_linear, x, w, b, True)
        if training:
            calls += launches(
                implementation.channelwise_linear_backward, x, x, w, x, True, True, True
            )
        # A map so large that torch multiplies, and the kernel adds bias and ReLU.
        x, w = empty(dtype, batch, 4, 1024), empty(dtype, 4, 1024, 1024)
        calls += launches(implementation.channelwise_linear, x, w, empty(dtype, 4, 1024), True)
        # 227 squared is odd: so are sums per block of it.
        for side, layout in itertools.product(
            (64, 227), (torch.contiguous_format, torch.channels_last)
        ):
            size = batch, 3, side, side
            p = torch.empty(size, dtype=dtype, device="meta", memory_format=layout)
            m, one = empty(torch.bool, batch, 1, side, side), empty(torch.float32)
            area = empty(torch.int64, batch)
            calls += launches(implementation.fill_masked, p, m, empty(torch.float32, 3))
            calls += launches(implementation.masked_loss, p, p, m, None, 2, "mask")
            calls += launches(implementation.masked_loss, p, p, m, None, 2, "none")
            calls += launches(implementation.masked_loss_backward, one, one, p, p, m, 2)
            calls += launches(implementation.masked_loss_and_gradient, p, p, m, area, 2, "mask")
            calls += launches(implementation.scale_gradient_, p.contiguous(), one, m)
    long = empty(torch.int64, batch, 1)
    words = empty(torch.int64, 1, 5)
    calls += launches(implementation.philox4x32, words, long, long, words, 1, 2)
    offsets = empty(torch.int64, batch + 1)
    vertices, contours = empty(torch.int32, 96 * batch, 2), empty(torch.int64, batch + 1)
    calls += launches(
        implementation.rasterize_polygons, vertices, contours, offsets, 227, 227, "nonzero"
    )
    calls += launches(
        implementation.rasterize_boxes, empty(torch.int32, 8 * batch, 4), offsets, 227, 227
    )
    keys = set()
    for call in calls:
        source = source_of(call)
        parts = (source.signature, source.constants, source.attrs, call.num_warps, call.num_stages)
        keys.add(f"{call.kernel.__name__} {parts}")
    return keys


@pytest.mark.parametrize("batch", [1, 2, 16, 17, 33, 48])
def test_a_last_batch_that_is_not_full_compiles_nothing(batch: int) -> None:
    """Triton would compile anew for numbers that are 1 or divisible by 16.

    Gradients for the weights of a few samples are not summed over programs: training, whose batches
    are all full, has another kernel for them.
    """
    torch.set_float32_matmul_precision("highest")
    training = batch > 16
    assert kernels_of(batch, training=training) == kernels_of(64, training=training)


def test_numbers_of_shapes_do_not_compile_anew() -> None:
    polygons, boxes = rasterize.polygons_kernel, rasterize.boxes_kernel
    for kernel, names in ((polygons, {"vertex_count", "contour_count"}), (boxes, {"box_count"})):
        assert {p.name for p in kernel.params if p.do_not_specialize} == names
