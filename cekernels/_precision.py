"""How GPU kernels multiply float32, by what PyTorch was told about its own products."""

from __future__ import annotations

import torch

from cekernels._register import LIBRARY

# In the order of the enum Products of csrc/params.h.
PRODUCTS = ("ieee", "tf32x3", "tf32")


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


def _index() -> int:
    return PRODUCTS.index(float32_products())


# For the CUDA library, which cannot ask torch: its settings are not part of LibTorch's stable ABI.
# It asks at each call, as torch's own products do.
LIBRARY.define("float32_products() -> int")
LIBRARY.impl("float32_products", _index, "CompositeExplicitAutograd")
