"""Argument checks. Each error names the argument, the value given and the value expected."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(value: object) -> str:
    """Short description: dtype, shape and device of a tensor; type and value of anything else."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def is_integer(value: object) -> bool:
    """True for an integer, including those of NumPy and symbolic ones."""
    return isinstance(value, int) or hasattr(value, "__index__")


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got a {value.layout} {describe(value)}")


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
    if value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{op}: {name} must be one of {options}, got {value!r}")


def no_gradient(op: str, name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name} has no gradient here but requires one; pass {name}.detach()"
        )


def mask(op: str, value: Tensor, image_name: str, image: Tensor) -> None:
    """Check a mask for ``image``: ``(B, 1 or C, H, W)``, bool, uint8 or floating point."""
    dims(op, "mask", value, (4,), "(B, 1, H, W) or (B, C, H, W)")
    dtypes(op, "mask", value, (torch.bool, torch.uint8, *FLOATING))
    channels = value.shape[1] if value.shape[1] == 1 else image.shape[1]
    expected = (image.shape[0], channels, *image.shape[2:])
    shape(op, "mask", value, expected, f"that of {image_name}, or with 1 channel")
    same_device(op, "mask", value, image_name, image)
    no_gradient(op, "mask", value)
