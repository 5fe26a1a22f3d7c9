"""Channel-wise fully-connected layer with bias and ReLU.

Error: largest difference to float64 over the largest magnitude, of the output and each gradient.
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
    UnavailableError,
    autograd_call,
    compiled,
    relative_error,
    rounding_limit,
)
from bench.providers import chosen, implementations, is_implementation
from cekernels import channelwise_linear

_CHANNELS = 256
_MODES = ("forward", "backward", "both")
_LARGER_ON_CPU = ((64, 256, 8), (16, 64, 16), (16, 16, 32))


def rows(device: str) -> list[Row]:
    gpu = device == "cuda"
    batches = (16, 64, 256, 512, 1024, 2048) if gpu else (16, 64, 256)
    sizes = [
        (batch, _CHANNELS, 6, _MODES if gpu or batch == 64 else ("forward", "both"))
        for batch in batches
    ]
    # Weights grow with the fourth power of the side: a map of 32 x 32 has 4 MB of them.
    larger = ((64, 256, 8), (64, 256, 16), (64, 64, 32)) if gpu else _LARGER_ON_CPU
    sizes += [(*size, ("forward", "both")) for size in larger]
    result = []
    for batch, channels, side, modes in sizes:
        paper = side == 6
        dtypes = ["float32"]
        if gpu:
            dtypes += ["tf32", "bfloat16", *(["float16"] if paper else [])]
        elif paper and batch == 64:
            dtypes += ["bfloat16"]
        result += [
            Row(
                "channelwise_linear",
                f"{batch}x{channels}x{side}x{side}",
                dtype,
                mode,
                device,
                axes={"batch": batch, "channels": channels, "side": side},
                seconds=0.6,
                compiled=gpu or (paper and batch == 64 and dtype == "float32"),
            )
            for dtype in dtypes
            for mode in modes
        ]
    return result


def providers(row: Row) -> tuple[str, ...]:
    return (*implementations(), *_FUNCTIONS, "bmm(out=)", "compile")


def counted_bytes(batch: int, channels: int, n_in: int, n_out: int, item: int, mode: str) -> int:
    """Bytes of reading each input once and writing each output once.

    Forward: input, weight, bias; output. Backward: gradient of the output, input, weight, and
    the output for its ReLU; the three gradients. Both: the sum, as they are two calls.
    """
    maps_in, maps_out = batch * channels * n_in, batch * channels * n_out
    weights = channels * n_out * (n_in + 1)
    forward = maps_in + weights + maps_out
    backward = 2 * maps_out + maps_in + channels * n_out * n_in + maps_in + weights
    return item * {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def counted_flops(batch: int, channels: int, n_in: int, n_out: int, mode: str) -> int:
    """Multiplications and additions of the products: one forward, two backward."""
    product = 2 * batch * channels * n_in * n_out
    return product * {"forward": 1, "backward": 2, "both": 3}[mode]


def _baddbmm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    product = torch.baddbmm(b.unsqueeze(1), x.transpose(0, 1), w.transpose(1, 2))
    return product.relu_().transpose(0, 1)


def _einsum(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bci,coi->bco", x, w).add_(b).relu_()


def _vmap(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.vmap(F.linear, in_dims=(1, 0, 0), out_dims=1)(x, w, b).relu_()


def _conv1d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    channels, n_out, n_in = w.shape
    flat = x.reshape(x.shape[0], channels * n_in, 1)
    product = F.conv1d(flat, w.reshape(-1, n_in, 1), b.reshape(-1), groups=channels)
    return product.view(-1, channels, n_out).relu_()


def _conv2d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The form of the paper's authors: a kernel of the map's size, one group per channel."""
    channels, n_out, n_in = w.shape
    side = round(n_in**0.5)
    maps = x.view(x.shape[0], channels, side, side)
    product = F.conv2d(maps, w.view(-1, 1, side, side), b.reshape(-1), groups=channels)
    return product.view(-1, channels, n_out).relu_()


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "einsum": _einsum,
    "baddbmm": _baddbmm,
    "vmap(linear)": _vmap,
    "conv1d": _conv1d,
    "conv2d": _conv2d,
}


