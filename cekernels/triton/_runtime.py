"""Launching, addressing and rounding, shared by all Triton kernels of this package."""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton reads TRITON_INTERPRET when a kernel is defined: it applies to the whole process.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# Offsets are computed in int32 up to this limit, in int64 beyond it.
INT32_LIMIT = 2**31 - 1


OLDEST_CAPABILITY = (8, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def unavailable() -> str | None:
    """Reason why the kernels of this package cannot run on this machine; None if they can."""
    if INTERPRETED.value:
        return None
    if torch.version.hip:
        return "written for NVIDIA GPUs; this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


def unsupported_device(device: torch.device) -> str | None:
    """Reason why the kernels of this package cannot run on ``device``; None if they can."""
    if device.type == "cuda":
        major, minor = _capability(device)
        if (major, minor) < OLDEST_CAPABILITY:
            return f"needs compute capability 8.0 or newer, {device} has {major}.{minor}"
    elif not (device.type == "cpu" and INTERPRETED.value):
        return f"runs on CUDA tensors, got one on {device} (on CPU tensors with TRITON_INTERPRET=1)"
    return None


_counters: dict[torch.device, Tensor] = {}


def zero_counter(device: torch.device) -> Tensor:
    """An int32 that is 0 for a kernel on the current stream, which has to leave it at 0.

    One serves all launches on a device's default stream, which follow each other and are never
    captured into a graph. On other streams, whose memory may belong to a graph or whose handle to
    another stream later, a launch gets its own, which is cleared on the stream.
    """
    if device.type != "cuda" or torch.cuda.current_stream(device).cuda_stream != 0:
        return torch.zeros((), dtype=torch.int32, device=device)
    if device not in _counters:
        _counters[device] = torch.zeros((), dtype=torch.int32, device=device)
    return _counters[device]


FLOAT64 = "float64 is not supported; use the reference"


def cdiv(number: int, by: int) -> int:
    return -(-number // by)


# The division of channels among programs: how many programs are wanted; elements of a program that
# are not divided further, and those that are; and the fewest channels.
_WANTED, _FEW, _MANY, _FEWEST = 256, 1024, 32768, 4


def channels_per_program(programs: int, channels: int, pixels: int) -> int:
    """Channels per program where ``programs`` of so many pixels are few, or long, with all of them.

    Depends on the shape alone.
    """
    if not shares_channels(channels):
        return channels
    elements = channels * pixels
    parts = max(min(cdiv(_WANTED, max(programs, 1)), cdiv(elements, _FEW)), cdiv(elements, _MANY))
    return cdiv(channels, max(min(parts, cdiv(channels, _FEWEST), 65535), 1))


def shares_channels(channels: int) -> bool:
    """Whether programs may share so many channels; not those of images."""
    return channels > _FEWEST


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()


@dataclass(frozen=True)
class Launch:
    """One complete kernel launch. The tests cross-compile exactly these launches."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *,
    num_warps: int,
    num_stages: int = 1,
    **arguments: Any,
) -> None:
    """Launch on the current stream of ``device``; an empty grid is not launched."""
    if min(grid) > 0:
        run(Launch(kernel, grid, arguments, num_warps, num_stages, device))


def run(call: Launch) -> None:
    options = {"num_warps": call.num_warps, "num_stages": call.num_stages}
    if call.device.type == "cuda" and call.device.index != torch.cuda.current_device():
        with torch.cuda.device(call.device):
            call.kernel[call.grid](**call.arguments, **options)
    else:
        call.kernel[call.grid](**call.arguments, **options)


def wide(*tensors: Tensor | None) -> bool:
    """True if an offset into one of the tensors may exceed int32."""
    return any(_last_offset(t) > INT32_LIMIT for t in tensors if t is not None)


def _last_offset(tensor: Tensor) -> int:
    # Offsets of masked-out tile elements may lie beyond the last element, by less than 2**20.
    return sum(abs(s) * n for s, n in zip(tensor.stride(), tensor.shape, strict=True)) + 2**20


def pixel_layout(tensor: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """Strides of ``(B, C, H, W)``, and the WIDTH to pass to ``pixel_offsets``."""
    b, c, h, w = tensor.stride()
    height, width = tensor.shape[2:]
    if height <= 1:
        return (b, c, 0, w), 0
    if width <= 1:
        return (b, c, 0, h), 0
    return (b, c, h, w), 0 if h == w * width else width


def pixel_arguments(**tensors: Tensor) -> dict[str, Any]:
    """Kernel arguments per ``(B, C, H, W)`` tensor: x, x_stride_b, ..., x_stride_w, X_WIDTH."""
    arguments: dict[str, Any] = dict(tensors)
    for name, tensor in tensors.items():
        strides, arguments[f"{name.upper()}_WIDTH"] = pixel_layout(tensor)
        arguments |= {f"{name}_stride_{axis}": n for axis, n in zip("bchw", strides, strict=True)}
    return arguments


def alignment(*tensors: Tensor | None, pixels: bool = False, sizes: tuple[int, ...] = ()) -> int:
    """Largest power of two of elements, up to 16 bytes, that divides all offsets and lengths.

    The offsets are those at which contiguous runs start, and the lengths are those of the runs. A
    run is a row of the last dimension or, with ``pixels``, the pixels of ``(B, C, H, W)`` in the
    order of ``pixel_layout``. The result also divides ``sizes``.
    """
    widest = 16
    strides: tuple[int, ...]
    for tensor in tensors:
        if tensor is None:
            continue
        if pixels:
            strides, width = pixel_layout(tensor)
            length = width or tensor.shape[2] * tensor.shape[3]
            shape = (*tensor.shape[:2], tensor.shape[2] if width else 1)
        else:
            strides, length, shape = tensor.stride(), tensor.shape[-1], tensor.shape[:-1]
        if (strides[-1] != 1 and length > 1) or tensor.data_ptr() % 16:
            return 1
        steps = [s for s, n in zip(strides, shape, strict=False) if n > 1]
        most = 16 // tensor.element_size()
        widest = min(widest, most, *(_divisor(n) for n in (length, *steps)))
    return min(widest, *(_divisor(n) for n in sizes)) if sizes else widest


def _divisor(number: int) -> int:
    """The largest power of two up to 16 that divides ``number``."""
    return number & -number if number % 16 else 16


def bits(tensor: Tensor) -> Tensor:
    """A bool tensor viewed as uint8: Triton has no pointers to bool."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


@triton.jit
def pixel_offsets(pixel, stride_h, stride_w, WIDTH: tl.constexpr):
    """Offsets of pixels numbered row by row; WIDTH is 0 if one stride covers all pixels."""
    if WIDTH == 0:
        return pixel * stride_w
    return (pixel // WIDTH) * stride_h + (pixel % WIDTH) * stride_w


@triton.jit
def to_float32(x):
    """Exact conversion; the interpreter's own conversion of bfloat16 is not exact."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float32 to ``dtype``, ties to even; the interpreter's own cast to bfloat16 truncates."""
    if INTERPRETED and dtype == tl.bfloat16:
        raw = x.to(tl.uint32, bitcast=True)
        rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
