"""The compiled libraries: whether they were built, whether they load, and what to do if not."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parent


@functools.cache
def record() -> dict[str, dict[str, Any]]:
    """What the installation wrote about each library: built, flags, compiler, or the reason."""
    try:
        content: dict[str, dict[str, Any]] = json.loads((_FOLDER / "_build.json").read_text())
    except FileNotFoundError:
        return {}
    return content


@functools.cache
def load(name: str) -> str | None:
    """Load library ``name`` ("_C" or "_C_cuda"); why it is not to be had, or None."""
    built = record().get(name)
    if built is None:
        return "not built: the package is used without being installed; run pip install -e ."
    if not built["built"]:
        return f"not built: {built['reason']}"
    path = _FOLDER / f"{name}.so"
    if not path.is_file():
        return f"not built: {path.name} is gone; install again"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = str(error.__cause__ or error)  # torch wraps what the loader said
        return f"built with torch {built['torch']} but cannot load: {cause}; {_remedy(cause)}"
    return None


def _remedy(error: str) -> str:
    if "libtorch_cuda" in error or "libc10_cuda" in error:
        return f"this torch, {torch.__version__}, has no CUDA: install a CUDA build of torch"
    if "undefined symbol" in error:
        return f"this torch, {torch.__version__}, is older than 2.11: install a newer one"
    if "GLIBC" in error or "CXXABI" in error:
        return "it was built on a newer system: install again on this machine, from source"
    return "install again"


def instruction_set() -> str:
    """The instruction set that the CPU kernels run with; the library must be loaded."""
    function = ctypes.CDLL(str(_FOLDER / "_C.so")).cekernels_instruction_set
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()
