"""The CUDA kernels of the channel-wise linear map: run on the host, and compiled by nvcc."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cekernels import reference
from cekernels._precision import PRODUCTS
from tests.helpers.cuda_host import CSRC, FLAGS, Kernels, build
from tests.helpers.implementation_cases import assert_close, generator, integers, layouts

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
ALL = (True, True, True)
IEEE, TF32X3, TF32 = range(3)
# dtype and, for float32, the kind of products
KINDS = [
    pytest.param(torch.float32, IEEE, id="float32"),
    pytest.param(torch.float32, TF32X3, id="float32-tf32x3"),
    pytest.param(torch.float32, TF32, id="float32-tf32"),
    pytest.param(torch.float64, IEEE, id="float64"),
    pytest.param(torch.bfloat16, IEEE, id="bfloat16"),
    pytest.param(torch.float16, IEEE, id="float16"),
]
every_kind = pytest.mark.parametrize(("dtype", "products"), KINDS)
# (batch, channels, n_out, n_in): one sample, odd batches, more channels than one block handles,
# more blocks than the host's grid, several slices of the batch, sizes without a specialised kernel.
SHAPES = [
    (1, 1, 36, 36),
    (7, 3, 16, 16),
    (67, 5, 36, 36),
    (33, 2, 64, 64),
    (130, 1, 36, 36),
    (150, 1, 16, 16),
    (2, 70, 16, 16),
    (5, 2, 37, 36),
    (5, 2, 36, 16),
    (9, 2, 65, 3),
    (3, 1, 1, 1),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(build(tmp_path_factory.mktemp("cuda_linear_host"), "cuda", FLAGS))


@pytest.fixture(params=["forwards", "backwards"])
def kernels(library: Kernels, request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The library with the threads of a block started in either order."""
    library.library.set_reversed(request.param == "backwards")
    yield library
    library.library.set_reversed(False)


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def operands(
    shape: tuple[int, int, int, int], dtype: torch.dtype, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and gradient of the output; small integers where ``whole``."""
    batch, channels, n_out, n_in = shape
    sizes = ((batch, channels, n_in), (channels, n_out, n_in), (channels, n_out),
             (batch, channels, n_out))  # fmt: skip
    if whole:
        x, w, b, g = (integers(*s, dtype=dtype, seed=i, limit=2) for i, s in enumerate(sizes))
    else:
        x, w, b, g = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate(sizes))
    return x, w, b, g


def nearest_tf32(values: Tensor) -> Tensor:
    """``values`` rounded to 10 bits of mantissa, ties away from zero, in float64."""
    mantissa, exponent = torch.frexp(values.double())
    scaled = mantissa * 2**11
    return torch.ldexp(scaled.sign() * (scaled.abs() + 0.5).floor() / 2**11, exponent)


# --- the functions of mma.h -----------------------------------------------------------------------


def registers(matrix: Tensor, rows: list[list[int]], columns: list[list[int]]) -> Tensor:
    """Fragments of ``matrix``: lane in dimension 0, element of its fragment in dimension 1."""
    return matrix[torch.tensor(rows), torch.tensor(columns)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_mma_multiplies_fragments_in_the_documented_layout(
    library: Kernels, dtype: torch.dtype
) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16" with 16-bit types and "mma.m16n8k8" with .tf32,
    after its formulas for the row and column of element i of a lane."""
    depth = 8 if dtype == torch.float32 else 16
    a, b = normal(16, depth, seed=0, dtype=dtype), normal(depth, 8, seed=1, dtype=dtype)
    c = normal(16, 8, seed=2, dtype=torch.float32)
    group, rest = [lane >> 2 for lane in range(32)], [lane % 4 for lane in range(32)]
    lanes = list(zip(group, rest, strict=True))
    if dtype == torch.float32:
        a_rows = [[g + 8 * (i in (1, 3)) for i in range(4)] for g, _ in lanes]
        a_columns = [[q + 4 * (i >= 2) for i in range(4)] for _, q in lanes]
        b_rows = [[q + 4 * i for i in range(2)] for _, q in lanes]
        b_columns = [[g] * 2 for g, _ in lanes]
    else:
        a_rows = [[g + 8 * (i in (2, 3, 6, 7)) for i in range(8)] for g, _ in lanes]
        a_columns = [[2 * q + (i & 1) + 8 * (i >= 4) for i in range(8)] for _, q in lanes]
        b_rows = [[2 * q + (i & 1) + 8 * (i >= 2) for i in range(4)] for _, q in lanes]
        b_columns = [[g] * 4 for g, _ in lanes]
    d_rows = [[g + 8 * (i >= 2) for i in range(4)] for g, _ in lanes]
    d_columns = [[2 * q + (i & 1) for i in range(4)] for _, q in lanes]

    held_a, held_b = registers(a, a_rows, a_columns), registers(b, b_rows, b_columns)
    held_d = registers(c, d_rows, d_columns).contiguous()
    kind = (torch.float16, torch.bfloat16, torch.float32).index(dtype)
    library.library.run_mma(
        kind, *(ctypes.c_void_p(t.data_ptr()) for t in (held_a, held_b, held_d))
    )
    if dtype == torch.float32:  # the hardware truncates to TF32
        a, b = ((t.view(torch.int32) & -0x2000).view(torch.float32) for t in (a, b))
    truth = registers(c.double() + a.double() @ b.double(), d_rows, d_columns)
    assert (held_d - truth).abs().max() < 1e-5


def test_transposed_matrices_arrive_in_the_documented_layout(library: Kernels) -> None:
    rows = torch.arange(32 * 8, dtype=torch.int16).reshape(32, 8)
    storage = torch.zeros(32 * 24 + 8, dtype=torch.int16)
    start = -storage.data_ptr() // 2 % 8  # aligns rows to 16 bytes
    padded = storage[start : start + 32 * 24].view(32, 24)
    padded[:, :8] = rows
    found = torch.empty(32, 4, 2, dtype=torch.int16)
    library.library.run_load_transposed(
        ctypes.c_void_p(padded.data_ptr()), 24, ctypes.c_void_p(found.data_ptr())
    )
    for lane in range(32):
        for matrix in range(4):
            expected = rows[8 * matrix :][:8].T[lane // 4, 2 * (lane % 4) :][:2]
            assert torch.equal(found[lane, matrix], expected)


def test_rounding_to_tf32(library: Kernels) -> None:
    function: Callable[[float], int] = library.library.run_to_tf32
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_uint32  # type: ignore[attr-defined]
    half = 2.0**-11
    values = torch.cat([
        torch.tensor([0.0, -0.0, 1 + half, -1 - half, 1 + 3 * half, 1 + half - 2**-23, 2.0**-126]),
        normal(200, seed=0, dtype=torch.float32),
    ])  # fmt: skip
    found = torch.tensor([function(v) for v in values.tolist()]).to(torch.int32)
    assert torch.equal(found.view(torch.float32).double(), nearest_tf32(values))
    for special in (float("inf"), float("-inf"), float("nan")):
        bits = torch.tensor([function(special)]).to(torch.int32)
        assert torch.equal(
            bits.view(torch.float32).nan_to_num(5), torch.tensor([special]).nan_to_num(5)
        )


# --- the kernels ----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(
    kernels: Kernels, shape: tuple[int, int, int, int], dtype: torch.dtype, products: int
) -> None:
    """Errors are bounded by PyTorch's, plus a few roundings where operands are not rounded, as the
    peer's order of summation may happen to be better. Three TF32 products lose 2**-22 three times:
    in the remainder of each operand and in the product of both remainders. In float64 the truth
    itself depends on the order of summation."""
    roundings = {torch.float64: 16, torch.float32: 12 if products == TF32X3 else 4}.get(dtype, 1)
    x, w, b, g = operands(shape, dtype)
    truth_of = [t.double() for t in (x, w, b, g)]
    same = [x, w, b, g]
    if products == TF32:  # PyTorch has no TF32 on the CPU: round its operands
        same = [nearest_tf32(x).float(), nearest_tf32(w).float(), b, nearest_tf32(g).float()]
    for relu in (False, True):
        y = kernels.channelwise_linear(x, w, b, relu, products)
        exact = reference.channelwise_linear(*truth_of[:3], relu)
        assert_close(y, reference.channelwise_linear(*same[:3], relu), exact, 2, roundings)
        gate = exact.to(dtype) if relu else None
        grads = kernels.channelwise_linear_backward(g, x, w, gate, *ALL, products)
        plain = reference.channelwise_linear_backward(same[3], same[0], same[1], gate, *ALL)
        exact_grads = reference.channelwise_linear_backward(
            truth_of[3], truth_of[0], truth_of[1], None if gate is None else gate.double(), *ALL
        )
        for found, peer, grad in zip(grads[:2], plain[:2], exact_grads[:2], strict=True):
            assert_close(found, peer, grad, 3, roundings)
        # The bias's gradient has no product to round.
        peer = g.sum(0) if gate is None else torch.where(gate > 0, g, 0).sum(0)
        assert_close(grads[2], peer, exact_grads[2], 3, roundings)


def test_tf32_is_tf32(library: Kernels) -> None:
    """Only "tf32" rounds its operands: shows that the kernels differ."""
    x, w, b, g = operands((20, 2, 36, 36), torch.float32)
    exact = reference.channelwise_linear(x.double(), w.double(), b.double(), False)
    rounded = torch.einsum("bci,coi->bco", nearest_tf32(x), nearest_tf32(w)) + b.double()
    errors = [
        [(library.channelwise_linear(x, w, b, False, p).double() - t).abs().max().item()
         for t in (exact, rounded)]
        for p in (IEEE, TF32X3, TF32)
    ]  # fmt: skip
    assert errors[IEEE][0] < 2e-5
    assert errors[TF32X3][0] < 2e-5
    assert errors[TF32][1] < 2e-5
    assert min(errors[IEEE][1], errors[TF32X3][1], errors[TF32][0]) > 5e-4
    grads = library.channelwise_linear_backward(g, x, w, None, *ALL, TF32)
    right = reference.channelwise_linear_backward(
        nearest_tf32(g), nearest_tf32(x), nearest_tf32(w), None, *ALL
    )
    for found, grad in zip(grads[:2], right[:2], strict=True):
        assert (found - grad).abs().max() < 2e-5
    assert (grads[2] - g.double().sum(0)).abs().max() < 2e-5


@every_kind
@pytest.mark.parametrize("n", [16, 36, 64, 20])
def test_integers_are_exact_however_they_lie(
    library: Kernels, n: int, dtype: torch.dtype, products: int
) -> None:
    """Slices of a larger tensor of NaN, permuted, broadcast, and one element off alignment; any
    subset of the gradients. The truth is float64; in bfloat16 only the last rounding remains."""
    x, w, b, g = operands((9, 3, n, n), dtype, whole=True)
    wide = [t.double() for t in (x, w, b, g)]
    exact = reference.channelwise_linear(*wide[:3], True).to(dtype)
    exact_grads = reference.channelwise_linear_backward(
        wide[3], wide[0], wide[1], exact.double(), *ALL
    )
    for x_, g_, y_ in zip(map_dense(x), map_dense(g), map_dense(exact), strict=True):
        for w_ in map_dense(w):
            y = library.channelwise_linear(x_, w_, b, True, products)
            assert torch.equal(y, exact)
            grads = library.channelwise_linear_backward(g_, x_, w_, y_, *ALL, products)
            for found, grad in zip(grads, exact_grads, strict=True):
                assert torch.equal(found, grad.to(dtype))
    for subset in range(1, 8):
        needs = (bool(subset & 1), bool(subset & 2), bool(subset & 4))
        grads = library.channelwise_linear_backward(g, x, w, exact, *needs, products)
        for found, grad, need in zip(grads, exact_grads, needs, strict=True):
            assert torch.equal(found, grad.to(dtype) if need else found.new_empty(0))
    one = torch.ones(n, dtype=dtype).expand_as(g)
    grads = library.channelwise_linear_backward(one, x, w, None, *ALL, products)
    right = reference.channelwise_linear_backward(torch.ones_like(wide[3]), *wide[:2], None, *ALL)
    for found, grad in zip(grads, right, strict=True):
        assert torch.equal(found, grad.to(dtype))


def map_dense(tensor: Tensor) -> list[Tensor]:
    """Layouts of ``tensor`` with a dense last dimension, and one that starts at an odd element."""
    odd = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    assert odd.data_ptr() % (4 * tensor.element_size()) != 0
    return [t for t in (*layouts(tensor), odd) if t.stride(-1) == 1]


@every_kind
@pytest.mark.parametrize("n", [16, 36, 64])
def test_an_empty_batch(library: Kernels, n: int, dtype: torch.dtype, products: int) -> None:
    x, w, b, g = operands((0, 3, n, n), dtype)
    assert library.channelwise_linear(x, w, b, True, products).shape == (0, 3, n)
    grads = library.channelwise_linear_backward(g, x, w, None, *ALL, products)
    assert grads[0].numel() == 0
    assert not grads[1].any()
    assert not grads[2].any()


@every_kind
@pytest.mark.parametrize("n", [16, 36, 64])
def test_batches_in_slices_repeat_bit_for_bit(
    library: Kernels, n: int, dtype: torch.dtype, products: int
) -> None:
    """Bit-identical gradients for either order of the threads, with the batch in slices."""
    x, w, _, g = operands((200, 1, n, n), dtype)
    runs = []
    for order in (False, True, False):
        library.library.set_reversed(order)
        runs.append(library.channelwise_linear_backward(g, x, w, None, *ALL, products))
    library.library.set_reversed(False)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@every_kind
@pytest.mark.parametrize("n", [16, 36, 64])
def test_samples_and_channels_do_not_mix(
    library: Kernels, n: int, dtype: torch.dtype, products: int
) -> None:
    """A NaN stays in its sample and channel although fragments are padded and tiles shared."""
    x, w, b, g = operands((19, 3, n, n), dtype, whole=True)
    y = library.channelwise_linear(x, w, b, True, products)
    grads = library.channelwise_linear_backward(g, x, w, y, *ALL, products)
    x2, g2 = x.clone(), g.clone()
    x2[17, 1, n - 1] = float("nan")
    g2[18, 2, 0] = float("nan")
    y2 = library.channelwise_linear(x2, w, b, True, products)
    assert y2[17, 1].isnan().all()
    y2[17, 1] = y[17, 1]
    assert torch.equal(y2, y)
    gx, gw, gb = library.channelwise_linear_backward(g2, x, w, None, *ALL, products)
    plain = library.channelwise_linear_backward(g, x, w, None, *ALL, products)
    assert gx[18, 2].isnan().all()
    assert gw[2, 0].isnan().all()
    assert gb[2, 0].isnan()
    gx[18, 2], gw[2, 0], gb[2, 0] = plain[0][18, 2], plain[1][2, 0], plain[2][2, 0]
    assert all(map(torch.equal, (gx, gw, gb), plain))
    # Where the ReLU is inactive, the NaN has no effect.
    y[18, 2, 0] = 0
    gated = library.channelwise_linear_backward(g2, x, w, y, *ALL, products)
    assert not any(t.isnan().any() for t in (*gated, *grads))


def test_the_names_of_products_are_those_of_the_header() -> None:
    header = (CSRC / "params.h").read_text()
    assert f"enum class Products : int32_t {{ {', '.join(PRODUCTS)} }}" in header


# --- compiled by nvcc -----------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
SOURCE = str(CSRC / "cuda/channelwise_linear.cu")


@needs_nvcc
def test_tensor_cores_where_and_only_where_they_are_meant(tmp_path: Path) -> None:
    target = tmp_path / "linear.ptx"
    command = ["nvcc", "-O3", "-ptx", "-arch=compute_80", SOURCE, "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    bodies = re.findall(r"\.entry (\w+)\((.*?)\n}", target.read_text(), re.DOTALL)
    instruction = {"8BFloat16": "m16n8k16.row.col.f32.bf16", "4Half": "m16n8k16.row.col.f32.f16",
                   "TensorCoreIf": "m16n8k8.row.col.f32.tf32"}  # fmt: skip
    seen = []
    for name, body in bodies:
        kinds = [k for k in instruction if k in name] if "TensorCore" in name else []
        seen += kinds
        for kind, mma in instruction.items():
            assert (f"mma.sync.aligned.{mma}" in body) == (kind in kinds), name
    assert {kind: seen.count(kind) for kind in instruction} == {
        "8BFloat16": 6, "4Half": 6, "TensorCoreIf": 12
    }  # fmt: skip
