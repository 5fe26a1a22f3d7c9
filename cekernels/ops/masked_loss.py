"""Losses over the masked elements only (Pathak et al. 2016, equation 1, and its L1 form)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cekernels import _checks, _dispatch
from cekernels._dispatch import Impl
from cekernels._library import autocast_dtype, call_op, define, run_op, seen_by_autograd_alone
from cekernels.reference.masked_loss import accumulation_dtype, masked_difference, weights

Normalize = Literal["mask", "all", "sum", "none"]
_NORMALIZE = ("mask", "all", "sum", "none")


def masked_l2_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    normalize: Normalize = "mask",
    area: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Squared error of the masked elements: ``sum(mask * (prediction - target)**2)``, normalised.

    Args:
        prediction: ``(B, C, H, W)``, floating point.
        target: as ``prediction``.
        mask: ``(B, 1, H, W)`` or ``(B, C, H, W)``. bool or uint8: an element takes part where it
            is not 0. Floating point: its weight (1 in the hole and 10 in the overlap band, say);
            where it is 0 the element takes no part, be it NaN or infinite.
        normalize: what the weighted sum is divided by. "mask": the sum of the weights over all
            elements, channels included (a weighted mean; 0 for an empty mask). "all": ``B C H W``,
            as the released code does. "sum": nothing. "none": nothing, and each sample keeps
            its own sum.
        area: for "mask", int64 or floating ``(B,)``: the sum of ``mask`` over each sample, as the
            rasterizer returns it, which saves counting it again; it is trusted. None: counted.
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        ``()``, or ``(B,)`` for "none"; float32, or float64 for float64 inputs. Gradients reach
        prediction and target (the mask has none), and can be differentiated again.
        Under autocast prediction and target may differ in dtype and are promoted.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a mask
            or area that requires a gradient.
        ImplementationError: the forced implementation cannot serve the call.
    """
    return _masked_loss("masked_l2_loss", prediction, target, mask, 2, normalize, area, impl)


