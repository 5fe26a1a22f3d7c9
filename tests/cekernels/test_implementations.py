"""The implementations against the reference, on each device that they run on.

Triton's kernels run here only in its interpreter: see test_triton_interpreter.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import philox4x32, reference
from cekernels.reference.layout import dense_format
from tests.helpers import implementation_cases as cases
from tests.helpers.implementation_cases import INTERPRETED, Target

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_target = pytest.mark.parametrize("target", cases.targets())


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def int64_offsets(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small tensors take the code path for more than 2**31 elements."""
    if target.impl != "triton":
        pytest.skip(f"{target.impl} has no switch between int32 and int64 offsets")
    from cekernels.triton import _runtime

    monkeypatch.setattr(_runtime, "INT32_LIMIT", 0)


# --- channel-wise linear ----------------------------------------------------------------------

# (B, C, N_in, N_out): the paper's maps, odd sizes, one location, partial tiles, and maps
# larger than a tile; on a GPU also larger ones.
LINEAR = [(5, 3, 36, 36), (35, 2, 36, 20), (3, 2, 1, 7), (2, 1, 65, 100), (2, 1, 130, 129)]
LINEAR_ON_GPU = [(1024, 256, 36, 36), (300, 7, 64, 49), (64, 512, 16, 16), (33, 5, 128, 128)]