def _plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (torch.einsum("bci,coi->bco", x, w) + b).relu()


class ChannelwiseProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        batch, channels = int(row.axes["batch"]), int(row.axes["channels"])
        n = int(row.axes["side"]) ** 2
        self.items = batch
        self.bytes = counted_bytes(batch, channels, n, n, row.torch_dtype.itemsize, row.mode)
        self.flops = counted_flops(batch, channels, n, n, row.mode)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=row.device).to(row.torch_dtype)

        self.inputs = (
            random(batch, channels, n),
            random(channels, n, n) / n**0.5,
            random(channels, n),
        )
        exact = [value.double() for value in self.inputs]
        # Where the output is 0 up to rounding, either side of the ReLU's kink is correct: its
        # gradient is set to 0 there.
        output = torch.einsum("bci,coi->bco", exact[0], exact[1]) + exact[2]
        margin = 8 * torch.finfo(row.torch_dtype).eps * output.abs().max()
        self.grad = random(batch, channels, n).masked_fill_(output.abs() < margin, 0)
        del output
        self.truth = self._autograd(_plain, exact, self.grad.double())()
        plain = self._autograd(_plain, self.inputs, self.grad)()
        error = relative_error(plain, self.truth)
        self.limit = rounding_limit(error, row.torch_dtype, max(n, batch))

    def _autograd(
        self, function: Callable[..., Tensor], inputs: Any, grad: Tensor
    ) -> Callable[[], Outputs]:
        leaves = [value.detach().requires_grad_() for value in inputs]
        return autograd_call(function, leaves, leaves, grad, self.row.mode)

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        if is_implementation(provider):
            x, w, b = self.inputs
            extra = chosen("channelwise_linear", provider, (x, w, b, True))

            def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
                return channelwise_linear(x, w, b, activation="relu", impl=provider)  # type: ignore[arg-type]

            return self._autograd(op, self.inputs, self.grad), extra
        if provider == "bmm(out=)":
            return self._bmm(), {}
        if provider == "compile":
            if not self.row.compiled:
                raise UnavailableError("compiled for one shape only on the CPU, to save time")
            # Without CUDA graphs, as the timing "graph" uses one for every provider. Autotuning on
            # a CPU takes longer than all other rows of this file together.
            gpu = self.row.device == "cuda"
            mode = "max-autotune-no-cudagraphs" if gpu else "default"
            function = compiled(_plain, (self.row.shape, self.row.dtype), mode=mode)
            return self._autograd(function, self.inputs, self.grad), {}
        return self._autograd(_FUNCTIONS[provider], self.inputs, self.grad), {}

    def _bmm(self) -> Callable[[], Outputs]:
        """Batched products into preallocated buffers through transposed views, without copies.

        ``out=`` has no gradient, so the backward pass is written out too.
        """
        x, w, b = self.inputs
        y = x.new_empty(x.shape)
        grad_x, grad_w = torch.empty_like(x), torch.empty_like(w)
        gated = torch.empty_like(self.grad)
        w_t = w.transpose(1, 2)

        def forward() -> Outputs:
            torch.bmm(x.transpose(0, 1), w_t, out=y.transpose(0, 1))
            y.add_(b).relu_()
            return (y,)

        def backward() -> Outputs:
            torch.mul(self.grad, y > 0, out=gated)
            by_channel = gated.transpose(0, 1)
            torch.bmm(by_channel, w, out=grad_x.transpose(0, 1))
            torch.bmm(by_channel.transpose(1, 2), x.transpose(0, 1), out=grad_w)
            return grad_x, grad_w, gated.sum(0)

        with torch.no_grad():
            forward()
        modes = {
            "forward": forward,
            "backward": backward,
            "both": lambda: (*forward(), *backward()),
        }
        return modes[self.row.mode]

    def error(self, outputs: Any) -> float:
        return relative_error(outputs, self.truth)


def problem(row: Row) -> ChannelwiseProblem:
    return ChannelwiseProblem(row)


def test_channelwise_linear(
    row: Row, timing: str, provider: str, race: Callable[[Row, str, str], None]
) -> None:
    race(row, timing, provider)
