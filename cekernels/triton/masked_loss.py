"""Masked L2 and L1 losses. Most elements are usually unmasked, and these are not read.

A program processes runs of pixels of one sample: it reads their mask once and, for each channel,
loads prediction and target only where the mask is not 0, in groups of up to 16 bytes so that the
loads stay wide. Where planes are small or few, programs share the channels. The same kernel sums
the loss, writes the gradient, or does both in one pass. Each program writes one partial sum; the
program that ends last adds them in float64 and in a fixed order.
"""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cekernels.reference.layout import dense_format
from cekernels.triton._runtime import (
    FLOAT64,
    alignment,
    bits,
    cdiv,
    channels_per_program,
    launch,
    pixel_arguments,
    pixel_offsets,
    power_of_two,
    round_to,
    shares_channels,
    to_float32,
    wide,
    zero_counter,
)

# Pixels per step of a program, for larger and for small planes; and the largest number of programs
# for all channels.
BLOCK, SMALL_BLOCK, WARPS = 1024, 128, 4
PROGRAMS = 4096
# Numbers that are added at a time: areas, and rows and columns of partial sums.
AREAS = tl.constexpr(128)
ROWS = tl.constexpr(32)


# --- kernels ----------------------------------------------------------------------------------


@triton.jit
def _weights(mask, offsets, exists):
    """The mask as float32 weights: floating point as it is, integers as 1 where not 0."""
    values = tl.load(mask + offsets, mask=exists, other=0)
    if mask.dtype.element_ty.is_floating():
        return to_float32(values)
    return (values != 0).to(tl.float32)


