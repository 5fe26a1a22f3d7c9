"""Numerical self-test of GPU kernels, before ``impl="auto"`` selects them.

GPU kernels depend on more than this package: the driver, Triton's compiler and the C compiler that
it calls, the architectures that a library was built for. Before its first use on a device, each op
therefore runs once on small inputs and must reproduce, bit for bit, the result of the reference in
float64 on the CPU; the inputs are small integers, whose sums every dtype represents exactly. The
test costs one synchronization and Triton's compile time, and is impossible while a CUDA graph is
captured: :func:`cekernels.warm_up` runs all tests before. Forced implementations are not tested.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cekernels import _backends
from cekernels._backends import ImplementationError
from cekernels.reference.masked_loss import accumulation_dtype

if TYPE_CHECKING:
    from cekernels._register import Op

# CPU kernels need no self-test: the package's tests run the same code as its users.
DEVICES = ("cuda",)

_outcomes: dict[tuple[str, str, torch.device], str | None] = {}


def failure(op: Op, name: str, device: torch.device) -> str | None:
    """Reason why ``impl="auto"`` may not use ``name`` for ``op`` on ``device``; None if it may.

    The result is cached, and a failure is reported once, as a RuntimeWarning.

    Raises:
        ImplementationError: it has not been tested, and a CUDA graph is being captured.
    """
    if device.type not in DEVICES or name == "reference":
        return None
    key = (op.name, name, device)
    if key not in _outcomes:
        if device.type == "cuda" and capturing():
            # To go on with the reference would make it a part of the graph without a word.
            raise ImplementationError(
                f'{op.name}: impl="auto" has not tested {name} on {device} yet, and cannot while a '
                f'CUDA graph is captured; call cekernels.warm_up("{device}") before the capture'
            )
        reason = _outcomes[key] = _check(op, name, device)
        if reason is not None:
            warnings.warn(
                f'cekernels: impl="auto" does not use {name} for {op.name} on {device}: {reason}',
                RuntimeWarning,
                stacklevel=2,
            )
    return _outcomes[key]


def capturing() -> bool:
    """Whether the current stream is being captured in a CUDA graph."""
    return bool(torch.cuda.is_current_stream_capturing())


@contextlib.contextmanager
def _waiting_allowed(device: torch.device) -> Iterator[None]:
    """Synchronization allowed, whatever ``torch.cuda.set_sync_debug_mode`` was set to."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _check(op: Op, name: str, device: torch.device) -> str | None:
    try:
        kernel = _backends.kernel(op, name)
        if kernel is None:
            return f"{name} has no {op.name}"
        with torch.no_grad(), _waiting_allowed(device):
            for case, dtype in itertools.product(op.check, (torch.float32, torch.bfloat16)):
                arguments = case()
                truth = _results(op.reference, [_to(a, torch.float64) for a in arguments])
                given = [_to(a, dtype, device) for a in arguments]
                if _backends.why_not(op, name, tuple(given)) is not None:
                    continue
                for ours, exact in zip(_results(kernel, given), truth, strict=True):
                    if not torch.equal(ours.cpu().to(exact.dtype), exact):
                        return f"it gives wrong results in {str(dtype).removeprefix('torch.')}"
    except torch.OutOfMemoryError:
        raise  # no verdict on the implementation: tested again at its next use
    except Exception as error:  # missing compiler, failed launch: any error counts
        return f"{type(error).__name__}: {error}"
    return None


def _to(value: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """A copy of a tensor: floating point as ``dtype``, scalars as its accumulation dtype."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        dtype = value.dtype
    elif value.dim() == 0:
        dtype = accumulation_dtype(dtype)
    return value.to(device, dtype, copy=True)


def _results(kernel: Callable[..., Any], arguments: list[Any]) -> tuple[Tensor, ...]:
    result = kernel(*arguments)
    if result is None:  # an op that works in place
        return (arguments[0],)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def numbers(*shape: int, start: int = 0) -> Tensor:
    """Tensor of -1, 0 and 1 in an irregular order, float64, for the arguments of a self-test."""
    count = torch.arange(start, start + torch.Size(shape).numel())
    return ((count * count + count // 3 + count // 7) % 3 - 1).double().view(shape)
