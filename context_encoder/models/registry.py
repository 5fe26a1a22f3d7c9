"""The networks, by name: ``build_model("alexnet")``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from context_encoder.models.alexnet import AlexNetContextEncoder
from context_encoder.models.base import ContextEncoder
from context_encoder.models.dcgan import DCGANContextEncoder, Discriminator
from context_encoder.models.small import SmallContextEncoder


@dataclass(frozen=True)
class ModelSpec:
    """What a name stands for.

    Attributes:
        network: the class.
        check_size: raises ValueError for an image size that the class cannot take.
        image_size: its default, in pixels.
        summary: one line for people.
        fixed: the options that the name itself decides.
    """

    network: Callable[..., ContextEncoder]
    check_size: Callable[[int], None]
    image_size: int
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that are left to choose."""
        parameters = inspect.signature(self.network).parameters
        return tuple(p for p in parameters if p != "image_size" and p not in self.fixed)


MODELS: dict[str, ModelSpec] = {
    "alexnet": ModelSpec(
        AlexNetContextEncoder,
        AlexNetContextEncoder.check_image_size,
        227,
        "AlexNet for feature learning, 227 -> 227 pixels",
        {"pool": "max"},
    ),
    "alexnet-poolfree": ModelSpec(
        AlexNetContextEncoder,
        AlexNetContextEncoder.check_image_size,
        227,
        "AlexNet with strided convolutions instead of pooling, 227 -> 227 pixels",
        {"pool": "conv"},
    ),
    "center": ModelSpec(
        DCGANContextEncoder,
        DCGANContextEncoder.check_image_size,
        128,
        "released centre-region network, 128 -> the central 64 pixels",
        {"region": "center"},
    ),
    "random": ModelSpec(
        DCGANContextEncoder,
        DCGANContextEncoder.check_image_size,
        128,
        "released random-region network, 128 -> 128 pixels",
        {"region": "whole"},
    ),
    "small": ModelSpec(
        SmallContextEncoder,
        SmallContextEncoder.check_image_size,
        64,
        "small network for machines without a GPU, 64 -> 64 pixels",
    ),
}


def build_model(name: str, *, image_size: int | None = None, **options: Any) -> ContextEncoder:
    """Make a network with fresh weights, drawn from PyTorch's default generator.

    Args:
        name: a key of :data:`MODELS`.
        image_size: side of its square input in pixels; None for the default of the name.
        options: those of the class, see :attr:`ModelSpec.options`.

    Raises:
        ValueError: an unknown name, a size that does not fit, an option's value.
        TypeError: an option that this network does not have.
    """
    spec = _spec(name)
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise TypeError(
            f"model {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options: {', '.join(spec.options)}"
        )
    size = spec.image_size if image_size is None else image_size
    check_image_size(name, size)
    return spec.network(size, **spec.fixed, **options)


def build_discriminator(size: int) -> Discriminator:
    """Make a discriminator for predictions of ``size`` x ``size`` pixels (``output_region``).

    Raises:
        ValueError: a size under 32.
    """
    return Discriminator(size)


def default_image_size(name: str) -> int:
    """Side in pixels of the square input that a name stands for; ValueError if unknown."""
    return _spec(name).image_size


def check_image_size(name: str, size: int) -> None:
    """Check, before anything is built, that a network can take pictures of ``size`` pixels.

    Raises:
        ValueError: it cannot (the message names sizes that it can), or the name is unknown.
    """
    spec = _spec(name)
    try:
        spec.check_size(size)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from None


def _spec(name: str) -> ModelSpec:
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
