"""The masked losses against their definition in Python floats, other losses and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from cekernels import ImplementationError, masked_l1_loss, masked_l2_loss

LOSSES = pytest.mark.parametrize("loss", [masked_l2_loss, masked_l1_loss])
NORMALIZE = ("mask", "all", "sum", "none")
Loss = Callable[..., Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Prediction and target that differ by more than 0.1 everywhere: no kink of L1 is near."""
    target = torch.randn(shape, generator=generator(0), dtype=torch.float64)
    offset = torch.rand(shape, generator=generator(1), dtype=torch.float64) + 0.1
    sign = torch.where(torch.rand(shape, generator=generator(2)) < 0.5, -1.0, 1.0)
    return (target + sign * offset).to(dtype), target.to(dtype)


def holes(*shape: int) -> Tensor:
    """A bool mask; neither empty nor full, and nothing set in the first sample's first row."""
    mask = torch.rand(shape, generator=generator(3)) < 0.5
    mask[:1, :, 0] = False
    return mask


def by_definition(
    loss: Loss, prediction: Tensor, target: Tensor, mask: Tensor, normalize: str
) -> Tensor:
    """The loss one element at a time, in Python floats with exact sums."""
    B, C, H, W = prediction.shape
    power = 2 if loss is masked_l2_loss else 1
    sums, total = [], 0.0
    for b in range(B):
        terms = []
        for c, i, j in itertools.product(range(C), range(H), range(W)):
            value = mask[b, c if mask.shape[1] > 1 else 0, i, j].item()
            weight = float(value) if mask.is_floating_point() else float(value != 0)
            total += weight
            if weight:
                difference = prediction[b, c, i, j].item() - target[b, c, i, j].item()
                terms.append(weight * abs(difference) ** power)
        sums.append(math.fsum(terms))
    if normalize == "none":
        return torch.tensor(sums, dtype=torch.float64)
    divisor = {"mask": total, "all": B * C * H * W, "sum": 1}[normalize]
    return torch.tensor(math.fsum(sums) / divisor if divisor else 0.0, dtype=torch.float64)


def masks(*shape: int) -> dict[str, Tensor]:
    B, C, H, W = shape
    hole, channels = holes(B, 1, H, W), holes(B, C, H, W)
    weight = torch.rand(B, C, H, W, generator=generator(4), dtype=torch.float64)
    return {
        "bool": hole,
        "bool, each channel its own": channels,
        "uint8 of 0 and 1": hole.to(torch.uint8),
        "uint8 of 0 and 255": hole.to(torch.uint8) * 255,
        "uint8 of 0 and 7, each channel": channels.to(torch.uint8) * 7,
        "weights": hole * weight[:, :1],
        "weights, each channel": channels * weight,
        "band of weight 10": hole + 9.0 * (hole & channels[:, :1]),
        "float16 weights": (hole * weight[:, :1]).half(),
        "float32 weights": (hole * weight[:, :1]).float(),
        "one mask for the batch": hole[:1].expand(B, -1, -1, -1),
        "one row for the mask": hole[:, :, 1:2].expand(-1, -1, H, -1),
        "full": torch.ones(B, 1, H, W, dtype=torch.bool),
        "empty": torch.zeros(B, 1, H, W, dtype=torch.bool),
    }


@LOSSES
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("kind", masks(1, 1, 2, 1))
def test_equals_its_definition(loss: Loss, normalize: str, kind: str) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    mask = masks(2, 3, 4, 5)[kind]
    result = loss(prediction, target, mask, normalize=normalize)
    torch.testing.assert_close(result, by_definition(loss, prediction, target, mask, normalize))


def test_hand_computed_case() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 5.0]]]])
    target = torch.zeros(2, 2, 1, 2)
    mask = torch.tensor([[[[True, False]]], [[[False, True]]]])
    # the mask selects 1 and 3 in the first sample, 0 and 5 in the second
    for normalize, l2, l1 in (("sum", 35, 9), ("mask", 35 / 4, 9 / 4), ("all", 35 / 8, 9 / 8)):
        assert masked_l2_loss(prediction, target, mask, normalize=normalize).item() == l2
        assert masked_l1_loss(prediction, target, mask, normalize=normalize).item() == l1
    assert masked_l2_loss(prediction, target, mask, normalize="none").tolist() == [10, 25]
    assert masked_l1_loss(prediction, target, mask, normalize="none").tolist() == [4, 5]
    band = torch.tensor([[[[1.0, 10.0]]], [[[0.0, 0.0]]]])
    # (1 + 9) + 10 (4 + 16), over 2 channels of weight 11
    assert masked_l2_loss(prediction, target, band).item() == pytest.approx(210 / 22)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_float32_or_wider_and_exact_on_small_integers(
    loss: Loss, dtype: torch.dtype
) -> None:
    prediction = torch.randint(-3, 4, (2, 3, 8, 8), generator=generator(0)).to(dtype)
    target = torch.randint(-3, 4, (2, 3, 8, 8), generator=generator(1)).to(dtype)
    mask = holes(2, 1, 8, 8)
    result = loss(prediction, target, mask, normalize="none")
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = by_definition(loss, prediction, target, mask, "none")
    assert torch.equal(result.double(), exact)


