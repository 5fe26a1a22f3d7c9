"""Masked L2 and L1 losses (Pathak et al. 2016, equation 1) in plain PyTorch.

Sums are accumulated in float32, or in float64 for float64 inputs. Elements of weight 0 are
excluded: a NaN or an infinity there affects neither the loss nor a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cekernels.reference.layout import dense_format


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as weights: floating point as it is, bool or uint8 as 1 where it is not 0."""
    return mask.to(dtype) if mask.is_floating_point() else (mask != 0).to(dtype)


def masked_difference(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """``prediction - target`` in the dtype of the weights, 0 where the weight is 0."""
    return torch.where(weight != 0, prediction.to(weight.dtype) - target.to(weight.dtype), 0)


def _total(area: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the areas: of integers exactly, of floating point in the wider dtype."""
    wider = torch.promote_types(area.dtype, dtype) if area.is_floating_point() else torch.int64
    return area.sum(dtype=wider).to(dtype)


def masked_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor]:
    """The loss, ``()`` or ``(B,)`` for "none", and the scale ``()`` that normalises its sum."""
    dtype = accumulation_dtype(prediction.dtype)
    weight = weights(mask, dtype)
    difference = masked_difference(prediction, target, weight)
    error = difference.square() if power == 2 else difference.abs()
    per_sample = (weight * error).sum((1, 2, 3))

    scale = torch.ones((), dtype=dtype, device=prediction.device)
    if normalize == "mask":
        total = weight.sum() if area is None else _total(area, dtype)
        total = total * (prediction.shape[1] // mask.shape[1] if mask.shape[1] else 0)
        scale = torch.where(total > 0, 1 / total, 0)
    elif normalize == "all":
        scale = scale / max(prediction.numel(), 1)
    if normalize == "none":
        return per_sample, scale
    return per_sample.sum() * scale, scale


def masked_loss_backward(
    grad_loss: Tensor,
    scale: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
) -> Tensor:
    """Gradient of the prediction, in its dtype and layout; that of the target is its negative."""
    dtype = scale.dtype
    weight = weights(mask, dtype)
    difference = prediction.to(dtype) - target.to(dtype)
    slope = 2 * difference if power == 2 else difference.sign()
    factor = (grad_loss * scale).reshape(-1, 1, 1, 1)
    grad = torch.where(weight != 0, weight * factor * slope, 0)
    return grad.to(prediction.dtype).contiguous(memory_format=dense_format(prediction))


def masked_loss_and_gradient(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and scale of :func:`masked_loss`, and the gradient for a ``grad_loss`` of 1."""
    loss, scale = masked_loss(prediction, target, mask, area, power, normalize)
    one = torch.ones_like(loss)
    return loss, scale, masked_loss_backward(one, scale, prediction, target, mask, power)


def scale_gradient_(gradient: Tensor, grad_loss: Tensor, mask: Tensor) -> None:
    """Scale in place the gradient for a ``grad_loss`` of 1 to that for ``grad_loss``."""
    scaled = gradient * grad_loss.reshape(-1, 1, 1, 1)
    gradient.copy_(torch.where(weights(mask, grad_loss.dtype) != 0, scaled, 0))
