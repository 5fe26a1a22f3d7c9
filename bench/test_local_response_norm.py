"""Local response normalisation on AlexNet's maps.

Error: largest difference to float64 over the largest magnitude, of the output and the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import (
    Call,
    Outputs,
    Problem,
    Row,
    autograd_call,
    compiled,
    relative_error,
    rounding_limit,
)
from bench.providers import chosen, implementations, is_implementation
from cekernels import local_response_norm

_SIZE, _ALPHA, _BETA, _K = 5, 1e-4, 0.75, 1.0
#: The maps of AlexNet's two normalisations: channels and side.
_MAPS = ((96, 55), (256, 27))


def rows(device: str) -> list[Row]:
    batch = 256 if device == "cuda" else 8
    return [
        Row(
            "local_response_norm",
            f"{batch}x{channels}x{side}x{side}",
            "float32",
            mode,
            device,
            axes={"batch": batch, "channels": channels, "side": side},
            seconds=0.6,
        )
        for channels, side in _MAPS
        for mode in ("forward", "both")
    ]


def providers(row: Row) -> tuple[str, ...]:
    forced = tuple(name for name in implementations() if name not in ("triton", "cuda"))
    return (*forced, "torch", "compile")


def _plain(x: Tensor) -> Tensor:
    return F.local_response_norm(x, _SIZE, _ALPHA, _BETA, _K)


class NormProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        batch, channels, side = (int(row.axes[name]) for name in ("batch", "channels", "side"))
        shape = (batch, channels, side, side)
        self.items = batch
        maps = batch * channels * side**2 * row.torch_dtype.itemsize
        # Forward: input read, output written; backward: both gradients and the input.
        self.bytes = maps * {"forward": 2, "both": 5}[row.mode]
        self.flops = 0
        self.input = torch.randn(shape, device=row.device).to(row.torch_dtype)
        self.grad = torch.randn(shape, device=row.device).to(row.torch_dtype)
        self.truth = self._autograd(_plain, self.input.double(), self.grad.double())()
        plain = relative_error(self._autograd(_plain, self.input, self.grad)(), self.truth)
        self.limit = rounding_limit(plain, row.torch_dtype, _SIZE)

    def _autograd(
        self, function: Callable[[Tensor], Tensor], input: Tensor, grad: Tensor
    ) -> Callable[[], Outputs]:
        leaf = input.detach().requires_grad_()
        return autograd_call(function, [leaf], [leaf], grad, self.row.mode)

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        parameters = (_SIZE, _ALPHA, _BETA, _K)
        if is_implementation(provider):
            extra = chosen("local_response_norm", provider, (self.input, *parameters))

            def op(x: Tensor) -> Tensor:
                return local_response_norm(x, *parameters, impl=provider)  # type: ignore[arg-type]

            return self._autograd(op, self.input, self.grad), extra
        function = compiled(_plain, self.row.shape) if provider == "compile" else _plain
        return self._autograd(function, self.input, self.grad), {}

    def error(self, outputs: Any) -> float:
        return relative_error(outputs, self.truth)


def problem(row: Row) -> NormProblem:
    return NormProblem(row)


def test_local_response_norm(
    row: Row, timing: str, provider: str, race: Callable[[Row, str, str], None]
) -> None:
    race(row, timing, provider)