def test_equals_mse_and_l1_loss_over_a_full_mask_and_over_indexed_elements() -> None:
    prediction, target = image_pair(2, 3, 6, 7)
    full, mask = torch.ones(2, 1, 6, 7, dtype=torch.bool), holes(2, 1, 6, 7)
    inside = mask.expand_as(prediction)
    for ours, theirs in ((masked_l2_loss, F.mse_loss), (masked_l1_loss, F.l1_loss)):
        torch.testing.assert_close(ours(prediction, target, full), theirs(prediction, target))
        torch.testing.assert_close(
            ours(prediction, target, mask), theirs(prediction[inside], target[inside])
        )


@LOSSES
def test_half_precision_sums_do_not_overflow(loss: Loss) -> None:
    prediction = torch.full((4, 3, 64, 64), 250.0, dtype=torch.float16, requires_grad=True)
    target = torch.full_like(prediction, -6.0).detach()
    mask = torch.ones(4, 1, 64, 64, dtype=torch.bool)
    error = 256.0 if loss is masked_l1_loss else 65536.0  # beyond the range of float16
    assert loss(prediction, target, mask).item() == error
    assert loss(prediction, target, mask, normalize="none").tolist() == [error * 3 * 64 * 64] * 4
    (grad,) = torch.autograd.grad(loss(prediction, target, mask, normalize="sum"), prediction)
    assert grad.dtype == torch.float16
    assert torch.equal(grad, torch.full_like(grad, 1.0 if loss is masked_l1_loss else 512.0))


def test_float32_loss_is_accurate() -> None:
    prediction, target = image_pair(8, 3, 64, 64, dtype=torch.float32)
    mask = holes(8, 1, 64, 64)
    for loss in (masked_l2_loss, masked_l1_loss):
        exact = loss(prediction.double(), target.double(), mask)
        torch.testing.assert_close(
            loss(prediction, target, mask).double(), exact, rtol=1e-6, atol=0
        )


@LOSSES
@pytest.mark.parametrize("kind", ["bool", "bool, each channel its own", "band of weight 10"])
def test_area_given_is_area_counted(loss: Loss, kind: str) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    mask = masks(2, 3, 4, 5)[kind]
    area = mask.sum((1, 2, 3))
    counted = loss(prediction, target, mask)
    torch.testing.assert_close(loss(prediction, target, mask, area=area), counted)
    torch.testing.assert_close(loss(prediction, target, mask, area=area.float()), counted)
    # a given area is trusted: twice the area, half the loss
    torch.testing.assert_close(loss(prediction, target, mask, area=2 * area), counted / 2)


@LOSSES
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_float32_areas_of_a_float64_loss_are_summed_in_float64(loss: Loss, impl: Any) -> None:
    """2**24 + 1 has no float32."""
    prediction, target = torch.ones(2, 1, 1, 1).double(), torch.zeros(2, 1, 1, 1).double()
    mask = torch.ones(2, 1, 1, 1, dtype=torch.bool)
    area = torch.tensor([2.0**24, 1.0], dtype=torch.float32)
    result = loss(prediction, target, mask, area=area, impl=impl)
    assert result.item() == 2 / (2**24 + 1)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_masks_select_where_they_are_not_zero(loss: Loss, dtype: torch.dtype) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    mask = holes(2, 1, 4, 5)
    for value in (1, 7, -1):
        found = loss(prediction.requires_grad_(), target, (value * mask).to(dtype))
        assert torch.equal(found, loss(prediction, target, mask))
        found.backward()


