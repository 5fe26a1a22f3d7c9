"""Losses over the masked elements only (Pathak et al. 2016, equation 1, and an L1 variant)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import IMPLS, Impl
from cekernels._interop import record
from cekernels._register import Formula, Op, Sharding
from cekernels._selfcheck import (
    CHANNELS_LAST,
    CONTIGUOUS,
    Kind,
    SelfTest,
    layout_of,
    numbers,
)
from cekernels._torch_internals import transforms_active
from cekernels.reference.layout import dense_format
from cekernels.reference.masked_loss import accumulation_dtype, masked_difference, weights

Normalize = Literal["mask", "all", "sum", "none"]
_NAMES = ("prediction", "target", "mask")
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
        target: shape and device of ``prediction``; any real dtype. Two dtypes are promoted to
            their common one, as in ``torch.nn.functional.mse_loss``.
        mask: ``(B, 1, H, W)`` or ``(B, C, H, W)``. bool or integer: elements are included where it
            is not 0. Floating point: the weight of each element (for example 1 in the hole and 10
            in the overlap band); where it is 0 the element is excluded, even if NaN or infinite.
        normalize: the divisor of the weighted sum. "mask": the sum of the weights over all
            elements, channels included (a weighted mean; 0 for an empty mask). "all": ``B C H W``,
            as in the released code. "sum": none. "none": none, with one sum per sample.
        area: for "mask", int64, float32 or float64 ``(B,)``: the sum of ``mask`` per sample, as
            returned by the rasterizer; it is not verified. None: computed from the mask.
        impl: "auto", or the implementation to force: "reference", "cpp", "triton", "cuda".

    Returns:
        ``()``, or ``(B,)`` for "none"; float32, or float64 for float64 inputs. Prediction and
        target have gradients, which can be differentiated again; the mask has none.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a mask
            or area that requires a gradient.
        ImplementationError: the forced implementation cannot handle the call.
    """
    if not _checks.tensors("masked_l2_loss", _NAMES, prediction, target, mask):
        call = functools.partial(record, masked_l2_loss, prediction, target, mask)
        return call(normalize=normalize, area=area, impl=impl)  # type: ignore[no-any-return]
    args = _checked("masked_l2_loss", prediction, target, mask, area, normalize, impl)
    loss: Tensor = _kernel(impl, *args[:2])(*args, 2, normalize)[0]
    return loss


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

    Arguments, result and errors as for :func:`masked_l2_loss`; the gradient at equality is 0.
    """
    if not _checks.tensors("masked_l1_loss", _NAMES, prediction, target, mask):
        call = functools.partial(record, masked_l1_loss, prediction, target, mask)
        return call(normalize=normalize, area=area, impl=impl)  # type: ignore[no-any-return]
    args = _checked("masked_l1_loss", prediction, target, mask, area, normalize, impl)
    loss: Tensor = _kernel(impl, *args[:2])(*args, 1, normalize)[0]
    return loss


def _checked(
    op: str,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    normalize: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The tensors after the argument checks, prediction and target in a common dtype."""
    _checks.dims(op, "prediction", prediction, (4,), "(B, C, H, W)")
    _checks.dtypes(op, "prediction", prediction, _checks.FLOATING)
    if target.dtype != prediction.dtype:
        if target.is_complex() or target.is_floating_point():
            _checks.dtypes(op, "target", target, _checks.FLOATING)
        wider = torch.promote_types(prediction.dtype, target.dtype)
        prediction, target = prediction.to(wider), target.to(wider)
    _checks.shape(op, "target", target, prediction.shape, "that of prediction")
    _checks.same_device(op, "target", target, "prediction", prediction)
    mask = _checks.mask(op, mask, "prediction", prediction)
    _checks.choice(op, "normalize", normalize, _NORMALIZE)
    _checks.choice(op, "impl", impl, IMPLS)
    if area is not None:
        _checks.tensor(op, "area", area)
        _checks.shape(op, "area", area, prediction.shape[:1], "one number per sample")
        _checks.dtypes(op, "area", area, (torch.int64, torch.float32, torch.float64))
        _checks.same_device(op, "area", area, "prediction", prediction)
        _checks.no_gradient(op, "area", area)
    return prediction, target, mask, area


# Devices on which one read fewer of prediction and target makes the loss faster.
ONE_PASS_DEVICES = ("cuda",)


