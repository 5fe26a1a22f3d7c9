"""The implementations of cekernels as providers, the same for every op."""

from __future__ import annotations

from typing import Any

from bench.harness import UnavailableError
from cekernels import _dispatch


def implementations() -> tuple[str, ...]:
    """ "auto" and the implementations that this machine has."""
    return ("auto", *(name for name in _dispatch.IMPLS[1:] if _dispatch.load(name)[0]))


def is_implementation(provider: str) -> bool:
    return provider in _dispatch.IMPLS


def chosen(op: str, provider: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """For "auto" which implementation serves the call.

    Raises:
        UnavailableError: a forced one cannot serve it.
    """
    if provider == "auto":
        return {"chosen": _dispatch.select(op, "auto", args)}
    reason = _dispatch.why_not(op, provider, args)
    if reason:
        raise UnavailableError(reason)
    return {}
