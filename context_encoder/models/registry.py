"""The networks by name, ``build_model("alexnet")``; :func:`register_model` adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from context_encoder.models.base import ContextEncoder
from context_encoder.utils.option_groups import OptionGroup, Preset
from context_encoder.utils.registry import NameIn, Registry

Network = TypeVar("Network", bound=type[ContextEncoder])


@dataclass(frozen=True)
class ModelSpec:
    """What a name stands for; see :func:`register_model`."""

    network: type[ContextEncoder]
    image_size: int
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    train_options: type[OptionGroup] = OptionGroup
    bottleneck_options: tuple[str, ...] = ()
    whole: bool = True
    min_batch: int = 1
    data_processes: bool = True
    features_default: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the class's own options that are left to choose."""
        parameters = inspect.signature(self.network).parameters
        return tuple(p for p in parameters if p != "image_size" and p not in self.fixed)

    @property
    def check_size(self) -> Callable[[int], None]:
        """Raises ValueError for an image size that the class cannot take."""
        return self.network.check_image_size


#: The networks.
MODELS: Registry[ModelSpec] = Registry("model", "context_encoder.models", "context_encoder.models")

#: A network's name, as a type of pydantic's.
ModelName = Annotated[str, NameIn(MODELS)]


def register_model(
    name: str,
    *,
    summary: str,
    image_size: int,
    fixed: Mapping[str, Any] | None = None,
    options: type[OptionGroup] = OptionGroup,
    bottleneck_options: tuple[str, ...] = (),
    whole: bool = True,
    min_batch: int = 1,
    data_processes: bool = True,
    features_default: bool = False,
    presets: Mapping[str, Preset] | None = None,
    aliases: tuple[str, ...] = (),
    default: bool = False,
) -> Callable[[Network], Network]:
    """Decorator that registers a subclass of :class:`ContextEncoder`.

    The class is called with the side of its square input in pixels, ``fixed``, and the values of
    ``options``, as keywords but the first.

    Args:
        name: its name; several may stand for one class.
        summary: one line for people.
        image_size: the default, in pixels. ``check_image_size`` of the class says which others
            it takes.
        fixed: arguments of the class that the name itself decides.
        options: those that a training run may choose; each becomes one of the command line's.
            Other arguments of the class are for :func:`build_model` only.
        bottleneck_options: those of them that concern what follows the encoder, and do nothing
            for a pretext that trains the encoder alone.
        whole: whether it predicts the whole image, rather than a square in the middle.
        min_batch: the smallest batch that it can train on; 2 for one that normalises over it.
        data_processes: whether it trains so long that processes that load photographs pay.
        features_default: whether it is the network to take features from where none is named.
        presets: recipes for training. The first whose pretext is the one asked for is what
            ``--model`` stands for; failing that, the first.
        aliases: former names.
        default: whether it is the network to train where none is named.

    Raises:
        RegistryError: the name is taken.
    """

    def register(network: Network) -> Network:
        spec = ModelSpec(
            network,
            image_size,
            summary,
            fixed or {},
            options,
            bottleneck_options,
            whole,
            min_batch,
            data_processes,
            features_default,
            presets or {},
        )
        MODELS.add(name, spec, definition=network, aliases=aliases, default=default)
        return network

    return register


def default_features_model() -> str:
    """The network to take features from where none is named."""
    return MODELS.names(lambda spec: spec.features_default)[0]


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
    spec = MODELS.find(name)
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise TypeError(
            f"model {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options: {', '.join(spec.options)}"
        )
    size = spec.image_size if image_size is None else image_size
    check_image_size(name, size)
    network = spec.network(size, **spec.fixed, **options)
    if spec.whole != (network.output_region == (0, 0, size, size)):
        raise ValueError(
            f"model {name!r} is registered with whole={spec.whole}, but predicts the region "
            f"{network.output_region} of {size} pixels; correct its registration in "
            f"{MODELS.source(MODELS.canonical(name))}"
        )
    return network


def default_image_size(name: str) -> int:
    """Side in pixels of the square input that a name stands for; ValueError if unknown."""
    return MODELS.find(name).image_size


def check_image_size(name: str, size: int) -> None:
    """Check, before anything is built, that a network can take images of ``size`` pixels.

    Raises:
        ValueError: it cannot (the message names sizes that it can), or the name is unknown.
    """
    try:
        MODELS.find(name).check_size(size)
    except ValueError as error:
        if name not in MODELS:
            raise
        raise ValueError(f"model {name!r}: {error}") from None
