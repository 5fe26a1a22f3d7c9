"""What may change in a run that goes on."""

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
    """Refuse to go on with a run as it did not begin.

    Args:
        run: its folder.
        before: its configuration.
        after: the configuration to go on with, of the same class.
        free: the fields that may differ.
        also: further fields that the caller has found to differ by more than they may.

    Raises:
        ValueError: names the fields.
    """
    changed = [
        f"`{name}`"
        for name in type(before).model_fields
        if name in also or (name not in free and getattr(after, name) != getattr(before, name))
    ]
    if changed:
        raise ValueError(
            f"`resume` continues {run} as it began, but {', '.join(changed)} would change it; "
            "leave that out, or start a new run"
        )