@triton.jit
def _sum(values, first, count, BLOCK: tl.constexpr):
    """Sum of ``count`` values in float64, in a fixed order; exact for areas."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(values + first + index, mask=index < count, other=0)
        total += value.to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _reciprocal(total):
    """``1 / total``, or 0 where the total is not positive."""
    return tl.where(total > 0, 1 / tl.where(total > 0, total, 1.0), 0.0)


@triton.jit
def _sum_rows(sums, values, rows, columns):
    """``sums[i]`` of row i of ``values`` ``(rows, columns)``, in float64, in a fixed order."""
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        total = tl.zeros((ROWS, ROWS), tl.float64)
        for first in range(0, columns, ROWS):
            column = first + tl.arange(0, ROWS)
            exists = (row < rows)[:, None] & (column < columns)[None, :]
            at = row[:, None] * columns + column[None, :]
            total += tl.load(values + at, mask=exists, other=0).to(tl.float64)
        tl.store(sums + row, tl.sum(total, 1).to(tl.float32), mask=row < rows)


# No specialization on what differs in the last batch of an epoch: it would compile again.
@triton.jit(do_not_specialize=["samples", "splits", "areas", "elements", "channels_each"])
def masked_loss_kernel(
    prediction,
    target,
    mask,
    partial_loss,
    partial_weight,
    grad,
    grad_loss,
    loss,
    scale,
    area,
    counter,
    elements,
    samples,
    areas,
    repeats,
    pixels,
    splits,
    channels,
    channels_each,
    prediction_stride_b,
    prediction_stride_c,
    prediction_stride_h,
    prediction_stride_w,
    target_stride_b,
    target_stride_c,
    target_stride_h,
    target_stride_w,
    mask_stride_b,
    mask_stride_c,
    mask_stride_h,
    mask_stride_w,
    grad_stride_c,
    grad_stride_p,
    grad_loss_stride,
    PREDICTION_WIDTH: tl.constexpr,
    TARGET_WIDTH: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    MASK_HAS_CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    POWER: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program ((b, s), k): the blocks s, s + splits, ... of sample b, channels of part k.

    With ``partial_loss`` the weighted error is summed, with ``partial_weight`` the weights. With
    ``grad`` the gradient is written: the product of the scale, ``grad_loss`` (unless None), weight
    and the derivative of the error. With ``counter``, which is 0 before and after, the program that
    ends last adds the sums, in an order that depends on the shape alone, and writes ``loss`` and
    ``scale``. The scale is the reciprocal of ``repeats`` times the sum of ``area``, or of the
    partial weights; that of ``elements`` where there is neither; for a ``grad_loss`` it is read.
    """
    sample = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    first_channel, last_channel = 0, channels
    slot, parts = tl.program_id(0), 1
    if SHARED:
        first_channel = tl.program_id(1) * channels_each
        last_channel = tl.minimum(first_channel + channels_each, channels)
        parts = tl.num_programs(1)
        slot = slot * parts + tl.program_id(1)
    if WIDE:
        sample = sample.to(tl.int64)
        pixels = tl.cast(pixels, tl.int64)
    prediction += tl.multiple_of(sample * prediction_stride_b, ALIGN)
    target += tl.multiple_of(sample * target_stride_b, ALIGN)
    mask += tl.multiple_of(sample * mask_stride_b, ALIGN)
    factor = _reciprocal(tl.cast(elements, tl.float64)).to(tl.float32)
    if area is not None:
        factor = _reciprocal(_sum(area, 0, areas, AREAS) * repeats).to(tl.float32)
    if grad is not None:
        grad += tl.multiple_of(sample * channels * pixels, ALIGN)
        if grad_loss is not None:
            factor = tl.load(scale) * tl.load(grad_loss + sample * grad_loss_stride)
    group = tl.arange(0, BLOCK // ALIGN)
    within = tl.arange(0, ALIGN)
    total = tl.zeros((BLOCK // ALIGN, ALIGN), tl.float32)
    total_weight = tl.zeros((BLOCK // ALIGN, ALIGN), tl.float32)

    for start in range(split * BLOCK, pixels, splits * BLOCK):
        first = tl.multiple_of(start + group * ALIGN, ALIGN)
        if WIDE:
            first = first.to(tl.int64)
        pixel = first[:, None] + within[None, :]
        # ALIGN divides the number of pixels: a group lies entirely inside or outside
        exists = tl.broadcast_to((first < pixels)[:, None], pixel.shape)
        p_pixel = pixel_offsets(pixel, prediction_stride_h, prediction_stride_w, PREDICTION_WIDTH)
        t_pixel = pixel_offsets(pixel, target_stride_h, target_stride_w, TARGET_WIDTH)
        m_pixel = pixel_offsets(pixel, mask_stride_h, mask_stride_w, MASK_WIDTH)
        weight = _weights(mask, m_pixel, exists)
        if partial_weight is not None and not MASK_HAS_CHANNELS:
            if SHARED:
                total_weight += tl.where(first_channel == 0, weight, 0.0)
            else:
                total_weight += weight
        for channel in range(first_channel, last_channel):
            if WIDE:
                channel = tl.cast(channel, tl.int64)
            if MASK_HAS_CHANNELS:
                m_channel = tl.multiple_of(channel * mask_stride_c, ALIGN)
                weight = _weights(mask, m_channel + m_pixel, exists)
                if partial_weight is not None:
                    total_weight += weight
            masked = weight != 0
            taken = tl.max(masked.to(tl.int32), 1) > 0
            taken = tl.broadcast_to(taken[:, None], pixel.shape)
            p_channel = tl.multiple_of(channel * prediction_stride_c, ALIGN)
            t_channel = tl.multiple_of(channel * target_stride_c, ALIGN)
            p = to_float32(tl.load(prediction + p_channel + p_pixel, mask=taken, other=0.0))
            t = to_float32(tl.load(target + t_channel + t_pixel, mask=taken, other=0.0))
            difference = p - t
            if partial_loss is not None:
                error = difference * difference if POWER == 2 else tl.abs(difference)
                total += tl.where(masked, weight * error, 0.0)
            if grad is not None:
                if POWER == 2:
                    slope = 2 * difference
                else:
                    slope = tl.where(difference < 0, -1.0, 0.0)
                    slope = tl.where(difference > 0, 1.0, slope)  # 0 for NaN, as torch.sign
                value = tl.where(masked, weight * factor * slope, 0.0)
                g_channel = tl.multiple_of(channel * grad_stride_c, ALIGN)
                rounded = round_to(value, grad.dtype.element_ty)
                tl.store(grad + g_channel + pixel * grad_stride_p, rounded, mask=exists)
    if partial_loss is not None:
        tl.store(partial_loss + slot, tl.sum(tl.sum(total, 1), 0))
    if partial_weight is not None:
        tl.store(partial_weight + slot, tl.sum(tl.sum(total_weight, 1), 0))
    if counter is not None:
        # Releases this program's sums, and acquires those of the programs before it.
        before = tl.atomic_add(counter, 1, sem="acq_rel")
        if before == tl.num_programs(0) * parts - 1:
            tl.store(counter, 0)
            if partial_weight is not None:
                total_area = _sum(partial_weight, 0, samples * splits * parts, BLOCK)
                factor = _reciprocal(total_area * repeats).to(tl.float32)
            tl.store(scale, factor)
            if PER_SAMPLE:
                _sum_rows(loss, partial_loss, samples, splits * parts)
            else:
                whole = _sum(partial_loss, 0, samples * splits * parts, BLOCK)
                tl.store(loss, (whole * tl.cast(factor, tl.float64)).to(tl.float32))


@triton.jit(do_not_specialize=["splits", "channels_each"])
def scale_gradient_kernel(
    grad,
    mask,
    factor,
    pixels,
    splits,
    channels,
    channels_each,
    mask_stride_b,
    mask_stride_c,
    mask_stride_h,
    mask_stride_w,
    grad_stride_c,
    grad_stride_p,
    factor_stride,
    MASK_WIDTH: tl.constexpr,
    MASK_HAS_CHANNELS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale the masked elements of sample b by ``factor[b]`` in place; skipped where it is 1."""
    sample = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    first_channel = tl.program_id(1) * channels_each
    last_channel = tl.minimum(first_channel + channels_each, channels)
    if WIDE:
        sample = sample.to(tl.int64)
        pixels = tl.cast(pixels, tl.int64)
    by = tl.load(factor + sample * factor_stride)
    if by != 1.0:
        mask += tl.multiple_of(sample * mask_stride_b, ALIGN)
        grad += tl.multiple_of(sample * channels * pixels, ALIGN)
        group = tl.arange(0, BLOCK // ALIGN)
        within = tl.arange(0, ALIGN)
        for start in range(split * BLOCK, pixels, splits * BLOCK):
            first = tl.multiple_of(start + group * ALIGN, ALIGN)
            if WIDE:
                first = first.to(tl.int64)
            pixel = first[:, None] + within[None, :]
            exists = tl.broadcast_to((first < pixels)[:, None], pixel.shape)
            m_pixel = pixel_offsets(pixel, mask_stride_h, mask_stride_w, MASK_WIDTH)
            weight = _weights(mask, m_pixel, exists)
            for channel in range(first_channel, last_channel):
                if WIDE:
                    channel = tl.cast(channel, tl.int64)
                if MASK_HAS_CHANNELS:
                    m_channel = tl.multiple_of(channel * mask_stride_c, ALIGN)
                    weight = _weights(mask, m_channel + m_pixel, exists)
                masked = weight != 0
                taken = tl.max(masked.to(tl.int32), 1) > 0
                taken = tl.broadcast_to(taken[:, None], pixel.shape)
                g_channel = tl.multiple_of(channel * grad_stride_c, ALIGN)
                pointers = grad + g_channel + pixel * grad_stride_p
                value = to_float32(tl.load(pointers, mask=taken, other=0.0))
                value = tl.where(masked, value * by, 0.0)
                tl.store(pointers, round_to(value, grad.dtype.element_ty), mask=taken)


# --- ops --------------------------------------------------------------------------------------


def _splits(samples: int, pixels: int) -> int:
    """Programs per sample: one per block, but at most ``PROGRAMS`` in total."""
    return max(min(cdiv(pixels, BLOCK), PROGRAMS // max(samples, 1)), 1)


@dataclass(frozen=True)
class _Division:
    """The division of a batch of images among programs."""

    splits: int
    channels: int  # per program
    parts: int
    block: int

    def grid(self, samples: int) -> tuple[int, int]:
        return samples * self.splits, self.parts


def _division(image: Tensor) -> _Division:
    samples, channels, height, width = image.shape
    pixels = height * width
    splits = _splits(samples, pixels)
    each = channels_per_program(samples * splits, channels, cdiv(pixels, splits))
    block = min(max(power_of_two(pixels), SMALL_BLOCK), BLOCK)
    return _Division(splits, each, cdiv(channels, each) if each else 1, block)


def _results(grad: Tensor | None) -> dict[str, int]:
    """Strides of a gradient, contiguous or channels_last."""
    if grad is None:
        return {"grad_stride_c": 0, "grad_stride_p": 0}
    last = dense_format(grad) == torch.channels_last
    channels, pixels = grad.shape[1], grad.shape[2] * grad.shape[3]
    return {
        "grad_stride_c": 1 if last else pixels,
        "grad_stride_p": channels if last else 1,
    }


def _launch_elements(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
    normalize: str,
    *,
    partial_loss: Tensor | None = None,
    partial_weight: Tensor | None = None,
    grad: Tensor | None = None,
    grad_loss: Tensor | None = None,
    loss: Tensor | None = None,
    scale: Tensor | None = None,
    area: Tensor | None = None,
) -> None:
    samples, channels, height, width = prediction.shape
    mask = bits(mask)
    division = _division(prediction)
    launch(
        masked_loss_kernel,
        division.grid(samples),
        prediction.device,
        num_warps=WARPS,
        **pixel_arguments(prediction=prediction, target=target, mask=mask),
        partial_loss=partial_loss,
        partial_weight=partial_weight,
        grad=grad,
        grad_loss=grad_loss,
        loss=loss,
        scale=scale,
        area=area,
        counter=None if loss is None else zero_counter(prediction.device),
        elements=max(prediction.numel(), 1) if normalize == "all" else 1,
        samples=samples,
        areas=0 if area is None else area.numel(),
        repeats=prediction.shape[1] // mask.shape[1] if mask.shape[1] else 0,
        pixels=height * width,
        splits=division.splits,
        channels=channels,
        channels_each=division.channels,
        **_results(grad),
        grad_loss_stride=grad_loss.stride(0) if grad_loss is not None and grad_loss.dim() else 0,
        MASK_HAS_CHANNELS=mask.shape[1] != 1,
        SHARED=shares_channels(channels),
        POWER=power,
        PER_SAMPLE=normalize == "none",
        ALIGN=alignment(prediction, target, mask, grad, pixels=True),
        WIDE=wide(prediction, target, mask, grad),
        BLOCK=division.block,
    )


def _loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and scale, and the gradient if one is to be written."""
    samples = prediction.shape[0]
    partials = math.prod(_division(prediction).grid(samples))
    # Rows of a multiple of 16 bytes: Triton compiles for the alignment that it finds.
    sums = prediction.new_empty((3, cdiv(partials, 4) * 4), dtype=torch.float32)[:, :partials]
    scale = sums.new_empty(())
    loss = sums.new_empty(samples if normalize == "none" else ())
    if samples == 0:
        return loss.zero_(), scale.fill_(normalize != "mask")
    counted = None
    if normalize != "mask":
        area = None
    elif area is None:
        counted = sums[1]
        if grad is not None:  # depends on the sum of the weights
            _launch_elements(prediction, target, mask, power, "sum", partial_weight=counted)
            area, counted = counted, None
    _launch_elements(
        prediction, target, mask, power, normalize, partial_loss=sums[0], partial_weight=counted,
        grad=grad, loss=loss, scale=scale, area=None if area is None else area.contiguous(),
    )  # fmt: skip
    return loss, scale


def unsupported(op: str, *args: Any) -> str | None:
    image: Tensor = args[2 if op == "masked_loss_backward" else 0]
    return FLOAT64 if image.dtype == torch.float64 else None


def masked_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor]:
    return _loss(prediction, target, mask, area, power, normalize)


def masked_loss_backward(
    grad_loss: Tensor,
    scale: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    power: int,
) -> Tensor:
    grad = torch.empty_like(prediction, memory_format=dense_format(prediction))
    _launch_elements(
        prediction, target, mask, power, "sum", grad=grad, grad_loss=grad_loss, scale=scale
    )
    return grad


def masked_loss_and_gradient(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    area: Tensor | None,
    power: int,
    normalize: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.empty_like(prediction, memory_format=dense_format(prediction))
    return *_loss(prediction, target, mask, area, power, normalize, grad), grad


def scale_gradient_(grad: Tensor, grad_loss: Tensor, mask: Tensor) -> None:
    samples, channels, height, width = grad.shape
    mask = bits(mask)
    division = _division(grad)
    launch(
        scale_gradient_kernel,
        division.grid(samples),
        grad.device,
        num_warps=WARPS,
        grad=grad,
        **pixel_arguments(mask=mask),
        factor=grad_loss,
        pixels=height * width,
        splits=division.splits,
        channels=channels,
        channels_each=division.channels,
        **_results(grad),
        factor_stride=grad_loss.stride(0) if grad_loss.dim() else 0,
        MASK_HAS_CHANNELS=mask.shape[1] != 1,
        ALIGN=alignment(grad, mask, pixels=True),
        WIDE=wide(grad, mask),
        BLOCK=division.block,
    )
