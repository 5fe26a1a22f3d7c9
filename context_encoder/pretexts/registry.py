"""Pretexts by name; :func:`register_pretext` adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from context_encoder.config.pretexts import PRETEXTS, PretextSpec
from context_encoder.pretexts.base import Pretext
from context_encoder.utils.option_groups import OptionGroup, Preset

Kind = TypeVar("Kind", bound=type[Pretext])

__all__ = ["PRETEXTS", "find_pretext", "register_pretext"]


def register_pretext(
    name: str,
    *,
    takes: str,
    gives: str,
    options: type[OptionGroup] = OptionGroup,
    uses: tuple[str, ...] = (),
    fills_holes: bool = False,
    whole_output: bool = False,
    encoder_only: bool = False,
    min_batch: int = 1,
    presets: Mapping[str, Preset] | None = None,
    aliases: tuple[str, ...] = (),
    default: bool = False,
) -> Callable[[Kind], Kind]:
    """Decorator that registers a subclass of :class:`Pretext`.

    Args:
        name: its name.
        takes, gives: input and output of the network, for the documentation.
        options: its options; each becomes an option of the command line.
        uses: the fields "mask", "fill" and "loss" of TrainConfig that have an effect on it; the
            others are refused.
        fills_holes: whether the network learns to fill holes, so that its runs can inpaint.
        whole_output: whether the network must predict the whole image.
        encoder_only: whether it trains the network's encoder alone.
        min_batch: the smallest batch size for training.
        presets: its presets for training.
        aliases: former names.
        default: whether it is used when no pretext is named.

    Raises:
        RegistryError: the name is taken.
    """

    def register(kind: Kind) -> Kind:
        spec = PretextSpec(
            kind,
            takes,
            gives,
            options,
            frozenset(uses),
            fills_holes,
            whole_output,
            encoder_only,
            min_batch,
            presets or {},
        )
        PRETEXTS.add(name, spec, definition=kind, aliases=aliases, default=default)
        return kind

    return register


def find_pretext(name: str) -> type[Pretext]:
    """The class for a name; ValueError if unknown."""
    kind: type[Pretext] = PRETEXTS.find(name).kind
    return kind
