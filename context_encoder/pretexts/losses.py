"""The joint loss: reconstruction of the hole and its overlap band, and the adversarial loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from cekernels import masked_l1_loss, masked_l2_loss


def overlap_weights(mask: Tensor, overlap: int, band_weight: float) -> Tensor:
    """Weights of the reconstruction loss: 1 in the hole, ``band_weight`` in the band around it.

    Section 4 of the paper: the network also predicts a band of context next to the hole, 7 pixels
    wide (4 in the released commands), with ten times the weight, so that the two agree there.

    Args:
        mask: bool ``(B, 1, H, W)``, True where the image is missing.
        overlap: width of the band in pixels (8-neighbourhood); 0 for none.
        band_weight: weight of the band.

    Returns:
        float32 ``(B, 1, H, W)``; the bool mask itself where there is no band.
    """
    if overlap == 0:
        return mask
    hole = mask.float()
    grown = F.max_pool2d(hole, 2 * overlap + 1, stride=1, padding=overlap)
    return hole + band_weight * (grown - hole)


# Added to the mean squared error on [-1, 1], so that the logarithm of a perfect fill is finite
# and its gradient small: 46 dB.
_LEAST_ERROR = 1e-4


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    kind: str,
    normalize: str,
    area: Tensor | None = None,
) -> Tensor:
    """The loss of the weighted elements, ``()`` float32.

    Args:
        prediction, target: ``(B, 3, H, W)``.
        weights: ``(B, 1, H, W)``, see :func:`overlap_weights`.
        kind: "l2" (the paper's equation 1), "l1", or "log-l2", see :func:`log_l2_loss`.
        normalize: "mask" or "all", see :func:`cekernels.masked_l2_loss`; "log-l2" does without.
        area: the sum of the weights per sample ``(B,)``, where it is known.
    """
    if kind == "log-l2":
        return log_l2_loss(prediction, target, weights, area)
    loss = masked_l2_loss if kind == "l2" else masked_l1_loss
    return loss(prediction, target, weights, normalize=normalize, area=area)  # type: ignore[arg-type]


def log_l2_loss(
    prediction: Tensor, target: Tensor, weights: Tensor, area: Tensor | None = None
) -> Tensor:
    """The mean natural logarithm of each image's weighted mean squared error, ``()`` float32.

    Up to a factor and a constant it is the mean PSNR (the loss of Chen et al. 2021, "HINet"). An
    image with smooth surroundings, whose error is small, counts as much as any other.

    Args:
        prediction, target, weights, area: as in :func:`reconstruction_loss`. An image without
            weights adds a constant.
    """
    squares = masked_l2_loss(prediction, target, weights, normalize="none")
    if area is None:
        area = weights.sum((1, 2, 3), dtype=squares.dtype)
    elements = target.shape[1] * area.to(squares.dtype)
    return (squares / elements.clamp(min=1e-6) + _LEAST_ERROR).log().mean()


def share_of_weights(weights: Tensor, world_size: int, parts: int = 1) -> Tensor:
    """Factors for the losses of micro-batches whose masks differ; ``(parts,)`` float64.

    Each loss is divided by the sum of the weights of its own micro-batch. With these factors, the
    mean over micro-batches and processes, which is also taken of the gradients, equals the
    weighted mean over all images.

    Args:
        weights: those of this process's images, ``(B, ...)``, or their sums per image ``(B,)``.
        world_size: number of processes, all of which must call this.
        parts: number of micro-batches, equal parts of the images in their order.
    """
    own = weights.reshape(parts, -1).sum(1, dtype=torch.float64)
    total = own.sum()
    if world_size > 1:
        dist.all_reduce(total)
    return own * (world_size * parts) / total.clamp(min=1)


class MeanLosses:
    """The losses of a step for the log: means over its micro-batches.

    Args:
        parts: number of micro-batches.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, loss: Tensor) -> None:
        """Count the loss of a micro-batch, ``()``."""
        loss = loss.detach()
        self._sums[name] = self._sums[name] + loss if name in self._sums else loss

    def named(self, *names: str) -> dict[str, Tensor]:
        """The means, detached, in this order; names that were not added are left out."""
        sums = {name: self._sums[name] for name in names if name in self._sums}
        if self._parts == 1:
            return sums
        return {name: value / self._parts for name, value in sums.items()}


def whole_loss(prediction: Tensor, target: Tensor, *, kind: str) -> Tensor:
    """Mean squared ("l2") or absolute ("l1") error of all elements, ``()``, at least float32; or
    "log-l2", see :func:`log_l2_loss`."""
    if kind == "log-l2":
        return log_l2_loss(prediction, target, torch.ones_like(target[:, :1], dtype=torch.bool))
    loss = F.mse_loss if kind == "l2" else F.l1_loss
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return loss(prediction.to(dtype), target.to(dtype))


def discriminator_loss(logits: Tensor, real: bool) -> Tensor:
    """Half of the paper's equation 2 for one batch: ``-log D(x)`` or ``-log(1 - D(x))``."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Fewer operations than binary cross-entropy with a tensor of equal targets.
    return F.softplus(-logits if real else logits).mean()


def generator_loss(logits: Tensor) -> Tensor:
    """``-log D(F(x))``, the non-saturating form that the released code trains with."""
    return discriminator_loss(logits, real=True)
