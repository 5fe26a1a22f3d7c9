"""Instructions of PTX that have no operator in numpy, elementwise."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # an array or a numpy scalar

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(value: int, dtype: Any) -> Array:
    """The number with these bits."""
    size = dtype().itemsize
    return np.array(value & ((1 << 8 * size) - 1), _UNSIGNED[size]).view(dtype)[()]


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    # The product is exact in float64; the sum is rounded twice, which matters in one of 2**29.
    return (a.astype(np.float64) * b + c).astype(np.float32)


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    return a * b + c  # rounded twice; numpy has no fused operation


def high_product(a: Array, b: Array) -> Array:
    size = a.dtype.itemsize
    if size == 4:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    raise NotImplementedError("mul.hi of 64 bits")


def divide(a: Array, b: Array) -> Array:
    """The quotient rounded towards zero; any value where the divisor is 0."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // b
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def remainder(a: Array, b: Array) -> Array:
    return a - divide(a, b) * b


def reciprocal(a: Array) -> Array:
    return a.dtype.type(1) / a


def shift_left(a: Array, by: Array) -> Array:
    width = 8 * a.dtype.itemsize
    shifted = a << np.minimum(by, np.uint32(width - 1)).astype(a.dtype)
    return np.where(by < width, shifted, a.dtype.type(0))


def shift_right(a: Array, by: Array) -> Array:
    width = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, np.uint32(width - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < width, shifted, a.dtype.type(0))


def extract_bits(a: Array, first: Array, length: Array) -> Array:
    """bfe: ``length`` bits from ``first`` on, for signed types with the sign of the last."""
    wide = a.astype(np.int64) & (1 << 8 * a.dtype.itemsize) - 1
    length = (length & np.uint32(255)).astype(np.int64)
    found = (wide >> (first & np.uint32(255)).astype(np.int64)) & ((np.int64(1) << length) - 1)
    if a.dtype.kind == "i":
        sign = np.int64(1) << np.maximum(length - 1, 0)
        found = np.where(length > 0, (found ^ sign) - sign, 0)
    return found.astype(a.dtype)


def insert_bits(a: Array, b: Array, first: Array, length: Array) -> Array:
    """bfi: the lower ``length`` bits of ``a`` in place of those of ``b`` from ``first`` on."""
    one = a.dtype.type(1)
    low = np.where(
        length >= 8 * a.dtype.itemsize, ~a.dtype.type(0), (one << length.astype(a.dtype)) - one
    )
    mask = (low << first.astype(a.dtype)).astype(a.dtype)
    return (b & ~mask) | ((a << first.astype(a.dtype)) & mask)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes out of the eight of ``b`` and ``a``; bit 3 of a selector repeats a sign."""
    eight = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    chosen = np.uint64(0)
    for i in range(4):
        nibble = (selector.astype(np.uint64) >> np.uint64(4 * i)) & np.uint64(15)
        byte = (eight >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(nibble & np.uint64(8), sign, byte)
        chosen = chosen | (byte << np.uint64(8 * i))
    return chosen.astype(np.uint32)


def piece(whole: Array, index: int, dtype: Any) -> Array:
    """Part ``index`` of a register, from the lowest bits on."""
    return (whole >> whole.dtype.type(8 * dtype().itemsize * index)).astype(dtype)


def join(pieces: tuple[Array, ...], dtype: Any) -> Array:
    """A register from its parts, the lowest first."""
    size = pieces[0].dtype.itemsize
    whole = pieces[0].astype(dtype)
    for i, part in enumerate(pieces[1:], 1):
        whole = whole | (part.astype(dtype) << dtype(8 * size * i))
    return whole


def from_bf16(a: Array) -> Array:
    return (a.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(a: Array) -> Array:
    """To nearest, ties to even; NaN becomes 0x7fff, as on the hardware."""
    raw = a.view(np.uint32)
    rounded = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), rounded.astype(np.uint16))


def half_of_bf16x2(pair: Array, index: int) -> Array:
    return from_bf16(piece(pair, index, np.uint16))


def half_of_f16x2(pair: Array, index: int) -> Array:
    return piece(pair, index, np.uint16).view(np.float16)


def pack_bf16x2(high: Array, low: Array) -> Array:
    return join((to_bf16(low), to_bf16(high)), np.uint32)


def pack_f16x2(high: Array, low: Array) -> Array:
    return join(tuple(x.astype(np.float16).view(np.uint16) for x in (low, high)), np.uint32)


def to_tf32(a: Array) -> Array:
    """To nearest, ties away from zero; the lower 13 bits of the result are 0."""
    raw = a.view(np.uint32)
    finite = (raw & np.uint32(0x7F800000)) != 0x7F800000
    return np.where(finite, (raw + np.uint32(0x1000)) & np.uint32(0xFFFFE000), raw)


def from_tf32(raw: Array) -> Array:
    """What a tensor core multiplies: the lower 13 bits are ignored."""
    return (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def from_half(kind: str, raw: Array) -> Array:
    """16-bit floating point in the bits ``raw``, as float64."""
    return (from_bf16(raw) if kind == "bf16" else raw.view(np.float16)).astype(np.float64)


def count_bits(a: Any) -> Any:
    """Bits that are set, as uint32."""
    size = np.asarray(a).dtype.itemsize
    bits = np.unpackbits(np.ascontiguousarray(a)[..., None].view(np.uint8), axis=-1)
    assert bits.shape[-1] == 8 * size
    return bits.sum(-1, dtype=np.uint32)
