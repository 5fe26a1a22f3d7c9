"""Strict restoring: every tensor by name, shape and dtype; only finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

__all__ = ["MismatchError", "check_finite", "check_tensors", "load_optimizer", "optimizer_tensors"]


class MismatchError(ValueError):
    """Tensors are not those that are expected; the message names them."""


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """MismatchError unless tensors agree in names, shapes and dtypes, and are finite."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in expected]
    for name, tensor in found.items():
        wanted = expected.get(name)
        if wanted is None:
            continue
        if tensor.shape != wanted.shape:
            problems.append(
                f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(wanted.shape)}"
            )
        if tensor.dtype != wanted.dtype:
            problems.append(f"{name} is {_short(tensor.dtype)} instead of {_short(wanted.dtype)}")
    if problems:
        raise MismatchError(_some(problems))
    check_finite(found)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """MismatchError if a number is infinite or NaN, or a variance or a count is negative."""
    problems = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} is not finite")
        elif name.endswith(_NOT_NEGATIVE) and bool((tensor < 0).any()):
            problems.append(f"{name} is negative")
    if problems:
        raise MismatchError(_some(problems))


_NOT_NEGATIVE = ("running_var", "num_batches_tracked", ".exp_avg_sq", ".step")


def optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as ``optimizer.PREFIX.NUMBER OF THE WEIGHT.NAME``."""
    return {
        f"optimizer.{prefix}.{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def load_optimizer(
    prefix: str,
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    *,
    may_be_empty: bool,
) -> None:
    """Restore the state that :func:`optimizer_tensors` returned.

    Args:
        prefix: as then.
        optimizer: Adam or SGD, with the weights of then.
        tensors: may contain others, whose names do not begin with ``optimizer.PREFIX.``.
        may_be_empty: whether the optimizer may have made no step.

    Raises:
        MismatchError: a tensor is missing, unexpected, misshaped, of another dtype or not finite.
    """
    start = f"optimizer.{prefix}."
    own = {key: value for key, value in tensors.items() if key.startswith(start)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = _state_names(optimizer)
    if not (may_be_empty and not own):
        expected = {
            f"{start}{index}.{name}": _like(name, parameter)
            for index, parameter in enumerate(parameters)
            for name in names
        }
        check_tensors(expected, own)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in own.items():
        index, name = key.removeprefix(start).split(".")
        if value.dim():
            # The fused kernel needs moments with the memory layout of their weights.
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state_names(optimizer: Optimizer) -> Sequence[str]:
    if isinstance(optimizer, Adam):
        return ("step", "exp_avg", "exp_avg_sq")
    if isinstance(optimizer, SGD):
        return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()
    raise TypeError(f"the state of {type(optimizer).__name__} is unknown")


def _like(name: str, parameter: Tensor) -> Tensor:
    """An empty tensor of the shape and dtype of a parameter's state, without memory."""
    shape = () if name == "step" else parameter.shape
    dtype = torch.float32 if name == "step" else parameter.dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(problems: Sequence[str], most: int = 3) -> str:
    more = f", and {len(problems) - most} more" if len(problems) > most else ""
    return ", ".join(problems[:most]) + more
