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
        TypeError, ValueError: ``device`` is no device.
        RuntimeError: a CUDA graph is being captured, or there is no such GPU.
    """
    if device is None:
        if not torch.cuda.is_available():
            return
        device = torch.cuda.current_device()
    chosen = _device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"warm_up: device {chosen}: this torch finds no CUDA device")
        if _selfcheck.capturing():
            raise RuntimeError(f"warm_up: device {chosen}: call it before a CUDA graph is captured")
        if ":" not in str(chosen):
            chosen = torch.device("cuda", torch.cuda.current_device())
        if chosen.index >= torch.cuda.device_count():
            raise RuntimeError(
                f"warm_up: device {chosen}: there are {torch.cuda.device_count()} GPUs"
            )
    if chosen.type not in _selfcheck.DEVICES:
        return
    for op in OPS.values():
        for name in _auto.ORDER.get(chosen.type, ()):
            if _backends.unavailable(name) is None and _backends.kernel(op, name) is not None:
                _selfcheck.failure(op, name, chosen)


def _device(device: torch.device | str | int) -> torch.device:
    wanted = 'None, a torch.device, its name ("cuda:0") or the number of a GPU'
    if isinstance(device, bool) or not isinstance(device, torch.device | str | int):
        raise TypeError(f"warm_up: device must be {wanted}, got a {type(device).__name__}")
    if not isinstance(device, int):
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"warm_up: device must be {wanted}, got {device!r}") from error
    if not 0 <= device < 128:
        raise ValueError(f"warm_up: device must be {wanted}, got {device}")
    return torch.device("cuda", device)
