"""Masked L2 loss, normalised by the mask's area.

Error: largest difference to float64 over the largest magnitude, of the loss and the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import (
    Call,
    Problem,
    Row,
    UnavailableError,
    autograd_call,
    compiled,
    relative_error,
    rounding_limit,
)
from bench.providers import chosen, implementations, is_implementation
from cekernels import masked_l2_loss
from context_encoder.masks import build_mask_sampler

_MODES = ("forward", "backward", "both")
#: "auto" with the masks' areas given, as returned by the rasterizer, instead of counted again.
_WITH_AREA = "auto area"
_MASKS = ("everything", "block", "region", "central")


def rows(device: str) -> list[Row]:
    gpu = device == "cuda"
    cases = [(size, "float32", mask) for size in (128, 227) for mask in _MASKS]
    if gpu:
        cases += [(size, "bfloat16", mask) for size in (128, 227) for mask in _MASKS]
    else:
        cases += [(128, "bfloat16", "region")]
    batch = 64 if gpu else 16
    return [
        Row(
            "masked_l2_loss",
            f"{batch}x3x{size}x{size}",
            dtype,
            mode,
            device,
            mask,
            {"batch": batch, "channels": 3, "side": size},
            seconds=0.3,
            compiled=gpu or (size == 128 and dtype == "float32"),
        )
        for size, dtype, mask in cases
        for mode in (_MODES if gpu or size == 128 else ("both",))
    ]


def providers(row: Row) -> tuple[str, ...]:
    return (*implementations(), _WITH_AREA, *_FUNCTIONS, "compile")


def masks(kind: str, batch: int, size: int, device: str) -> Tensor:
    """bool ``(batch, 1, size, size)``: "everything", or a kind of the package's samplers."""
    if kind == "everything":
        return torch.ones(batch, 1, size, size, dtype=torch.bool, device=device)
    index = torch.arange(batch, device=device)
    sampler = build_mask_sampler(kind, size, 0).to(device)
    mask: Tensor = sampler(torch.zeros_like(index), index)[0]
    return mask


def counted_bytes(mask: Tensor, channels: int, item: int, mode: str) -> int:
    """Bytes to move; only the masked elements of prediction and target have to be read.

    Forward: the mask, the masked elements of both; the loss. Backward: the same, and the whole
    gradient is written. Both: the sum, as they are two calls.
    """
    read = mask.numel() * mask.element_size() + 2 * item * channels * int(mask.sum())
    forward, backward = read + 4, read + 4 + item * channels * mask.numel()
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def counted_flops(mask: Tensor, channels: int, mode: str) -> int:
    """Per masked element: difference, square and sum; in the gradient difference and scale."""
    return channels * int(mask.sum()) * {"forward": 3, "backward": 2, "both": 5}[mode]


def _eager(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return ((prediction - target).square() * mask).sum() / (mask.sum() * prediction.shape[1])


def _boolean_index(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    whole = mask.expand_as(prediction)
    return F.mse_loss(prediction[whole], target[whole])


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eager": _eager,
    "boolean index": _boolean_index,
}


class MaskedLossProblem(Problem):
    def __init__(self, row: Row) -> None:
        self.row = row
        batch, channels = int(row.axes["batch"]), int(row.axes["channels"])
        size = int(row.axes["side"])
        self.items = batch
        self.mask = masks(row.kind, batch, size, row.device)
        self.bytes = counted_bytes(self.mask, channels, row.torch_dtype.itemsize, row.mode)
        self.flops = counted_flops(self.mask, channels, row.mode)
        shape = (2, batch, channels, size, size)
        pair = torch.rand(shape, device=row.device).mul_(2).sub_(1).to(row.torch_dtype)
        self.prediction, self.target = pair
        exact = self._autograd(_eager, self.prediction.double(), self.target.double())
        self.truth = exact()
        plain = self._autograd(_eager, self.prediction, self.target)()
        error = relative_error(plain, self.truth)
        # Rounding of sums over image rows, not of one sum over all elements in sequence.
        self.limit = rounding_limit(error, row.torch_dtype, size)

    def _autograd(
        self, function: Callable[[Tensor, Tensor, Tensor], Tensor], prediction: Tensor, to: Tensor
    ) -> Callable[[], Any]:
        leaf = prediction.detach().requires_grad_()

        def loss(prediction: Tensor) -> Tensor:
            return function(prediction, to, self.mask)

        with torch.no_grad():
            one = torch.ones_like(loss(leaf))
        return autograd_call(loss, (leaf,), (leaf,), one, self.row.mode)

    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        extra: dict[str, Any] = {}
        impl = provider.removesuffix(" area")
        if is_implementation(impl):
            area = self.mask.sum((1, 2, 3)) if provider == _WITH_AREA else None
            args = (self.prediction, self.target, self.mask, area, 2, "mask")
            extra = chosen("masked_loss", impl, args)

            def ours(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
                return masked_l2_loss(prediction, target, mask, area=area, impl=impl)  # type: ignore[arg-type]

            function: Callable[..., Tensor] = ours
        elif provider == "compile":
            if not self.row.compiled:
                raise UnavailableError("compiled for one shape only on the CPU, to save time")
            function = compiled(_eager, (self.row.shape, self.row.dtype))
        else:
            function = _FUNCTIONS[provider]
        return self._autograd(function, self.prediction, self.target), extra

    def error(self, outputs: Any) -> float:
        return relative_error(outputs, self.truth)


def problem(row: Row) -> MaskedLossProblem:
    return MaskedLossProblem(row)


def test_masked_l2_loss(
    row: Row, timing: str, provider: str, race: Callable[[Row, str, str], None]
) -> None:
    race(row, timing, provider)