@LOSSES
@pytest.mark.parametrize(
    ("of_prediction", "of_target"),
    [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32),
     (torch.float32, torch.float64), (torch.float64, torch.float16),
     (torch.float32, torch.uint8), (torch.float32, torch.int64), (torch.float64, torch.int8)],
)  # fmt: skip
def test_dtypes_are_promoted_as_by_the_losses_of_torch(
    loss: Loss, of_prediction: torch.dtype, of_target: torch.dtype
) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    prediction = prediction.to(of_prediction).requires_grad_()
    target = (5 * target.abs()).to(of_target)
    full = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    theirs = (F.mse_loss if loss is masked_l2_loss else F.l1_loss)(prediction, target)
    result = loss(prediction, target, full)
    torch.testing.assert_close(result, theirs)
    (grad,) = torch.autograd.grad(result, prediction)
    torch.testing.assert_close(grad, torch.autograd.grad(theirs, prediction)[0])
    assert grad.dtype == of_prediction


# --- elements outside the mask ----------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_an_empty_mask_gives_zero_and_zero_gradient(loss: Loss, normalize: str) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    prediction[0, 0, 0, 0] = math.nan
    prediction.requires_grad_()
    for area in (None, torch.zeros(2, dtype=torch.int64)):
        mask = torch.zeros(2, 1, 4, 5)
        result = loss(prediction, target, mask, normalize=normalize, area=area)
        assert torch.equal(result, torch.zeros_like(result))
        (grad,) = torch.autograd.grad(result.sum(), prediction)
        assert torch.equal(grad, torch.zeros_like(grad))


