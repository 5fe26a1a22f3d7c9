"""Registries: names of masks, models, pretexts and transfers, and their entries.

A registry is filled on first use: it imports the modules of its own folder, and then those that
installed packages announce under its entry-point group. Each of those modules registers what
it defines; this is the only place where a name is written.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

log = logging.getLogger("context_encoder")

Entry = TypeVar("Entry")


class RegistryError(ValueError):
    """Two registrations conflict; the message names both."""


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Registered entries by name, in alphabetical order.

    Lookups accept aliases (former names, so that old configurations can be read); iteration
    leaves them out.

    Args:
        noun: noun for an entry, for messages.
        package: the package whose modules register our own entries.
        group: the entry-point group for other packages. An entry point names a module (or an
            object in it); loading it must register the entry.
    """

    def __init__(self, noun: str, package: str, group: str) -> None:
        self.noun = noun
        self.package = package
        self.group = group
        #: Packages whose entry point cannot be loaded, and why.
        self.failed: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._default = ""
        self._loaded = False

    def add(
        self,
        name: str,
        entry: Entry,
        *,
        definition: Any,
        aliases: tuple[str, ...] = (),
        default: bool = False,
    ) -> None:
        """Register an entry.

        Args:
            name: lower case, words joined by hyphens.
            entry: the entry.
            definition: the class or function that is registered, for messages about its source.
            aliases: former names.
            default: whether this entry is used when no name is given.

        Raises:
            RegistryError: the name is taken, or there is already a default.
        """
        source = f"{definition.__module__}.{definition.__qualname__}"
        for taken in (name, *aliases):
            owner = self._sources.get(taken, source)
            if owner != source:
                raise RegistryError(
                    f"{self.noun} {taken!r} is registered twice, by {owner} and by {source}; "
                    "rename one of them, or uninstall the package that it comes from"
                )
        if default and self._default not in ("", name):
            raise RegistryError(
                f"{self.noun} {self._default!r} is the default already, {source} cannot be it too"
            )
        self._default = name if default else self._default
        self._entries[name] = entry
        self._aliases.update(dict.fromkeys(aliases, name))
        self._sources.update(dict.fromkeys((name, *aliases), source))

    def default(self) -> str:
        """The name that is used when none is given."""
        self._load()
        return self._default

    def canonical(self, name: str) -> str:
        """The name for a name or an alias; ValueError if unknown."""
        if name not in self:
            hint = "".join(
                f"; the package {package} is installed, but does not load: {reason}"
                for package, reason in self.failed.items()
            )
            raise ValueError(f"there is no {self.noun} {name!r}; there are {', '.join(self)}{hint}")
        return self._aliases.get(name, name)

    def find(self, name: str) -> Entry:
        """The entry for a name or an alias; ValueError if unknown."""
        return self._entries[self.canonical(name)]

    def names(self, where: Callable[[Entry], bool]) -> list[str]:
        """The names of the entries for which ``where`` holds."""
        return [name for name, entry in self.items() if where(entry)]

    def only(self, names: Callable[[], list[str]]) -> Names:
        """A subset of the names, evaluated on use."""
        return _Some(self, names)

    def source(self, name: str) -> str:
        """Module and object under which a name was registered."""
        self._load()
        return self._sources[name]

    def __getitem__(self, name: str) -> Entry:
        self._load()
        return self._entries[self._aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # modules imported below may use the registry
        try:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{self.package}.{module.name}")
            for point in entry_points(group=self.group):
                package = point.dist.name if point.dist is not None else point.value
                try:
                    point.load()
                except RegistryError:
                    raise
                except Exception as error:  # other packages can raise anything
                    reason = f"{type(error).__name__}: {error}"
                    self.failed[package] = reason
                    log.warning(
                        "the package %s offers a %s (entry point %s = %s) that does not load, and "
                        "is passed over: %s",
                        *(package, self.noun, point.name, point.value, reason),
                    )
        except BaseException:
            self._loaded = False
            raise


class Names(Protocol):
    """A set of names to choose from."""

    def __iter__(self) -> Iterator[str]: ...

    def canonical(self, name: str) -> str:
        """The name for a name or an alias; ValueError if unknown."""


@dataclass(frozen=True)
class _Some:
    """A subset of a registry's names."""

    whole: Registry[Any]
    names: Callable[[], list[str]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def canonical(self, name: str) -> str:
        known = self.whole.canonical(name)
        if known not in self.names():
            raise ValueError(
                f"{self.whole.noun} {name!r} cannot be used here; choose one of "
                f"{', '.join(self.names())}"
            )
        return known


@dataclass(frozen=True)
class NameIn:
    """In ``Annotated[str, NameIn(registry)]``: a registered name; aliases become the name."""

    names: Names

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.names.canonical, handler(source))
