"""Philox-4x32-10 in one launch, with the rounds of ``triton.language.philox``."""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cekernels.reference.random import ROUNDS
from cekernels.triton._runtime import cdiv, launch, wide

BLOCK = 256

_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def _word(pointer, row, column, stride_row, stride_column, exists):
    value = tl.load(pointer + row * stride_row + column * stride_column, mask=exists, other=0)
    return value.to(tl.uint32)  # modulo 2**32


# A batch of one sample has other strides than one of several, which should not compile anew.
_STRIDES = [f"c{n}_stride_{axis}" for n in range(4) for axis in ("row", "column")]


@triton.jit(do_not_specialize=["key", "count", *_STRIDES])
def philox_kernel(
    c0,
    c1,
    c2,
    c3,
    words,
    key,
    count,
    columns,
    c0_stride_row,
    c0_stride_column,
    c1_stride_row,
    c1_stride_column,
    c2_stride_row,
    c2_stride_column,
    c3_stride_row,
    c3_stride_column,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    number = tl.program_id(0)
    if WIDE:
        number = number.to(tl.int64)
    number = number * BLOCK + tl.arange(0, BLOCK)
    exists = number < count
    row, column = number // columns, number % columns
    w0, w1, w2, w3 = tl.philox(
        key,
        _word(c0, row, column, c0_stride_row, c0_stride_column, exists),
        _word(c1, row, column, c1_stride_row, c1_stride_column, exists),
        _word(c2, row, column, c2_stride_row, c2_stride_column, exists),
        _word(c3, row, column, c3_stride_row, c3_stride_column, exists),
        _ROUNDS,
    )
    # The four words are joined to 32 bytes, so that neighbouring threads write whole sectors.
    low, high = tl.join(w0, w2), tl.join(w1, w3)
    quadruple = tl.reshape(tl.join(low, high), (BLOCK, 4)).to(tl.int64)
    at = number[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(words + at, quadruple, mask=exists[:, None])


def unsupported(op: str, *args: Any) -> str | None:
    return None


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int) -> Tensor:
    counter = torch.broadcast_tensors(c0, c1, c2, c3)
    shape = counter[0].shape
    words = c0.new_empty((*shape, 4))
    if words.numel() == 0:
        return words
    columns = shape[-1] if shape else 1
    # The kernel takes two dimensions: counters whose strides need more are copied.
    matrices = [word.reshape(-1, columns) for word in counter]
    strides = {
        f"c{n}_stride_{name}": matrix.stride(dim)
        for n, matrix in enumerate(matrices)
        for dim, name in enumerate(("row", "column"))
    }
    count = words.numel() // 4
    launch(
        philox_kernel,
        (cdiv(count, BLOCK),),
        c0.device,
        num_warps=4,
        **{f"c{n}": matrix for n, matrix in enumerate(matrices)},
        words=words,
        key=(k1 << 32) | k0,
        count=count,
        columns=columns,
        **strides,
        BLOCK=BLOCK,
        WIDE=wide(words, *matrices),
    )
    return words
