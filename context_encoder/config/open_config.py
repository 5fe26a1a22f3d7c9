"""Flat configurations whose fields include the options of registered classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from context_encoder.utils.option_groups import Need, OptionGroup
from context_encoder.utils.registry import Registry, RegistryError

Group = TypeVar("Group", bound=OptionGroup)


class OpenConfig(BaseModel):
    """A configuration that includes the options of registered masks, models or pretexts.

    Its own fields are declared as usual. The options of registered classes, our own and those of
    other packages, are further attributes: ``config.mask_folder``. They are validated with
    their group if its owner is chosen; otherwise they are refused, unless they have their
    default. :meth:`options` returns them as the typed group.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    #: The field (or tuple of names) that chooses from each registry.
    selectors: ClassVar[Mapping[str, Registry[Any]]] = {}
    #: Conditions between the fields.
    needs: ClassVar[tuple[Need, ...]] = ()

    @classmethod
    @abstractmethod
    def chosen(cls, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Pairs of a selector and the name that the values choose; invalid choices are left
        out."""

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values to validate: the given ones and those that they imply."""
        return dict(values)

    @classmethod
    def group_of(cls, selector: str, name: str) -> type[OptionGroup]:
        """The options of a selector's choice."""
        spec = cls.selectors[selector][name]
        group: type[OptionGroup] = getattr(spec, "train_options", None) or spec.options
        return group

    @classmethod
    def owners(cls) -> dict[str, list[tuple[str, str]]]:
        """Each option with its owners, as pairs of a selector and a name.

        Raises:
            RegistryError: different options have the same name.
        """
        found: dict[str, list[tuple[str, str]]] = {}
        fields: dict[str, FieldInfo] = {}
        for selector, choices in cls.selectors.items():
            for name in choices:
                for field_name, field in cls.group_of(selector, name).model_fields.items():
                    where = f"{choices.noun} {name!r} ({choices.source(name)})"
                    if field_name in cls.model_fields:
                        raise RegistryError(
                            f"option {field_name!r} of {where} is one of {cls.__name__} already; "
                            "rename it"
                        )
                    first = fields.setdefault(field_name, field)
                    if (first.annotation, first.default) != (field.annotation, field.default):
                        other = found[field_name][0]
                        there = cls.selectors[other[0]]
                        raise RegistryError(
                            f"option {field_name!r} is defined by {there.noun} {other[1]!r} "
                            f"({there.source(other[1])}) and, differently, by {where}; rename one"
                        )
                    found.setdefault(field_name, []).append((selector, name))
        return found

    @classmethod
    def all_fields(cls) -> dict[str, FieldInfo]:
        """Its own fields, followed by the options of registered classes.

        An option that is required when its owner is chosen has the default None here.
        """
        fields = dict(cls.model_fields)
        for name, owners in cls.owners().items():
            field = cls.group_of(*owners[0]).model_fields[name]
            annotation: Any = field.annotation
            default = field.get_default(call_default_factory=True)
            if field.is_required():
                annotation, default = annotation | None, None
            fields[name] = FieldInfo(
                annotation=annotation,
                default=default,
                description=f"{(field.description or '').rstrip('.')} ({cls._for(owners)}).",
            )
        return fields

    @classmethod
    def _for(cls, owners: list[tuple[str, str]]) -> str:
        """The choices that an option belongs to, as a selector and its values."""
        selector = owners[0][0]
        names = [name for other, name in owners if other == selector]
        return f"`{selector}` {in_words(names)}"

    def options(self, group: type[Group]) -> Group:
        """The values of a group's options."""
        return group(**{name: getattr(self, name) for name in group.model_fields})

    @classmethod
    def idle_options(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """The options that would have no effect, each with the reason.

        Args:
            values: values of a configuration, validated or not; defaults replace missing ones.
        """
        idle: dict[str, str] = {}
        chosen = cls.chosen(values)
        for name, owners in cls.owners().items():
            if not set(owners) & set(chosen):
                selector = owners[0][0]
                has = in_words([other for key, other in chosen if key == selector])
                if has:
                    idle[name] = f"needs {cls._for(owners)}, this run has `{selector}` {has}"
        needs = [*cls.needs, *(n for pair in chosen for n in cls.group_of(*pair).needs)]
        for need in needs:
            decider = need.decider
            value = values.get(decider, cls.default_of(decider))
            if not need.serves(value):
                for name in need.names:
                    idle.setdefault(
                        name,
                        f"needs `{decider}` {need.wanted}, this run has `{decider}` {value}",
                    )
        return idle

    @classmethod
    def default_of(cls, name: str) -> Any:
        """The default of a field or an option."""
        if name in cls.model_fields:
            return cls.model_fields[name].get_default(call_default_factory=True)
        return cls.all_fields()[name].default

    @model_validator(mode="wrap")
    @classmethod
    def _with_options(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Validate the options of the chosen owners, and refuse those of the others."""
        if not isinstance(values, dict):
            return handler(values)
        values = cls.completed(values)
        owners = cls.owners()
        errors: list[InitErrorDetails] = []
        fields = cls.all_fields()
        options = {name: fields[name].default for name in owners}
        chosen = cls.chosen(values)
        for selector, name in chosen:
            group = cls.group_of(selector, name)
            given = {key: values[key] for key in group.model_fields if key in values}
            missing = [key for key in group.required() if given.get(key) is None]
            for key in missing:
                errors.append(
                    _value_error(
                        f"`{selector}` {name} needs `{key}`: {group.model_fields[key].description}"
                    )
                )
            if missing:
                continue
            try:
                options.update(dict(group(**given)))
            except ValidationError as error:
                errors += _details(error)
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        for name, value in values.items():
            if name not in own and name not in owners:
                errors.append(InitErrorDetails(type="extra_forbidden", loc=(name,), input=value))
        idle = cls.idle_options(values)
        for name, reason in idle.items():
            default = cls.default_of(name)
            if name in values and name not in own and values[name] not in (default, None):
                errors.append(_value_error(refusal(name, reason)))
        try:
            config = handler({**own, **options})
        except ValidationError as error:
            # After a wrong name, "would do nothing" may be reported by mistake.
            errors = [*_details(error), *(e for e in errors if e["type"] != "value_error")]
        if not errors:
            for name, reason in idle.items():
                if name in own and getattr(config, name) != cls.default_of(name):
                    errors.append(_value_error(refusal(name, reason)))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return config


def refusal(name: str, reason: str) -> str:
    """The sentence that refuses an idle option."""
    return f"`{name}` would do nothing: it {reason}; leave it out"


def in_words(names: list[str]) -> str:
    """Names as alternatives: "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _value_error(sentence: str) -> InitErrorDetails:
    return InitErrorDetails(
        type="value_error", loc=(), input=None, ctx={"error": ValueError(sentence)}
    )


def _details(error: ValidationError) -> list[InitErrorDetails]:
    """The errors of a validation, in the form in which another one can raise them."""
    return [
        InitErrorDetails(
            type=_kind(problem),
            loc=problem["loc"],
            input=problem["input"],
            ctx=problem.get("ctx", {}),
        )
        for problem in error.errors()
    ]


def _kind(problem: Any) -> str | PydanticCustomError:
    """The type of an error; that of errors which pydantic_core does not know, with their message,
    such as that of a path."""
    try:
        PydanticKnownError(problem["type"], problem.get("ctx"))
    except KeyError:
        return PydanticCustomError(problem["type"], problem["msg"])
    except TypeError:  # without its context
        pass
    return str(problem["type"])
