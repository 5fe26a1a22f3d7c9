"""CPU kernels in C++ against float64, exact integers, the reference and themselves."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cekernels import _backends, reference
from cekernels._register import OPS
from cekernels.ops.channelwise_linear import LINEAR
from tests.helpers.cuda_host import sparse
from tests.helpers.implementation_cases import assert_close, random

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    _backends.unavailable("cpp") is not None, reason=f"C++: {_backends.unavailable('cpp')}"
)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALL = (True, True, True)
SHAPES = [(64, 5, 36, 36), (1, 1, 1, 1), (33, 3, 50, 17), (7, 9, 3, 65), (300, 2, 4, 4)]


# The registered ops, without the argument checks of the public functions.
cpp = SimpleNamespace(
    **{op.name: op.without_formula("cpp") for op in OPS.values() if "cpp" in op.compiled}
)


def kernel(name: str) -> torch._ops.OpOverload:
    overload: torch._ops.OpOverload = getattr(cpp, name)
    return overload


def forward(x: Tensor, w: Tensor, b: Tensor | None, relu: bool) -> Tensor:
    return kernel("channelwise_linear")(x, w, b, relu)


def backward(
    g: Tensor, x: Tensor, w: Tensor, y: Tensor | None, needs: tuple[bool, bool, bool] = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    return kernel("channelwise_linear_backward")(g, x, w, y, *needs)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- channel-wise linear ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_linear_is_as_exact_as_pytorch(
    shape: tuple[int, int, int, int], dtype: torch.dtype, relu: bool
) -> None:
    batch, channels, n_out, n_in = shape
    x, w = random(batch, channels, n_in, dtype=dtype), random(channels, n_out, n_in, dtype=dtype)
    b, g = random(channels, n_out, dtype=dtype), random(batch, channels, n_out, seed=9, dtype=dtype)
    exact = reference.channelwise_linear(x.double(), w.double(), b.double(), relu)
    same = reference.channelwise_linear(x, w, b, relu)
    if dtype == torch.float64:
        assert torch.allclose(forward(x, w, b, relu), exact, rtol=1e-13, atol=1e-13)
    else:
        assert_close(forward(x, w, b, relu), same, exact, 2, roundings=4)

    y = exact.to(dtype) if relu else None
    gate = None if y is None else y.double()
    exact_grads = reference.channelwise_linear_backward(
        g.double(), x.double(), w.double(), gate, *ALL
    )
    same_grads = reference.channelwise_linear_backward(g, x, w, y, *ALL)
    for found, same, exact in zip(backward(g, x, w, y), same_grads, exact_grads, strict=True):
        if dtype == torch.float64:
            assert torch.allclose(found, exact, rtol=1e-13, atol=1e-12)
        else:
            assert_close(found, same, exact, 3, roundings=6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 70), st.integers(1, 12), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_linear_on_integers_is_exact(
    batch: int, channels: int, n_out: int, n_in: int, dtype: torch.dtype, relu: bool, bias: bool
) -> None:
    def integers(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(math.prod(shape))
        return torch.randint(-8, 9, shape, generator=generator).to(dtype)

    x, w, g = integers(batch, channels, n_in), integers(channels, n_out, n_in), None
    b = integers(channels, n_out) if bias else None
    y = forward(x, w, b, relu)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, relu))
    g = integers(batch, channels, n_out)
    gate = y if relu else None
    expected = reference.channelwise_linear_backward(g, x, w, gate, *ALL)
    for found, grad in zip(backward(g, x, w, gate), expected, strict=True):
        assert torch.equal(found, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_takes_slices_of_larger_tensors(dtype: torch.dtype) -> None:
    x, g = random(100, 8, 41, dtype=dtype)[::2, 1:7:2, 2:38], random(50, 6, 36, dtype=dtype)[:, ::2]
    w, b = random(6, 40, 38, dtype=dtype)[::2, 1:37, 1:37], random(6, 37, dtype=dtype)[::2, 1:]
    y = forward(x, w, b, True)
    dense = [t.contiguous() for t in (x, w, b)]
    assert torch.equal(y, forward(*dense, True))
    stretched = torch.cat([y, y], 2)[..., :36]
    expected = backward(g.contiguous(), *dense[:2], y)
    for found, grad in zip(backward(g, x, w, stretched), expected, strict=True):
        assert torch.equal(found, grad)


def test_each_gradient_alone_is_the_same() -> None:
    x, w, g = random(50, 3, 20), random(3, 10, 20), random(50, 3, 10)
    together = backward(g, x, w, None)
    for index in range(3):
        needs = (index == 0, index == 1, index == 2)
        alone = backward(g, x, w, None, needs)
        assert torch.equal(alone[index], together[index])
        assert [t.numel() for i, t in enumerate(alone) if i != index] == [0, 0]


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty_linear(shape: tuple[int, int, int, int]) -> None:
    batch, channels, n_out, n_in = shape
    x, w, g = random(batch, channels, n_in), random(channels, n_out, n_in), None
    b = random(channels, n_out)
    y = forward(x, w, b, False)
    assert torch.equal(y, reference.channelwise_linear(x, w, b, False))
    g = torch.ones_like(y)
    expected = reference.channelwise_linear_backward(g, x, w, None, *ALL)
    for found, grad in zip(backward(g, x, w, None), expected, strict=True):
        assert torch.equal(found, grad)


def test_nan_passes_the_relu() -> None:
    x = torch.full((50, 1, 4), math.nan)
    assert forward(x, random(1, 4, 4), None, True).isnan().all()
    large = torch.full((2, 1, 300), math.nan)  # computed by torch's batched product
    assert forward(large, random(1, 300, 300), None, True).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_sizes_handed_to_torch_give_the_same(
    dtype: torch.dtype, relu: bool, with_bias: bool
) -> None:
    n_out, n_in = 230, 300
    x, w = random(8, 2, n_in, dtype=dtype), random(2, n_out, n_in, dtype=dtype) / 16
    g = random(8, 2, n_out)
    b = random(2, n_out, dtype=dtype) if with_bias else None
    assert n_out * n_in > 256 * 256
    exact = [None if t is None else t.double() for t in (x, w, b)]
    y = forward(x, w, b, relu)
    assert y.is_contiguous()
    assert not y._is_view()
    same = reference.channelwise_linear(x, w, b, relu)
    assert_close(y, same, reference.channelwise_linear(*exact, relu), 2)
    gate = y if relu else None
    g = g.to(dtype)
    wide = None if gate is None else gate.double()
    same_grads = reference.channelwise_linear_backward(g, x, w, gate, *ALL)
    truth = reference.channelwise_linear_backward(g.double(), exact[0], exact[1], wide, *ALL)
    for found, same, grad in zip(backward(g, x, w, gate), same_grads, truth, strict=True):
        assert found.is_contiguous()
        assert_close(found, same, grad, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_goes_through_unchanged(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y = forward(x.view(-1, 1, 1), torch.ones(1, 1, 1, dtype=dtype), None, False).flatten()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], x[~x.isnan()])


# --- masked losses ------------------------------------------------------------------------------


def operands(
    *shape: int, mask_channels: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    mask = random(shape[0], mask_channels, *shape[2:], seed=3) > 0.6
    return random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype), mask


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", [(2, 3, 33, 31), (3, 2, 1, 1), (1, 1, 70, 129), (2, 4, 5, 16)])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, power: int, weighted: bool
) -> None:
    p, t, mask = operands(*shape, mask_channels=shape[1] if power == 1 else 1, dtype=dtype)
    if weighted:
        mask = torch.where(mask, random(*mask.shape, seed=4).abs(), 0).to(dtype)
    for normalize in ("mask", "all", "sum", "none"):
        found, scale = cpp.masked_loss(p, t, mask, None, power, normalize)
        exact, _ = reference.masked_loss(p.double(), t.double(), mask, None, power, normalize)
        assert torch.allclose(found.double(), exact, rtol=4 * torch.finfo(found.dtype).eps, atol=0)
        g = random(*found.shape, dtype=found.dtype)
        grad = cpp.masked_loss_backward(g, scale, p, t, mask, power)
        assert grad.is_contiguous()
        assert torch.equal(grad, reference.masked_loss_backward(g, scale, p, t, mask, power))


def test_loss_takes_strides_offsets_and_broadcast_masks() -> None:
    p, t, mask = operands(3, 4, 40, 50)
    p, t = p[:, 1:, 3:36, 5:41], t[:, :3, 1:34, 2:38]
    for m in (mask[:, :, 2:35, 7:43], mask[:1, :, 2:35, 7:43].expand(3, 3, 33, 36)):
        loss, scale = cpp.masked_loss(p, t, m, None, 2, "mask")
        dense = [x.contiguous() for x in (p, t, m)]
        assert torch.allclose(loss, cpp.masked_loss(*dense, None, 2, "mask")[0], rtol=1e-6)
        grad = cpp.masked_loss_backward(torch.ones(()), scale, p, t, m, 2)
        assert torch.equal(grad, cpp.masked_loss_backward(torch.ones(()), scale, *dense, 2))
        last = [x.contiguous(memory_format=torch.channels_last) for x in dense]
        assert torch.equal(grad, cpp.masked_loss_backward(torch.ones(()), scale, *last, 2))


@pytest.mark.parametrize("power", [1, 2])
def test_what_is_not_masked_is_not_looked_at(power: int) -> None:
    p, t, mask = operands(2, 3, 21, 19)
    expected = cpp.masked_loss(p, t, mask, None, power, "mask")
    p = torch.where(mask, p, math.nan)
    t = torch.where(mask, t, math.inf)
    found = cpp.masked_loss(p, t, mask, None, power, "mask")
    assert torch.equal(found[0], expected[0])
    grad = cpp.masked_loss_backward(torch.ones(()), found[1], p, t, mask, power)
    assert grad.isfinite().all()
    assert (grad[~mask.expand_as(grad)] == 0).all()
    p[0, 0][mask[0, 0]] = math.nan
    assert cpp.masked_loss(p, t, mask, None, power, "sum")[0].isnan()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_a_given_area_is_used(dtype: torch.dtype) -> None:
    p, t, mask = operands(3, 2, 9, 9)
    area = torch.stack([mask.sum((1, 2, 3)), torch.zeros(3)], 1).to(dtype)[:, 0]
    assert torch.equal(
        cpp.masked_loss(p, t, mask, area, 2, "mask")[0],
        cpp.masked_loss(p, t, mask, None, 2, "mask")[0],
    )
    assert cpp.masked_loss(p, t, mask, 0 * area, 2, "mask")[0] == 0


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty_loss(shape: tuple[int, ...]) -> None:
    p, t, mask = operands(*shape)
    for normalize in ("mask", "all", "sum", "none"):
        found = cpp.masked_loss(p, t, mask, None, 2, normalize)
        expected = reference.masked_loss(p, t, mask, None, 2, normalize)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert cpp.masked_loss_backward(torch.ones(()), torch.ones(()), p, t, mask, 2).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_round_to_the_nearest_16_bit_number(dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2**31, (20000,), generator=torch.Generator().manual_seed(0))
    g = bits.to(torch.int32).view(torch.float32)
    ties = torch.arange(0, 2**16, dtype=torch.int64) << 13 | 0x38000000
    g = torch.cat([g, -g, ties.to(torch.int32).view(torch.float32), torch.tensor([0.0, math.inf])])
    p = torch.full((g.numel(), 1, 1, 1), 0.5, dtype=dtype)
    mask = torch.ones(g.numel(), 1, 1, 1, dtype=torch.bool)
    grad = cpp.masked_loss_backward(g, torch.ones(()), p, torch.zeros_like(p), mask, 2).flatten()
    nan = g.isnan()
    assert torch.equal(grad.isnan(), nan)
    assert torch.equal(grad[~nan], g.to(dtype)[~nan])


# --- rasterization and filling ------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int, int]:
    count = draw(st.integers(0, 24))
    contours = draw(st.integers(1 if count else 0, 5))
    samples = draw(st.integers(1 if contours else 0, 4))
    reach = draw(st.sampled_from([600, 3000, 12000, 2**31 - 1]))
    step = draw(st.sampled_from([1, 64, 128, 256]))
    height, width = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    numbers = st.integers(-(reach // 3), reach)
    flat = draw(st.lists(numbers, min_size=4 * count, max_size=4 * count))
    vertices = torch.tensor(flat, dtype=torch.int64).reshape(-1, 4) // step * step

    def offsets(pieces: int, total: int) -> Tensor:
        cuts = draw(st.lists(st.integers(0, total), min_size=pieces, max_size=pieces))
        return torch.tensor([0, *sorted(cuts[1:]), total][: pieces + 1])

    return (
        vertices.to(torch.int32),
        offsets(contours, 2 * count),
        offsets(samples, contours),
        height,
        width,
    )


@settings(max_examples=150, deadline=None)
@given(shapes(), st.sampled_from(["nonzero", "evenodd"]))
def test_polygons_are_bit_identical(
    shape: tuple[Tensor, Tensor, Tensor, int, int], fill_rule: str
) -> None:
    vertices, contours, samples, height, width = shape
    points = vertices.reshape(-1, 2)
    expected = reference.rasterize_polygons(points, contours, samples, height, width, fill_rule)
    found = cpp.rasterize_polygons(points, contours, samples, height, width, fill_rule)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    image, value = random(len(samples) - 1, 2, height, width + 1)[..., 1:], torch.tensor([3.0, 4.0])
    filled = cpp.fill_polygons(image, value, points, contours, samples, fill_rule)
    assert torch.equal(filled[0], reference.fill_masked(image, expected[0], value))
    assert torch.equal(filled[1], expected[0])


@settings(max_examples=100, deadline=None)
@given(shapes())
def test_boxes_are_bit_identical(shape: tuple[Tensor, Tensor, Tensor, int, int]) -> None:
    boxes, _, samples, height, width = shape
    if len(samples) == 1:
        boxes = boxes[:0]
    samples = samples.clamp(max=boxes.shape[0])
    samples[-1] = boxes.shape[0]
    expected = reference.rasterize_boxes(boxes, samples, height, width)
    found = cpp.rasterize_boxes(boxes, samples, height, width)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    image, value = random(len(samples) - 1, 1, height, width), torch.tensor([3.0])
    filled = cpp.fill_boxes(image, value, boxes, samples)
    assert torch.equal(filled[0], reference.fill_masked(image, expected[0], value))


def test_more_crossings_than_one_band_holds() -> None:
    """A comb of 4000 teeth crosses every row 8000 times: the rows are processed in bands."""
    teeth = torch.arange(4000)
    x = torch.stack([teeth * 7, teeth * 7, teeth * 7 + 3, teeth * 7 + 3], 1).flatten()
    y = torch.tensor([0, 30 * 256, 30 * 256, 0]).repeat(4000)
    points = torch.stack([x, y], 1).to(torch.int32)
    arguments = (points, torch.arange(0, 16001, 4), torch.tensor([0, 4000]), 32, 120)
    for rule in ("nonzero", "evenodd"):
        found = cpp.rasterize_polygons(*arguments, rule)
        expected = reference.rasterize_polygons(*arguments, rule)
        assert torch.equal(found[0], expected[0])
        assert found[1].item() > 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.bfloat16,
                                   torch.float32, torch.float64, torch.int64])  # fmt: skip
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, *FLOATING])
def test_fill_masked_copies_bits(dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    image = (10 * random(3, 3, 19, 27)).to(dtype)[:, :, :, 2:25]
    for channels in (1, 3):
        mask = (-random(3, channels, 19, 23).clamp(min=0)).to(mask_dtype)  # with -0.0
        value = torch.tensor([1, 0, 1]).to(dtype)
        found = cpp.fill_masked(image, mask, value)
        assert torch.equal(found, reference.fill_masked(image, mask, value))


# --- threads, instruction sets, wrong arguments --------------------------------------------------


def everything() -> list[Tensor]:
    x, w, b, g = random(70, 16, 36), random(16, 36, 36), random(16, 36), random(70, 16, 36)
    p, t, mask = operands(5, 3, 200, 130)
    points = (random(60, 2) * 9000 + 9000).to(torch.int32)
    y = forward(x, w, b, True)
    loss = cpp.masked_loss(p, t, mask, None, 2, "mask")
    grad = cpp.masked_loss_backward(torch.ones(()), loss[1], p, t, mask, 2)
    contours, samples = torch.arange(0, 61, 5), torch.tensor([0, 3, 7, 12])
    masks = cpp.rasterize_polygons(points, contours, samples, 70, 70, "nonzero")
    return [y, *backward(g, x, w, y), *loss, grad, *masks]


def test_bits_do_not_depend_on_threads_or_runs(threads: None) -> None:
    torch.set_num_threads(1)
    expected = everything()
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        for found, before in zip(everything(), expected, strict=True):
            assert torch.equal(found, before)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_agrees(name: str) -> None:
    built = _backends.build_record()["_C"]["instruction sets"]
    best = built.index(_backends.instruction_set())
    if name not in built[: best + 1]:
        pytest.skip(f"this machine has no {name}")
    script = (
        "import sys, torch\nfrom tests.cekernels import test_cpp\n"
        "from cekernels import _backends\n"
        f"assert _backends.instruction_set() == {name!r}, _backends.instruction_set()\n"
        "torch.save(test_cpp.everything(), sys.stdout.buffer)\n"
    )
    environment = {**os.environ, "CEKERNELS_ISA": name, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    import io

    for found, expected in zip(torch.load(io.BytesIO(run.stdout)), everything(), strict=True):
        if found.is_floating_point():
            scale = expected.abs().max()
            assert ((found - expected).abs().max() <= 4e-6 * scale).item()
        else:
            assert torch.equal(found, expected)


X, W = torch.zeros(50, 2, 4), torch.zeros(2, 3, 4)
IMAGE, MASK = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.bool)
POINTS, OFFSETS = torch.zeros(4, 2, dtype=torch.int32), torch.tensor([0, 1])
CONTOURS = torch.tensor([0, 4])


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("channelwise_linear", (X, W[:, :, :3], None, False), "size 4 in dimension 2"),
        ("channelwise_linear", (X, W[:1], None, False), "size 2 in dimension 0"),
        ("channelwise_linear", (X[0], W, None, False), "3 dimensions"),
        ("channelwise_linear", (X.double(), W, None, False), "weight has the wrong dtype"),
        ("channelwise_linear", (X.int(), W.int(), None, False), "must be float16"),
        ("channelwise_linear", (X, W, torch.zeros(2, 4), False), "bias must have size 3"),
        ("masked_loss", (IMAGE, IMAGE[:, :2], MASK, None, 2, "mask"), "target must have size 3"),
        ("masked_loss", (IMAGE, IMAGE, MASK.expand(2, 2, 4, 5), None, 2, "mask"), "1 channel"),
        ("masked_loss", (IMAGE, IMAGE, MASK.int(), None, 2, "mask"), "unless bool or uint8"),
        ("masked_loss", (IMAGE, IMAGE, MASK, torch.zeros(3), 2, "mask"), "area must have shape"),
        ("masked_loss", (IMAGE, IMAGE, MASK, None, 3, "mask"), "power"),
        ("masked_loss", (IMAGE, IMAGE, MASK, None, 2, "mean"), "normalize"),
        ("fill_masked", (IMAGE, MASK, torch.zeros(2)), "value must have size 3"),
        ("fill_masked", (IMAGE, MASK, torch.zeros(3).double()), "value has the wrong dtype"),
        ("rasterize_polygons", (POINTS, CONTOURS, OFFSETS, -1, 4, "evenodd"), "negative"),
        ("rasterize_polygons", (POINTS.long(), OFFSETS, OFFSETS, 4, 4, "evenodd"), "wrong dtype"),
        ("rasterize_polygons", (POINTS, OFFSETS[:0], OFFSETS, 4, 4, "evenodd"), "not be empty"),
        ("rasterize_polygons", (POINTS, OFFSETS, OFFSETS, 4, 4, "winding"), "fill_rule"),
        ("fill_polygons", (IMAGE, torch.zeros(3), POINTS, OFFSETS, OFFSETS, "evenodd"), "size 1"),
    ],
)
def test_wrong_arguments_raise(op: str, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        kernel(op)(*arguments)


VALUE, SUM = torch.zeros(3), torch.ones(())
BOXES = torch.tensor([[0, 0, 512, 512]], dtype=torch.int32)
VALID: dict[str, tuple[object, ...]] = {
    "channelwise_linear": (X, W, torch.zeros(2, 3), True),
    "channelwise_linear_backward": (torch.zeros(50, 2, 3), X, W, torch.zeros(50, 2, 3), *ALL),
    "masked_loss": (IMAGE, IMAGE, MASK, torch.zeros(2), 2, "mask"),
    "masked_loss_backward": (SUM, SUM, IMAGE, IMAGE, MASK, 2),
    "fill_masked": (IMAGE, MASK, VALUE),
    "rasterize_polygons": (POINTS, CONTOURS, OFFSETS, 4, 5, "nonzero"),
    "rasterize_boxes": (BOXES, OFFSETS, 4, 5),
    "fill_polygons": (IMAGE[:1], VALUE, POINTS, CONTOURS, OFFSETS, "nonzero"),
    "fill_boxes": (IMAGE[:1], VALUE, BOXES, OFFSETS),
    **{name: OPS[name].example() for name in ("patch_match", "patch_vote")},
    "local_response_norm": (IMAGE, 5, 1e-4, 0.75, 1.0),
    "local_response_norm_backward": (IMAGE, IMAGE, 5, 1e-4, 0.75, 1.0),
    "remove_seam": (IMAGE, MASK),
}
assert set(VALID) == {op.name for op in OPS.values() if "cpp" in op.compiled}


def spoiled(value: object) -> list[object]:
    """Other values that a caller might pass for an argument."""
    if isinstance(value, bool):
        return [None, 2, "yes", IMAGE]
    if isinstance(value, str):
        return [None, 2, "other", IMAGE]
    if isinstance(value, int):
        return [-1, -(2**63), 2**31, 2**62, 0.5, None, IMAGE]
    if isinstance(value, float):
        return [-1.0, 0.0, 1e300, float("nan"), float("inf"), 2, None, "yes", IMAGE]
    assert isinstance(value, Tensor)
    others: list[object] = [
        None, 1.0, "tensor", [value], value.to("meta"), value.unsqueeze(0), value[None, None],
        value.flatten(), value.flatten()[:1].reshape(()), value.new_zeros(0), value.to_sparse(),
        torch.stack([value, value], -1)[..., 0], value.mT if value.dim() > 1 else value[None],
        value.new_zeros(()).expand(value.shape),
    ]  # fmt: skip
    kinds = (torch.bool, torch.uint8, torch.int32, torch.int64, *FLOATING, torch.complex64)
    others += [value.to(dtype) for dtype in kinds]
    for d in range(value.dim()):
        others += [value.narrow(d, 0, value.shape[d] - 1), value.narrow(d, 0, 0)]
        others.append(torch.cat([value, value], d))
        others.append(value.narrow(d, 0, 1).expand(*value.shape))
    if value.dtype == torch.int64:
        others += [value.flip(0), value - 5, value + 2**62, torch.full_like(value, -(2**63))]
    return others


def never_right(value: object, other: object) -> bool:
    """Whether no op accepts ``other`` where it accepts ``value``."""
    if isinstance(value, str):
        return isinstance(other, Tensor) or (isinstance(other, str) and other != value)
    if not isinstance(value, Tensor):
        return isinstance(other, (str, Tensor))
    if not isinstance(other, Tensor):
        return isinstance(other, (str, list))
    return other.is_meta or other.layout != torch.strided or other.dtype == torch.complex64


def results(op: str, arguments: Sequence[object]) -> list[Tensor] | None:
    """The results of an op, None if it raises an exception; a crash would end the process."""
    try:
        found = kernel(op)(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError):  # includes NotImplementedError
        return None
    return [found] if isinstance(found, Tensor) else list(found)


def is_dense(t: Tensor) -> bool:
    last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return last or t.is_contiguous()


def check_any_arguments(op: str, arguments: Sequence[object]) -> None:
    """Check that they are refused or give complete results, and that no operand is changed."""
    found = results(op, arguments)
    tensors = [
        a for a, valid in zip(arguments, VALID[op], strict=True) if isinstance(valid, Tensor)
    ]
    all_meta = all(isinstance(a, Tensor) and a.is_meta for a in tensors)
    if found is not None and all_meta and all(r.is_meta for r in found):
        return  # shapes from shapes, which no tensor with values contradicts
    if any(map(never_right, VALID[op], arguments)):
        assert found is None, f"{op} accepted an invalid argument"
    expected = results(op, VALID[op])
    assert expected is not None
    if found is not None:
        assert len(found) == len(expected)
        assert all(r.device.type == "cpu" and is_dense(r) for r in found)
    again = results(op, VALID[op])
    assert again is not None
    assert all(map(torch.equal, again, expected))


@pytest.mark.parametrize("op", VALID)
def test_any_argument_may_be_wrong(op: str) -> None:
    for position, value in enumerate(VALID[op]):
        for other in spoiled(value):
            arguments = list(VALID[op])
            arguments[position] = other
            check_any_arguments(op, arguments)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_any_arguments_may_be_wrong_together(op: str, data: st.DataObject) -> None:
    check_any_arguments(op, [
        data.draw(st.sampled_from([value, *spoiled(value)])) for value in VALID[op]
    ])  # fmt: skip


def test_results_too_large_to_count_are_refused() -> None:
    samples = torch.tensor([0] * 9 + [1])
    for size in (2**31 - 1, 2**31, 2**62):
        with pytest.raises(RuntimeError):
            kernel("rasterize_polygons")(POINTS, CONTOURS, samples, size, size, "evenodd")


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_elements_far_apart(dim: int) -> None:
    """More than 2**31 elements between neighbours; untouched pages use no memory."""

    def far(values: Tensor) -> Tensor:
        strides = list(values.contiguous().stride())
        strides[dim] = 2**31 + 24
        memory = sparse(strides[dim] * (values.shape[dim] - 1) + values.numel(), values.dtype)
        return memory.as_strided(values.shape, strides).copy_(values)

    p, t, image = (random(2, 2, 2, 20, seed=i) for i in range(3))
    mask = (random(2, 2, 2, 20, seed=3) > 0).to(torch.uint8)
    one, operands = torch.ones(()), (far(p), far(t), far(mask))
    loss, scale = cpp.masked_loss(*operands, None, 2, "mask")
    assert torch.equal(loss, cpp.masked_loss(p, t, mask, None, 2, "mask")[0])
    grad = cpp.masked_loss_backward(one, scale, *operands, 2)
    assert torch.equal(grad, reference.masked_loss_backward(one, scale, p, t, mask, 2))
    value = torch.tensor([7.0, 9.0])
    filled = cpp.fill_masked(far(image), operands[2], value)
    assert torch.equal(filled, reference.fill_masked(image, mask, value))
    boxes = torch.tensor([[0, 0, 1024, 256], [512, 256, 2048, 512]]).int()
    filled, cover, _ = cpp.fill_boxes(far(image), value, boxes, torch.tensor([0, 1, 2]))
    assert torch.equal(filled, reference.fill_masked(image, cover, value))
    if dim < 2:
        x, w, g = random(2, 2, 6), random(2, 5, 6), random(2, 2, 5)
        y = forward(far(x), far(w), None, True)
        assert torch.equal(y, forward(x, w, None, True))
        expected = backward(g, x, w, y)
        assert all(map(torch.equal, backward(far(g), far(x), far(w), far(y)), expected))


@pytest.mark.parametrize("op", ["rasterize_polygons", "fill_polygons"])
@pytest.mark.parametrize(
    "offsets",
    [[0, 5], [-1, 4], [3, 2], [-(2**62), 2**62], [4] * 20 + [0], [0, 3], [1, 4], [0]],
)
def test_offsets_that_no_shape_can_have_are_refused(op: str, offsets: list[int]) -> None:
    """Also in compiled graphs, where the public function cannot read values."""
    arguments = list(VALID[op])
    arguments[1 if op == "rasterize_polygons" else 3] = torch.tensor(offsets)
    with pytest.raises(ValueError, match=f"^{op}: contour_offsets must be non-decreasing within"):
        kernel(op)(*arguments)


def test_operands_in_any_layout() -> None:
    """Kernels read dense rows; operands without them are copied."""
    x, w, b, g = random(50, 2, 4), random(2, 3, 4), random(2, 3), random(50, 2, 3)
    for dim in range(3):

        def spread(t: Tensor, dim: int = dim) -> Tensor:
            return torch.stack([t, t + 1], min(dim + 1, t.dim())).select(min(dim + 1, t.dim()), 0)

        assert torch.equal(forward(spread(x), spread(w), spread(b), True), forward(x, w, b, True))
        y = forward(x, w, b, True)
        found = backward(spread(g), spread(x), spread(w), spread(y))
        assert all(map(torch.equal, found, backward(g, x, w, y)))


def test_other_devices_are_refused_with_a_reason() -> None:
    reason = _backends.why_not(LINEAR, "cpp", (torch.empty(1, 1, 1, device="meta"),))
    assert reason == "runs on cpu tensors only, not on meta"


def test_results_for_which_memory_is_not_enough_give_shape_and_bytes() -> None:
    samples = torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match=r"^rasterize_boxes: out of memory: mask of shape "
                       r"\(1, 1, 1048576, 1048576\) needs 1099511627776 bytes"):  # fmt: skip
        kernel("rasterize_boxes")(BOXES, samples, 2**20, 2**20)
    image = torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 2, 2)
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool).expand(2**20, 1, 2, 2)
    with pytest.raises(RuntimeError, match=r"^fill_masked: out of memory: .* 17592186044416 bytes"):
        kernel("fill_masked")(image, mask, torch.zeros(1).expand(2**20))
    x, w = X[:1, :1, :1].expand(2**22, 2**10, 1), W[:1, :1, :1].expand(2**10, 2**10, 1)
    with pytest.raises(RuntimeError, match=r"^channelwise_linear: out of memory: output of shape"):
        kernel("channelwise_linear")(x, w, None, False)
    with pytest.raises(RuntimeError, match=r"2\^63 bytes or more"):
        kernel("rasterize_boxes")(BOXES, torch.tensor([0, 1, 1, 1, 1]), 2**31 - 1, 2**31 - 1)


def test_an_unknown_instruction_set_is_an_error_in_every_op() -> None:
    program = """
import torch, cekernels
x = torch.ones(1, 1, 1)
boxes, offsets = torch.zeros(0, 4).int(), torch.tensor([0, 0])
for call in (lambda: cekernels.channelwise_linear(x, x),
             lambda: cekernels.rasterize_boxes(boxes, offsets, 1, 1),
             lambda: cekernels.remove_seam(x[None], x[None] != 0)):
    try:
        print(call())
    except ValueError as error:
        print(error)
from cekernels import info
print(info.report().splitlines()[-1])
"""
    environment = {**os.environ, "CEKERNELS_ISA": "sse9", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    message = (
        "environment variable CEKERNELS_ISA must be 'baseline', 'avx2', 'avx512' or 'avx512_bf16', "
        "got 'sse9'"
    )
    assert run.stdout.splitlines() == [message] * 3 + [f"_C.so runs with: {message}"], run.stderr


# --- messages to the user -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("libtorch_cuda.so: cannot open shared object file", "has no CUDA"),
        ("undefined symbol: torch_parallel_for", "older than 2.11"),
        ("version `GLIBCXX_3.4.99' not found", "from source"),
    ],
)
def test_a_library_that_cannot_load_says_what_to_do(error: str, remedy: str) -> None:
    assert remedy in _backends._remedy(error)
