"""Registrations with parts of torch that are imported only by programs that use them.

FLOP counting and DTensor take half a second to import, so the ops are registered there when the
program imports them: before or after this package, in any order.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cekernels._register import Op, Sharding

Shardings = Sequence[tuple[list[Any], list[Any]]]


def register(ops: Sequence[Op]) -> None:
    """Register the FLOP formulas and the shardings of the ops, at once or when they are needed."""
    actions = {
        "torch.utils.flop_counter": lambda: _register_flops(ops),
        "torch.distributed.tensor": lambda: _register_shardings(ops),
    }
    waiting = {}
    for name, action in actions.items():
        if name in sys.modules:
            _attempt(name, action)
        else:
            waiting[name] = action
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport:
    """A finder on ``sys.meta_path`` that acts after the import of some modules, and finds none."""

    def __init__(self, actions: dict[str, Callable[[], None]]) -> None:
        self.actions = actions

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        action = self.actions.pop(name, None)
        if action is None:
            return None
        if not self.actions:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _attempt(name, action)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _attempt(name: str, action: Callable[[], None]) -> None:
    """The program imports its module whether or not our registration succeeds."""
    try:
        action()
    except Exception as error:
        warnings.warn(
            f"cekernels: this torch, {torch.__version__}, does not take the registration of the "
            f"ops with {name}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def _register_flops(ops: Sequence[Op]) -> None:
    from torch.utils.flop_counter import register_flop_formula

    for op in ops:
        if op.flops is not None:
            register_flop_formula(getattr(torch.ops.cekernels, op.name))(op.flops)


def _register_shardings(ops: Sequence[Op]) -> None:
    from torch.distributed.tensor.experimental import register_sharding

    for op in ops:
        register_sharding(op.overloads())(_shardings(op))


def _shardings(op: Op) -> Callable[..., Shardings]:
    """All arguments whole, or sharded as the op says; ``None`` for arguments without tensor."""

    def acceptable(*args: Any) -> Shardings:
        from torch.distributed.tensor import Partial, Replicate, Shard

        def placement(code: str | int) -> Any:
            if isinstance(code, int):
                return Shard(code)
            return Partial() if code == "partial" else Replicate()

        returns = len(getattr(torch.ops.cekernels, op.name).default._schema.returns)
        whole: Sharding = (["whole"] * returns, ["whole"] * len(args))
        sharded = [] if op.sharding is None else op.sharding(*args)
        return [
            (
                [placement(code) for code in outputs],
                [
                    placement(code) if hasattr(arg, "placements") else None
                    for code, arg in zip(inputs, args, strict=True)
                ],
            )
            for outputs, inputs in [whole, *sharded]
        ]

    return acceptable


def record(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The call of a public function in a graph of ``torch.fx.symbolic_trace``.

    Its proxies, like any object with ``__torch_function__``, take the call as one of a function of
    torch.
    """
    relevant = [arg for arg in (*args, *options.values()) if overrides(arg)]
    return torch.overrides.handle_torch_function(function, relevant, *args, **options)


def overrides(value: object) -> bool:
    """True for an object other than a tensor that takes calls of torch's functions."""
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")