def linear_with_gradients(
    impl: str, x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, activation: str | None
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    bias = leaves[2] if b is not None else None
    y = cekernels.channelwise_linear(leaves[0], leaves[1], bias, activation=activation, impl=impl)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


@every_target
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_linear_against_float64(target: Target, dtype: torch.dtype, precision: str) -> None:
    if dtype != torch.float32 and precision != "highest":
        pytest.skip("precision applies to float32 only")
    cases.needs(target, "channelwise_linear")
    torch.set_float32_matmul_precision(precision)
    shapes = LINEAR + (LINEAR_ON_GPU if target.device == "cuda" else [])
    for batch, channels, n_in, n_out in shapes:
        r = cases.generator(n_in)
        x = torch.randn(batch, channels, n_in, generator=r).to(target.device, dtype)
        w = (torch.randn(channels, n_out, n_in, generator=r) / n_in**0.5).to(x)
        b = torch.randn(channels, n_out, generator=r).to(x)
        g = torch.randn(batch, channels, n_out, generator=r).to(x)
        # Where a sum is close to zero, rounding decides its sign and with it ReLU's gradient.
        g[reference.channelwise_linear(x.double(), w.double(), b.double(), False).abs() < 0.05] = 0
        inputs = operands = [x, w, b, g]
        if target.device == "cpu" and precision == "medium":
            # Plain PyTorch on a CPU has no TF32: round its operands instead.
            operands = [cases.to_tf32(x), cases.to_tf32(w), b, cases.to_tf32(g)]
        for activation in (None, "relu") if n_in == 36 else ("relu",):
            ours = linear_with_gradients(target.impl, *inputs, activation)
            plain = linear_with_gradients("reference", *operands, activation)
            truth = linear_with_gradients("reference", *(t.double() for t in inputs), activation)
            for position, triple in enumerate(zip(ours, plain, truth, strict=True)):
                cases.assert_close(*triple, factor=2 if position == 0 else 3)


def linear_integers(
    batch: int, channels: int, n_in: int, n_out: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    shapes = [(batch, channels, n_in), (channels, n_out, n_in), (channels, n_out),
              (batch, channels, n_out)]  # fmt: skip
    return [cases.integers(*s, dtype=dtype, seed=i).to(device) for i, s in enumerate(shapes)]


@every_target
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_integers_is_exact(target: Target, dtype: torch.dtype) -> None:
    """In every layout. Sums stay below 256, which bfloat16 represents exactly."""
    cases.needs(target, "channelwise_linear")
    for batch, channels, n_in, n_out in ((7, 2, 12, 9), (0, 2, 5, 4)):
        x, w, b, g = linear_integers(batch, channels, n_in, n_out, dtype, target.device)
        for activation in (None, "relu"):
            truth = linear_with_gradients("reference", x, w, b, g, activation)
            for x_, g_ in zip(cases.layouts(x), cases.layouts(g), strict=True):
                for w_ in (w, next(itertools.islice(cases.layouts(w), 1, None))):
                    ours = linear_with_gradients(target.impl, x_, w_, b, g_, activation)
                    assert all(map(torch.equal, ours, truth))
        broadcast = torch.ones((), dtype=dtype, device=target.device).expand_as(g)
        ours = linear_with_gradients(target.impl, x, w, None, broadcast, None)
        assert all(map(torch.equal, ours, linear_with_gradients(
            "reference", x, w, None, broadcast, None)))  # fmt: skip


@every_target
def test_linear_gives_only_the_gradients_that_are_asked(target: Target) -> None:
    cases.needs(target, "channelwise_linear_backward")
    x, w, b, g = linear_integers(70, 2, 6, 5, torch.float32, target.device)
    y = reference.channelwise_linear(x, w, b, True)
    for asked in itertools.product((False, True), repeat=3):
        arguments = (g, x, w, y, *asked)
        ours = cases.call("channelwise_linear_backward", target.impl, *arguments)
        truth = reference.channelwise_linear_backward(*arguments)
        assert all(map(torch.equal, ours, truth))


@every_target
def test_linear_with_int64_offsets(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    int64_offsets(target, monkeypatch)
    for n in (6, 130):
        x, w, b, g = linear_integers(5, 2, n, n, torch.float32, target.device)
        truth = linear_with_gradients("reference", x, w, b, g, "relu")
        ours = linear_with_gradients(target.impl, x, w, b, g, "relu")
        assert all(map(torch.equal, ours, truth))


@every_target
def test_linear_keeps_nan_and_infinity_in_their_rows(target: Target) -> None:
    cases.needs(target, "channelwise_linear")
    x, w, b, g = linear_integers(6, 2, 9, 9, torch.float32, target.device)
    w[0] += 0.5  # no zeros, to avoid infinity times zero
    x[1, 0, 3], x[4, 0, 5], x[5, 1, 2] = float("nan"), float("inf"), float("nan")
    for activation in (None, "relu"):
        ours = linear_with_gradients(target.impl, x, w, b, g, activation)
        truth = linear_with_gradients("reference", x, w, b, g, activation)
        assert ours[0].isnan().any()
        assert not ours[0][[0, 2, 3]].isnan().any()
        torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)


# --- masked loss ------------------------------------------------------------------------------

NORMALIZE = ("mask", "all", "sum", "none")
LOSSES = {2: cekernels.masked_l2_loss, 1: cekernels.masked_l1_loss}


def loss_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, mask_dtype: torch.dtype, mask_channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction that is NaN outside the mask, a target, a mask with weights 0, 1 and 3."""
    r = cases.generator(7)
    p, t = (torch.randn(shape, generator=r).to(dtype) for _ in range(2))
    mask = torch.rand(shape[0], mask_channels, *shape[2:], generator=r) < 0.3
    mask[..., : shape[3] // 2] = False
    p[~mask.expand(shape)] = float("nan")
    weight = mask if mask_dtype == torch.bool else mask.to(mask_dtype)
    if mask_dtype != torch.bool:
        weight = weight * (1 + 2 * (torch.rand(weight.shape, generator=r) < 0.5)).to(mask_dtype)
    return p, t, weight


def loss_with_gradients(
    impl: str, p: Tensor, t: Tensor, m: Tensor, power: int, g: Tensor | None, **options: object
) -> list[Tensor]:
    p, t = p.detach().requires_grad_(), t.detach().requires_grad_()
    loss = LOSSES[power](p, t, m, impl=impl, **options)
    return [loss.detach(), *torch.autograd.grad(loss, (p, t), g)]


@every_target
@pytest.mark.parametrize("power", [2, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_against_float64(target: Target, dtype: torch.dtype, power: int) -> None:
    cases.needs(target, "masked_loss")
    inputs = [((2, 3, 20, 12), torch.bool, 1), ((2, 3, 7, 9), torch.uint8, 3),
              ((1, 3, 20, 12), torch.float32, 1), ((2, 3, 8, 8), torch.bfloat16, 3)]  # fmt: skip
    if target.device == "cuda":
        inputs += [((16, 3, 227, 227), torch.bool, 1), ((8, 64, 64, 64), torch.float32, 64)]
    for shape, mask_dtype, channels in inputs:
        p, t, m = (x.to(target.device) for x in loss_inputs(shape, dtype, mask_dtype, channels))
        for normalize in NORMALIZE:
            grad = torch.ones(shape[:1] if normalize == "none" else (), device=p.device)
            options = {"normalize": normalize}
            plain = loss_with_gradients("reference", p, t, m, power, grad, **options)
            truth = loss_with_gradients(
                "reference", p.double(), t.double(), m, power, grad.double(), **options
            )
            every = slice(None if normalize == "mask" else 1)
            for p_, t_ in list(zip(cases.layouts(p), cases.layouts(t), strict=True))[every]:
                ours = loss_with_gradients(target.impl, p_, t_, m, power, grad, **options)
                # the loss rounds difference, error, sum and scale
                cases.assert_close(ours[0], plain[0], truth[0], factor=2, roundings=4)
                for triple in zip(ours[1:], plain[1:], truth[1:], strict=True):
                    cases.assert_close(*triple, factor=3)


@every_target
def test_loss_of_integers_is_exact_however_the_mask_lies(target: Target) -> None:
    cases.needs(target, "masked_loss")
    p, t = (cases.integers(3, 2, 6, 8, dtype=torch.float32, seed=s) for s in (0, 1))
    m = cases.integers(3, 1, 6, 8, dtype=torch.float32, seed=2, limit=1).abs()
    p, t, m = p.to(target.device), t.to(target.device), m.to(target.device)
    truth = loss_with_gradients("reference", p, t, m, 2, None, normalize="sum")
    for mask in (*cases.layouts(m), m.expand(-1, 2, -1, -1), m.bool(), m[:1].expand(3, -1, -1, -1)):
        if mask.stride(0) == 0:
            truth = loss_with_gradients("reference", p, t, mask, 2, None, normalize="sum")
        ours = loss_with_gradients(target.impl, p, t, mask, 2, None, normalize="sum")
        assert all(map(torch.equal, ours, truth))


@every_target
def test_loss_and_fill_of_many_channels(target: Target) -> None:
    """Programs share the channels: the sums, of integers, and the copies are exact."""
    cases.needs(target, "masked_loss")
    shape = (1, 40, 5, 7)
    p, t = (cases.integers(*shape, dtype=torch.float32, seed=s) for s in (0, 1))
    for channels, last in itertools.product((1, 40), (False, True)):
        m = cases.integers(1, channels, *shape[2:], dtype=torch.float32, seed=2).abs()
        given = [x.to(target.device) for x in (p, t, m)]
        normalize, grad = "sum", torch.ones((), device=target.device)
        if last:
            given[0] = given[0].to(memory_format=torch.channels_last)
            normalize, grad = "none", grad.expand(1)
        ours, truth = (
            loss_with_gradients(impl, *given, 2, grad, normalize=normalize)
            for impl in (target.impl, "reference")
        )
        assert all(map(torch.equal, ours, truth))
        filled, right = (
            cekernels.fill_masked(given[0], given[2], range(40), impl=impl)
            for impl in (target.impl, "reference")
        )
        assert torch.equal(filled, right)


@every_target
@pytest.mark.parametrize("power", [2, 1])
def test_nan_inside_the_mask_is_seen(target: Target, power: int) -> None:
    cases.needs(target, "masked_loss")
    p, t = torch.zeros(2, 3, 4, 8), torch.ones(2, 3, 4, 8)
    m = torch.zeros(2, 1, 4, 8)
    m[:, :, 1] = 1
    p[0, 1, 1, 2] = p[1, 2, 3, 3] = float("nan")
    p[1, 0, 1, 1] = float("inf")
    m[0, 0, 2, 5] = float("nan")
    p, t, m = p.to(target.device), t.to(target.device), m.to(target.device)
    grad = torch.ones(2, device=p.device)
    ours = loss_with_gradients(target.impl, p, t, m, power, grad, normalize="none")
    truth = loss_with_gradients("reference", p, t, m, power, grad, normalize="none")
    torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)
    assert ours[0].isnan().tolist() == [True, False]
    # the three channels of the NaN weight and, in L2, the NaN element: sign(NaN) is 0
    assert ours[1].isnan().sum() == (4 if power == 2 else 3)


@every_target
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("empty", ["mask", "batch", "area"])
def test_loss_of_nothing_is_zero(target: Target, normalize: str, empty: str) -> None:
    cases.needs(target, "masked_loss")
    p, t = torch.full((2, 3, 4, 5), float("nan")), torch.ones(2, 3, 4, 5)
    m = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    if empty == "batch":
        p, t, m = p[:0], t[:0], m[:0]
    p, t, m = p.to(target.device), t.to(target.device), m.to(target.device)
    area = m.sum((1, 2, 3)) if empty == "area" else None
    grad = torch.full((len(p),) if normalize == "none" else (), 2.0, device=p.device)
    ours = loss_with_gradients(target.impl, p, t, m, 2, grad, normalize=normalize, area=area)
    truth = loss_with_gradients("reference", p, t, m, 2, grad, normalize=normalize, area=area)
    assert all(map(torch.equal, ours, truth))
    assert not ours[1].any()


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradient_in_one_pass(
    target: Target, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a given area; the gradient is scaled once, and a second backward pass recomputes it."""
    from cekernels.ops import masked_loss

    cases.needs(target, "masked_loss_and_gradient")
    monkeypatch.setattr(masked_loss, "ONE_PASS_DEVICES", ("cpu", "cuda"))
    p, t, m = (x.to(target.device) for x in loss_inputs((2, 3, 12, 16), dtype, torch.bool, 1))
    for normalize, power in itertools.product(NORMALIZE, (1, 2)):
        area = m.sum((1, 2, 3)) if normalize == "mask" else None
        shape = (len(p),) if normalize == "none" else ()
        for scale in (1.0, 3.0):
            grad = torch.full(shape, scale, device=p.device)
            plain = loss_with_gradients(
                "reference", p, t, m, power, grad, normalize=normalize, area=area
            )
            truth = loss_with_gradients(
                "reference", p.double(), t.double(), m, power, grad.double(), normalize=normalize
            )
            leaf = p.detach().requires_grad_()
            loss = LOSSES[power](leaf, t, m, normalize=normalize, area=area, impl=target.impl)
            assert "loss_and_gradient" in type(loss.grad_fn).__name__
            first = torch.autograd.grad(loss, leaf, grad, retain_graph=True)[0]
            kept = first.clone()
            second = torch.autograd.grad(loss, leaf, grad)[0]
            assert torch.equal(first, kept)
            cases.assert_close(loss.detach(), plain[0], truth[0], factor=2, roundings=4)
            cases.assert_close(first, plain[1], truth[1], factor=3, roundings=2)
            cases.assert_close(second, plain[1], truth[1], factor=3)


@every_target
def test_loss_with_int64_offsets(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    int64_offsets(target, monkeypatch)
    p, t = (cases.integers(2, 2, 6, 8, dtype=torch.float32, seed=s) for s in (0, 1))
    m = cases.integers(2, 2, 6, 8, dtype=torch.uint8, seed=2)
    p, t, m = p.to(target.device), t.to(target.device), m.to(target.device)
    truth = loss_with_gradients("reference", p, t, m, 2, None, normalize="sum")
    ours = loss_with_gradients(target.impl, p, t, m, 2, None, normalize="sum")
    assert all(map(torch.equal, ours, truth))


# --- rasterization ----------------------------------------------------------------------------


@every_target
@pytest.mark.parametrize("name", cases.POLYGONS)
@pytest.mark.parametrize("fill_rule", ["nonzero", "evenodd"])
def test_polygons_are_the_reference_bit_for_bit(target: Target, name: str, fill_rule: str) -> None:
    cases.needs(target, "fill_polygons")
    for height, width in ((9, 300), (70, 16), (1, 1), (0, 4)):
        shapes = cases.polygons(name, height, width).to(target.device)
        truth = cekernels.rasterize_polygons(
            *shapes, height, width, fill_rule=fill_rule, impl="reference"
        )
        assert truth[1].any() or min(height, width) < 2 or name == "empty"
        ours = cekernels.rasterize_polygons(
            *shapes, height, width, fill_rule=fill_rule, impl=target.impl
        )
        assert all(map(torch.equal, ours, truth))

        image = torch.rand(len(truth[1]), 2, height, width).to(target.device)
        ours = cekernels.fill_polygons(
            image, [0.5, -1], *shapes, fill_rule=fill_rule, impl=target.impl
        )
        filled = cekernels.fill_masked(image, truth[0], [0.5, -1], impl="reference")
        assert all(map(torch.equal, ours, (filled, *truth)))


@every_target
def test_boxes_are_the_reference_bit_for_bit(target: Target) -> None:
    cases.needs(target, "fill_boxes")
    for height, width in ((9, 300), (70, 16), (1, 1), (0, 4)):
        shapes = [s.to(target.device) for s in cases.boxes(height, width)]
        truth = cekernels.rasterize_boxes(*shapes, height, width, impl="reference")
        ours = cekernels.rasterize_boxes(*shapes, height, width, impl=target.impl)
        assert all(map(torch.equal, ours, truth))
        image = torch.rand(4, 3, height, width).to(target.device)
        image = image.contiguous(memory_format=torch.channels_last)
        ours = cekernels.fill_boxes(image, 0.5, *shapes, impl=target.impl)
        filled = cekernels.fill_masked(image, truth[0], 0.5, impl="reference")
        assert all(map(torch.equal, ours, (filled, *truth)))


@every_target
def test_wrong_offsets_read_nothing_out_of_bounds(target: Target) -> None:
    """On a GPU the offsets are not checked; the kernel must stay within its arrays."""
    if target.impl == "cpp":
        pytest.skip("on the CPU such offsets are refused")
    vertices = cases.star((4, 4), 4, 5, 0).to(target.device)
    for contours, samples in (([0, 99], [0, 1]), ([-9, 5], [-3, 7]), ([5, 0], [1, 0])):
        offsets = [torch.tensor(o, device=target.device) for o in (contours, samples)]
        mask, area = cases.call(
            "rasterize_polygons", target.impl, vertices, *offsets, 8, 8, "nonzero"
        )
        assert area.item() == mask.sum().item()
    box = torch.tensor([[0, 0, 2048, 1024]]).int().to(target.device)
    samples = torch.tensor([-5, 1, 40], device=target.device)
    _, area = cases.call("rasterize_boxes", target.impl, box, samples, 8, 8)
    assert area.tolist() == [32, 0]


@every_target
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool],
    ids=str,
)
def test_fill_moves_every_dtype_unchanged(target: Target, dtype: torch.dtype) -> None:
    cases.needs(target, "fill_masked")
    image = cases.integers(2, 3, 6, 8, dtype=torch.float32, seed=0).abs().to(dtype)
    if dtype.is_floating_point:
        image[0, 0, 0] = float("nan")
    for mask_dtype, channels in itertools.product(
        (torch.bool, torch.bfloat16, torch.float64), (1, 3)
    ):
        mask = cases.integers(2, channels, 6, 8, dtype=torch.float32, seed=1, limit=1).to(
            mask_dtype
        )
        for image_, mask_ in zip(cases.layouts(image), cases.layouts(mask), strict=True):
            arguments = (image_.to(target.device), mask_.to(target.device), [1, 0, 2])
            ours = cekernels.fill_masked(*arguments, impl=target.impl)
            truth = cekernels.fill_masked(*arguments, impl="reference")
            assert ours.is_contiguous(memory_format=dense_format(image_))
            torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)


