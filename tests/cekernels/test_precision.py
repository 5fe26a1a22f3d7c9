"""Precision of float32 products on a GPU for each of PyTorch's settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

# One process per case: PyTorch cannot undo a mix of the older and the newer settings.
OLDER = "torch.set_float32_matmul_precision({!r})".format
NEWER = "torch.backends.cuda.matmul.fp32_precision = {!r}".format


@pytest.mark.parametrize(
    ("told", "products"),
    [
        ("", "ieee"),
        (OLDER("highest"), "ieee"),
        (OLDER("high"), "tf32x3"),
        (OLDER("medium"), "tf32"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "tf32x3"),
        (NEWER("ieee"), "ieee"),
        (NEWER("tf32"), "tf32x3"),
        ("torch.backends.fp32_precision = 'tf32'", "tf32x3"),
        (OLDER("high") + "\n" + NEWER("ieee"), "ieee"),
        ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "ieee"),
    ],
)
def test_products(told: str, products: str) -> None:
    code = (
        f"import torch\n{told}\n"
        "from cekernels._precision import float32_products\nprint(float32_products())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == products, done.stderr
