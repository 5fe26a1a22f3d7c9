"""The torch.library namespace of the package: ``torch.ops.cekernels``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from cekernels import _dispatch

# One Library object for the life of the process: torch drops the ops with it.
_LIBRARY = torch.library.Library("cekernels", "DEF")


def define(
    schema: str,
    kernel: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register one op: schema, kernel for every device, shape function and autograd formula.

    The kernel runs with autocast off: the public function has applied its rule already, and a
    backward pass inside an autocast region must give what the shape function promises.

    ``Library.define`` and ``impl`` rather than ``custom_op``: a call costs a quarter of it.
    """

    def run(*args: Any) -> Any:
        if torch._C._is_any_autocast_enabled():
            with torch._C._DisableAutocast():
                return kernel(*args)
        return kernel(*args)

    name = schema.partition("(")[0]
    qualified = f"cekernels::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )


def transformed() -> bool:
    """If a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD is at work.

    Those go past the autograd formula of an op (forward-mode AD without a word: it takes the
    result for a constant), but straight through plain PyTorch.
    """
    dual_level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return torch._C._are_functorch_transforms_active() or dual_level >= 0


def call_op(name: str, impl: str, *args: Any) -> Any:
    """Call a registered op, or its reference where a transform has to look through it.

    Raises:
        ImplementationError: another implementation is forced under a transform.
    """
    if transformed():
        return _dispatch.call_transformed(name, impl, *args)
    return getattr(torch.ops.cekernels, name).default(*args, impl)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device type, or None where it is off."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None
