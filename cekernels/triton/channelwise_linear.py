"""Channel-wise fully-connected layer: one small matrix product per channel.

A program keeps the weights of one channel on chip and loops over its share of the batch; rows are
read and written in place in ``(B, C, N)``. Neighbouring programs process neighbouring channels of
the same samples, so that memory sectors shared by two rows are combined in the L2 cache.
"""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cekernels._precision import float32_products
from cekernels.triton._runtime import (
    FLOAT64,
    INTERPRETED,
    alignment,
    cdiv,
    launch,
    power_of_two,
    round_to,
    to_float32,
    wide,
)

# Larger maps are computed by torch.bmm: their weights outweigh the batch, and the weights of a
# channel together with the sums of their gradient no longer fit the registers of a block.
LARGEST_FORWARD = {"ieee": 64, "tf32x3": 64, "tf32": 64, "16 bit": 128}
LARGEST_BACKWARD = 64

# Number of programs that occupies a large GPU; the batch is split accordingly. The split depends on
# the shape alone, so that results do not depend on the size of the GPU.
PROGRAMS = 2048


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one kernel: batch rows, input locations per step, output locations."""

    batch: int
    inner: int
    outer: int
    warps: int
    stages: int


def _padded(locations: int) -> int:
    return max(16, power_of_two(locations))


def forward_tiles(n_in: int, n_out: int, products: str) -> Tiles | None:
    """Tiles of the forward kernel; None where torch.bmm is used."""
    if max(n_in, n_out) > LARGEST_FORWARD[products]:
        return None
    inner, outer = _padded(n_in), _padded(n_out)
    if products == "ieee":
        # Without tensor cores padding costs time: loop over the inputs in steps of 16.
        return Tiles(64, 16, outer, warps=4, stages=1)
    if max(inner, outer) > 64:
        return Tiles(64, inner, outer, warps=8, stages=2)
    return Tiles(64, inner, outer, warps=4, stages=3 if products == "16 bit" else 2)


def backward_tiles(n_in: int, n_out: int, products: str) -> Tiles | None:
    """Tiles of the backward kernel; None where torch.bmm is used."""
    if max(n_in, n_out) > LARGEST_BACKWARD:
        return None
    inner, outer = _padded(n_in), _padded(n_out)
    largest = max(inner, outer)
    if products == "ieee":
        return Tiles(32 if largest <= 32 else 16, inner, outer, warps=4, stages=1)
    if products == "tf32x3":
        # With more rows or fewer warps the accumulators spill.
        return Tiles(1024 // largest, inner, outer, warps=8 if largest == 64 else 4, stages=2)
    warps = 8 if products == "tf32" and largest == 64 else 4
    return Tiles(64, inner, outer, warps=warps, stages=2)


def rows_per_program(batch: int, channels: int, tile: int) -> int:
    """Batch rows per program: a multiple of the tile, equal for all programs."""
    tiles = max(cdiv(batch, tile), 1)
    splits = min(max(PROGRAMS // channels, 1), tiles)
    return cdiv(tiles, splits) * tile


def products_of(dtype: torch.dtype) -> str:
    """Kind of the products: "16 bit" (exact in float32), or a ``tl.dot`` input precision."""
    return float32_products() if dtype == torch.float32 else "16 bit"


# --- kernels ----------------------------------------------------------------------------------


@triton.jit
def _to_tf32(x):
    """Round to nearest TF32; the tensor core alone would truncate the last 13 bits."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    rounded = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def _operand(x, PRECISION: tl.constexpr):
    """A tile as operand of ``tl.dot``; the interpreter cannot multiply bfloat16."""
    if x.dtype == tl.float32:
        if PRECISION == "tf32":
            x = _to_tf32(x)
    elif INTERPRETED:
        x = to_float32(x)
    return x


@triton.jit
def _load_rows(base, offsets, columns, row_mask, N: tl.constexpr):
    """Load a tile of rows of ``N`` elements; zeros outside."""
    pointers = base + offsets[:, None] + columns[None, :]
    return tl.load(pointers, mask=row_mask[:, None] & (columns < N)[None, :], other=0.0)


