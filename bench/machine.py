"""Description of the machine: versions, threads, and the speed limits of the hardware."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cekernels import _backends

_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
_REPEATS = 15


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def info(measured: bool) -> dict[str, Any]:
    """The record in each result file; ``measured`` adds copy bandwidth and speed of a product."""
    implementations = {name: _backends.unavailable(name) for name in _backends.IMPLS[1:]}
    record: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "git": _git_revision(),
        "implementations": {
            name: reason or "available" for name, reason in implementations.items()
        },
    }
    if measured:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        record["copy_gb_per_s"] = {name: copy_bandwidth(name) / 1e9 for name in devices}
        record["matmul_gflop_per_s"] = {name: matmul_speed(name) / 1e9 for name in devices}
    return record


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy much larger than the caches."""
    source = torch.ones(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _least_seconds(lambda: target.copy_(source), device)


def matmul_speed(device: str) -> float:
    """Floating-point operations per second of a large float32 product without TensorFloat-32."""
    side = _MATMUL_SIDE[device]
    a, b = torch.randn(2, side, side, device=device)
    out = torch.empty_like(a)
    return 2 * side**3 / _least_seconds(lambda: torch.mm(a, b, out=out), device)


def _least_seconds(call: Callable[[], Any], device: str) -> float:
    seconds = []
    for _ in range(_REPEATS):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    # The minimum, as a limit of the machine excludes disturbances.
    return min(seconds)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    return str(importlib.import_module(package).__version__)


def _git_revision() -> str | None:
    """The commit, with "+" if tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        revision, changed = (
            subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")
