"""The private names of torch that this package uses: two, where no public one exists."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """True inside a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD.

    Neither uses the autograd formula of an op: torch.func refuses it, and forward-mode AD silently
    treats the output as a constant. No public function tells whether one of them is active.
    """
    level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return level >= 0 or torch._C._are_functorch_transforms_active()
