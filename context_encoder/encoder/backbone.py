"""Networks for feature extraction: from a run, a file of weights, or random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from context_encoder.config import TrainConfig
from context_encoder.encoder.weights import load_encoder
from context_encoder.models import Backbone, build_context_encoder, default_features_model
from context_encoder.runs import find_checkpoint, load_model, read_config


def load_backbone(
    checkpoint: Path | None = None,
    *,
    weights: Path | None = None,
    model: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Load a network for feature extraction: eval mode, float32, on the CPU.

    Args:
        checkpoint: a run folder of any pretext (its best checkpoint) or a checkpoint folder; the
            run then determines ``model`` and ``image_size``.
        weights: otherwise, a file of encoder weights, see
            :mod:`context_encoder.encoder.weights`; its network has the layers of the encoder only.
        model: without a checkpoint, the name of the network, see
            :data:`context_encoder.models.MODELS`; None for the one named in the file of weights,
            or :func:`context_encoder.models.default_features_model`.
        image_size: side of its square input in pixels; None for the network's default.
        seed: seed of the random weights, if neither ``checkpoint`` nor ``weights`` is given.

    Returns:
        The network: ``.encoder`` (Sequential of named stages), ``.image_size`` and
        ``.features(x)``, the outputs of all stages by name.

    Raises:
        RunError: the checkpoint is missing or cannot be used.
        ValueError: arguments are incompatible, the network cannot handle the size, or the file
            of weights does not fit.
    """
    if checkpoint is not None and weights is not None:
        raise ValueError("checkpoint and weights are both given; features come from one network")
    if checkpoint is not None:
        network = load_model(checkpoint).backbone()
        if image_size not in (None, network.image_size):
            raise ValueError(
                f"{checkpoint} takes images of {network.image_size} pixels, image_size "
                f"{image_size} was asked for; leave it out"
            )
        return network
    if weights is not None:
        return load_encoder(Path(weights), model=model, image_size=image_size)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name = model or default_features_model()
        return build_context_encoder(name, image_size=image_size).eval()


def choose_backbone(
    checkpoint: Path | None = None,
    *,
    weights: Path | None = None,
    random: bool = False,
    model: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """:func:`load_backbone` with an explicit source of the weights, such as ``random``.

    Raises:
        ValueError: not exactly one of the three sources, or options that the run determines.
        RunError: as :func:`load_backbone`.
    """
    if sum((checkpoint is not None, weights is not None, random)) != 1:
        raise ValueError(
            "say where the network comes from: `checkpoint`, `weights` or `random`, one of them"
        )
    if checkpoint is not None and (model, image_size) != (None, None):
        raise ValueError(
            "`model` and `image_size` would do nothing: the run determines them; leave them out"
        )
    return load_backbone(checkpoint, weights=weights, model=model, image_size=image_size, seed=seed)


def fill_color_of(checkpoint: Path | None) -> tuple[float, float, float]:
    """The colour of holes in a run's training, or the default, RGB on [-1, 1]."""
    if checkpoint is None:
        return TrainConfig().fill_color()
    return read_config(find_checkpoint(checkpoint)).fill_color()


def last_of_encoder(model: Backbone) -> str:
    """The name of the encoder's last layer."""
    return [name for name, _ in model.encoder.named_children()][-1]


def layer_names(model: Backbone) -> list[str]:
    """The layers whose features a network returns, in order."""
    return [name for part in model.feature_parts() for name, _ in part.named_children()]


def weights_digest(model: Backbone) -> str:
    """SHA-256 of a network's weights and their names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
