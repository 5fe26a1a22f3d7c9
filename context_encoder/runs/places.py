"""Paths in the configuration of a run: they stay valid when the run or a command starts elsewhere.

The configuration is stored with absolute paths. When it is read, a path that is gone is looked
for at the same place relative to the run folder, since a project may have been moved or copied as
a whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

__all__ = ["check_places", "found_again", "with_absolute_paths"]

Config = TypeVar("Config", bound=BaseModel)

# Paths that are written, not read.
_WRITTEN = ("out", "resume", "decoded_cache")
_PATTERN = re.compile(r"[{*?\[]")


def with_absolute_paths(config: Config) -> Config:
    """A copy whose paths are absolute; URLs, which are no paths, stay as they are."""
    paths = {name: value for name, value in config if isinstance(value, Path)}
    return config.model_copy(update={n: Path(os.path.abspath(p)) for n, p in paths.items()})


def found_again(config: Config, root: Path | None) -> Config:
    """A copy in which paths that are gone are replaced by those beside the moved run folder.

    Args:
        config: the configuration of a run, as it was stored.
        root: the run folder at its present place; None if unknown.
    """
    before = getattr(config, "out", None)
    if root is None or before is None:
        return config
    found = {}
    for name, place in _read(config):
        if _is_there(place) or place.is_absolute() != before.is_absolute():
            continue
        beside = Path(os.path.normpath(root / os.path.relpath(place, before)))
        if _is_there(beside):
            found[name] = beside
    return config.model_copy(update=found)


def check_places(config: BaseModel, given: Collection[str]) -> None:
    """Check that the paths of a run that is resumed are still there.

    Args:
        config: the configuration.
        given: the options that the command line names, which have errors of their own.

    Raises:
        FileNotFoundError: a path is gone; the message names the option for its new place.
    """
    for name, place in _read(config):
        if name not in given and not _is_there(place):
            raise FileNotFoundError(
                f"{place}, which the run uses, does not exist; name its new place with `{name}`"
            )


def _read(config: BaseModel) -> Iterator[tuple[str, Path]]:
    for name, value in config:
        if isinstance(value, Path) and name not in _WRITTEN:
            yield name, value


def _is_there(place: Path) -> bool:
    """Whether a path exists; of a pattern, whether the folder of its fixed part does."""
    text = str(place)
    fixed = _PATTERN.split(text)[0]
    return os.path.exists(place) or (fixed != text and os.path.isdir(os.path.dirname(fixed) or "."))
