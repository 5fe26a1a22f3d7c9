"""The library of csrc/cuda as nvcc compiles it, run by the machine.

The host code is compiled too: it chooses and launches the kernels as it does on a GPU, against a
stand-in for the CUDA runtime (``runtime.cpp``).
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from buildtools import native
from tests.helpers import cuda_host
from tests.helpers.cuda_host import CSRC
from tests.helpers.ptx.machine import Machine, Report
from tests.helpers.ptx.memory import Memory
from tests.helpers.ptx.parse import Kernel, Module
from tests.helpers.ptx.translate import Translated

HERE = Path(__file__).resolve().parent
SOURCES = ("channelwise_linear", "fill_masked", "masked_loss", "rasterize")
ARCHITECTURES = (80, 90)
KEEP = "CEKERNELS_KEEP_PTX"  # a folder that keeps the compiled files between runs
REQUIRED = "CEKERNELS_REQUIRE_NVCC"  # set: a missing nvcc is a failure, not a reason to skip


def toolkit() -> Path | None:
    """Folder of the CUDA toolkit: that of the pinned wheels, else the one on the machine."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
    if (wheels / "bin/nvcc").is_file():
        return wheels
    found = native.find_nvcc()
    if found is None:
        return None
    command = [found, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    listing = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", listing, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(found).resolve().parent.parent


def require_nvcc() -> Path:
    """The toolkit; skips the test where there is none, or fails it if CI demands one."""
    found = toolkit()
    if found is None or shutil.which("g++") is None:
        message = "needs nvcc (pip install -c constraints.txt .[nvcc]) and g++"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    return found


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass(frozen=True, eq=False)
class Build:
    """Compiled files: the host code as a library, and the PTX per architecture and source."""

    library: Path
    ptx: dict[tuple[int, str], Path]

    @cache  # noqa: B019 - one instance per process
    def kernels(self, architecture: int) -> Mapping[str, Kernel]:
        """All kernels of an architecture by their mangled name."""
        return ChainMap(*(Module(self.ptx[architecture, s].read_text()) for s in SOURCES))  # type: ignore[arg-type]

    def same(self, source: str) -> bool:
        """True if the PTX of a source does not depend on the architecture."""
        texts = {
            re.sub(r"^\.target.*$", "", self.ptx[a, source].read_text(), flags=re.MULTILINE)
            for a in ARCHITECTURES
        }
        return len(texts) == 1


def build(folder: Path) -> Build:
    """Compile csrc/cuda with the flags of the shipped library, or find that compiled before.

    The files lie in a folder named after what they depend on, in ``folder`` or where KEEP says.
    """
    root = require_nvcc()
    nvcc = str(root / "bin/nvcc")
    inputs = [p for p in sorted(CSRC.rglob("*")) if p.suffix in (".cu", ".h")]
    inputs.append(HERE / "runtime.cpp")
    key = hashlib.sha256(_run([nvcc, "--version"]).encode() + str(native.NVCC_FLAGS).encode())
    for path in inputs:
        key.update(path.read_bytes())
    parent = Path(os.environ.get(KEEP) or folder)
    folder = parent / key.hexdigest()[:16]
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=parent))
        _compile(nvcc, working)
        try:
            working.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(working)
    ptx = {}
    for job in itertools.product(ARCHITECTURES, SOURCES):
        (ptx[job],) = (folder / "{1}-{0}".format(*job)).glob("*.ptx")
    return Build(folder / "cuda.so", ptx)


