"""Operands of mma.sync and wgmma as matrices in float64 (PTX ISA, "Matrix fragments").

With g = lane / 4 and q = lane % 4, register i of the 16-row operand a holds row g + 8 (i % 2) at
depth q (TF32) or 2q, 2q + 1 (16 bit) of half i / 2 of the depth; register i of b holds column g at
depth q or 2q, 2q + 1 of half i; register 4j + i of c and d holds row g + 8 (i / 2), column
8j + 2q + i % 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.helpers.ptx import arithmetic


def widened(kind: str, raw: Any) -> Any:
    """Elements from their bits, as the tensor core reads them, in float64."""
    if kind == "tf32":
        return arithmetic.from_tf32(raw)
    return arithmetic.from_half(kind, raw)


def _elements(kind: str, registers: Sequence[Any]) -> list[Any]:
    """Per register (warps, 8, 4, n): its n elements per lane, lanes as (g, q)."""
    found = []
    for register in registers:
        lanes = register.reshape(-1, 8, 4)
        if kind == "tf32":
            found.append(widened(kind, lanes)[..., None])
        else:
            halves = [arithmetic.piece(lanes, i, np.uint16) for i in (0, 1)]
            found.append(np.stack([widened(kind, h) for h in halves], -1))
    return found


def matrix_a(kind: str, registers: Sequence[Any]) -> Any:
    """(warps, 16, depth) from the four registers of a."""
    parts = [e.reshape(e.shape[0], 8, -1) for e in _elements(kind, registers)]
    top, bottom = (np.concatenate([parts[i], parts[i + 2]], 2) for i in (0, 1))
    return np.concatenate([top, bottom], 1)


def matrix_b(kind: str, registers: Sequence[Any]) -> Any:
    """(warps, depth, 8) from the two registers of b."""
    parts = [e.reshape(e.shape[0], 8, -1) for e in _elements(kind, registers)]
    return np.concatenate(parts, 2).transpose(0, 2, 1)


def add_to(c: Sequence[Any], product: Any) -> list[Any]:
    """c + product as registers: (warps, 16, columns) in float64, rounded once to float32."""
    warps, _, columns = product.shape
    lanes = product.reshape(warps, 2, 8, columns // 8, 4, 2)
    results = []
    for i, register in enumerate(c):
        block, row, column = i // 4, i % 4 // 2, i % 2
        part = lanes[:, row, :, block, :, column].reshape(warps, 32)
        results.append((register.astype(np.float64) + part).astype(np.float32))
    return results


def descriptor_index(descriptor: Any, rows: int, depth: int, kind: str, transposed: bool) -> Any:
    """Byte offsets in shared memory, (groups, rows, depth), of a matrix that wgmma reads.

    PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout". ``transposed``: neighbours
    in memory are neighbouring rows of the matrix, not neighbours along the depth.
    """

    def field(first: int, bits: int) -> Any:
        found = (descriptor >> np.uint64(first)) & np.uint64((1 << bits) - 1)
        return found.astype(np.int64)[:, None, None]

    start, leading, stride = field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4
    mode = field(62, 2)  # 0: not swizzled; 1, 2, 3: 128, 64, 32 bytes
    assert (field(49, 3) == 0).all(), "base offset of a descriptor"
    size = 4 if kind == "tf32" else 2
    width = np.where(mode == 0, 16, 256 >> mode)  # bytes of a row of the swizzled pattern
    row, along = np.arange(rows)[None, :, None], np.arange(depth)[None, None, :]
    if transposed:
        row, along = along, row  # 8 steps of the depth take the place of 8 rows
        inner = along * size % width
        index = row // 8 * stride + row % 8 * width + along * size // width * leading + inner
    else:
        unswizzled = along * size // 16 * leading + along * size % 16
        inner = np.where(mode == 0, unswizzled, along * size)
        index = row // 8 * stride + row % 8 * width + inner
    index = start + index
    repeat = np.where(mode == 0, 0, width // 16 - 1)  # 16-byte units that are permuted
    return index ^ ((index >> 7 & repeat) << 4)