@LOSSES
@pytest.mark.parametrize("kind", ["bool", "uint8 of 0 and 255", "weights, each channel"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_lies_under_weight_zero_reaches_no_derivative(
    loss: Loss, kind: str, poison: float
) -> None:
    mask = masks(2, 3, 4, 5)[kind]
    outside = (mask == 0).expand(2, 3, 4, 5)

    def derivatives(value: float, where: int) -> list[Tensor]:
        tensors = list(image_pair(2, 3, 4, 5))
        tensors[where] = tensors[where].masked_fill(outside, value)
        for tensor in tensors:
            tensor.requires_grad_()
        results = [loss(*tensors, mask).square()]
        for order in range(3):
            grads = torch.autograd.grad(results[-1], tensors, create_graph=True)
            results += grads
            results.append((grads[0] * grads[1]).sum() + grads[0].pow(2).sum() + order)
        return results

    for where in (0, 1):
        clean, poisoned = derivatives(0.5, where), derivatives(poison, where)
        for a, b in zip(clean, poisoned, strict=True):
            assert b.isfinite().all()
            torch.testing.assert_close(b, a)
            if b.dim():
                assert not b[outside].any()


def test_what_arrives_outside_the_mask_reaches_no_derivative() -> None:
    prediction, target = (t.requires_grad_() for t in image_pair(2, 3, 4, 5))
    mask = holes(2, 1, 4, 5)
    grads = torch.autograd.grad(
        masked_l2_loss(prediction, target, mask), (prediction, target), create_graph=True
    )
    upstream = torch.where(mask, 1.0, math.nan).expand_as(prediction)
    (second,) = torch.autograd.grad(grads[0], prediction, upstream)
    torch.testing.assert_close(second, (2 * mask / (3 * mask.sum())).expand_as(second).double())


@LOSSES
def test_what_is_not_finite_inside_the_mask_shows(loss: Loss) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    prediction[1, 0, 0, 0] = math.nan
    assert loss(prediction, target, mask).isnan()
    assert loss(prediction, target, mask, normalize="none").isnan().tolist() == [False, True]
    prediction[1, 0, 0, 0] = -math.inf
    assert loss(prediction, target, mask) == math.inf


# --- layouts and sizes ------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "part of a larger tensor": lambda t: F.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "expanded": lambda t: t[:1, :1, :1].expand_as(t),
}


@LOSSES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(loss: Loss, layout: str) -> None:
    prediction, target = (LAYOUTS[layout](t) for t in image_pair(2, 3, 4, 5))
    mask = LAYOUTS[layout](masks(2, 3, 4, 5)["weights, each channel"])
    plain = [t.clone(memory_format=torch.contiguous_format) for t in (prediction, target, mask)]
    plain[0].requires_grad_()
    expected = loss(*plain, normalize="none")
    upstream = torch.tensor(0.5, dtype=torch.float64).expand(2)
    (expected_grad,) = torch.autograd.grad(expected, plain[0], upstream)
    prediction = prediction.detach().requires_grad_()
    result = loss(prediction, target, mask, normalize="none")
    torch.testing.assert_close(result, expected)
    (grad,) = torch.autograd.grad(result, prediction, upstream)
    torch.testing.assert_close(grad, expected_grad)


@LOSSES
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty_inputs(loss: Loss, shape: tuple[int, ...]) -> None:
    prediction = torch.zeros(shape, requires_grad=True)
    mask = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
    for normalize in NORMALIZE:
        result = loss(prediction, torch.zeros(shape), mask, normalize=normalize)
        assert result.tolist() == ([0.0] * shape[0] if normalize == "none" else 0.0)
        (grad,) = torch.autograd.grad(result.sum(), prediction)
        assert grad.shape == shape


# --- gradients --------------------------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_gradients_of_first_and_second_order(loss: Loss, normalize: str) -> None:
    tensors = tuple(t.requires_grad_() for t in image_pair(2, 2, 2, 3))
    for kind in ("bool", "weights, each channel"):
        mask = masks(2, 2, 2, 3)[kind]

        def f(prediction: Tensor, target: Tensor, mask: Tensor = mask) -> Tensor:
            return loss(prediction, target, mask, normalize=normalize)

        assert gradcheck(f, tensors, check_forward_ad=True)
        assert gradgradcheck(f, tensors)


@LOSSES
@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_picture_only(loss: Loss, wanted: int) -> None:
    tensors, mask = list(image_pair(2, 3, 4, 5)), holes(2, 1, 4, 5)
    tensors[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(loss(*tensors, mask), tensors[wanted])
    difference = (tensors[0] - tensors[1]).detach() * (-1 if wanted else 1)
    slope = 2 * difference if loss is masked_l2_loss else difference.sign()
    torch.testing.assert_close(grad, slope * mask / (3 * mask.sum()))


def test_l1_passes_no_gradient_at_equality() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    target = torch.tensor([[[[1.0, 1.0]]]])
    mask = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    masked_l1_loss(prediction, target, mask).backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[[[0.0, 0.5]]]]


@LOSSES
def test_torch_func_transforms(loss: Loss) -> None:
    prediction, target = image_pair(4, 3, 4, 5)
    mask = holes(4, 1, 4, 5)
    (expected,) = torch.autograd.grad(
        loss(prediction.requires_grad_(), target, mask, normalize="sum"), prediction
    )
    prediction = prediction.detach()

    def of_one(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return loss(prediction[None], target[None], mask[None], normalize="sum")

    per_sample = torch.func.vmap(torch.func.grad(of_one))(prediction, target, mask)
    torch.testing.assert_close(per_sample, expected)
    _, tangent = torch.func.jvp(
        lambda p: loss(p, target, mask, normalize="sum"),
        (prediction,),
        (torch.ones_like(expected),),
    )
    torch.testing.assert_close(tangent, expected.sum())
    with pytest.raises(ImplementationError, match=r"impl='triton' cannot handle .* torch\.func"):
        torch.func.grad(lambda p: loss(p, target, mask, impl="triton"))(prediction)


# --- registration, compilation, autocast ------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
def test_opcheck(power: int) -> None:
    op = torch.ops.cekernels.masked_loss
    backward = torch.ops.cekernels.masked_loss_backward
    prediction, target = (t.requires_grad_() for t in image_pair(2, 3, 4, 5, dtype=torch.float32))
    kinds = masks(2, 3, 4, 5)
    area = kinds["bool"].sum((1, 2, 3))
    opcheck(op.default, (prediction, target, kinds["bool"], area, power, "mask"))
    half = prediction.detach().half()
    opcheck(op.reference, (half, half, kinds["weights, each channel"], None, power, "none"))
    scale = torch.tensor(0.5)
    for upstream, mask in ((torch.ones(()), kinds["bool"]), (torch.ones(2), kinds["weights"])):
        upstream.requires_grad_()
        opcheck(backward.default, (upstream, scale, prediction, target, mask, power))


def test_compiled_with_dynamic_shapes_equals_eager_and_compiles_once() -> None:
    torch._dynamo.reset()

    def both(prediction: Tensor, target: Tensor, mask: Tensor, area: Tensor) -> Tensor:
        l1 = masked_l1_loss(prediction, target, mask, area=area)
        return l1 + masked_l2_loss(prediction, target, mask, normalize="none").sum()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=counter)
    for B, H, W in ((5, 6, 7), (4, 8, 9), (11, 5, 6)):
        mask = holes(B, 1, H, W)
        results = []
        for f in (both, compiled):
            tensors = [t.requires_grad_() for t in image_pair(B, 3, H, W, dtype=torch.float32)]
            result = f(*tensors, mask, mask.sum((1, 2, 3)))
            results.append((result, *torch.autograd.grad(result, tensors)))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1


@LOSSES
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_promotes_and_keeps_the_loss_in_float32(loss: Loss, compiled: bool) -> None:
    prediction, target = image_pair(2, 3, 4, 5, dtype=torch.float32)
    prediction, mask = prediction.bfloat16().requires_grad_(), holes(2, 1, 4, 5)
    step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    with torch.autocast("cpu", torch.bfloat16):
        result = step(prediction, target, mask)
        (grad,) = torch.autograd.grad(result, prediction)
    assert result.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(result, loss(prediction.float(), target, mask), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        pixels = step(prediction, (target * 50).to(torch.uint8), mask)
    whole = (target * 50).to(torch.uint8).float()
    torch.testing.assert_close(pixels, loss(prediction.float(), whole, mask), rtol=0, atol=0)


@LOSSES
def test_on_meta_and_in_inference_mode(loss: Loss) -> None:
    prediction, target = image_pair(2, 3, 4, 5)
    mask = holes(2, 1, 4, 5)
    result = loss(prediction.to("meta"), target.to("meta"), mask.to("meta"), normalize="none")
    assert (result.shape, result.dtype, result.device.type) == ((2,), torch.float64, "meta")
    with torch.inference_mode():
        assert loss(prediction, target, mask).item() == loss(prediction, target, mask).item()


# --- refusals ---------------------------------------------------------------------------------

P, M, A = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5), torch.zeros(2)


@LOSSES
@pytest.mark.parametrize(
    ("error", "name", "value", "message"),
    [
        (TypeError, "prediction", 1.0, r"must be a torch.Tensor, got float 1.0"),
        (TypeError, "target", None, r"must be a torch.Tensor, got NoneType None"),
        (TypeError, "mask", [True], r"must be a torch.Tensor, got list \[True\]"),
        (TypeError, "area", 3, r"must be a torch.Tensor, got int 3"),
        (TypeError, "mask", M.to_sparse(), r"must be dense, got a torch.sparse_coo"),
        (ValueError, "prediction", P[0], r"must be \(B, C, H, W\), got .* shape \(3, 4, 5\)"),
        (TypeError, "prediction", P.int(), r"must have dtype float16, .* got a int32"),
        (ValueError, "target", P[:1], r"must have shape \(2, 3, 4, 5\) .*prediction.* \(1, 3"),
        (TypeError, "target", P * 1j, r"must have dtype float16, .* got a complex64"),
        (ValueError, "target", P.to("meta"), r"must be on the device of prediction, cpu, got"),
        (ValueError, "mask", M[:, 0], r"must be \(B, 1, H, W\) or \(B, C, H, W\), got a"),
        (TypeError, "mask", M * 1j, r"must have dtype bool, uint8, int8, .* got a complex64"),
        (ValueError, "mask", P[:, :2], r"must have shape \(2, 3, 4, 5\) .*1 channel.* \(2, 2, "),
        (ValueError, "mask", M[:1], r"must have shape \(2, 1, 4, 5\) .* got .* \(1, 1, 4, 5\)"),
        (ValueError, "mask", M[..., :1], r"must have shape \(2, 1, 4, 5\) .* \(2, 1, 4, 1\)"),
        (ValueError, "mask", M.to("meta"), r"must be on the device of prediction, cpu, got"),
        (ValueError, "mask", M.clone().requires_grad_(), r"has no gradient here.*mask.detach\(\)"),
        (ValueError, "normalize", "mean", r"must be one of 'mask', 'all', 'sum', 'none', got 'me"),
        (ValueError, "impl", "numpy", r"must be one of 'auto', .* got 'numpy'"),
        (ValueError, "area", A[:1], r"must have shape \(2,\) \(one number per sample\), .* \(1,\)"),
        (TypeError, "area", A.int(), r"must have dtype int64, float32, float64, got a int32"),
        (ValueError, "area", A.to("meta"), r"must be on the device of prediction, cpu, got"),
        (ValueError, "area", A.clone().requires_grad_(), r"has no gradient here.*area.detach\(\)"),
    ],
)
def test_refusals_name_the_argument(
    loss: Loss, error: type[Exception], name: str, value: Any, message: str
) -> None:
    arguments = {"prediction": P, "target": P, "mask": M} | {name: value}
    op = "masked_l2_loss" if loss is masked_l2_loss else "masked_l1_loss"
    with pytest.raises(error, match=f"^{op}: {name} .*{message}"):
        loss(**arguments)