def _compile(nvcc: str, folder: Path) -> None:
    """PTX for every architecture, and a library with the host code."""

    def compile_one(job: tuple[int, str]) -> None:
        architecture, source = job
        kept = folder / f"{source}-{architecture}"
        kept.mkdir()
        common = [nvcc, *native.NVCC_FLAGS, str(CSRC / "cuda" / f"{source}.cu")]
        name = f"compute_{architecture}"
        if architecture != ARCHITECTURES[0]:  # the host code is the same
            _run([*common, f"-arch={name}", "-ptx", "-o", str(kept / f"{source}.ptx")])
            return
        _run([
            *common, f"-gencode=arch={name},code={name}", "--keep", f"--keep-dir={kept}", "-c",
            "-o", str(kept / "host.o"),
        ])  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, [(a, s) for s in SOURCES for a in ARCHITECTURES]))
    hosts = [str(folder / f"{source}-{ARCHITECTURES[0]}" / "host.o") for source in SOURCES]
    target = str(folder / "cuda.so")
    _run(["g++", "-O1", "-shared", "-fPIC", "-o", target, str(HERE / "runtime.cpp"), *hosts])


@cache
def readable(mangled: str) -> str:
    """A short name of a kernel: "forward_mma<TensorCore<float, 36, 1>, float, 36>"."""
    name = _run(["c++filt", mangled]).strip().removeprefix("void ")
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|cekernels::|cuda::", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:i]
    return name


class CompiledKernels(cuda_host.Kernels):
    """The ops of csrc/cuda as compiled by nvcc, with the signatures of ``cekernels.reference``."""

    def __init__(self, build: Build, machine: Machine, architecture: int) -> None:
        super().__init__(build.library)
        self.machine = machine
        self.memory: Memory = machine.memory
        self._kernels = build.kernels(architecture)
        self._translated: dict[str, Translated] = {}
        self.reports: list[Report] = []
        # The blocks of each launch to execute, given their number.
        self.only: Callable[[int], Sequence[int]] | None = None
        self.short_grid = False  # one block is missing: the first loops over its work too
        self._error: BaseException | None = None
        self._callbacks = (
            ctypes.CFUNCTYPE(
                None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32),
                ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t,
            )(self._launch),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)(self._memset),
            ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(self._allocate),
        )  # fmt: skip

    # --- callbacks: exceptions cannot pass through C, and are raised when it returns --------------

    def _launch(self, name: bytes, dimensions: Any, arguments: Any, shared: int) -> None:
        if self._error is not None:
            return
        try:
            kernel = self.translated(name.decode())
            parameters = bytearray(kernel.kernel.parameter_bytes)
            for i, (offset, size) in enumerate(kernel.kernel.parameters.values()):
                parameters[offset : offset + size] = ctypes.string_at(arguments[i], size)
            assert dimensions[4] == dimensions[5] == 1
            grid = (max(dimensions[0] - self.short_grid, 1), *dimensions[1:3])
            blocks = None
            if self.only is not None:
                blocks = self.only(grid[0] * grid[1] * grid[2])
            self.reports.append(
                self.machine.launch(kernel, grid, dimensions[3], bytes(parameters), shared, blocks)
            )
        except BaseException as error:
            self._error = error

    def _memset(self, to: int, value: int, size: int) -> None:
        first = to - self.memory.base
        self.memory.bytes.state[first : first + size] = 3

    def _allocate(self, size: int) -> int:
        return self.memory.base + self.memory.allocate(size)

    # --- the ops ----------------------------------------------------------------------------------

    def translated(self, name: str) -> Translated:
        if name not in self._translated:
            self._translated[name] = Translated(self._kernels[name])
        return self._translated[name]

    def replace(self, name: str, kernel: Translated) -> None:
        """Run another kernel under this name."""
        self._translated[name] = kernel

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.memory.empty(shape, dtype)

    def _zero(self) -> Tensor:
        return self.memory.place(super()._zero())

    def _run(self, name: str, struct: type[ctypes.Structure], *values: Any) -> None:
        self.library.set_callbacks(*self._callbacks)
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        message = function(ctypes.byref(struct(*values)))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        assert message is None, message

    def on_gpu(self, *values: Any) -> list[Any]:
        """Arguments of an op with their tensors in the machine's memory."""
        return [self.memory.place(v) if isinstance(v, Tensor) else v for v in values]
