"""Which implementation serves a call, and why the others do not.

An implementation is a module of this package named after it. It has one function for each op
that it serves (the op's name and the arguments of the function of that name in
:mod:`cekernels.reference`) and two questions that it answers with a reason, or None for "can":

- ``unavailable() -> str | None``: can it run on this machine at all?
- ``unsupported(op, *args) -> str | None``: can it serve this call?
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from cekernels import _selfcheck, reference

Impl = Literal["auto", "reference", "cpp", "triton", "cuda"]
IMPLS: tuple[str, ...] = get_args(Impl)
ENVIRONMENT_VARIABLE = "CEKERNELS_IMPL"
# What "auto" stands for. Read once: looking into the environment costs as much as a small kernel.
DEFAULT = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"

# Where "auto" looks, the first that can serve; the reference serves everything. On the CPU the
# order is by measurement. On CUDA it is not yet: Triton comes first because every installation
# has it, and an op is taken only after it has passed its check on the device (_selfcheck).
AUTO_ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}


class ImplementationError(RuntimeError):
    """A forced implementation cannot serve the call; the message lists the reasons."""


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str | None]:
    """The module of an implementation and None, or None and why it is not to be had."""
    try:
        module = importlib.import_module(f"cekernels.{name}")
    except Exception as error:  # no such package, a library that does not load, another version
        return None, f"cannot be imported: {error}"
    reason = module.unavailable()
    return (None, reason) if reason else (module, None)


def why_not(op: str, name: str, args: tuple[Any, ...]) -> str | None:
    """Why implementation ``name`` cannot serve ``op(*args)``; None if it can."""
    module, reason = load(name)
    if module is None:
        return reason
    if not hasattr(module, op):
        return f"has no {op}"
    unsupported: str | None = module.unsupported(op, *args)
    return unsupported


def fails(op: str, name: str, device: torch.device) -> str | None:
    """Why "auto" must not take ``name`` for ``op`` on ``device`` though it says that it can."""
    module, reason = load(name)
    return reason if module is None else _selfcheck.failure(op, name, module, device)


def requested(impl: str) -> str:
    """The implementation asked for: the argument, or for "auto" the environment variable.

    Raises:
        ValueError: either names no implementation.
    """
    source = "impl"
    if impl == "auto":
        impl, source = DEFAULT, f"environment variable {ENVIRONMENT_VARIABLE}"
    if impl not in IMPLS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")
    return impl


def device_of(args: tuple[Any, ...]) -> torch.device:
    device: torch.device = args[0].device  # the first argument of every op is a tensor
    return device


def select(op: str, impl: str, args: tuple[Any, ...]) -> str:
    """The name of the implementation that serves ``op(*args)``.

    Raises:
        ImplementationError: a forced implementation cannot serve, with the reasons.
    """
    name = requested(impl)
    if name != "auto":
        reason = why_not(op, name, args)
        if reason:
            raise ImplementationError(f"{op}: impl={name!r} cannot serve this call: {reason}")
        return name
    device = device_of(args)
    for name in AUTO_ORDER.get(device.type, ("reference",)):
        if why_not(op, name, args) is None and fails(op, name, device) is None:
            return name
    raise ImplementationError(f"{op}: no implementation serves a call on {device}")


def call_transformed(op: str, impl: str, *args: Any) -> Any:
    """Run ``op`` where torch.func or forward-mode AD look through it: by the reference."""
    if requested(impl) not in ("auto", "reference"):
        raise ImplementationError(
            f"{op}: impl={requested(impl)!r} cannot serve this call: torch.func transforms and "
            "forward-mode AD are served by the reference alone"
        )
    return getattr(reference, op)(*args)


def call(op: str, impl: str, *args: Any) -> Any:
    """Run ``op`` by the implementation that ``impl`` selects."""
    module, _ = load(select(op, impl, args))
    return getattr(module, op)(*args)
