"""Features of whole pictures: a network to take them from, and what its layers say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from context_encoder.models import Backbone, build_model
from context_encoder.runs import load_model

__all__ = ["encode_batch", "load_backbone"]


def load_backbone(
    checkpoint: Path | None = None,
    *,
    weights: Path | None = None,
    model: str = "alexnet",
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """A network to take features from, in eval mode, float32, on the CPU.

    Args:
        checkpoint: a run folder of any pretext (its best checkpoint) or a checkpoint folder; the
            run then decides ``model`` and ``image_size``.
        weights: otherwise, a file of encoder weights, see :mod:`context_encoder.weights`.
        model: without a checkpoint, the name of the network, see
            :data:`context_encoder.models.MODELS`.
        image_size: side of its square input in pixels; None for the network's own.
        seed: of the random weights, if neither ``checkpoint`` nor ``weights`` is given.

    Returns:
        The network: ``.encoder`` (Sequential of named stages), ``.image_size`` and
        ``.features(x)``, the outputs of all stages by name.

    Raises:
        RunError: the checkpoint is not there or cannot be used.
        ValueError: arguments that do not go together, or a size that the network cannot take.
    """
    if checkpoint is not None and weights is not None:
        raise ValueError("checkpoint and weights are both given; features come from one network")
    if checkpoint is not None:
        network = load_model(checkpoint).model
        if image_size not in (None, network.image_size):
            raise ValueError(
                f"{checkpoint} takes pictures of {network.image_size} pixels, image_size "
                f"{image_size} was asked for; leave it out"
            )
        return network
    if weights is not None:
        raise ValueError("encoder weights from a file are not read yet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(model, image_size=image_size).eval()


@torch.no_grad()
def encode_batch(
    model: Backbone, images: Tensor, layers: Sequence[str], pool: int | None = None
) -> dict[str, Tensor]:
    """The outputs of some layers for a batch of pictures.

    Args:
        model: from :func:`load_backbone`, on any device.
        images: uint8 ``(B, 3, S, S)``, RGB, S the network's ``image_size``; any device.
        layers: names of stages, such as ``conv1`` or ``pool5``.
        pool: average each map to ``pool`` x ``pool`` cells where it is larger; None: as it is.

    Returns:
        For each layer float32 ``(B, C, h, w)``, on the network's device.

    Raises:
        TypeError, ValueError: pictures of another type or size, a layer that the network lacks,
            or ``pool`` below 1.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (B, 3, S, S), got {images.dtype}")
    if pool is not None and pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")
    names = [name for part in model.feature_parts() for name, _ in part.named_children()]
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise ValueError(
            f"the network has no layer {', '.join(unknown)}; its layers: {', '.join(names)}"
        )
    device = next(model.parameters()).device
    outputs = model.features(images.to(device).float() / 127.5 - 1)
    chosen = {name: outputs[name].float() for name in layers}
    if pool is None:
        return chosen
    return {
        name: F.adaptive_avg_pool2d(value, pool) if max(value.shape[2:]) > pool else value
        for name, value in chosen.items()
    }
