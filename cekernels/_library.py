"""The torch.library namespace of the package: ``torch.ops.cekernels``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cekernels import _dispatch

# One Library object for the life of the process: torch drops the ops with it.
_LIBRARY = torch.library.Library("cekernels", "DEF")
_KERNELS: dict[str, Callable[..., Any]] = {}


def define(
    schema: str,
    kernel: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register one op: schema, kernel for every device, shape function and autograd formula.

    The kernel runs with autocast off: the public function has applied its rule already, and a
    backward pass inside an autocast region must give what the shape function promises.

    ``Library.define`` and ``impl`` rather than ``custom_op``: a call costs a quarter of it.
    """

    def run(*args: Any) -> Any:
        if torch._C._is_any_autocast_enabled():
            with torch._C._DisableAutocast():
                return kernel(*args)
        return kernel(*args)

    name = schema.partition("(")[0]
    qualified = f"cekernels::{name}"
    _KERNELS[name] = run
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )


def transformed() -> bool:
    """If a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD is at work.

    Those go past the autograd formula of an op (forward-mode AD without a word: it takes the
    result for a constant), but straight through plain PyTorch.
    """
    dual_level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return torch._C._are_functorch_transforms_active() or dual_level >= 0


def _needs_dispatcher(args: tuple[Any, ...]) -> bool:
    """If anything beside the kernel has to see a call: autograd, a tracer, a mode, a subclass."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or transformed()
    ):
        return True
    grad = torch.is_grad_enabled()
    for arg in args:
        if isinstance(arg, Tensor):
            if type(arg) is not Tensor and type(arg) is not nn.Parameter:
                return True
            if (grad and arg.requires_grad) or arg.is_meta:
                return True
    return False


def run_op(name: str, impl: str, *args: Any) -> Any:
    """Run a registered op; past torch's dispatcher where nothing there has to see it.

    The way through the dispatcher and back into Python costs as much as a small kernel.
    """
    if _needs_dispatcher(args):
        return getattr(torch.ops.cekernels, name).default(*args, impl)
    return _KERNELS[name](*args, impl)


def call_op(name: str, impl: str, *args: Any) -> Any:
    """Run a registered op, or its reference where a transform has to look through it.

    Raises:
        ImplementationError: another implementation is forced under a transform.
    """
    if transformed():
        return _dispatch.call_transformed(name, impl, *args)
    return run_op(name, impl, *args)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device type, or None where it is off."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None
