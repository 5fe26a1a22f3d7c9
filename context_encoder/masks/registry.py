"""Kinds of mask by name; :func:`register_mask` adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from context_encoder.masks.base import MaskSampler
from context_encoder.utils.option_groups import OptionGroup, Preset
from context_encoder.utils.registry import NameIn, Registry

Maker = TypeVar("Maker", bound=Callable[..., MaskSampler])


@dataclass(frozen=True)
class MaskSpec:
    """An entry of the registry; see :func:`register_mask`."""

    make: Callable[..., MaskSampler]
    summary: str
    options: type[OptionGroup] = OptionGroup
    fixed_hole: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict)


#: The kinds of mask.
MASKS: Registry[MaskSpec] = Registry("mask", "context_encoder.masks", "context_encoder.masks")

#: The name of a kind of mask, as a pydantic type.
MaskName = Annotated[str, NameIn(MASKS)]


def register_mask(
    name: str,
    *,
    summary: str,
    options: type[OptionGroup] = OptionGroup,
    fixed_hole: bool = False,
    presets: Mapping[str, Preset] | None = None,
    aliases: tuple[str, ...] = (),
    default: bool = False,
) -> Callable[[Maker], Maker]:
    """Decorator that registers a kind of mask.

    It decorates a subclass of :class:`MaskSampler`, or a function that returns one. It is called
    with the side of the masks in pixels, the seed, and the values of ``options`` as keywords. The
    class gets the name as its ``kind``, unless it has one.

    Args:
        name: its name.
        summary: description of the missing part, for the documentation.
        options: its options; each becomes an option of the command line.
        fixed_hole: whether the hole is one square in the middle, the same for every sample. The
            class or function then takes ``hole`` too, its side in pixels (None for half of the
            mask's side).
        presets: its presets for training.
        aliases: former names.
        default: whether it is used when no mask is named.

    Raises:
        RegistryError: the name is taken.
    """

    def register(make: Maker) -> Maker:
        if isinstance(make, type) and not hasattr(make, "kind"):
            make.kind = name  # type: ignore[attr-defined]
        spec = MaskSpec(make, summary, options, fixed_hole, presets or {})
        MASKS.add(name, spec, definition=make, aliases=aliases, default=default)
        return make

    return register


def masks_without_files() -> list[str]:
    """The kinds of mask without required options, such as a folder."""
    return MASKS.names(lambda spec: not spec.options.required())


def masks_with_fixed_hole() -> list[str]:
    """The kinds of mask whose hole is the same for every sample."""
    return MASKS.names(lambda spec: spec.fixed_hole)


def build_mask_sampler(
    name: str, size: int, seed: int, *, hole: int | None = None, **options: Any
) -> MaskSampler:
    """Build a sampler by name.

    Args:
        name: one of :data:`MASKS`.
        size, seed: see :class:`MaskSampler`.
        hole: the side of the hole in pixels, for a kind of mask with a fixed hole.
        options: options of the kind, such as ``mask_folder``; see :attr:`MaskSpec.options`.

    Raises:
        ValueError: the kind is unknown, a required option is missing, or an option would have no
            effect.
        Errors of the kind's sampler.
    """
    spec = MASKS.find(name)
    if hole is not None and not spec.fixed_hole:
        fixed = ", ".join(map(repr, masks_with_fixed_hole()))
        raise ValueError(f"hole is for {fixed} masks and would do nothing for {name!r}")
    for option in options.keys() - spec.options.model_fields.keys():
        owners = [repr(other) for other, its in MASKS.items() if option in its.options.model_fields]
        raise ValueError(
            f"{option} is for {', '.join(owners) or 'no'} masks and would do nothing for {name!r}"
        )
    for option in spec.options.required():
        if options.get(option) is None:
            description = spec.options.model_fields[option].description
            raise ValueError(f"{name!r} masks need {option}: {description}")
    keywords = spec.options(**options).model_dump()
    if spec.fixed_hole:
        keywords["hole"] = hole
    try:
        return spec.make(size, seed, **keywords)
    except ValueError as error:
        # Raised anew here: what a package's own mask refuses is wrong use, not a bug.
        raise ValueError(str(error)) from error
