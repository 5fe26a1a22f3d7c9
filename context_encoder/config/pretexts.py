"""Pretexts by name: the properties that a configuration needs.

The files of :mod:`context_encoder.pretexts`, which depend on this one, register their classes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from context_encoder.utils.option_groups import OptionGroup, Preset
from context_encoder.utils.registry import NameIn, Registry


@dataclass(frozen=True)
class PretextSpec:
    """An entry of the registry; see :func:`context_encoder.pretexts.register_pretext`."""

    kind: type[Any]
    takes: str
    gives: str
    options: type[OptionGroup] = OptionGroup
    uses: frozenset[str] = frozenset()
    fills_holes: bool = False
    whole_output: bool = False
    encoder_only: bool = False
    min_batch: int = 1
    presets: Mapping[str, Preset] = field(default_factory=dict)


#: The pretexts.
PRETEXTS: Registry[PretextSpec] = Registry(
    "pretext", "context_encoder.pretexts", "context_encoder.pretexts"
)

#: The name of a pretext, as a pydantic type.
PretextName = Annotated[str, NameIn(PRETEXTS)]
