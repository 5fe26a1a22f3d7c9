"""The self-tests of all ops at once, for programs that capture CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cekernels import _auto, _checks, _selfcheck
from cekernels._register import OPS

__all__ = ["warm_up"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def warm_up(
    device: torch.device | str | int | None = None,
    *,
    dtypes: Sequence[torch.dtype] = _DTYPES,
    locations: Sequence[int | tuple[int, int]] = _auto.TILED,
) -> None:
    """Run the self-tests that precede the first use of the ops on a GPU.

    ``impl="auto"`` tests a kernel before it first selects it for a kind of call (dtype, layout in
    memory, number of locations), which is impossible while a CUDA graph is captured. Call this
    before ``torch.cuda.graph``; then run the function to be captured once as well, as its own
    shapes may make Triton compile further kernels, and as it may call an op in a way that is not
    tested here: images or masks of other dtypes, operands in part contiguous and in part
    channels_last.

    Products of float32 are tested in the precision that PyTorch is set to at the time: call this
    again after ``torch.set_float32_matmul_precision``. Where the CUDA library serves the calls this
    takes seconds, most of them the reference's on the CPU; Triton compiles some 250 kernels, for
    minutes, once, and keeps them on disk. Fewer dtypes take less time.

    Args:
        device: a GPU; None for the current one. Other devices have no self-tests: nothing happens.
        dtypes: floating-point dtypes of images and maps.
        locations: of the maps of the channel-wise linear layer: a number ``N = H * W``, or
            ``(N_in, N_out)``.

    Raises:
        TypeError, ValueError: ``device`` is no device, or another argument has a wrong value.
        RuntimeError: a CUDA graph is being captured, or there is no such GPU.
    """
    sizes = [_sizes(n) for n in _sequence("locations", locations)]
    for dtype in _sequence("dtypes", dtypes):
        if dtype not in _DTYPES:
            raise ValueError(f"warm_up: dtypes must be floating-point dtypes, got {dtype!r}")
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
        for kind in op.check.usual(tuple(dtypes), sizes):
            call = _selfcheck.placed(op.check.cases(kind)[0], kind, chosen)
            _auto.selected(op, tuple(call))


def _sequence(name: str, value: object) -> Sequence[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"warm_up: {name} must be a sequence, got a {_checks.describe(value)}")
    return value


def _sizes(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, tuple) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"warm_up: locations must be numbers or (N_in, N_out), got {value!r}")
    n_in, n_out = (_checks.integer("warm_up", "locations", n, 1, 1 << 31) for n in sides)
    return n_in, n_out


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
