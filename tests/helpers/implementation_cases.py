"""Shared cases and comparisons for the tests of all implementations on all devices.

The truth is the reference in float64, or the reference itself where results are exact:
rasterization, and small integers, whose sums need no rounding in formats of enough digits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import _backends
from cekernels._register import OPS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Target(NamedTuple):
    """An implementation and the device that it is tested on."""

    impl: str
    device: str


def targets() -> list[object]:
    """Test parameters: the targets of this process; others are skipped with the reason.

    In Triton's interpreter only Triton is tested.
    """
    if INTERPRETED:
        return [pytest.param(Target("triton", "cpu"), id="triton-interpreter")]
    return [_parameter(Target("cpp", "cpu")), *gpu_targets()]


def gpu_targets() -> list[object]:
    return [_parameter(Target(impl, "cuda")) for impl in ("triton", "cuda")]


def _parameter(target: Target) -> object:
    marks = []
    if target.device == "cuda":
        marks.append(pytest.mark.gpu)
    reason = "no CUDA device" if target.device == "cuda" and not torch.cuda.is_available() else None
    reason = reason or _backends.unavailable(target.impl)
    if reason:
        marks.append(pytest.mark.skip(reason=f"{target.impl}: {reason}"))
    return pytest.param(target, id=f"{target.impl}-{target.device}", marks=marks)


def needs(target: Target, op: str) -> None:
    """Skip if the implementation lacks the op; the reference would run in its place."""
    if _backends.kernel(OPS[op], target.impl) is None:
        pytest.skip(f"{target.impl} has no {op}")


def call(op: str, impl: str, *args: Any) -> Any:
    """Call the op itself, without the argument checks of the public function."""
    return OPS[op].without_formula(impl)(*args)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=generator(seed + sum(shape)), dtype=torch.float64).to(dtype)


# --- comparing --------------------------------------------------------------------------------


def error(value: Tensor, truth: Tensor) -> float:
    """Largest error relative to the largest true value."""
    if truth.numel() == 0:
        return 0.0
    scale = truth.abs().max().item() or 1.0
    return (value.double().cpu() - truth.cpu()).abs().max().item() / scale


def assert_close(
    value: Tensor, peer: Tensor, truth: Tensor, factor: float, roundings: int = 1
) -> None:
    """Against float64, at most ``factor`` times the peer's error, or the roundings of one element.

    The peer is the result of plain PyTorch in the same dtype; it may be exact by chance.
    """
    assert value.shape == truth.shape
    assert value.dtype == peer.dtype
    ours, theirs = error(value, truth), error(peer, truth)
    unavoidable = roundings * torch.finfo(value.dtype).eps / 2
    assert ours <= max(factor * theirs, unavoidable), (
        f"error {ours:.2e} against float64, {theirs:.2e} in plain PyTorch"
    )


def to_tf32(values: Tensor) -> Tensor:
    """float32 rounded to 10 bits of mantissa, to nearest even, by integer arithmetic."""
    mantissa, exponent = torch.frexp(values.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent).float()


def integers(*shape: int, dtype: torch.dtype, seed: int, limit: int = 3) -> Tensor:
    values = torch.randint(-limit, limit + 1, shape, generator=generator(seed))
    return values.to(dtype)


def layouts(tensor: Tensor) -> Iterator[Tensor]:
    """The same values in other layouts: as a slice of a larger tensor, and permuted."""
    yield tensor
    larger = torch.empty([n + 3 for n in tensor.shape], dtype=tensor.dtype, device=tensor.device)
    if tensor.is_floating_point():
        larger.fill_(float("nan"))  # elements beside the slice must not matter
    view = larger[tuple(slice(1, 1 + n) for n in tensor.shape)]
    yield view.copy_(tensor)
    if tensor.dim() == 4:
        yield tensor.to(memory_format=torch.channels_last)
    else:
        yield tensor.transpose(0, 1).contiguous().transpose(0, 1)
        yield tensor.transpose(0, 2).contiguous().transpose(0, 2)


# --- shapes -----------------------------------------------------------------------------------


class Polygons(NamedTuple):
    vertices: Tensor
    contour_offsets: Tensor
    sample_offsets: Tensor

    def to(self, device: str) -> Polygons:
        return Polygons(*(t.to(device) for t in self))


def star(centre: tuple[float, float], radius: float, corners: int, seed: int) -> Tensor:
    """A closed contour around ``centre`` whose radius varies, in pixels."""
    angle = torch.arange(corners) * (2 * torch.pi / corners)
    reach = radius * (0.4 + 0.6 * torch.rand(corners, generator=generator(seed)))
    points = torch.stack([angle.cos() * reach, angle.sin() * reach], 1) + torch.tensor(centre)
    return cekernels.to_fixed_point(points)


def polygons(name: str, height: int, width: int) -> Polygons:
    """Named batches; all but "empty" cover a large part of some sample."""
    middle = (width / 2, height / 2)
    size = min(height, width) / 2
    limit = 2**31 - 1
    if name == "star with a hole, none, two":
        hole = star(middle, 0.4 * size, 5, 1).flip(0)
        contours = [star(middle, size, 9, 0), hole, star((0, 0), size, 7, 2),
                    star((width, height / 3), 1.5 * size, 3, 3)]  # fmt: skip
        samples = [0, 2, 2, 4]
    elif name == "on the centres of pixels":
        corners = torch.tensor([[1, 1], [width - 2, 1], [width - 2, height - 2], [1, height - 2]])
        square = (corners * 256 + 128).int()
        diamond = torch.tensor(
            [
                [128 * width, 128],
                [256 * width - 128, 128 * height],
                [128 * width, 256 * height - 128],
                [128, 128 * height],
            ]
        ).int()
        contours, samples = [square, diamond, square.flip(0)], [0, 1, 2, 3]
    elif name == "far outside":
        huge = torch.tensor([[-limit - 1, -limit - 1], [limit, -limit - 1], [limit, limit]])
        thin = torch.tensor([[-limit, 300], [limit, 301], [limit, 900], [-limit, 2000]])
        contours, samples = [huge.int(), thin.int()], [0, 1, 2]
    elif name == "degenerate":
        point = torch.tensor([[300, 300]]).int()
        line = torch.tensor([[0, 0], [256 * width, 256 * height]]).int()
        bow = torch.tensor([[0, 0], [256 * width, 256 * height], [256 * width, 0],
                            [0, 256 * height]]).int()  # fmt: skip
        contours, samples = [point, line, torch.zeros(0, 2).int(), bow], [0, 2, 4]
    else:
        contours, samples = [], [0, 0, 0]
    lengths = torch.tensor([0] + [len(c) for c in contours])
    vertices = torch.cat(contours) if contours else torch.zeros(0, 2, dtype=torch.int32)
    return Polygons(vertices, lengths.cumsum(0), torch.tensor(samples))


POLYGONS = (
    "star with a hole, none, two",
    "on the centres of pixels",
    "far outside",
    "degenerate",
    "empty",
)


def boxes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes of 4 samples: overlapping; none; one on pixel centres and an empty one; full."""
    w, h = 256 * width, 256 * height
    limit = 2**31 - 1
    rows = [[10, 20, w // 2, h // 2], [w // 3, h // 3, w + 900, h - 5], [w, h, 2 * w, 2 * h],
            [384, 384, w - 128, h - 128], [700, 700, 700, 900],
            [-limit - 1, -limit - 1, limit, limit]]  # fmt: skip
    return torch.tensor(rows).int(), torch.tensor([0, 3, 3, 5, 6])