def _kernel(impl: str, prediction: Tensor, target: Tensor) -> Callable[..., Any]:
    """The kernel of the loss, or of the loss with its gradient where one pass computes both.

    One pass is not used in float16, where a gradient without its loss scale would underflow, nor in
    a compiled graph, whose backward pass must not modify a tensor of its forward pass in place, nor
    for tensors of another class, such as a DTensor, which may not support that.
    """
    if (
        prediction.device.type in ONE_PASS_DEVICES
        and prediction.dtype != torch.float16
        and type(prediction) in _checks.PLAIN
        and type(target) in _checks.PLAIN
        and torch.is_grad_enabled()
        and (prediction.requires_grad or target.requires_grad)
        and not torch.compiler.is_compiling()
        and not transforms_active()
    ):
        return LOSS_AND_GRADIENT.kernel(impl, prediction, target)
    return LOSS.kernel(impl, prediction, target)


# --- the ops and their derivatives ------------------------------------------------------------


def _loss_fake(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(prediction.dtype)
    shape = prediction.shape[:1] if normalize == "none" else ()
    return prediction.new_empty(shape, dtype=dtype), prediction.new_empty((), dtype=dtype)


def _loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prediction, target, mask, _, ctx.power, _ = inputs
    ctx.save_for_backward(output[1], prediction, target, mask)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad_loss: Tensor) -> Tensor:
    scale, prediction, target, mask = ctx.saved_tensors
    kernel = LOSS_BACKWARD.kernel(ctx.impl, grad_loss, prediction, target)
    gradient: Tensor = kernel(grad_loss, scale, prediction, target, mask, ctx.power)
    return gradient


