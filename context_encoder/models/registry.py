"""Networks by name, ``build_model("alexnet")``; :func:`register_model` adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from context_encoder.models.base import ContextEncoder, InpaintingNetwork, Network
from context_encoder.utils.option_groups import OptionGroup, Preset
from context_encoder.utils.registry import NameIn, Registry

Kind = TypeVar("Kind", bound=type[InpaintingNetwork])


@dataclass(frozen=True)
class ModelSpec:
    """An entry of the registry; see :func:`register_model`."""

    network: type[InpaintingNetwork]
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
        """Names of the class's options that the entry does not fix."""
        parameters = inspect.signature(self.network).parameters
        return tuple(p for p in parameters if p != "image_size" and p not in self.fixed)

    @property
    def gives_features(self) -> bool:
        """Whether its encoder works alone: for features, transfers and other pretexts."""
        return issubclass(self.network, ContextEncoder)

    @property
    def sees_color(self) -> bool:
        """Whether holes are shown to it in one colour."""
        return self.network.inputs is Network.inputs

    @property
    def check_size(self) -> Callable[[int], None]:
        """A function that raises ValueError for image sizes that the class cannot handle."""
        return self.network.check_image_size


#: The networks.
MODELS: Registry[ModelSpec] = Registry("model", "context_encoder.models", "context_encoder.models")

#: The name of a network, as a pydantic type.
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
) -> Callable[[Kind], Kind]:
    """Decorator that registers a subclass of :class:`InpaintingNetwork`.

    Most are a :class:`ContextEncoder`; features and transfers need one.

    The class is called with the side of its square input in pixels, and with ``fixed`` and the
    values of ``options`` as keywords.

    Args:
        name: its name; a class may have several.
        summary: a description in one line.
        image_size: the default, in pixels. ``check_image_size`` of the class decides about other
            sizes.
        fixed: arguments of the class that the name determines.
        options: options of a training run; each becomes an option of the command line.
            Other arguments of the class are for :func:`build_model` only.
        bottleneck_options: the options that concern the parts after the encoder, and have no
            effect for a pretext that trains the encoder alone.
        whole: whether it predicts the whole image, rather than a square in the middle.
        min_batch: the smallest batch size for training; 2 if it normalises over the batch.
        data_processes: whether steps take so long that separate data processes are worthwhile.
        features_default: whether features are taken from it when no network is named.
        presets: its presets for training. ``model`` selects the first with the chosen pretext,
            or else the first.
        aliases: former names.
        default: whether it is trained when neither a network nor a preset is named.

    Raises:
        RegistryError: the name is taken.
    """

    def register(network: Kind) -> Kind:
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
    """The network for feature extraction when none is named."""
    return MODELS.names(lambda spec: spec.features_default)[0]


def build_model(name: str, *, image_size: int | None = None, **options: Any) -> InpaintingNetwork:
    """Build a network with fresh weights, drawn from PyTorch's default generator.

    Args:
        name: a key of :data:`MODELS`.
        image_size: side of its square input in pixels; None for the default of the name.
        options: options of the class, see :attr:`ModelSpec.options`.

    Raises:
        ValueError: the name is unknown, or the size or an option's value does not fit.
        TypeError: the network does not have an option.
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
    try:
        network = spec.network(size, **spec.fixed, **options)
    except ValueError as error:
        # Raised anew here: what a package's own network refuses is wrong use, not a bug.
        raise ValueError(str(error)) from error
    if spec.whole != (network.output_region == (0, 0, size, size)):
        raise ValueError(
            f"model {name!r} is registered with whole={spec.whole}, but predicts the region "
            f"{network.output_region} of {size} pixels; correct its registration in "
            f"{MODELS.source(MODELS.canonical(name))}"
        )
    return network


def build_context_encoder(
    name: str, *, image_size: int | None = None, **options: Any
) -> ContextEncoder:
    """:func:`build_model` for a network whose encoder works alone, as features need it.

    Raises:
        ValueError, TypeError: as :func:`build_model`; also for networks that need the mask.
    """
    network = build_model(name, image_size=image_size, **options)
    if not isinstance(network, ContextEncoder):
        others = ", ".join(MODELS.names(lambda spec: spec.gives_features))
        raise ValueError(
            f"model {name!r} fills holes and gives no features: its encoder needs the mask; "
            f"there are {others}"
        )
    return network


def default_image_size(name: str) -> int:
    """Default side of a network's square input in pixels; ValueError if the name is unknown."""
    return MODELS.find(name).image_size


def check_image_size(name: str, size: int) -> None:
    """Check, before anything is built, that a network can handle images of ``size`` pixels.

    Raises:
        ValueError: it cannot (the message names suitable sizes), or the name is unknown.
    """
    try:
        MODELS.find(name).check_size(size)
    except ValueError as error:
        if name not in MODELS:
            raise
        raise ValueError(f"model {name!r}: {error}") from None
