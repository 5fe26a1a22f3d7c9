"""What the capture of a CUDA graph forbids, and a stand-in for such graphs on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations whose result on the host must wait for the device.
_HOST_READS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
}
#: An index may be one of truth values, the number of which the host would have to know.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"}


class ForbiddenInCaptureError(RuntimeError):
    """An operation that would fail while a CUDA graph is captured, or make it wrong."""


class CaptureRules(TorchDispatchMode):
    """Raises :class:`ForbiddenInCaptureError` for what the capture of a CUDA graph forbids.

    These are reads on the host, results whose size depends on values, tensors made from Python
    data, and copies between the device and another one. On the CPU, copies to and reads by the host
    are invisible to torch; the meta device has no values, and shows them.

    Args:
        device: the type of device that the operations should run on.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.check(func, args, kwargs or {})
        if self._device == "meta" and self.names[-1] == "aten::_fused_adam_":
            return None  # torch has no such kernel for the meta device
        return func(*args, **(kwargs or {}))

    def check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = func.name().split(".")[0]
        self.names.append(name)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in _HOST_READS or torch.Tag.data_dependent_output in func.tags:
            raise ForbiddenInCaptureError(f"{name} gives the host a value of the device")
        if name in _INDEXING:
            if any(
                t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]) if t is not None
            ):
                raise ForbiddenInCaptureError(
                    f"{name} by truth values: a size that depends on values"
                )
        elif torch.Tag.dynamic_output_shape in func.tags:
            raise ForbiddenInCaptureError(f"{name} has a result whose size depends on values")
        if name == "aten::lift_fresh":
            raise ForbiddenInCaptureError("a tensor is made from Python data, which is copied once")
        to = kwargs.get("device")
        devices = {t.device.type for t in given} | ({to.type} if to is not None else set())
        if not devices <= {self._device}:
            raise ForbiddenInCaptureError(f"{name} involves {' and '.join(sorted(devices))}")


class _Tape(CaptureRules):
    """Records operations with their tensors, to repeat them on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        schema = func._schema
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return result  # a view, whose memory is filled by other operations
        given = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not schema.is_mutable and any(
            t.numel() and t.untyped_storage().data_ptr() in given for t in results
        ):
            return result  # as aten::_to_copy and aten::contiguous without work
        self.calls.append((func, args, kwargs or {}, [] if schema.is_mutable else results))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, places in self.calls:
                found = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for place, value in zip(places, found, strict=False):
                    place.copy_(value)


def record_on_cpu(
    function: Callable[[], dict[str, Tensor]],
) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """The :class:`~context_encoder.training.graph.Recorder` of the tests.

    As in a CUDA graph, operations are recorded once, with their numbers and memory, and repeated
    without the Python code that called them. Unlike there, recording also runs them.
    """
    tape = _Tape()
    with tape:
        losses = function()
    return tape.replay, losses
