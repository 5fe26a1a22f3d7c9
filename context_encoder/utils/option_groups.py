"""Options of one mask, model or pretext, and presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Need:
    """Options that do nothing unless another option has a suitable value."""

    #: The options that would have no effect.
    names: tuple[str, ...]
    #: The option that decides.
    decider: str
    #: Whether a value of that option is suitable.
    serves: Callable[[Any], bool]
    #: The suitable values in words.
    wanted: str


class OptionGroup(BaseModel):
    """The options of one mask, model or pretext; a subclass adds the fields.

    Each field becomes an option of its own in a flat configuration, on the command line and in
    ``config.json``, so its name must be unique: begin it with the name of its owner. A
    group that several registrations share gives one option. Fields have a description, which is
    the help; a field without a default is required when its owner is chosen. Incompatible values
    are refused by pydantic's validators.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Further conditions for options in the group.
    needs: ClassVar[tuple[Need, ...]] = ()
    #: Options that may change when a run is resumed: paths, rates, weights of losses.
    free_on_resume: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """The options that must be given."""
        return tuple(name for name, field in cls.model_fields.items() if field.is_required())

    def changed_on_resume(self, before: OptionGroup) -> list[str]:
        """The options that differ from those of the run to be resumed but must not."""
        return [
            name
            for name in type(self).model_fields
            if name not in self.free_on_resume and getattr(self, name) != getattr(before, name)
        ]


@dataclass(frozen=True)
class Preset:
    """A named set of values that differ from the defaults of a training configuration."""

    values: dict[str, Any]
    #: Source of the values, for the documentation.
    source: str
    #: Whether it is that of a run without options.
    default: bool = False
