"""The transfers by name; :func:`register_transfer` adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from context_encoder.transfer.backbone import BackboneConfig
from context_encoder.utils.registry import Registry

Run = TypeVar("Run", bound=Callable[[Any], int])


@dataclass(frozen=True)
class TransferSpec:
    """A transfer, a task to evaluate an encoder on; see :func:`register_transfer`."""

    config: type[BackboneConfig]
    run: Callable[[Any], int]
    summary: str
    data: str
    reports: str


#: The transfers.
TRANSFERS: Registry[TransferSpec] = Registry(
    "transfer", "context_encoder.transfer", "context_encoder.transfers"
)


def register_transfer(
    name: str, *, config: type[BackboneConfig], summary: str, data: str, reports: str
) -> Callable[[Run], Run]:
    """Decorator that registers the function of a transfer.

    It decorates a function that takes ``config`` and returns the exit status.

    Args:
        name: its name, the command of ``python -m context_encoder.transfer``.
        config: its options.
        summary: a description in one line.
        data, reports: its data and its metrics, for the documentation.

    Raises:
        RegistryError: the name is taken.
    """

    def register(run: Run) -> Run:
        TRANSFERS.add(name, TransferSpec(config, run, summary, data, reports), definition=run)
        return run

    return register
