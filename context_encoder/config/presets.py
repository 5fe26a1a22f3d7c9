"""Training presets by name. Each is defined in the file of a model, mask or pretext."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from context_encoder.config.pretexts import PRETEXTS
from context_encoder.masks import MASKS
from context_encoder.models import MODELS, Preset
from context_encoder.utils.registry import NameIn, RegistryError


class Presets(Mapping[str, Preset]):
    """The presets of all models, masks and pretexts.

    Lookups raise RegistryError if two different presets have the same name.
    """

    def _all(self) -> dict[str, Preset]:
        found: dict[str, tuple[Preset, str]] = {}
        for registry in (MODELS, MASKS, PRETEXTS):
            for owner, spec in registry.items():
                for name, preset in spec.presets.items():
                    where = f"{registry.noun} {owner!r} ({registry.source(owner)})"
                    first, there = found.setdefault(name, (preset, where))
                    if first is not preset:
                        raise RegistryError(
                            f"preset {name!r} is defined twice, with {there} and with {where}; "
                            "rename one of them"
                        )
        return {name: preset for name, (preset, _) in found.items()}

    def __getitem__(self, name: str) -> Preset:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def default(self) -> str:
        """The preset of a run without options.

        Raises:
            RegistryError: two presets claim to be it.
        """
        found = [name for name, preset in self._all().items() if preset.default]
        if len(found) != 1:
            raise RegistryError(f"one preset must be the default, these are: {', '.join(found)}")
        return found[0]

    def canonical(self, name: str) -> str:
        """The name itself; ValueError if it is unknown."""
        if name not in self:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(self)}")
        return name


PRESETS = Presets()

#: The name of a preset, as a pydantic type.
PresetName = Annotated[str, NameIn(PRESETS)]


def default_preset(model: str | None = None, pretext: str | None = None) -> str:
    """The preset for a network and a pretext; None (or an unknown name) means not chosen.

    Without a network, it is that of a run without options if this has the pretext. Otherwise
    the first match is used: a preset of the network (or else of the default network) with this
    pretext, a preset of the pretext for this network, then the first preset of the network. A
    network without presets has that of the default network.
    """
    if not pretext or pretext not in PRETEXTS:
        pretext = PRETEXTS.default()
    pretext = PRETEXTS.canonical(pretext)
    if not model or model not in MODELS:
        name = PRESETS.default()
        if PRESETS[name].values.get("pretext", PRETEXTS.default()) == pretext:
            return name
        model = MODELS.default()
    model = MODELS.canonical(model)
    own = MODELS[model].presets
    brought = {
        name: preset
        for name, preset in PRETEXTS[pretext].presets.items()
        if preset.values.get("model") == model
    }
    for name, preset in {**own, **brought}.items():
        if preset.values.get("pretext", PRETEXTS.default()) == pretext:
            return name
    return next(iter(own or MODELS[MODELS.default()].presets))
