"""Implementation selection for ``impl="auto"``.

On the CPU, torch's dispatcher selects: the C++ library registers its kernels under the CPU key, and
the reference runs if that library is not loaded. On CUDA, :func:`run` selects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cekernels import _selfcheck
from cekernels._backends import ImplementationError, device_of, kernel, why_not

if TYPE_CHECKING:
    from cekernels._register import Op

# Order of preference per device type: the first implementation that can handle the call is taken;
# the reference can handle every call. The order on CUDA is not based on measurements yet: Triton
# comes first because every installation has it. On CUDA an op must first pass its self-test.
ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}


def selected(op: Op, args: tuple[Any, ...]) -> str:
    """Name of the implementation that ``impl="auto"`` uses for ``op(*args)``."""
    device = device_of(args)
    for name in ORDER.get(device.type, ("reference",)):
        if why_not(op, name, args) is None and _selfcheck.failure(op, name, device) is None:
            return name
    raise ImplementationError(f"{op.name}: no implementation can handle a call on {device}")


def run(op: Op, *args: Any) -> Any:
    """CUDA kernel of ``impl="auto"``: run the selected implementation."""
    function = kernel(op, selected(op, args))
    assert function is not None
    return function(*args)