def _of_operands(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (
        gradient if ctx.needs_input_grad[0] else None,
        -gradient if ctx.needs_input_grad[1] else None,
        *(None,) * 4,
    )


def _loss_backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _of_operands(ctx, _gradient(ctx, grad_loss))


def _loss_and_gradient_fake(prediction: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_loss_fake(prediction, *args), _like(prediction)


def _loss_and_gradient_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    loss, scale, ctx.gradient = output
    _loss_context(ctx, inputs, (loss, scale))
    ctx.mark_non_differentiable(scale, ctx.gradient)


def _loss_and_gradient_backward(
    ctx: Any, grad_loss: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    """Scale the gradient of the forward pass in place.

    It is computed again for a second backward pass and for one that is itself differentiated.
    """
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None or torch.is_grad_enabled() or transforms_active():
        return _of_operands(ctx, _gradient(ctx, grad_loss))
    mask = ctx.saved_tensors[3]
    SCALE_GRADIENT.kernel(ctx.impl)(gradient, grad_loss, mask)
    return _of_operands(ctx, gradient)


def _like(prediction: Tensor) -> Tensor:
    return torch.empty_like(prediction, memory_format=dense_format(prediction))


def _gradient_fake(grad_loss: Tensor, scale: Tensor, prediction: Tensor, *_: Any) -> Tensor:
    return _like(prediction)


def _gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.power = inputs
    ctx.save_for_backward(*tensors)


def _gradient_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    """Double backward in plain PyTorch: rarely used, and differentiable again."""
    grad_loss, scale, prediction, target, mask = ctx.saved_tensors
    weight = weights(mask, scale.dtype)
    # torch.where first, so that elements of weight 0 are excluded from every derivative
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
    return of_grad_loss, None, of_prediction, of_target, None, None


def _scale_gradient_fake(gradient: Tensor, grad_loss: Tensor, mask: Tensor) -> None:
    return None


def _loss_sharding(
    prediction: Any, target: Any, mask: Any, area: Any, power: int, normalize: str
) -> list[Sharding]:
    """Of sums only: the divisors of the means are those of the whole batch."""
    if normalize not in ("sum", "none"):
        return []
    per_sample = normalize == "none"
    mask_channels = 1 if mask.shape[1] > 1 else "whole"
    return [
        ([0 if per_sample else "partial", "whole"], [0, 0, 0, 0, "whole", "whole"]),
        (["partial", "whole"], [1, 1, mask_channels, "whole", "whole", "whole"]),
    ]


def _gradient_sharding(
    grad_loss: Any, scale: Any, prediction: Any, target: Any, mask: Any, power: int
) -> list[Sharding]:
    of_loss = 0 if len(grad_loss.shape) else "whole"
    mask_channels = 1 if mask.shape[1] > 1 else "whole"
    return [
        ([0], [of_loss, "whole", 0, 0, 0, "whole"]),
        ([1], ["whole", "whole", 1, 1, mask_channels, "whole"]),
    ]


# --- the self-test ----------------------------------------------------------------------------


def _kind_of(mask: Tensor, *images: Tensor) -> Kind:
    weights = mask.dtype if mask.is_floating_point() else torch.bool
    return Kind(images[0].dtype, layout_of(mask, *images), weights)


def _loss_kind(prediction: Tensor, target: Tensor, mask: Tensor, *_: Any) -> Kind:
    return _kind_of(mask, prediction, target)


def _gradient_kind(
    grad_loss: Tensor, scale: Tensor, prediction: Tensor, target: Tensor, mask: Tensor, *_: Any
) -> Kind:
    return _kind_of(mask, prediction, target)


def _scale_gradient_kind(gradient: Tensor, grad_loss: Tensor, mask: Tensor) -> Kind:
    return _kind_of(mask, gradient)


def _usual_kinds(dtypes: Sequence[torch.dtype], *_: Any) -> Iterator[Kind]:
    for dtype in dtypes:
        for mask in (torch.bool, accumulation_dtype(dtype)):
            for layout in (CONTIGUOUS, CHANNELS_LAST):
                yield Kind(dtype, layout, mask)


# Image sizes: single pixels; and vectors of 16 bytes, in more than one block.
_ODD, _EVEN = (9, 7), (40, 32)
# Size, power, normalization, and whether the mask has channels.
_CASES: tuple[tuple[tuple[int, int], int, str, bool], ...] = (
    (_ODD, 2, "mask", False), (_EVEN, 2, "mask", False), (_EVEN, 1, "none", True),
)  # fmt: skip


def _mask(kind: Kind, size: tuple[int, int], channels: bool) -> Tensor:
    """Two samples with 32 masked pixels in total, a power of two, so that the mean is exact."""
    mask = torch.zeros(2, 4 if channels else 1, *size, dtype=torch.bool)
    mask[0, :, 2:6, 1:6] = True
    mask[1, :, -4:-2, -6:] = True
    return mask.to(kind.mask)


def _images(kind: Kind, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    prediction, target = numbers(2, 4, *size), numbers(2, 4, *size, start=5)
    prediction[0, 0, 0, 0] = float("nan")  # outside the mask: excluded
    return prediction.to(kind.dtype), target.to(kind.dtype)


def _loss_cases(kind: Kind) -> list[tuple[Any, ...]]:
    found = []
    for size, power, normalize, channels in _CASES:
        mask = _mask(kind, size, channels)
        area = (mask != 0).sum((1, 2, 3)) if normalize == "mask" else None
        found.append((*_images(kind, size), mask, area, power, normalize))
    return found


def _gradient_cases(kind: Kind) -> list[tuple[Any, ...]]:
    dtype = accumulation_dtype(kind.dtype)
    one, scale = torch.ones((), dtype=dtype), torch.full((), 1 / 128, dtype=dtype)
    return [
        (one, scale, *_images(kind, size), _mask(kind, size, channels), power)
        for size, power, _, channels in _CASES
    ]


def _scale_gradient_cases(kind: Kind) -> list[tuple[Any, ...]]:
    half = torch.full((), 0.5, dtype=accumulation_dtype(kind.dtype))
    found = []
    for size, _, _, channels in _CASES:
        mask = _mask(kind, size, channels)
        gradient = numbers(2, 4, *size) * (mask != 0)  # 0 outside the mask, as the loss computes it
        found.append((gradient.to(kind.dtype), half, mask))
    return found


LOSS = Op(
    reference.masked_loss,
    fake=_loss_fake,
    formula=Formula(_loss_context, _loss_backward),
    check=SelfTest(_loss_cases, _loss_kind, _usual_kinds),
    decomposition=reference.masked_loss,
    sharding=_loss_sharding,
)
LOSS_BACKWARD = Op(
    reference.masked_loss_backward,
    fake=_gradient_fake,
    formula=Formula(_gradient_context, _gradient_backward),
    check=SelfTest(_gradient_cases, _gradient_kind, _usual_kinds),
    decomposition=reference.masked_loss_backward,
    sharding=_gradient_sharding,
)
# On the CPU one pass is no faster than two.
LOSS_AND_GRADIENT = Op(
    reference.masked_loss_and_gradient,
    fake=_loss_and_gradient_fake,
    formula=Formula(_loss_and_gradient_context, _loss_and_gradient_backward),
    compiled=("cuda",),
    check=SelfTest(_loss_cases, _loss_kind, _usual_kinds),
)
SCALE_GRADIENT = Op(
    reference.scale_gradient_,
    fake=_scale_gradient_fake,
    mutates=("gradient",),
    compiled=("cuda",),
    check=SelfTest(_scale_gradient_cases, _scale_gradient_kind, _usual_kinds),
)
