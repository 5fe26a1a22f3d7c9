"""Check of the fields that may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel


def check_unchanged(
    run: Path,
    before: BaseModel,
    after: BaseModel,
    free: Collection[str],
    also: Collection[str] = (),
) -> None:
    """Refuse to resume a run with a configuration that would change it.

    Args:
        run: folder of the run.
        before: configuration of the run.
        after: configuration to resume with, of the same class.
        free: the fields that may differ.
        also: further fields that the caller found to differ too much.

    Raises:
        ValueError: fields differ that must not; the message names them.
    """
    names = [
        name
        for name in type(before).model_fields
        if name not in free and getattr(after, name) != getattr(before, name)
    ]
    changed = [f"`{name}`" for name in dict.fromkeys((*names, *also))]
    if changed:
        raise ValueError(
            f"`resume` continues {run} as it began, but {', '.join(changed)} would change it; "
            "leave that out, or start a new run"
        )
