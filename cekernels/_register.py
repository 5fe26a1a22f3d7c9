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
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}

_EXCLUDED = torch._C._dispatch_tls_is_dispatch_key_excluded
_INCLUDED = torch._C._dispatch_tls_is_dispatch_key_included
# Switched off by inference mode and below autograd; on under the vmap of autograd.functional and
# under make_fx(pre_dispatch=True), neither of which the stack of modes shows.
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
_LEGACY_VMAP = torch._C._dispatch_key_parse("VmapMode")
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


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
        assert setup_context is not None
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )
        _FUNCTIONS[name] = _function(name, run, setup_context, backward)


def _function(
    name: str,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    """What ``register_autograd`` makes of an op, for autograd alone."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup_context(ctx, args, output)
        return output

    # Not the form with a setup_context of its own: each call of it inspects the signature.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)


def transformed() -> bool:
    """If a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD is at work.

    Those go past the autograd formula of an op (forward-mode AD without a word: it takes the
    result for a constant), but straight through plain PyTorch.
    """
    dual_level: int = forward_ad._current_level  # -1 outside forward-mode AD
    return torch._C._are_functorch_transforms_active() or dual_level >= 0


def seen_by_autograd_alone(args: tuple[Any, ...]) -> bool | None:
    """If autograd has to see a call beside the kernel; None if something else has to as well.

    Something else: a tracer, a mode, a transform, a tensor subclass.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._get_tracing_state() is not None
        or transformed()
        or _EXCLUDED(_AUTOGRAD)
        or _INCLUDED(_LEGACY_VMAP)
        or _INCLUDED(_PRE_DISPATCH)
    ):
        return None
    differentiated = False
    for arg in args:
        if isinstance(arg, Tensor):
            if type(arg) is not Tensor and type(arg) is not nn.Parameter:
                return None
            if arg.is_meta or arg.is_neg():  # the dispatcher resolves negation
                return None
            differentiated |= arg.requires_grad
    return differentiated and torch.is_grad_enabled()


def run_op(name: str, impl: str, *args: Any) -> Any:
    """Run a registered op; past torch's dispatcher where nothing there has to see it.

    The way through the dispatcher and back into Python costs as much as a small kernel.

    Raises:
        ImplementationError: another implementation than the reference is forced where
            forward-mode AD goes through a derivative.
    """
    if forward_ad._current_level >= 0 and name in _FUNCTIONS:
        # In a formula of a backward pass, say; it would be taken for a constant.
        return _dispatch.call_transformed(name, impl, *args)
    differentiated = seen_by_autograd_alone(args)
    if differentiated is None:
        return getattr(torch.ops.cekernels, name).default(*args, impl)
    if differentiated and name in _FUNCTIONS:
        return _FUNCTIONS[name].apply(*args, impl)
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
    if not torch._C._is_any_autocast_enabled() or device.type == "meta":
        return None
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
