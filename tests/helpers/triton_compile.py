"""Cross-compilation of the kernels for a GPU that need not be present, and code inspection."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cekernels import _backends
from cekernels._register import OPS
from cekernels.triton import _runtime

# Triton's implementations of the ops, under the names of the reference.
implementation = SimpleNamespace(**{op.name: _backends.kernel(op, "triton") for op in OPS.values()})

# Shared memory limit per block, in bytes, by compute capability.
SHARED_MEMORY = {
    80: 163 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    **dict.fromkeys((86, 89, 120), 99 * 1024),  # desktops
}

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Compiled:
    ptx: str
    shared: int
    registers: int
    stack: int

    def widest_load(self) -> int:
        """Bytes of the widest load from global memory, including asynchronous copies."""
        loads = r"ld\.global(?:\.\w+(?:::\w+)*)*?\.(?:v(\d)\.)?[bf](\d+)"
        copies = r"cp\.async\.c[ag]\.shared\.global[^;]*?\], \[[^;]*?\], (\w+)"
        widths = [int(n or 1) * int(bits) // 8 for n, bits in re.findall(loads, self.ptx)]
        return max(widths + [int(size, 0) for size in re.findall(copies, self.ptx)])

    def widest_store(self) -> int:
        found = re.findall(r"st\.global(?:\.v(\d))?\.[bf](\d+)", self.ptx)
        return max(int(n or 1) * int(bits) // 8 for n, bits in found)

    def uses_tensor_cores(self) -> bool:
        return re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", self.ptx) is not None


@contextmanager
def recorded() -> Iterator[list[_runtime.Launch]]:
    """Record launches instead of running them: tensors may be on the meta device."""
    calls: list[_runtime.Launch] = []
    run = _runtime.run
    _runtime.run = calls.append
    try:
        yield calls
    finally:
        _runtime.run = run


def launches(op: Callable[..., Any], *args: Any) -> list[_runtime.Launch]:
    with recorded() as calls:
        op(*args)
    return calls


def source_of(call: _runtime.Launch) -> ASTSource:
    """Triton's compilation input for a launch: types, constants, hints of divisibility by 16."""
    constants, signature, hints = {}, {}, {}
    declared = {p.name for p in call.kernel.params if p.is_constexpr}
    general = {p.name for p in call.kernel.params if p.do_not_specialize}
    for position, name in enumerate(call.kernel.arg_names):
        value = call.arguments[name]
        hint = False
        if name in general:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        elif name in declared or value is None or (type(value) is int and value == 1):
            constants[name], signature[name] = value, "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name], hint = f"*{_TYPES[value.dtype]}", value.data_ptr() % 16 == 0
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            hint = value % 16 == 0
        if hint:
            hints[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(call.kernel, signature, constants, hints)


def compiled_by_triton(call: _runtime.Launch, capability: int) -> Any:
    return triton.compile(
        source_of(call),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": call.num_warps, "num_stages": call.num_stages},
    )


def cubin_for(call: _runtime.Launch, capability: int) -> bytes:
    cubin: bytes = compiled_by_triton(call, capability).asm["cubin"]
    return cubin


def compile_for(call: _runtime.Launch, capability: int) -> Compiled:
    compiled = compiled_by_triton(call, capability)
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(compiled.asm["ptx"], compiled.metadata.shared, registers, stack)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, from the assembler; the stack includes spills."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        listing = subprocess.run(
            [str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    assert found, listing
    return int(found[1]), int(found[2])
