"""The torch.library namespace of the package: ``torch.ops.cekernels``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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

    ``Library.define`` and ``impl`` rather than ``custom_op``: a call costs a quarter of it.
    """
    name = schema.partition("(")[0]
    qualified = f"cekernels::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device type, or None where it is off."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None
