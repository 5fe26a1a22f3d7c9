"""Triton's implementations of the ops, compiled for a GPU and run by the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cekernels.triton import _runtime
from tests.helpers.ptx.machine import Machine, Report
from tests.helpers.ptx.memory import Memory
from tests.helpers.ptx.parse import Module
from tests.helpers.ptx.translate import Translated
from tests.helpers.triton_compile import compiled_by_triton, source_of

_EMPTY = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided",
          "aten::new_empty_strided"}  # fmt: skip
_compiled: dict[str, Translated] = {}


class _InMachineMemory(TorchDispatchMode):
    """All results of torch's operations lie in the machine's memory."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def _place(self, name: str, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._place(name, v) for v in value)
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        if self.memory.contains(value) or value.numel() == 0:
            return value
        if name in _EMPTY:
            return self.memory.empty(value.shape, value.dtype, value.stride())
        return self.memory.place(value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        named = dict(kwargs or {})
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else named.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and self.memory.contains(value):
                self.memory.mark_written(value)
        return self._place(func._schema.name, result)


class TritonOnMachine:
    """Runs each launch of an op on the machine instead of a GPU.

    ``only``: the blocks to execute, given their number. ``change``: of the code before it runs.
    """

    def __init__(self, machine: Machine, capability: int) -> None:
        self.machine = machine
        self.capability = capability
        self.reports: list[Report] = []
        self.launches: list[_runtime.Launch] = []
        self.only: Callable[[int], Sequence[int]] | None = None
        self.change: Callable[[str], str] = lambda ptx: ptx

    def _run(self, call: _runtime.Launch) -> None:
        source = source_of(call)
        compiled = compiled_by_triton(call, self.capability)
        text = self.change(compiled.asm["ptx"])
        if text not in _compiled:
            (kernel,) = Module(text).values()
            _compiled[text] = Translated(kernel)
        kernel = _compiled[text]
        values = [
            call.arguments[n] for n in call.kernel.arg_names if source.signature[n] != "constexpr"
        ]
        parameters = bytearray(kernel.kernel.parameter_bytes)  # the last two are scratch memory
        for (offset, size), value in zip(kernel.kernel.parameters.values(), values, strict=False):
            if isinstance(value, Tensor):
                assert self.machine.memory.contains(value)
                value = value.data_ptr()
            parameters[offset : offset + size] = (value % 2**64).to_bytes(8, "little")[:size]
        grid = (*call.grid, 1, 1)[:3]
        blocks = None
        if self.only is not None:
            blocks = self.only(grid[0] * grid[1] * grid[2])
        self.launches.append(call)
        self.reports.append(
            self.machine.launch(
                kernel, grid, 32 * call.num_warps, bytes(parameters), compiled.metadata.shared,
                blocks,
            )
        )  # fmt: skip

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, launches of Triton kernels run on the machine."""
        run = _runtime.run
        _runtime.run = self._run
        try:
            with _InMachineMemory(self.machine.memory):
                yield
        finally:
            _runtime.run = run

    def __call__(self, op: Callable[..., Any], *args: Any) -> Any:
        memory = self.machine.memory
        placed = [memory.place(a) if isinstance(a, Tensor) else a for a in args]
        with self.active():
            return op(*placed)
