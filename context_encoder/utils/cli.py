"""Command lines of configurations: tyro reads types, pydantic checks values, in our own words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from context_encoder.utils.options import explain

Config = TypeVar("Config", bound=BaseModel)


def arguments_of(
    kind: type[BaseModel],
    default: BaseModel | None = None,
    *,
    summary: str | None = None,
    extra: Sequence[tuple[str, Any, str]] = (),
) -> type:
    """What tyro parses for a configuration: the types of its fields alone, and their help.

    Args:
        kind: the configuration.
        default: what the defaults are taken from; None for those of ``kind``.
        summary: help of the whole; None for the docstring of ``kind``.
        extra: name, type and help of options beside it, None by default.
    """
    fields: list[Any] = []
    for name, field in kind.model_fields.items():
        hint: Any = Annotated[field.annotation, tyro.conf.arg(help=field.description)]
        if default is not None:
            fields.append((name, hint, dataclasses.field(default=getattr(default, name))))
        elif field.is_required():
            fields.append((name, hint))
        else:
            fields.append((name, hint, dataclasses.field(default=field.default)))
    for name, type_, text in extra:
        hint = Annotated[type_ | None, tyro.conf.arg(help=text)]
        fields.append((name, hint, dataclasses.field(default=None)))
    namespace = {"__doc__": summary or kind.__doc__}
    return dataclasses.make_dataclass("Arguments", fields, namespace=namespace, kw_only=True)


def parse_config(
    kind: type[Config],
    prog: str,
    arguments: Sequence[str] | None,
    default: Config | None = None,
) -> Config:
    """The configuration that a command line asks for.

    Args:
        kind: its class.
        prog: the command, for the help.
        arguments: the words; None for those of the process.
        default: the defaults; None for those of ``kind``.

    Raises:
        ValueError: values that are out of range or do not go together, one sentence for each.
    """
    parsed: Any = tyro.cli(arguments_of(kind, default), prog=prog, args=arguments)
    try:
        return kind(**{name: getattr(parsed, name) for name in kind.model_fields})
    except ValidationError as error:
        raise ValueError("; ".join(explain(error))) from None
