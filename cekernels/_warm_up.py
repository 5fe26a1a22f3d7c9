"""The self-tests of all ops at once, for programs that capture CUDA graphs."""

from __future__ import annotations

import torch

from cekernels import _auto, _backends, _selfcheck
from cekernels._register import OPS

__all__ = ["warm_up"]


def warm_up(device: torch.device | str | int | None = None) -> None:
    """Run the self-tests that precede the first use of every op on a GPU.

    ``impl="auto"`` tests each op before it selects a kernel, which is impossible while a CUDA graph
    is captured. Call this before ``torch.cuda.graph``; then run the function to be captured once
    as well, as its own shapes may make Triton compile further kernels. It takes seconds to a few
    minutes, as Triton compiles; results are kept for the process, and Triton's on disk.

    Args:
        device: a GPU; None for the current one. Other devices have no self-tests: nothing happens.

    Raises:
        RuntimeError: a CUDA graph is being captured, or there is no such GPU.
    """
    if device is None:
        if not torch.cuda.is_available():
            return
        device = torch.cuda.current_device()
    chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"warm_up: {chosen}: this torch finds no CUDA device")
        if _selfcheck.capturing():
            raise RuntimeError("warm_up: call it before a CUDA graph is captured")
        if ":" not in str(chosen):
            chosen = torch.device("cuda", torch.cuda.current_device())
    if chosen.type not in _selfcheck.DEVICES:
        return
    for op in OPS.values():
        for name in _auto.ORDER.get(chosen.type, ()):
            if _backends.unavailable(name) is None and _backends.kernel(op, name) is not None:
                _selfcheck.failure(op, name, chosen)
