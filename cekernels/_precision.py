"""How the GPU kernels take products of float32, by what PyTorch was told about its own."""

from __future__ import annotations

import torch


def float32_products() -> str:
    """ "ieee", "tf32x3" (three TF32 products, nearly float32) or "tf32".

    ``torch.set_float32_matmul_precision`` with "highest", "high" and "medium" leads to these.
    ``torch.backends.cuda.matmul.fp32_precision = "tf32"``, the newer way, and ``allow_tf32 = True``
    allow TF32 and say no more; they count as "high". "high" lets PyTorch use TF32 or three bfloat16
    products: three TF32 products are more exact than either, and memory stays the limit.
    """
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    try:
        return "tf32" if torch.get_float32_matmul_precision() == "medium" else "tf32x3"
    except RuntimeError:  # it refuses to answer once the newer way was taken
        return "tf32x3"