@every_target
def test_rasterization_with_int64_offsets(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    int64_offsets(target, monkeypatch)
    shapes = cases.polygons("star with a hole, none, two", 9, 20).to(target.device)
    image = torch.rand(3, 2, 9, 20).to(target.device)
    ours = cekernels.fill_polygons(image, 0.5, *shapes, impl=target.impl)
    truth = cekernels.fill_polygons(image, 0.5, *shapes, impl="reference")
    assert all(map(torch.equal, ours, truth))
    ours = cekernels.fill_masked(image, truth[1], 0.25, impl=target.impl)
    assert torch.equal(ours, cekernels.fill_masked(image, truth[1], 0.25, impl="reference"))


# --- all ops ----------------------------------------------------------------------------------


def calls(target: Target, dtype: torch.dtype = torch.float32) -> dict[str, tuple[object, ...]]:
    """Arguments of each op of ``torch.ops.cekernels``."""
    d = target.device
    x, w, b, g = linear_integers(70, 2, 6, 5, dtype, d)
    y = reference.channelwise_linear(x, w, b, True)
    p, t, m = (v.to(d) for v in loss_inputs((2, 3, 5, 8), dtype, torch.bool, 1))
    p = p.nan_to_num()
    scale = torch.tensor(0.25, device=d)
    shapes = tuple(cases.polygons("star with a hole, none, two", 9, 20).to(d))
    boxes = tuple(s.to(d) for s in cases.boxes(9, 20))
    image, value = torch.rand(3, 2, 9, 20).to(d, dtype), torch.tensor([0.5, 1.0]).to(d, dtype)
    image4 = torch.rand(4, 2, 9, 20).to(d, dtype)
    return {
        "channelwise_linear": (x, w, b, True),
        "channelwise_linear_backward": (g, x, w, y, True, True, True),
        "masked_loss": (p, t, m, None, 2, "mask"),
        "masked_loss_backward": (scale, scale, p, t, m, 1),
        "rasterize_polygons": (*shapes, 9, 20, "evenodd"),
        "rasterize_boxes": (*boxes, 9, 20),
        "fill_masked": (image4, m[:1, :, :1, :1].expand(4, 1, 9, 20), value),
        "fill_polygons": (image, value, *shapes, "nonzero"),
        "fill_boxes": (image4, value, *boxes),
    }


OPS = sorted(calls(Target("reference", "cpu")))


@every_target
@pytest.mark.parametrize("op", OPS)
def test_results_repeat_bit_for_bit(target: Target, op: str) -> None:
    cases.needs(target, op)
    arguments = list(calls(target)[op])
    if arguments[0].is_floating_point():
        arguments[0] = torch.randn(arguments[0].shape, generator=cases.generator()).to(arguments[0])
    first = cases.call(op, target.impl, *arguments)
    for _ in range(2 if INTERPRETED else 100):
        again = cases.call(op, target.impl, *arguments)
        torch.testing.assert_close(again, first, rtol=0, atol=0)


@every_target
@pytest.mark.parametrize("op", OPS)
def test_registration(target: Target, op: str) -> None:
    cases.needs(target, op)
    tests = (
        ("test_schema", "test_faketensor") if INTERPRETED else torch.library._OPCHECK_DEFAULT_UTILS
    )
    arguments = tuple(
        a.clone().requires_grad_() if i == 0 and isinstance(a, Tensor) and a.is_floating_point()
        and not INTERPRETED else a
        for i, a in enumerate(calls(target)[op])
    )  # fmt: skip
    overload = getattr(getattr(torch.ops.cekernels, op), target.impl)
    torch.library.opcheck(overload, arguments, test_utils=tests)


@every_target
def test_float64_is_left_to_the_reference(target: Target) -> None:
    if target.impl != "triton":
        pytest.skip(f"{target.impl} may handle it")
    x = torch.rand(2, 3, 4, dtype=torch.float64, device=target.device)
    w = torch.rand(3, 4, 4, dtype=torch.float64, device=target.device)
    with pytest.raises(cekernels.ImplementationError, match="float64"):
        cekernels.channelwise_linear(x, w, impl="triton")
    assert cekernels.channelwise_linear(x, w).dtype == torch.float64


# --- random words ---------------------------------------------------------------------------------


@every_target
@pytest.mark.parametrize("shape", [(5,), (3, 300), (2, 3, 5), (4, 0), ()], ids=str)
@pytest.mark.parametrize("key", [(0, 0), (2**32 - 1, 2**32 - 1), (1, 0), (2**31, 5 + 2**32)])
def test_random_words(
    target: Target, shape: tuple[int, ...], key: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the reference, which test_random.py checks against the published vectors."""
    cases.needs(target, "philox4x32")
    r = cases.generator()
    counter = [torch.randint(-(2**40), 2**40, shape, generator=r) for _ in range(4)]
    for word in (counter[1], torch.tensor(7)):  # the second broadcasts
        counter[1] = word
        truth = philox4x32(tuple(counter), key, impl="reference")
        for wide in (False, True):
            if wide:
                int64_offsets(target, monkeypatch)
            given = tuple(word.to(target.device) for word in counter)
            words = philox4x32(given, key, impl=target.impl)
            assert all(torch.equal(w.cpu(), t) for w, t in zip(words, truth, strict=True))


@every_target
def test_random_words_of_rows_and_columns(target: Target) -> None:
    """Rows and columns that broadcast, as in the counters of a mask sampler."""
    cases.needs(target, "philox4x32")
    rows, columns = (
        torch.arange(6)[:, None].to(target.device),
        torch.arange(9, device=target.device),
    )
    stream = torch.full_like(columns, 2**32 - 3)
    counter = (rows, rows + 1, stream, columns)
    truth = philox4x32(tuple(word.cpu() for word in counter), (3, 4), impl="reference")
    words = philox4x32(counter, (3, 4), impl=target.impl)
    assert all(torch.equal(w.cpu(), t) for w, t in zip(words, truth, strict=True))
