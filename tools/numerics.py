"""Measurement of the ops' numerical errors for docs/numerics.md.

    python tools/numerics.py                     measure the reference, and the GPU if there is one
    TRITON_INTERPRET=1 python tools/numerics.py  measure Triton's kernels in its interpreter
    python tools/numerics.py --table             only write the page from docs/numerics.json

To add an implementation, add an entry to IMPLEMENTATIONS.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import cekernels
from cekernels import _backends

_DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE = _DOCS / "numerics.json", _DOCS / "numerics.md"
BEGIN, END = "<!-- table: tools/numerics.py -->", "<!-- end of table -->"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Implementation(NamedTuple):
    """Device of an implementation, and its accumulation and rounding by op and dtype."""

    impl: str
    device: str
    linear: dict[str, str]
    loss: dict[str, str]
    repeats: str
    norm: dict[str, str] = {}  # noqa: RUF012 - not changed


_PLAIN_LINEAR = dict.fromkeys(
    ("float64", "float32"), "in its dtype, by the matrix library; bias and ReLU after"
) | dict.fromkeys(
    ("float16", "bfloat16"), "by the matrix library; rounded before the bias and after it"
)
_PLAIN_LOSS = {"float64": "float64"} | dict.fromkeys(
    ("float32", "float16", "bfloat16"), "float32, sum by PyTorch"
)
_ONCE = "products exact, sums float32, rounded once after bias and ReLU"
_TRITON_LINEAR = {
    "float32": "float32 multiply-add (`ieee`)",
    "float32, high": "three TF32 products (`tf32x3`), sums float32",
    "float32, medium": "operands rounded to TF32, sums float32",
    "float16": _ONCE,
    "bfloat16": _ONCE,
}
_TRITON_LOSS = dict.fromkeys(
    ("float32", "float16", "bfloat16"),
    "float32 within a program, float64 across; gradient rounded once",
)
_CPP_LINEAR = {
    "float32": "float32 multiply-add, at most 64 terms per sum; large maps by the matrix library",
    "float16": _ONCE,
    "bfloat16": _ONCE,
}
_CUDA_LINEAR = {
    "float32": "float32 multiply-add",
    "float32, high": "maps of 16, 36, 64 locations: three TF32 products; else as float32",
    "float32, medium": "the same maps: operands rounded to TF32, sums float32; else as float32",
    "float16": _ONCE,
    "bfloat16": _ONCE,
}
_CPP_LOSS = dict.fromkeys(
    ("float32", "float16", "bfloat16"), "float32 over 512 elements, float64 across"
)

_PLAIN_NORM = {"float64": "float64"} | dict.fromkeys(
    ("float32", "float16", "bfloat16"), "float32, one operation of PyTorch after the other"
)
_CPP_NORM = dict.fromkeys(
    ("float32", "float16", "bfloat16"),
    "float32; the power of 0.75 by a division and square roots; rounded once",
)

IMPLEMENTATIONS = {
    "reference, CPU": Implementation(
        "reference", "cpu", _PLAIN_LINEAR, _PLAIN_LOSS, "yes", _PLAIN_NORM
    ),
    "reference, GPU": Implementation(
        "reference", "cuda",
        _PLAIN_LINEAR | dict.fromkeys(("float32, high", "float32, medium"), "TF32 by cuBLAS"),
        _PLAIN_LOSS, "as PyTorch", _PLAIN_NORM,
    ),
    "cpp, CPU": Implementation(
        "cpp", "cpu", _CPP_LINEAR, _CPP_LOSS, "yes, for a fixed number of threads", _CPP_NORM
    ),
    "cuda, GPU": Implementation(
        "cuda", "cuda", _CUDA_LINEAR, _TRITON_LOSS, "by construction"
    ),
    "triton, interpreter": Implementation(
        "triton", "cpu",
        {k: v for k, v in _TRITON_LINEAR.items() if k != "float32, high"}, _TRITON_LOSS, "yes",
    ),
    "triton, GPU": Implementation(
        "triton", "cuda", _TRITON_LINEAR, _TRITON_LOSS, "by construction"
    ),
}  # fmt: skip

_PRECISION = {"high": "high", "medium": "medium"}


def _error(value: Tensor, truth: Tensor) -> float:
    """Largest error relative to the largest true value."""
    return ((value.double() - truth).abs().max() / truth.abs().max()).item()


def _linear(impl: str, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """64 samples of 8 maps of 6 x 6, bias and ReLU: errors of output and worst gradient."""
    r = torch.Generator().manual_seed(0)
    shapes = ((64, 8, 36), (8, 36, 36), (8, 36), (64, 8, 36))
    x, w, b, g = (torch.randn(s, generator=r).to(device, dtype) for s in shapes)
    w = w / 6
    wide = [t.double() for t in (x, w, b)]
    # Where a sum is close to zero, rounding decides its sign and with it ReLU's gradient.
    g[cekernels.channelwise_linear(*wide, impl="reference").abs() < 0.05] = 0

    def run(impl: str, *operands: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in operands]
        y = cekernels.channelwise_linear(*leaves, activation="relu", impl=impl)
        return [y.detach(), *torch.autograd.grad(y, leaves, g.to(y.dtype))]

    errors = [
        _error(a, t) for a, t in zip(run(impl, x, w, b), run("reference", *wide), strict=True)
    ]
    return errors[0], max(errors[1:])


def _loss(impl: str, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """4 images of 3 x 64 x 64, a quarter masked, L2 as a mean: errors of loss and gradient."""
    r = torch.Generator().manual_seed(0)
    p, t = (torch.randn(4, 3, 64, 64, generator=r).to(device, dtype) for _ in range(2))
    m = torch.zeros(4, 1, 64, 64, dtype=torch.bool, device=device)
    m[:, :, 16:48, 16:48] = True

    def run(impl: str, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        prediction = prediction.detach().requires_grad_()
        loss = cekernels.masked_l2_loss(prediction, target, m, impl=impl)
        return loss.detach(), torch.autograd.grad(loss, prediction)[0]

    ours, truth = run(impl, p, t), run("reference", p.double(), t.double())
    return _error(ours[0], truth[0]), _error(ours[1], truth[1])


def _norm(impl: str, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """4 images of 16 maps of 13 x 13, size 5, alpha 1, beta 0.75: errors of output and gradient."""
    r = torch.Generator().manual_seed(0)
    x, g = (torch.randn(4, 16, 13, 13, generator=r).to(device, dtype) for _ in range(2))

    def run(impl: str, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = cekernels.local_response_norm(x, 5, alpha=1.0, beta=0.75, k=1.0, impl=impl)
        return y.detach(), torch.autograd.grad(y, x, g)[0]

    ours, truth = run(impl, x, g), run("reference", x.double(), g.double())
    return _error(ours[0], truth[0]), _error(ours[1], truth[1])


def can_measure(name: str) -> bool:
    entry = IMPLEMENTATIONS[name]
    if entry.device == "cuda" and not torch.cuda.is_available():
        return False
    if (name == "triton, interpreter") != INTERPRETED:
        return False
    return _backends.unavailable(entry.impl) is None


def measure(name: str) -> dict[str, tuple[float, float]]:
    """Errors (forward, backward) of one implementation by op and dtype."""
    entry = IMPLEMENTATIONS[name]
    before = torch.get_float32_matmul_precision()
    found = {}
    try:
        for label in entry.linear:
            dtype, _, precision = label.partition(", ")
            torch.set_float32_matmul_precision(_PRECISION.get(precision, "highest"))
            args = (entry.impl, entry.device, getattr(torch, dtype))
            # float64 is the truth itself
            if dtype != "float64":
                found[f"channelwise_linear {label}"] = _linear(*args)
        for dtype in entry.loss:
            if dtype != "float64":
                args = (entry.impl, entry.device, getattr(torch, dtype))
                found[f"masked_l2_loss {dtype}"] = _loss(*args)
        for dtype in entry.norm:
            if dtype != "float64":
                args = (entry.impl, entry.device, getattr(torch, dtype))
                found[f"local_response_norm {dtype}"] = _norm(*args)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """The table of the page, in Markdown."""
    lines = [
        "| op | dtype | implementation | accumulation and rounding | error, forward "
        "| error, backward | repeats bit for bit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    fields = {
        "channelwise_linear": "linear",
        "masked_l2_loss": "loss",
        "local_response_norm": "norm",
    }
    for op, field in fields.items():
        for name, entry in IMPLEMENTATIONS.items():
            facts: dict[str, str] = getattr(entry, field)
            for label, fact in facts.items():
                errors = results.get(name, {}).get(f"{op} {label}")
                if label == "float64":
                    cells = "the truth | the truth"
                elif errors is None:
                    cells = "not measured | not measured"
                else:
                    cells = " | ".join(f"{e:.1e}" for e in errors)
                lines.append(f"| `{op}` | {label} | {name} | {fact} | {cells} | {entry.repeats} |")
    return "\n".join(lines)


def page_with(results: dict[str, dict[str, list[float]]]) -> str:
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "--table" not in sys.argv:
        for name in filter(can_measure, IMPLEMENTATIONS):
            results[name] = measure(name)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page_with(json.loads(json.dumps(results))))


if __name__ == "__main__":
    main()
