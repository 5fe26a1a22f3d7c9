"""The implementation that ``impl="auto"`` selects.

On the CPU torch's dispatcher selects: the C++ library registers its kernels under the CPU key, and
the reference runs where that library is not loaded. On CUDA :func:`run` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cekernels import _selfcheck
from cekernels._backends import ImplementationError, device_of, kernel, why_not

if TYPE_CHECKING:
    from cekernels._register import Op

# Per device type, the first that can serve the call; the reference can serve every call. The order
# on CUDA is not yet one by measurement: Triton comes first because every installation has it. There
# an op is taken only after it has passed its self-test on the device.
ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}


def selected(op: Op, args: tuple[Any, ...]) -> str:
    """The name of the implementation that serves ``op(*args)``."""
    device = device_of(args)
    for name in ORDER.get(device.type, ("reference",)):
        if why_not(op, name, args) is None and _selfcheck.failure(op, name, device) is None:
            return name
    raise ImplementationError(f"{op.name}: no implementation serves a call on {device}")


def run(op: Op, *args: Any) -> Any:
    """The CUDA kernel of ``impl="auto"``."""
    function = kernel(op, selected(op, args))
    assert function is not None
    return function(*args)
