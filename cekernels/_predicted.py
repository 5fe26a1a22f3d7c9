"""Predicted times on a GPU per op; no GPU has confirmed them (docs/gpu.md).

Written by ``python -m tests.helpers.ptx.budgets``.
"""

from __future__ import annotations

#: Microseconds on an H200, at least; products: B = 1024, C = 256, 36 locations.
MICROSECONDS: dict[str, dict[str, float]] = {
    "channelwise_linear 16 bit": {"cuda": 8.9, "reference": 30.3, "triton": 9.4},
    "channelwise_linear ieee": {"cuda": 17.9, "reference": 56.7, "triton": 174.5},
    "channelwise_linear tf32": {"cuda": 17.9, "reference": 56.7, "triton": 17.9},
    "channelwise_linear tf32x3": {"cuda": 17.9, "reference": 56.7, "triton": 18.3},
    "channelwise_linear_backward 16 bit": {"cuda": 21.1, "reference": 41.1, "triton": 31.0},
    "channelwise_linear_backward ieee": {"cuda": 35.7, "reference": 76.2, "triton": 117.2},
    "channelwise_linear_backward tf32": {"cuda": 35.7, "reference": 76.2, "triton": 102.6},
    "channelwise_linear_backward tf32x3": {"cuda": 35.7, "reference": 76.2, "triton": 245.9},
    "masked_loss_and_gradient": {"cuda": 12.0, "triton": 12.0},
    "rasterize_polygons": {"cuda": 11.2, "triton": 11.7},
}
