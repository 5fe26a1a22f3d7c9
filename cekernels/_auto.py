"""Implementation selection for ``impl="auto"``.

On the CPU, torch's dispatcher selects: the C++ library registers its kernels under the CPU key, and
the reference runs if that library is not loaded. On CUDA, :func:`run` selects.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cekernels import _selfcheck
from cekernels._backends import ImplementationError, device_of, kernel, why_not
from cekernels._precision import float32_products
from cekernels._predicted import MICROSECONDS

if TYPE_CHECKING:
    from cekernels._register import Op

# Order of preference per device type: the first implementation that can handle the call is taken;
# the reference can handle every call. On CUDA an op must first pass its self-test, and predictions
# come before this order.
ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
# Times within this factor count as equal. That of the reference is a bound without the inefficiency
# of small products, so that only what is slower by more than the second factor is left out for it.
SAME, SLOWER = 1.05, 1.25
# Maps of so many locations, in and out, have kernels of their own in csrc/cuda, to which the
# predictions apply. For others it multiplies in float32 without tensor cores.
TILED = (16, 36, 64)


def kind_of(op: Op, args: tuple[Any, ...]) -> str:
    """The key of MICROSECONDS for a call: the op, and for products the kind of them."""
    if not op.name.startswith("channelwise_linear"):
        return op.name
    dtype = args[0].dtype
    if dtype == torch.float64:
        return f"{op.name} float64"
    return f"{op.name} {float32_products() if dtype == torch.float32 else '16 bit'}"


def by_prediction(times: dict[str, float]) -> tuple[str, ...]:
    """Implementations in the order of their predicted times; the slow ones are left out."""
    bound = times.get("reference", float("inf"))
    names = [n for n in ORDER["cuda"] if n in times and n != "reference"]
    fastest = min(times[n] for n in names)
    # Of equal ones that which ORDER names first: its launches cost the host less.
    names.sort(key=lambda n: times[n] if times[n] > SAME * fastest else 0)
    return (*(n for n in names if times[n] <= SLOWER * bound), "reference")


def order(op: Op, args: tuple[Any, ...], device: torch.device) -> tuple[str, ...]:
    """Implementations for a call, the preferred one first."""
    if device.type == "cuda" and args and isinstance(args[0], Tensor):
        kind = kind_of(op, args)
        if kind in MICROSECONDS:
            if op.name.startswith("channelwise_linear") and not _tiled(op, args):
                return ("cuda" if kind.endswith("ieee") else "triton", "reference")
            return _predicted_order(kind)
    return ORDER.get(device.type, ("reference",))


@functools.cache  # for a call that takes microseconds
def _predicted_order(kind: str) -> tuple[str, ...]:
    return by_prediction(MICROSECONDS[kind])


def _tiled(op: Op, args: tuple[Any, ...]) -> bool:
    """Whether the maps of a call of the channel-wise layer, or of its gradient, are in TILED."""
    weight: Tensor = args[1 if op.name == "channelwise_linear" else 2]
    return weight.shape[1] == weight.shape[2] and weight.shape[1] in TILED


def selected(op: Op, args: tuple[Any, ...]) -> str:
    """Name of the implementation that ``impl="auto"`` uses for ``op(*args)``."""
    device = device_of(args)
    for name in order(op, args, device):
        if why_not(op, name, args) is None and _selfcheck.failure(op, name, device, args) is None:
            return name
    raise ImplementationError(f"{op.name}: no implementation can handle a call on {device}")


def run(op: Op, *args: Any) -> Any:
    """CUDA kernel of ``impl="auto"``: run the selected implementation."""
    function = kernel(op, selected(op, args))
    assert function is not None
    return function(*args)
