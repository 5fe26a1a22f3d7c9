"""Argument checks. Each error names the argument, the value given and the value expected."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from cekernels._interop import overrides
from cekernels._torch_internals import dispatch_mode_active, transforms_active

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int16, torch.int32, torch.int64)
_BYTES = (torch.bool, torch.uint8, torch.int8)
PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided


def describe(value: object) -> str:
    """Short description: dtype, shape and device of a tensor; type and value of anything else."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.is_nested:
            return f"nested {dtype} tensor on {value.device}"
        return f"{dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def readable(value: Tensor) -> bool:
    """True where the values of a tensor can be read: in eager mode on the CPU.

    On a GPU reading would wait for the device; tracers and transforms have no values to read.
    """
    return (
        type(value) in PLAIN
        and value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not transforms_active()
        and not dispatch_mode_active()
    )


# --- integers ---------------------------------------------------------------------------------


def integer(op: str, name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int in ``low..high``: also an integer of NumPy, or a tensor of one integer.

    Symbolic integers are returned as they are.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if type(value) is not int:
        value = _as_integer(op, name, value)
    if not low <= value <= high:
        sign = "not be negative" if low == 0 and value < 0 else f"be in {low}..{_bound(high)}"
        raise ValueError(f"{op}: {name} must {sign}, got {value}")
    return value  # type: ignore[no-any-return]


def _as_integer(op: str, name: str, value: Any) -> int:
    wrong = TypeError(f"{op}: {name} must be an integer, got {describe(value)}")
    if isinstance(value, Tensor):
        if value.device.type != "cpu":  # reading it would wait for the device
            raise TypeError(f"{wrong}; call .item() on it")
        if value.is_nested or value.dim() or value.dtype == torch.bool:
            raise wrong
    if isinstance(value, bool):
        raise wrong
    try:
        return operator.index(value)
    except (TypeError, RuntimeError) as error:
        raise wrong from error


def number(op: str, name: str, value: Any) -> float:
    """``value`` as a float; symbolic numbers are returned as they are."""
    if isinstance(value, torch.SymFloat | torch.SymInt):
        return value  # type: ignore[return-value]
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number, got {describe(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{op}: {name} must fit a float, got {describe(value)}") from error


def _bound(high: int) -> str:
    for power, text in ((high, "2**{}"), (high + 1, "2**{} - 1")):
        if high > 1 << 16 and power & (power - 1) == 0:
            return text.format(power.bit_length() - 1)
    return str(high)


# --- tensors ----------------------------------------------------------------------------------


def tensors(op: str, names: Sequence[str], *values: object) -> bool:
    """Check that each of ``values`` is a dense tensor.

    Returns:
        False if one of them only stands for a tensor, as a proxy of ``torch.fx`` does.
    """
    for value in values:
        if not isinstance(value, Tensor) or value.layout is not _STRIDED or value.is_nested:
            break
    else:
        return True
    if any(map(overrides, values)):
        return False
    for name, value in zip(names, values, strict=False):
        tensor(op, name, value)
    return True


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {describe(value)}")
    if value.layout is not _STRIDED or value.is_nested:
        layout = "" if value.is_nested else f"{value.layout} "
        raise TypeError(f"{op}: {name} must be dense, got a {layout}{describe(value)}")


def dims(op: str, name: str, value: Tensor, allowed: Sequence[int], layout: str) -> None:
    if value.dim() not in allowed:
        raise ValueError(f"{op}: {name} must be {layout}, got a {describe(value)}")


def dtypes(op: str, name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if value.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{op}: {name} must have dtype {names}, got a {describe(value)}")


def same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, "
            f"got a {describe(value)}; convert one with .to()"
        )


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}, "
            f"got a {describe(value)}"
        )


def shape(op: str, name: str, value: Tensor, expected: tuple[int, ...], why: str) -> None:
    if value.shape != expected:
        raise ValueError(
            f"{op}: {name} must have shape {tuple(expected)} ({why}), got a {describe(value)}"
        )


def choice(op: str, name: str, value: object, allowed: Sequence[object]) -> None:
    if not (value is None or isinstance(value, str)) or value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{op}: {name} must be one of {options}, got {describe_choice(value)}")


def describe_choice(value: object) -> str:
    return repr(value) if isinstance(value, str) or value is None else describe(value)


def no_gradient(op: str, name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name} has no gradient here but requires one; pass {name}.detach()"
        )


def mask(op: str, value: Tensor, image_name: str, image: Tensor) -> Tensor:
    """Check a dense mask for ``image``: ``(B, 1 or C, H, W)``, bool, integer or floating point.

    Returns:
        it as the kernels take it: bool, uint8 or floating point.
    """
    dims(op, "mask", value, (4,), "(B, 1, H, W) or (B, C, H, W)")
    kind = value.dtype
    if kind not in _BYTES and kind not in FLOATING:
        dtypes(op, "mask", value, (*_BYTES, *_INTEGERS, *FLOATING))
    channels = value.shape[1] if value.shape[1] == 1 else image.shape[1]
    expected = (image.shape[0], channels, *image.shape[2:])
    shape(op, "mask", value, expected, f"that of {image_name}, or with 1 channel")
    same_device(op, "mask", value, image_name, image)
    no_gradient(op, "mask", value)
    if kind in _INTEGERS:
        return value != 0
    return value.view(torch.uint8) if kind == torch.int8 else value


# --- memory -----------------------------------------------------------------------------------


def allocate(op: str, name: str, shape: tuple[int, ...], **options: Any) -> Tensor:
    """``torch.empty``; its failure as an error that gives the shape and the number of bytes."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    size = math.prod(shape) * dtype.itemsize
    if size >= 1 << 63:
        raise ValueError(f"{op}: {name} of shape {shape} would need {size:,} bytes: 2**63 or more")
    try:
        return torch.empty(shape, **options)
    except RuntimeError as error:
        refuse_memory(op, name, shape, size, error)


def refuse_memory(
    op: str, name: str, shape: tuple[int, ...], size: int, error: RuntimeError
) -> NoReturn:
    """Raise an error of the same kind, in our words, if memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError):
        kind: type[RuntimeError] = torch.OutOfMemoryError
    elif "alloc" in str(error):
        kind = RuntimeError
    else:
        raise error
    raise kind(f"{op}: out of memory: {name} of shape {shape} needs {size:,} bytes") from error
