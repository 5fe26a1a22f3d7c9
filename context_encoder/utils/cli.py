"""Command lines of configurations: tyro reads types, pydantic checks values, in our own words."""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from context_encoder.utils.options import explain
from context_encoder.utils.registry import NameIn, Names

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
    for name, field in fields_of(kind).items():
        parsed = _parsed_type(Annotated[(field.annotation, None, *field.metadata)])
        hint: Any = Annotated[parsed, tyro.conf.arg(help=field.description)]
        if default is not None:
            fields.append((name, hint, dataclasses.field(default=getattr(default, name))))
        elif field.is_required():
            fields.append((name, hint))
        else:
            value = field.get_default(call_default_factory=True)
            fields.append((name, hint, dataclasses.field(default=value)))
    for name, type_, text in extra:
        hint = Annotated[type_ | None, tyro.conf.arg(help=text)]
        fields.append((name, hint, dataclasses.field(default=None)))
    namespace = {"__doc__": summary or kind.__doc__}
    return dataclasses.make_dataclass("Arguments", fields, namespace=namespace, kw_only=True)


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a configuration, the options of what is registered among them."""
    every = getattr(kind, "all_fields", None)
    return dict(kind.model_fields) if every is None else every()


def name_argument(names: Names, *, check: bool = True) -> PrimitiveConstructorSpec[str]:
    """In ``Annotated[str, ...]``, makes tyro take one of some names and list them in the help.

    Args:
        names: to choose from; aliases, which are accepted too, are not listed.
        check: whether tyro refuses other words, rather than what validates the value later.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda words: names.canonical(words[0]) if check else words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda name: [name],
    )


def _parsed_type(hint: Any) -> Any:
    """A field's type with :func:`name_argument` in the place of :class:`NameIn`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for extra in parts[1:]:
            if isinstance(extra, NameIn):
                return Annotated[parts[0], name_argument(extra.registry, check=False)]
        return _parsed_type(parts[0])
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_parsed_type, parts))
    if origin is tuple:
        return tuple[tuple(part if part is ... else _parsed_type(part) for part in parts)]  # type: ignore[misc]
    return hint


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
        return kind(**{name: getattr(parsed, name) for name in fields_of(kind)})
    except ValidationError as error:
        raise ValueError("; ".join(explain(error))) from None
