"""The two private names of torch used by this package, for which no public name exists."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """True inside a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD.

    Neither supports the autograd formula of an op: torch.func rejects it, and forward-mode AD
    silently treats the output as constant. No public function reports whether one is active.
    """
    level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return level >= 0 or torch._C._are_functorch_transforms_active()
