"""Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cekernels.reference.layout import dense_format
from cekernels.reference.masked_loss import accumulation_dtype


def _window_sums(x: Tensor, before: int, after: int) -> Tensor:
    """Sums over the channels from ``before`` in front of each to ``after`` behind it."""
    channels = x.shape[1]
    padded = F.pad(x, (0, 0, 0, 0, before, after))
    total = padded[:, :channels]
    for shift in range(1, before + after + 1):
        total = total + padded[:, shift : shift + channels]
    return total


def local_response_norm(input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """``input / (k + alpha / size * sum of squares over size channels) ** beta``.

    ``(B, C, H, W)``. The window of channel c begins at c - size // 2; beyond the first and the last
    channel are zeros. Computed in float32, in float64 for float64.
    """
    x = input.to(accumulation_dtype(input.dtype))
    squares = _window_sums(x.square(), size // 2, (size - 1) // 2)
    output = x * (k + alpha / size * squares).pow(-beta)
    return output.to(input.dtype).contiguous(memory_format=dense_format(input))


def local_response_norm_backward(
    grad_output: Tensor, input: Tensor, size: int, alpha: float, beta: float, k: float
) -> Tensor:
    """Gradient of the input, in its dtype and layout."""
    dtype = accumulation_dtype(input.dtype)
    x, grad = input.to(dtype), grad_output.to(dtype)
    base = k + alpha / size * _window_sums(x.square(), size // 2, (size - 1) // 2)
    factor = base.pow(-beta)
    # A channel is in the windows of those from (size - 1) // 2 in front of it on.
    through = _window_sums(grad * x * factor / base, (size - 1) // 2, size // 2)
    result = grad * factor - 2 * alpha * beta / size * x * through
    return result.to(input.dtype).contiguous(memory_format=dense_format(input))