@triton.jit
def _store_rows(base, offsets, columns, row_mask, tile, N: tl.constexpr):
    pointers = base + offsets[:, None] + columns[None, :]
    mask = row_mask[:, None] & (columns < N)[None, :]
    tl.store(pointers, round_to(tile, base.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["batch"])
def forward_kernel(
    input,
    weight,
    bias,
    output,
    batch,
    rows_per_program,
    input_stride_b,
    input_stride_c,
    weight_stride_c,
    weight_stride_o,
    bias_stride_c,
    output_stride_b,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN_IN: tl.constexpr,
    ALIGN_OUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Program (c, s): channel c for the rows of split s."""
    channel = tl.program_id(0)
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, batch)
    if WIDE:
        channel = channel.to(tl.int64)
    o = tl.arange(0, BLOCK_O)
    o_exists = o < N_OUT
    input += tl.multiple_of(channel * input_stride_c, ALIGN_IN)
    weight += tl.multiple_of(channel * weight_stride_c, ALIGN_IN)
    output += tl.multiple_of(channel * N_OUT, ALIGN_OUT)
    weight_rows = tl.multiple_of(o * weight_stride_o, ALIGN_IN)
    if bias is not None:
        b = tl.load(bias + channel * bias_stride_c + o, mask=o_exists, other=0.0)
        shift = to_float32(b)[None, :]
    i = tl.arange(0, BLOCK_I)
    if BLOCK_I >= N_IN:
        kept = _operand(_load_rows(weight, weight_rows, i, o_exists, N_IN), PRECISION)

    for start in range(first, last, BLOCK_B):
        rows = start + tl.arange(0, BLOCK_B)
        exists = rows < last
        if WIDE:
            rows = rows.to(tl.int64)
        input_rows = tl.multiple_of(rows * input_stride_b, ALIGN_IN)
        total = tl.zeros((BLOCK_B, BLOCK_O), tl.float32)
        for step in tl.static_range(0, N_IN, BLOCK_I):
            x = _operand(_load_rows(input, input_rows, step + i, exists, N_IN), PRECISION)
            if BLOCK_I >= N_IN:
                w = kept
            else:
                w = _operand(_load_rows(weight, weight_rows, step + i, o_exists, N_IN), PRECISION)
            total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
        if bias is not None:
            total += shift
        if RELU:
            # not maximum(): NaN must be preserved
            total = tl.where(total <= 0, 0.0, total)
        output_rows = tl.multiple_of(rows * output_stride_b, ALIGN_OUT)
        _store_rows(output, output_rows, o, exists, total, N_OUT)


@triton.jit(do_not_specialize=["batch"])
def backward_kernel(
    grad_output,
    input,
    weight,
    output,
    grad_input,
    grad_weight,
    grad_bias,
    batch,
    channels,
    rows_per_program,
    grad_output_stride_b,
    grad_output_stride_c,
    input_stride_b,
    input_stride_c,
    weight_stride_c,
    weight_stride_o,
    output_stride_b,
    output_stride_c,
    grad_input_stride_b,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN_IN: tl.constexpr,
    ALIGN_OUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Program (c, s): the gradients of channel c from the rows of split s, each read once.

    Gradients that are None are not computed. Those of weight and bias are stored at index (s, c),
    as partial sums if there is more than one split.
    """
    channel = tl.program_id(0)
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, batch)
    slot = tl.program_id(1) * channels + channel
    if WIDE:
        channel = channel.to(tl.int64)
        slot = slot.to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    o = tl.arange(0, BLOCK_O)
    o_exists = o < N_OUT
    grad_output += tl.multiple_of(channel * grad_output_stride_c, ALIGN_OUT)
    if output is not None:
        output += tl.multiple_of(channel * output_stride_c, ALIGN_OUT)
    if grad_weight is not None:
        input += tl.multiple_of(channel * input_stride_c, ALIGN_IN)
        total_weight = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    if grad_bias is not None:
        total_bias = tl.zeros((BLOCK_O,), tl.float32)
    if grad_input is not None:
        grad_input += tl.multiple_of(channel * N_IN, ALIGN_IN)
        weight += tl.multiple_of(channel * weight_stride_c, ALIGN_IN)
        weight_rows = tl.multiple_of(o * weight_stride_o, ALIGN_IN)
        w = _operand(_load_rows(weight, weight_rows, i, o_exists, N_IN), PRECISION)

    for start in range(first, last, BLOCK_B):
        rows = start + tl.arange(0, BLOCK_B)
        exists = rows < last
        if WIDE:
            rows = rows.to(tl.int64)
        g_rows = tl.multiple_of(rows * grad_output_stride_b, ALIGN_OUT)
        g = _load_rows(grad_output, g_rows, o, exists, N_OUT)
        if output is not None:
            y_rows = tl.multiple_of(rows * output_stride_b, ALIGN_OUT)
            y = _load_rows(output, y_rows, o, exists, N_OUT)
            g = tl.where(to_float32(y) > 0, g, 0.0)
        if grad_bias is not None:
            total_bias += tl.sum(to_float32(g), 0)
        g = _operand(g, PRECISION)
        if grad_weight is not None:
            x_rows = tl.multiple_of(rows * input_stride_b, ALIGN_IN)
            x = _operand(_load_rows(input, x_rows, i, exists, N_IN), PRECISION)
            total_weight = tl.dot(tl.trans(g), x, total_weight, input_precision=PRECISION)
        if grad_input is not None:
            along = tl.dot(g, w, input_precision=PRECISION)
            along_rows = tl.multiple_of(rows * grad_input_stride_b, ALIGN_IN)
            _store_rows(grad_input, along_rows, i, exists, along, N_IN)

    if grad_weight is not None:
        grad_weight += slot * (N_OUT * N_IN)
        _store_rows(grad_weight, o * N_IN, i, o_exists, total_weight, N_IN)
    if grad_bias is not None:
        sums = round_to(total_bias, grad_bias.dtype.element_ty)
        tl.store(grad_bias + slot * N_OUT + o, sums, mask=o_exists)


@triton.jit(do_not_specialize=["splits"])
def sum_splits_kernel(partial, total, splits, size, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """``total[e] = sum_s partial[s, e]``, in the order of s."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
        size = size.to(tl.int64)
    element = block * BLOCK + tl.arange(0, BLOCK)
    exists = element < size
    result = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        result += tl.load(partial + split * size + element, mask=exists, other=0.0)
    tl.store(total + element, round_to(result, total.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["rows"])
def bias_relu_kernel(
    values, bias, rows, SIZE: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the bias of each column of ``(B, SIZE)`` in place, then apply the ReLU."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
        rows = tl.cast(rows, tl.int64)
    element = block * BLOCK + tl.arange(0, BLOCK)
    exists = element < rows * SIZE  # of which Triton knows the factors, for its vectors
    value = to_float32(tl.load(values + element, mask=exists, other=0.0))
    if bias is not None:
        value += to_float32(tl.load(bias + element % SIZE, mask=exists, other=0.0))
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    tl.store(values + element, round_to(value, values.dtype.element_ty), mask=exists)


# --- ops --------------------------------------------------------------------------------------


def _common(tiles: Tiles, n_in: int, n_out: int, products: str) -> dict[str, Any]:
    """Launch arguments common to both kernels."""
    return {
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "N_IN": n_in,
        "N_OUT": n_out,
        "PRECISION": "ieee" if products == "16 bit" else products,
        "BLOCK_B": tiles.batch,
        "BLOCK_I": tiles.inner,
        "BLOCK_O": tiles.outer,
    }


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, whatever the other strides; else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def unsupported(op: str, *args: Any) -> str | None:
    weight: Tensor = args[1 if op == "channelwise_linear" else 2]
    if weight.dtype == torch.float64:
        return FLOAT64
    return "the weight has no elements" if weight.numel() == 0 else None


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    batch, channels, n_in = input.shape
    n_out = weight.shape[1]
    output = input.new_empty(batch, channels, n_out)
    if output.numel() == 0:
        return output
    products = products_of(input.dtype)
    tiles = forward_tiles(n_in, n_out, products)
    if tiles is None:
        return _forward_by_bmm(input, weight, bias, relu, output)
    input, weight = _dense(input), _dense(weight)
    bias = None if bias is None else _dense(bias)
    rows = rows_per_program(batch, channels, tiles.batch)
    launch(
        forward_kernel,
        (channels, cdiv(batch, rows)),
        input.device,
        **_common(tiles, n_in, n_out, products),
        input=input,
        weight=weight,
        bias=bias,
        output=output,
        batch=batch,
        rows_per_program=rows,
        input_stride_b=input.stride(0),
        input_stride_c=input.stride(1),
        weight_stride_c=weight.stride(0),
        weight_stride_o=weight.stride(1),
        bias_stride_c=0 if bias is None else bias.stride(0),
        output_stride_b=output.stride(0),
        RELU=relu,
        ALIGN_IN=alignment(input, weight, sizes=(n_in,)),
        ALIGN_OUT=alignment(output, sizes=(n_out,)),
        WIDE=wide(input, weight, output, bias),
    )
    return output


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = needs_input, needs_weight, needs_bias
    batch, channels, n_in = input.shape
    n_out = weight.shape[1]
    products = products_of(grad_output.dtype)
    tiles = backward_tiles(n_in, n_out, products)
    if tiles is None:
        return _backward_by_bmm(grad_output, input, weight, output, needs)
    grad_output, input, weight = _dense(grad_output), _dense(input), _dense(weight)
    output = None if output is None else _dense(output)
    grad_input = grad_output.new_empty(input.shape if needs[0] else 0)
    grad_weight = grad_output.new_empty(weight.shape if needs[1] else 0)
    grad_bias = grad_output.new_empty(weight.shape[:2] if needs[2] else 0)

    rows = rows_per_program(batch, channels, tiles.batch)
    splits = max(cdiv(batch, rows), 1)
    part_weight, part_bias = grad_weight, grad_bias
    if splits > 1:
        # A second launch reduces the partial sums over the batch, in a fixed order.
        part_weight = grad_weight.new_empty((splits, *grad_weight.shape), dtype=torch.float32)
        part_bias = grad_bias.new_empty((splits, *grad_bias.shape), dtype=torch.float32)
    tensors: dict[str, Any] = {
        "grad_output": grad_output,
        "input": input if needs[1] else None,
        "weight": weight if needs[0] else None,
        "output": output,
        "grad_input": grad_input if needs[0] else None,
        "grad_weight": part_weight if needs[1] else None,
        "grad_bias": part_bias if needs[2] else None,
    }
    rows_in = (tensors[name] for name in ("grad_input", "weight", "input"))
    launch(
        backward_kernel,
        (channels, splits),
        grad_output.device,
        **_common(tiles, n_in, n_out, products),
        **tensors,
        batch=batch,
        channels=channels,
        rows_per_program=rows,
        grad_output_stride_b=grad_output.stride(0),
        grad_output_stride_c=grad_output.stride(1),
        input_stride_b=input.stride(0),
        input_stride_c=input.stride(1),
        weight_stride_c=weight.stride(0),
        weight_stride_o=weight.stride(1),
        output_stride_b=0 if output is None else output.stride(0),
        output_stride_c=0 if output is None else output.stride(1),
        grad_input_stride_b=channels * n_in,
        ALIGN_IN=alignment(*rows_in, sizes=(n_in,)),
        ALIGN_OUT=alignment(grad_output, output, sizes=(n_out,)),
        WIDE=wide(*tensors.values()),
    )
    if splits > 1:
        for part, total in ((part_weight, grad_weight), (part_bias, grad_bias)):
            if total.numel():
                launch(
                    sum_splits_kernel,
                    (cdiv(total.numel(), 256),),
                    total.device,
                    num_warps=4,
                    partial=part,
                    total=total,
                    splits=splits,
                    size=total.numel(),
                    WIDE=wide(part),
                    BLOCK=256,
                )
    return grad_input, grad_weight, grad_bias


def _forward_by_bmm(
    input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, output: Tensor
) -> Tensor:
    """torch.bmm on strided views of ``(B, C, N)``; bias and ReLU follow in place."""
    torch.bmm(input.transpose(0, 1), weight.transpose(1, 2), out=output.transpose(0, 1))
    if bias is not None or relu:
        launch(
            bias_relu_kernel,
            (cdiv(output.numel(), 1024),),
            output.device,
            num_warps=4,
            values=output,
            bias=None if bias is None else bias.contiguous(),
            rows=output.shape[0],
            SIZE=output.shape[1] * output.shape[2],
            RELU=relu,
            WIDE=wide(output),
            BLOCK=1024,
        )
    return output


def _backward_by_bmm(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad_output if output is None else torch.where(output > 0, grad_output, 0)
    grad_input, grad_weight, grad_bias = (grad.new_empty(0) for _ in range(3))
    by_channel = grad.transpose(0, 1)
    if needs[0]:
        grad_input = torch.empty_like(input, memory_format=torch.contiguous_format)
        torch.bmm(by_channel, weight, out=grad_input.transpose(0, 1))
    if needs[1]:
        grad_weight = torch.bmm(by_channel.transpose(1, 2), input.transpose(0, 1))
    if needs[2]:
        grad_bias = grad.sum(0)
    return grad_input, grad_weight, grad_bias
