"""The implementations of cekernels as providers, shared by all ops."""

from __future__ import annotations

from typing import Any

from bench.harness import UnavailableError
from cekernels import _auto, _backends
from cekernels._register import OPS


def implementations() -> tuple[str, ...]:
    """ "auto" and the implementations available on this machine."""
    return ("auto", *(name for name in _backends.IMPLS[1:] if _backends.unavailable(name) is None))


def is_implementation(provider: str) -> bool:
    return provider in _backends.IMPLS


def chosen(op: str, provider: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """Implementation selected by "auto", as a value to record.

    Raises:
        UnavailableError: a forced implementation cannot handle the call.
    """
    if provider == "auto":
        return {"chosen": _auto.selected(OPS[op], args)}
    reason = _backends.why_not(OPS[op], provider, args)
    if reason:
        raise UnavailableError(reason)
    return {}