def masked_l1_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    normalize: Normalize = "mask",
    area: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Absolute error of the masked elements: ``sum(mask * |prediction - target|)``, normalised.

    As :func:`masked_l2_loss` in every other respect; the gradient at equality is 0.
    """
    return _masked_loss("masked_l1_loss", prediction, target, mask, 1, normalize, area, impl)


def _masked_loss(
    op: str,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
    normalize: str,
    area: Tensor | None,
    impl: str,
) -> Tensor:
    for name, value in (("prediction", prediction), ("target", target), ("mask", mask)):
        _checks.tensor(op, name, value)
    _checks.dims(op, "prediction", prediction, (4,), "(B, C, H, W)")
    _checks.dtypes(op, "prediction", prediction, _checks.FLOATING)
    if target.is_floating_point() and autocast_dtype(prediction.device) is not None:
        wider = torch.promote_types(prediction.dtype, target.dtype)
        prediction, target = prediction.to(wider), target.to(wider)
    _checks.shape(op, "target", target, prediction.shape, "that of prediction")
    _checks.same_dtype(op, "target", target, "prediction", prediction)
    _checks.same_device(op, "target", target, "prediction", prediction)
    check_mask(op, mask, "prediction", prediction)
    _checks.choice(op, "normalize", normalize, _NORMALIZE)
    _checks.choice(op, "impl", impl, _dispatch.IMPLS)
    if area is not None:
        _checks.tensor(op, "area", area)
        _checks.shape(op, "area", area, prediction.shape[:1], "one number a sample")
        _checks.dtypes(op, "area", area, (torch.int64, torch.float32, torch.float64))
        _checks.same_device(op, "area", area, "prediction", prediction)
        _checks.no_gradient(op, "area", area)
    args = (prediction, target, mask, area, power, normalize)
    if _in_one_pass(prediction, target, mask, area, normalize):
        loss: Tensor = _OnePass.apply(*args, impl)
    else:
        loss, _ = call_op("masked_loss", impl, *args)
    return loss


# Where reading prediction and target once less counts.
_ONE_PASS_DEVICES = ("cuda",)


def _in_one_pass(
    prediction: Tensor, target: Tensor, mask: Tensor, area: Tensor | None, normalize: str
) -> bool:
    """Whether to make the gradient along with the loss, for ``backward()`` to scale.

    It can be made where the normalisation is known beforehand. Not in float16, in which a
    gradient that has not yet met its loss scale vanishes, and not where the call is traced.
    """
    tensors = (prediction, target, mask) if area is None else (prediction, target, mask, area)
    return (
        prediction.device.type in _ONE_PASS_DEVICES
        and prediction.dtype != torch.float16
        and (area is not None or normalize != "mask")
        and seen_by_autograd_alone(tensors) is True
    )


def check_mask(op: str, mask: Tensor, image_name: str, image: Tensor) -> None:
    """A mask of ``image``: ``(B, 1, H, W)`` or ``(B, C, H, W)``, bool, uint8 or floating point."""
    _checks.dims(op, "mask", mask, (4,), "(B, 1, H, W) or (B, C, H, W)")
    _checks.dtypes(op, "mask", mask, (torch.bool, torch.uint8, *_checks.FLOATING))
    channels = mask.shape[1] if mask.shape[1] == 1 else image.shape[1]
    expected = (image.shape[0], channels, *image.shape[2:])
    _checks.shape(op, "mask", mask, expected, f"that of {image_name}, or with 1 channel")
    _checks.same_device(op, "mask", mask, image_name, image)
    _checks.no_gradient(op, "mask", mask)


# --- loss and gradient in one pass ------------------------------------------------------------


class _OnePass(torch.autograd.Function):
    """The loss, with the gradient for a ``grad_loss`` of 1 made at the same time.

    Not an op of torch.library: its backward changes a tensor of its forward in place, which a
    traced graph cannot hold.
    """

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        area: Tensor | None,
        power: int,
        normalize: str,
        impl: str,
    ) -> Tensor:
        loss, scale, ctx.gradient = _loss_and_gradient(
            prediction, target, mask, area, power, normalize, impl
        )
        ctx.save_for_backward(scale, prediction, target, mask)
        ctx.power, ctx.impl = power, impl
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.gradient
        seen = torch.is_grad_enabled() or seen_by_autograd_alone((grad_loss,)) is None
        if gradient is None or seen:
            # A second backward, or one that is differentiated, mapped or traced: from the start.
            gradient = run_op(
                "masked_loss_backward", ctx.impl, grad_loss, *ctx.saved_tensors, ctx.power
            )
        else:
            ctx.gradient = None  # handed over, so nobody else sees the change in place
            _scale_gradient_(gradient, grad_loss, ctx.saved_tensors[3], ctx.impl)
        return (
            gradient if ctx.needs_input_grad[0] else None,
            -gradient if ctx.needs_input_grad[1] else None,
            *(None,) * 5,
        )


def _loss_and_gradient(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "masked_loss_and_gradient"
    args = (prediction, target, mask, area, power, normalize)
    name = _dispatch.select("masked_loss", impl, args)
    fails = _dispatch.requested(impl) == "auto" and _dispatch.fails(op, name, prediction.device)
    if not fails and _dispatch.why_not(op, name, args) is None:
        result: tuple[Tensor, Tensor, Tensor] = _dispatch.call(op, name, *args)
        return result
    # An implementation without it serves it by its other two functions.
    loss, scale = _dispatch.call("masked_loss", impl, *args)
    one = torch.ones_like(loss)
    grad = _dispatch.call("masked_loss_backward", impl, one, scale, *args[:3], power)
    return loss, scale, grad


def _scale_gradient_(gradient: Tensor, grad_loss: Tensor, mask: Tensor, impl: str) -> None:
    op, args = "scale_gradient_", (gradient, grad_loss, mask)
    name = _dispatch.requested(impl)
    if name != "auto" and _dispatch.why_not(op, name, args) is not None:
        name = "reference"  # a forced implementation need not have it
    _dispatch.call(op, name, *args)


# --- registration -----------------------------------------------------------------------------


def _forward(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _dispatch.call(
        "masked_loss", impl, prediction, target, mask, area, power, normalize
    )
    return result


def _forward_fake(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(prediction.dtype)
    shape = prediction.shape[:1] if normalize == "none" else ()
    return prediction.new_empty(shape, dtype=dtype), prediction.new_empty((), dtype=dtype)


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prediction, target, mask, _, ctx.power, _, ctx.impl = inputs
    ctx.save_for_backward(output[1], prediction, target, mask)
    ctx.mark_non_differentiable(output[1])


def _forward_backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        grad = run_op("masked_loss_backward", ctx.impl, grad_loss, *ctx.saved_tensors, ctx.power)
    return (
        grad if ctx.needs_input_grad[0] else None,
        -grad if grad is not None and ctx.needs_input_grad[1] else None,
        *(None,) * 5,
    )


def _backward(
    grad_loss: Tensor,
    scale: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
    impl: str,
) -> Tensor:
    grad: Tensor = _dispatch.call(
        "masked_loss_backward", impl, grad_loss, scale, prediction, target, mask, power
    )
    return grad


def _backward_fake(
    grad_loss: Tensor,
    scale: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
    impl: str,
) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.power, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    """Double backward in plain PyTorch: rare, and differentiable again as it stands."""
    grad_loss, scale, prediction, target, mask = ctx.saved_tensors
    weight = weights(mask, scale.dtype)
    # where comes first, so that what lies under a weight of 0 stays out of every derivative
    grad_grad = weight * torch.where(weight != 0, grad_grad.to(scale.dtype), 0)
    of_grad_loss = of_prediction = of_target = None
    if ctx.needs_input_grad[0]:
        difference = masked_difference(prediction, target, weight)
        slope = 2 * difference if ctx.power == 2 else difference.sign()
        along = (grad_grad * slope).sum((1, 2, 3)) * scale
        of_grad_loss = along.sum_to_size(grad_loss.shape)
    if ctx.power == 2 and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
        factor = (grad_loss * scale).reshape(-1, 1, 1, 1)
        of_prediction = (2 * factor * grad_grad).to(prediction.dtype)
        of_target = -of_prediction
    return of_grad_loss, None, of_prediction, of_target, None, None, None


define(
    "masked_loss(Tensor prediction, Tensor target, Tensor mask, Tensor? area, int power,"
    " str normalize, str impl) -> (Tensor, Tensor)",
    _forward,
    fake=_forward_fake,
    setup_context=_forward_context,
    backward=_forward_backward,
)
define(
    "masked_loss_backward(Tensor grad_loss, Tensor scale, Tensor prediction, Tensor target,"
    " Tensor mask, int power, str impl) -> Tensor",
    _backward,
    fake=_backward_fake,
    setup_context=_backward_context,
    backward=_backward_backward,
)
