"""Numerical self-test of GPU kernels, before ``impl="auto"`` selects them.

GPU kernels depend on more than this package: the driver, Triton's compiler and the C compiler that
it calls, the architectures that a library was built for. Before the first call of each *kind* on a
device, an op therefore runs on small inputs of that kind and must reproduce, bit for bit, the
result of the reference in float64 on the CPU; the inputs are small integers, or multiples of a
power of two, whose sums every dtype represents exactly. A kind is what selects a kernel, or a path
in it: dtype, layout in memory, number of locations and precision of the products (:class:`Kind`).

A test takes milliseconds and one synchronization; Triton's, its compile time, of kernels that the
call needs as well. It is impossible while a CUDA graph is captured: :func:`cekernels.warm_up` runs
the tests before. Forced implementations are not tested.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cekernels import _backends
from cekernels._backends import ImplementationError

if TYPE_CHECKING:
    from cekernels._register import Op

# CPU kernels need no self-test: the package's tests run the same code as its users.
DEVICES = ("cuda",)

CONTIGUOUS, CHANNELS_LAST, OTHER = "contiguous", "channels_last", "other strides"


class Kind(NamedTuple):
    """What selects the kernel of a call, or a path in it. Each op uses the fields that it needs."""

    dtype: torch.dtype = torch.float32
    layout: str = CONTIGUOUS  # of all operands
    mask: torch.dtype = torch.bool
    locations: tuple[int, ...] = ()  # of the maps: in, out
    products: str = ""  # of float32

    def __str__(self) -> str:
        parts = [str(self.dtype).removeprefix("torch."), self.layout]
        if self.mask != torch.bool:
            parts.append(f"masks of {str(self.mask).removeprefix('torch.')}")
        if self.locations:
            parts.append(f"{' to '.join(map(str, self.locations))} locations")
        return ", ".join([*parts, self.products] if self.products else parts)


@dataclass(frozen=True)
class SelfTest:
    """The self-test of an op.

    Args:
        cases: the arguments of the calls that test a kind, on the CPU, contiguous, in its dtypes.
            Where its layout asks for it, they are brought into that before the call.
        kind: the kind of a call, from its arguments.
        usual: the kinds for :func:`cekernels.warm_up`, from dtypes and from numbers of locations
            (in, out); the first one for given arguments is the plainest.
    """

    cases: Callable[[Kind], Sequence[tuple[Any, ...]]]
    kind: Callable[..., Kind] = lambda *_: Kind()
    usual: Callable[[Sequence[torch.dtype], Sequence[tuple[int, int]]], Iterable[Kind]] = (
        lambda *_: (Kind(),)
    )


_outcomes: dict[tuple[str, str, torch.device, Kind], str | None] = {}


def failure(op: Op, name: str, device: torch.device, arguments: tuple[Any, ...]) -> str | None:
    """Reason why ``impl="auto"`` may not use ``name`` for a call of ``op``; None if it may.

    Raises:
        ImplementationError: as :func:`failure_of_kind`.
    """
    if device.type not in DEVICES or name == "reference":
        return None
    return failure_of_kind(op, name, device, op.check.kind(*arguments))


def failure_of_kind(op: Op, name: str, device: torch.device, kind: Kind) -> str | None:
    """As :func:`failure`, for all calls of a kind.

    The result is cached, and a failure is reported once, as a RuntimeWarning.

    Raises:
        ImplementationError: the kind has not been tested, and a CUDA graph is being captured; or
            the test has made the device unusable.
    """
    key = (op.name, name, device, kind)
    if key not in _outcomes:
        if device.type == "cuda" and capturing():
            # To go on with the reference would make it a part of the graph without a word.
            sizes = f", locations=[{kind.locations}]" if kind.locations else ""
            raise ImplementationError(
                f'{op.name}: impl="auto" has not tested {name} on {device} for such a call yet '
                f"({kind}), and cannot while a CUDA graph is captured; run the call once, or call "
                f'cekernels.warm_up("{device}"{sizes}) before the capture'
            )
        reason = _outcomes[key] = _check(op, name, device, kind)
        if reason is not None:
            warnings.warn(
                f'cekernels: impl="auto" does not use {name} for {op.name} ({kind}) on {device}: '
                f"{reason}",
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


def synchronize(device: torch.device) -> None:
    """Wait for the device; raises the error of work that has failed on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check(op: Op, name: str, device: torch.device, kind: Kind) -> str | None:
    with torch.no_grad(), _waiting_allowed(device):
        synchronize(device)  # an error of earlier work is not that of this kernel
        try:
            return _difference(op, name, device, kind)
        except torch.OutOfMemoryError:
            raise  # no verdict on the implementation: tested again at its next use
        except Exception as error:  # missing compiler, failed launch: any error counts
            reason = f"{type(error).__name__}: {error}"
            try:
                synchronize(device)
            except Exception as left:
                # After, say, an access out of bounds every further call fails, wherever it is made.
                raise ImplementationError(
                    f"{op.name}: the self-test of {name} ({kind}) has made {device} unusable for "
                    f"this process ({reason}); start again with "
                    f"{_backends.ENVIRONMENT_VARIABLE}=reference, or without {name}"
                ) from left
            return reason


def _difference(op: Op, name: str, device: torch.device, kind: Kind) -> str | None:
    kernel = _backends.kernel(op, name)
    if kernel is None:
        return f"{name} has no {op.name}"
    for arguments in op.check.cases(kind):
        truth = _results(op.reference, [_double(a) for a in arguments])
        given = placed(arguments, kind, device)
        if _backends.why_not(op, name, tuple(given)) is not None:
            continue
        for ours, exact in zip(_results(kernel, given), truth, strict=True):
            if not torch.equal(ours.cpu().to(exact.dtype), exact):
                return f"it gives wrong results in {str(kind.dtype).removeprefix('torch.')}"
    return None


def _double(value: Any) -> Any:
    """A copy of a tensor, in float64 if it is floating point."""
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)


def placed(arguments: Sequence[Any], kind: Kind, device: torch.device | str) -> list[Any]:
    """Copies of arguments on a device, in the layout of the kind."""
    return [_placed(a, kind.layout, device) if isinstance(a, Tensor) else a for a in arguments]


def _placed(value: Tensor, layout: str, device: torch.device | str) -> Tensor:
    copy = value.to(device, copy=True)
    if layout == CHANNELS_LAST and copy.dim() == 4:
        return copy.contiguous(memory_format=torch.channels_last)
    if layout == OTHER and copy.dim() > 2:  # part of a larger tensor, not aligned
        larger = copy.new_zeros((*copy.shape[:-1], copy.shape[-1] + 3))
        return larger[..., 2:-1].copy_(copy)
    return copy


def layout_of(*tensors: Tensor | None) -> str:
    """The layout that all operands share; contiguous ones begin at a multiple of 16 bytes."""
    if all(t is None or (t.is_contiguous() and t.data_ptr() % 16 == 0) for t in tensors):
        return CONTIGUOUS
    for t in tensors:
        if t is not None and not (
            t.dim() == 4
            and t.is_contiguous(memory_format=torch.channels_last)
            and t.data_ptr() % 16 == 0
        ):
            return OTHER
    return CHANNELS_LAST


def _results(kernel: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    result = kernel(*arguments)
    if result is None:  # an op that works in place
        return (arguments[0],)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def numbers(*shape: int, start: int = 0) -> Tensor:
    """Tensor of -1, 0 and 1 in an irregular order, float64, for the arguments of a self-test."""
    count = torch.arange(start, start + torch.Size(shape).numel())
    return ((count * count + count // 3 + count // 7) % 3 - 1).double().view(shape)
