"""Availability of the implementations, and the reasons where one cannot be used."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import torch

from cekernels import _sources

if TYPE_CHECKING:
    from cekernels._register import Op

Impl = Literal["auto", "reference", "cpp", "triton", "cuda"]
IMPLS: tuple[str, ...] = get_args(Impl)
ENVIRONMENT_VARIABLE = "CEKERNELS_IMPL"
# Replaces "auto" in every call. Read once: reading the environment costs as much as a small kernel.
DEFAULT = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"

_FOLDER = Path(__file__).resolve().parent
_LIBRARIES = {"cpp": ("_C", "cpu"), "cuda": ("_C_cuda", "cuda")}
_NAMES = [name for name, _ in _LIBRARIES.values()]


class ImplementationError(RuntimeError):
    """A forced implementation cannot handle the call; the message gives the reason."""


def unknown(op: str, impl: object) -> ValueError:
    """The error for an unknown implementation name."""
    source = f"environment variable {ENVIRONMENT_VARIABLE}" if impl == DEFAULT else f"{op}: impl"
    return ValueError(f"{source} must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")


# --- availability -----------------------------------------------------------------------------


@functools.cache
def unavailable(name: str) -> str | None:
    """Reason why implementation ``name`` cannot run on this machine; None if it can."""
    if name in _LIBRARIES:
        reason = load_library(_LIBRARIES[name][0])
        if name == "cuda" and reason is None and not torch.cuda.is_available():
            return "there is no CUDA device"
        return reason
    if name == "triton":
        try:
            runtime = importlib.import_module("cekernels.triton._runtime")
        except Exception as error:  # not installed, or an incompatible version
            return f"cannot be imported: {error}"
        missing: str | None = runtime.unavailable()
        return missing
    return None


@functools.cache
def _triton(op: Op) -> ModuleType | None:
    """Module with the Triton kernels of ``op``, which has the name of its reference module."""
    name = op.reference.__module__.replace("reference", "triton")
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def triton_interpreted() -> bool:
    """True if Triton's interpreter runs the kernels on the CPU; does not import Triton."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def build_record() -> dict[str, dict[str, Any]]:
    """Build record of each library: compiler and flags, or the reason why it was not built."""
    try:
        content: Any = json.loads((_FOLDER / "_build.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # cut off, or not text
        return dict.fromkeys(_NAMES, _damaged(str(error)))
    if not isinstance(content, dict):
        return dict.fromkeys(_NAMES, _damaged("not a table"))
    return {name: _entry(value) for name, value in content.items()}


def _entry(value: Any) -> dict[str, Any]:
    """One library's part of the build record, or the reason why it cannot be used."""
    if not isinstance(value, dict) or value.keys().isdisjoint(("built",)):
        return _damaged("an entry is incomplete")
    needed = "torch" if value["built"] else "reason"
    return value if needed in value else _damaged(f"an entry has no {needed!r}")


def _damaged(what: str) -> dict[str, Any]:
    return {
        "built": False,
        "reason": f"the build record {_FOLDER / '_build.json'} cannot be read ({what}); install "
        "again, or rebuild with: python buildtools/native.py",
    }


@functools.cache
def load_library(name: str) -> str | None:
    """Load library ``name`` ("_C" or "_C_cuda"); the reason if it cannot be loaded, else None."""
    built = build_record().get(name)
    if built is None:
        return "not built: the package is used without being installed; run pip install -e ."
    if not built["built"]:
        return f"not built: {built['reason']}"
    path = _FOLDER / f"{name}.so"
    if not path.is_file():
        return f"not built: {path.name} is missing; install again"
    if _is_cut_off(path):
        return f"not built: {path.name} is cut off; install again"
    if (reason := _outdated(name, built)) is not None:
        warnings.warn(f"cekernels: {path.name} is not used: {reason}", RuntimeWarning, stacklevel=2)
        return reason
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = str(error.__cause__ or error)  # torch wraps the loader's error
        return f"built with torch {built['torch']} but cannot be loaded: {cause}; {_remedy(cause)}"
    return None


def _is_cut_off(path: Path) -> bool:
    """True if an ELF file ends before its segments do: loading it would end the process."""
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:5] != b"\x7fELF\x02":
            return False  # for the loader to judge
        (start,) = struct.unpack_from("=Q", header, 32)
        size, count = struct.unpack_from("=HH", header, 54)
        file.seek(start)
        table = file.read(size * count)
    if len(table) < size * count:
        return True
    segments = [struct.unpack_from("=IIQQQQ", table, size * i) for i in range(count)]
    end = max((segment[2] + segment[5] for segment in segments), default=0)
    return path.stat().st_size < end


def _outdated(name: str, built: dict[str, Any]) -> str | None:
    """Reason if, in an editable installation, the sources are not those that were compiled."""
    sources = _FOLDER.parent / "csrc"
    if not (_FOLDER.parent / "buildtools" / "native.py").is_file() or not sources.is_dir():
        return None
    if built.get("sources") == _sources.digest(sources, name):
        return None
    return (
        f"it was built from other sources than those in {sources}; "
        "rebuild with: python buildtools/native.py"
    )


def load_libraries() -> None:
    """Load the compiled libraries, which register their kernels; the ops must be defined."""
    for name, _ in _LIBRARIES.values():
        load_library(name)


def _remedy(error: str) -> str:
    if "libtorch_cuda" in error or "libc10_cuda" in error:
        return f"this torch, {torch.__version__}, has no CUDA: install a CUDA build of torch"
    if "undefined symbol" in error:
        return f"this torch, {torch.__version__}, is older than 2.11: install a newer one"
    if "GLIBC" in error or "CXXABI" in error:
        return "it was built on a newer system: install again on this machine, from source"
    return "install again"


def instruction_set() -> str:
    """Instruction set used by the CPU kernels; the library must be loaded."""
    function = ctypes.CDLL(str(_FOLDER / "_C.so")).cekernels_instruction_set
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


# --- one call ---------------------------------------------------------------------------------


def kernel(op: Op, name: str) -> Callable[..., Any] | None:
    """The callable of ``op`` in an available implementation, called as the reference; or None."""
    if name == "reference":
        return op.reference
    if name == "triton":
        found: Callable[..., Any] | None = getattr(_triton(op), op.name, None)
        return found
    return op.without_formula(name) if name in op.compiled else None


def why_not(op: Op, name: str, args: tuple[Any, ...]) -> str | None:
    """Reason why implementation ``name`` cannot handle ``op(*args)``; None if it can."""
    reason = unavailable(name)
    if reason is not None:
        return reason
    if kernel(op, name) is None:
        return f"has no {op.name}"
    return unsupported(op, name, args)


def unsupported(op: Op, name: str, args: tuple[Any, ...]) -> str | None:
    """Reason why an available implementation of the op cannot handle this call, or None."""
    device = device_of(args)
    if name == "triton":
        runtime = importlib.import_module("cekernels.triton._runtime")
        reason: str | None = runtime.unsupported_device(device)
        return reason or _triton(op).unsupported(op.name, *args)  # type: ignore[union-attr]
    if name != "reference" and device.type != _LIBRARIES[name][1]:
        return f"runs on {_LIBRARIES[name][1]} tensors only, not on {device}"
    return None


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Device of a call: that of the first argument, which is a tensor for every op."""
    if not isinstance(args[0], torch.Tensor):  # torch passes None for a tensor that is undefined
        raise TypeError(f"the first argument must be a tensor, got {args[0]!r}")
    return args[0].device


def run_triton(op: Op, *args: Any) -> Any:
    """Kernel of ``impl="triton"``; raises ImplementationError if it cannot handle the call."""
    if why_not(op, "triton", args) is not None:
        refuse(op, "triton", *args)
    serving = kernel(op, "triton")
    assert serving is not None
    return serving(*args)


def refuse(op: Op, name: str, *args: Any) -> NoReturn:
    """Kernel of a forced implementation on devices it does not support: raises the error."""
    reason = why_not(op, name, args) or f"has no kernel for {device_of(args)}"
    raise ImplementationError(f"{op.name}: impl={name!r} cannot handle this call: {reason}")
