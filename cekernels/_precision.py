"""Float32 precision of the GPU kernels, derived from PyTorch's own matmul settings."""

from __future__ import annotations

import torch

# Same order as the enum Products in csrc/params.h.
PRODUCTS = ("ieee", "tf32x3", "tf32")


def float32_products() -> str:
    """Precision of float32 products: "ieee", "tf32x3" (three TF32 products) or "tf32".

    ``torch.set_float32_matmul_precision`` selects them by "highest", "high" and "medium". The newer
    setting ``torch.backends.cuda.matmul.fp32_precision = "tf32"``, and ``allow_tf32 = True``, allow
    TF32 without a level; they count as "high". For "high", PyTorch may use TF32 or three bfloat16
    products: three TF32 products are more accurate than either, nearly as accurate as float32, and
    the kernels remain limited by memory.
    """
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    try:
        return "tf32" if torch.get_float32_matmul_precision() == "medium" else "tf32x3"
    except RuntimeError:  # raised once the newer setting has been used
        return "tf32x3"


def _index() -> int:
    return PRODUCTS.index(float32_products())


def define(library: torch.library.Library) -> None:
    """An op for the CUDA library, which cannot read torch's settings itself.

    They are not part of LibTorch's stable ABI. It calls the op in every call, as torch's own
    products read the settings in every call.
    """
    library.define("float32_products() -> int")
    library.impl("float32_products", _index, "CompositeExplicitAutograd")
