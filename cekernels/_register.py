"""Registration of the ops in ``torch.ops.cekernels``, one per function of the reference.

An op has overloads, all of one schema (that of its reference function):

========================  =====================================================================
``op``                    ``impl="auto"``
``op.reference``          a forced implementation; likewise ``.cpp``, ``.triton`` and ``.cuda``
``op.no_grad``            as ``op``, without an autograd formula
``op.cpp_no_grad``        as ``op.cpp``, without an autograd formula; likewise the others
========================  =====================================================================

The overloads without a formula exist for ops with a derivative. They are called where nothing
requires a gradient: the kernel is then two Python frames below the caller instead of five.

Implementations by dispatch key:

- CPU: the C++ library implements ``op`` and ``op.cpp``, with and without a formula (csrc/ops).
- CUDA: the CUDA library implements ``op.cuda``, Triton ``op.triton`` (in its interpreter also on
  the CPU); ``op`` selects one of them or the reference (:func:`cekernels._auto.run`).
- Any other device, or a library that is not loaded: the reference implements ``op`` and
  ``op.reference``; the other overloads raise an error with the reason.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cekernels import _auto, _backends, _precision
from cekernels._backends import IMPLS, ImplementationError
from cekernels._selfcheck import SelfTest
from cekernels._torch_internals import register_decomposition, transforms_active

# Must live as long as the process: torch removes the ops when the Library is deleted.
LIBRARY = torch.library.Library("cekernels", "DEF")
_precision.define(LIBRARY)

OPS: dict[str, Op] = {}

#: Placements of the outputs and of the arguments of an op; see :class:`Op`.
Sharding = tuple[list[int | str], list[int | str]]


@dataclass(frozen=True)
class Formula:
    """The derivative of an op, in the form of ``torch.library.register_autograd``.

    ``ctx.impl`` is the implementation that the forward pass was called with; the backward pass uses
    the same.
    """

    setup_context: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., Any]


class Op:
    """One op: its overloads, and the selection of one per call.

    Args:
        reference: the specification. Its name and signature are those of the op.
        fake: the fake implementation (output shapes and dtypes); arguments as the reference.
        formula: the derivative; None for an op without one.
        mutates: names of the arguments that are modified in place.
        compiled: the compiled implementations with a kernel for the op: "cpp", "cuda".
        check: the self-test on a GPU.
        decomposition: the reference without checks of values, in operations that tracers can
            follow; None for an op that ONNX cannot express.
        flops: number of floating-point operations from the shapes of the arguments, in the form of
            ``torch.utils.flop_counter.register_flop_formula``; None for an op without products.
        sharding: returns, from the arguments, pairs of the outputs' and the arguments' placements
            in DTensors: an integer for the dimension of a shard, "whole" or "partial".
    """

    def __init__(
        self,
        reference: Callable[..., Any],
        *,
        fake: Callable[..., Any],
        check: SelfTest,
        formula: Formula | None = None,
        mutates: tuple[str, ...] = (),
        compiled: tuple[str, ...] = ("cpp", "cuda"),
        decomposition: Callable[..., Any] | None = None,
        flops: Callable[..., int] | None = None,
        sharding: Callable[..., Sequence[Sharding]] | None = None,
    ) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.decomposition = decomposition
        self.flops = flops
        self.sharding = sharding
        self.compiled = compiled
        self.has_formula = formula is not None
        self.check = check
        self._schema = torch.library.infer_schema(reference, mutates_args=mutates)

        parameters = inspect.signature(reference).parameters.values()
        required = [p.annotation in (Tensor, "Tensor") for p in parameters]

        def on_one_device(*args: Any) -> Any:
            # torch takes None in place of any tensor, and leaves it to the kernel to refuse it.
            if any(needed and a is None for needed, a in zip(required, args, strict=False)):
                raise TypeError(f"{self.name}: got None in place of a tensor")
            # A meta tensor among others would lead here, and to outputs that nobody computes.
            devices = {str(a.device) for a in args if isinstance(a, Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"{self.name}: tensors are on {' and '.join(sorted(devices))}")
            return fake(*args)

        self._fake = on_one_device
        self._plain: dict[str, Callable[..., Any]] = {}
        self._differentiable: dict[str, Callable[..., Any]] = {}
        for impl in IMPLS:
            overload = "" if impl == "auto" else impl
            self._differentiable[impl] = self._plain[impl] = self._define(impl, overload)
            if formula is not None:
                twin = "no_grad" if impl == "auto" else f"{impl}_no_grad"
                self._plain[impl] = self._define(impl, twin)
                self._differentiate(impl, formula)
        if decomposition is not None:
            for defined in self.overloads():
                register_decomposition(defined, decomposition, self._fake)
        OPS[self.name] = self

    def _define(self, impl: str, overload: str) -> Callable[..., Any]:
        name = f"{self.name}.{overload}" if overload else self.name
        LIBRARY.define(name + self._schema, tags=(torch.Tag.pt2_compliant_tag,))
        # torch.library.register_fake would do the same, and look up the source line of the caller
        # for each of a hundred overloads: a third of the time that the import takes.
        LIBRARY.impl(name, self._fake, "Meta")
        if impl in ("auto", "reference"):
            LIBRARY.impl(name, _without_autocast(self.reference), "CompositeExplicitAutograd")
        else:
            refuse = functools.partial(_backends.refuse, self, impl)
            LIBRARY.impl(name, refuse, "CompositeExplicitAutograd")
        if impl == "auto":
            run = _without_autocast(functools.partial(_auto.run, self))
            LIBRARY.impl(name, run, "CUDA")
        if impl == "triton":
            run = _without_autocast(functools.partial(_backends.run_triton, self))
            LIBRARY.impl(name, run, "CUDA")
            if _backends.triton_interpreted():
                LIBRARY.impl(name, run, "CPU")
        packet = getattr(torch.ops.cekernels, self.name)
        return getattr(packet, overload or "default")  # type: ignore[no-any-return]

    def _differentiate(self, impl: str, formula: Formula) -> None:
        """Register the formula of an overload, whose forward pass calls the one without it.

        ``torch.library.register_autograd`` would do the same through private functions of torch,
        with more Python frames and in a third more time.
        """
        plain = self._plain[impl]

        def forward(ctx: Any, *args: Any) -> Any:
            output = plain(*args)
            ctx.impl = impl
            formula.setup_context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(formula.backward)}
        function = type(self.name, (torch.autograd.Function,), methods)
        LIBRARY.impl(self._differentiable[impl], function.apply, "Autograd")  # type: ignore[attr-defined]
        LIBRARY.impl(plain, torch.library.fallthrough_kernel, "Autograd")

    def example(self) -> tuple[Any, ...]:
        """The arguments of a call, on the CPU."""
        kinds = self.check.usual((torch.float32,), ((36, 36),))
        return self.check.cases(next(iter(kinds)))[0]

    def overloads(self) -> list[Any]:
        """All overloads of the op."""
        return list(dict.fromkeys((*self._differentiable.values(), *self._plain.values())))

    def without_formula(self, impl: str) -> Callable[..., Any]:
        """The overload of ``impl`` without an autograd formula."""
        return self._plain[impl]

    def kernel(self, impl: str, *inputs: Tensor | None) -> Callable[..., Any]:
        """The callable for this call, with the arguments of the reference.

        Args:
            impl: "auto", or the implementation to force.
            inputs: the arguments that may require a gradient, or None for those not given.

        Raises:
            ImplementationError: an implementation other than the reference is forced under a
                transform of torch.func or forward-mode AD.
            ValueError: ``impl`` or the environment variable is not the name of an implementation.
        """
        if impl == "auto":
            impl = _backends.DEFAULT
        if impl not in self._plain:
            raise _backends.unknown(self.name, impl)
        if inputs and transforms_active():
            if impl not in ("auto", "reference"):
                raise ImplementationError(
                    f"{self.name}: impl={impl!r} cannot handle this call: torch.func transforms "
                    "and forward-mode AD are supported by the reference only"
                )
            return self.reference
        if torch.is_grad_enabled():
            for tensor in inputs:
                if tensor is not None and tensor.requires_grad:
                    return self._differentiable[impl]
        return self._plain[impl]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The ops that can be replaced by plain torch operations, each with the function that does so.

    A table for ``torch.export``: a program with these decompositions runs where this package is not
    installed, without its kernels::

        table = torch.export.default_decompositions() | cekernels.decompositions()
        program = torch.export.export(model, (x,)).run_decompositions(table)

    Returns:
        functions by overload: ``channelwise_linear``, ``local_response_norm``, the losses and
        ``fill_masked``, with their gradients.
    """
    return {
        overload: op.decomposition
        for op in OPS.values()
        if op.decomposition is not None
        for overload in op.overloads()
    }


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` with autocast disabled.

    The public function has already applied the autocast rule, and a backward pass inside an
    autocast region must return the dtypes of the fake implementation.
    """

    def run(*args: Any) -> Any:
        device = _backends.device_of(args).type
        if autocast_dtype(device) is None:
            return kernel(*args)
        with torch.autocast(device, enabled=False):
            return kernel(*args)

    return run


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast asks for on devices of this type; None where it is off."""
    try:
        enabled = torch.is_autocast_enabled(device)
    except RuntimeError:  # a device type without autocast, such as "meta"
        return None
    return torch.get_autocast_dtype(device) if enabled else None
