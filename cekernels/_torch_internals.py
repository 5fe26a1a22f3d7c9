"""The private names of torch used by this package, for which no public name exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import _decomp
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """True inside a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD.

    Neither supports the autograd formula of an op: torch.func rejects it, and forward-mode AD
    silently treats the output as constant. No public function reports whether one is active.
    """
    level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return level >= 0 or torch._C._are_functorch_transforms_active()


def dispatch_mode_active() -> bool:
    """True inside a TorchDispatchMode, such as those of tracers, whose tensors hold no values."""
    return torch._C._len_torch_dispatch_stack() > 0


def register_decomposition(
    overload: Any, decomposition: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Let ``torch.onnx.export`` replace an op by plain torch operations.

    The exporter has no public registry of translations; it translates what torch's table of
    decompositions gives. Fake tensors would take their shapes from there too, by running the whole
    decomposition, unless the table of meta functions has the op.
    """
    _decomp.decomposition_table[overload] = decomposition
    _decomp.meta_table[overload] = fake
