"""Images filled with a constant, in one launch; the image is read only where it is kept."""

# Triton: constexpr parameters are upper-case; the other types depend on the call.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cekernels.reference.layout import dense_format
from cekernels.triton._runtime import (
    alignment,
    bits,
    cdiv,
    channels_per_program,
    launch,
    pixel_arguments,
    pixel_offsets,
    power_of_two,
    to_float32,
    wide,
)

# Pixels per program, and for small planes.
BLOCK, SMALL_BLOCK, WARPS = 512, 128, 4
# Beyond this width or height products could exceed 2**63.
LARGEST_SIDE = 2**22

# Filling copies bits: elements are handled as integers of the same size.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["channels_each"])
def fill_masked_kernel(
    image,
    mask,
    value,
    filled,
    pixels,
    blocks,
    channels,
    channels_each,
    image_stride_b,
    image_stride_c,
    image_stride_h,
    image_stride_w,
    filled_stride_c,
    filled_stride_p,
    mask_stride_b,
    mask_stride_c,
    mask_stride_h,
    mask_stride_w,
    IMAGE_WIDTH: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    MASK_HAS_CHANNELS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program ((b, k), j): block k of the pixels of sample b, channels of part j."""
    sample = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    part = tl.program_id(1)
    if WIDE:  # before any product: a plane may have more pixels than int32 counts
        sample = sample.to(tl.int64)
        block = block.to(tl.int64)
        part = part.to(tl.int64)
        pixels = tl.cast(pixels, tl.int64)
    first = tl.multiple_of(block * BLOCK + tl.arange(0, BLOCK // ALIGN) * ALIGN, ALIGN)
    pixel = first[:, None] + tl.arange(0, ALIGN)[None, :]
    # ALIGN divides the number of pixels: a group lies entirely inside or outside
    exists = tl.broadcast_to((first < pixels)[:, None], pixel.shape)
    i_pixel = pixel_offsets(pixel, image_stride_h, image_stride_w, IMAGE_WIDTH)
    m_pixel = pixel_offsets(pixel, mask_stride_h, mask_stride_w, MASK_WIDTH)
    mask += tl.multiple_of(sample * mask_stride_b, ALIGN)
    image += tl.multiple_of(sample * image_stride_b, ALIGN)
    filled += tl.multiple_of(sample * channels * pixels, ALIGN)
    first_channel = part * channels_each
    for channel in range(first_channel, tl.minimum(first_channel + channels_each, channels)):
        if WIDE:
            channel = tl.cast(channel, tl.int64)
        m_channel = tl.multiple_of(channel * mask_stride_c, ALIGN) if MASK_HAS_CHANNELS else 0
        weight = tl.load(mask + m_channel + m_pixel, mask=exists, other=0)
        if mask.dtype.element_ty == tl.bfloat16:
            weight = to_float32(weight)
        inside = weight != 0
        kept = tl.max((inside == 0).to(tl.int32), 1) > 0
        kept = tl.broadcast_to(kept[:, None], pixel.shape) & exists
        source = image + tl.multiple_of(channel * image_stride_c, ALIGN) + i_pixel
        moved = tl.load(source, mask=kept, other=0)
        moved = tl.where(inside, tl.load(value + channel), moved)
        result = filled + tl.multiple_of(channel * filled_stride_c, ALIGN)
        tl.store(result + pixel * filled_stride_p, moved, mask=exists)


def as_integers(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()])


def sides_unsupported(*sides: int) -> str | None:
    """Reason why an image of this height and width cannot be handled; None if it can."""
    if max(sides) > LARGEST_SIDE:
        return f"supports images of at most {LARGEST_SIDE} pixels per side, got {sides}"
    return None


def unsupported(op: str, *args: Any) -> str | None:
    return sides_unsupported(*args[0].shape[2:])


def fill_masked(image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    samples, channels, height, width = image.shape
    filled = torch.empty_like(image, memory_format=dense_format(image))
    last = dense_format(image) == torch.channels_last
    mask = bits(mask)
    pixels = height * width
    blocks = cdiv(pixels, BLOCK)
    each = channels_per_program(samples * blocks, channels, min(pixels, BLOCK))
    launch(
        fill_masked_kernel,
        (samples * blocks, cdiv(channels, each) if each else 0),
        image.device,
        num_warps=WARPS,
        **pixel_arguments(image=as_integers(image), mask=mask),
        value=as_integers(value.to(image.dtype).contiguous()),
        filled=as_integers(filled),
        pixels=pixels,
        blocks=blocks,
        channels=channels,
        channels_each=each,
        filled_stride_c=1 if last else height * width,
        filled_stride_p=channels if last else 1,
        MASK_HAS_CHANNELS=mask.shape[1] != 1,
        ALIGN=alignment(image, mask, filled, pixels=True),
        WIDE=wide(image, mask, filled),
        BLOCK=min(max(power_of_two(pixels), SMALL_BLOCK), BLOCK),
    )
    return filled
