"""A hole's texture from patches of the known pixels: matching and voting, the two steps of patch
synthesis on one level of an image pyramid.

Everything is an integer; the exact rules are written in
:mod:`cekernels.reference.patch_synthesis`, and every implementation agrees with it to the last bit,
whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import IMPLS, Impl
from cekernels._register import Op
from cekernels._selfcheck import SelfTest, numbers
from cekernels.reference.patch_synthesis import COLORS, LARGEST

_MOST_RADIUS = 7
_MOST_CHANNELS = 16


def patch_match(
    image: Tensor,
    guide: Tensor,
    source: Tensor,
    field: Tensor,
    *,
    radius: int = 3,
    guide_weight: int = 16,
    max_offset: int = 120,
    sweeps: int = 4,
    first_sweep: int = 0,
    seed: int = 0,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Improve a nearest-neighbour field of patches by propagation and random search.

    PatchMatch (Barnes, Shechtman, Finkelstein and Goldman 2009), all patches of a sweep at once. A
    patch is a square of ``2 * radius + 1`` pixels, named by its centre ``y * W + x``.

    Args:
        image: int16 ``(H, W, C)``, C from 3 to 16: three colours from 0 to 1020 (four to a level of
            8 bits), then any other channels in 0..1020 that patches are compared in.
        guide: int16 ``(H, W, 3)``, 0 to 1020: a prediction whose mean a patch should keep to.
        source: bool or uint8 ``(H, W)``: not 0 at the centres of patches that may be copied. Only
            those count that lie whole in the image.
        field: int32 ``(H, W)``: for each target patch the patch that it is matched with, -1 where
            there is no target. Both lie whole in the image.
        radius: of a patch, 0 to 7.
        guide_weight: of the squared distance from the guide's mean, in sixteenths of that of a
            pixel's own squared difference.
        max_offset: the most that is added to a source patch's colours to fit it to the target.
        sweeps: how many.
        first_sweep: number of the first one, which the random search depends on. n sweeps from 0
            are the same as k from 0 and n - k from k.
        seed: of the random search; of 64 bits.
        impl: "auto", or the implementation to force: "reference", "cpp".

    Returns:
        the field, int32 ``(H, W)``, and the cost of each match, int32 ``(H, W)``, 0 where there is
        no target.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range.
        ImplementationError: the forced implementation cannot serve the call.
    """
    op = "patch_match"
    radius, max_offset = _check_image(op, image, radius, max_offset)
    height, width = image.shape[:2]
    _check_plane(op, "guide", guide, image, (torch.int16,), (height, width, COLORS))
    _check_plane(op, "source", source, image, (torch.bool, torch.uint8), (height, width))
    _check_plane(op, "field", field, image, (torch.int32,), (height, width))
    guide_weight = _checks.integer(op, "guide_weight", guide_weight, 0, 1 << 16)
    sweeps = _checks.integer(op, "sweeps", sweeps, 0, 1 << 20)
    first_sweep = _checks.integer(op, "first_sweep", first_sweep, 0, 1 << 31)
    seed = _checks.integer(op, "seed", seed, -1 << 63, (1 << 63) - 1)
    _checks.choice(op, "impl", impl, IMPLS)
    matched, cost = PATCH_MATCH.kernel(impl)(
        image, guide, source, field, radius, guide_weight, max_offset, sweeps, first_sweep, seed
    )
    return matched, cost


def patch_vote(
    image: Tensor,
    field: Tensor,
    cost: Tensor,
    mask: Tensor,
    depth: Tensor,
    *,
    radius: int = 3,
    max_offset: int = 120,
    best: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Replace the pixels of a hole by what the matches of the patches around them say.

    Args:
        image, field, cost: what :func:`patch_match` was given and has returned.
        mask: bool or uint8 ``(H, W)``: not 0 at the pixels to replace. Those that no target patch
            covers stay.
        depth: int16 ``(H, W)``: distance from the known pixels in thirds of a pixel; patches near
            to them count more.
        radius, max_offset: as for :func:`patch_match`.
        best: take the pixel of one patch instead of a weighted mean of all: sharper, less accurate.
        impl: "auto", or the implementation to force: "reference", "cpp".

    Returns:
        int16 ``(H, W, C)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range.
        ImplementationError: the forced implementation cannot serve the call.
    """
    op = "patch_vote"
    radius, max_offset = _check_image(op, image, radius, max_offset)
    plane = tuple(image.shape[:2])
    _check_plane(op, "field", field, image, (torch.int32,), plane)
    _check_plane(op, "cost", cost, image, (torch.int32,), plane)
    _check_plane(op, "mask", mask, image, (torch.bool, torch.uint8), plane)
    _check_plane(op, "depth", depth, image, (torch.int16,), plane)
    if not isinstance(best, bool):
        raise TypeError(f"{op}: best must be True or False, got {_checks.describe(best)}")
    _checks.choice(op, "impl", impl, IMPLS)
    voted: Tensor = PATCH_VOTE.kernel(impl)(
        image, field, cost, mask, depth, radius, max_offset, best
    )
    return voted


def _check_image(op: str, image: Tensor, radius: int, max_offset: int) -> tuple[int, int]:
    """Check them; the radius and the offset as integers of Python."""
    _checks.tensor(op, "image", image)
    _checks.dims(op, "image", image, (3,), "(H, W, C)")
    _checks.dtypes(op, "image", image, (torch.int16,))
    if not COLORS <= image.shape[2] <= _MOST_CHANNELS:
        raise ValueError(
            f"{op}: image must have {COLORS} to {_MOST_CHANNELS} channels, got a "
            f"{_checks.describe(image)}"
        )
    return (
        _checks.integer(op, "radius", radius, 0, _MOST_RADIUS),
        _checks.integer(op, "max_offset", max_offset, 0, LARGEST),
    )


def _check_plane(
    op: str,
    name: str,
    value: Tensor,
    image: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
) -> None:
    _checks.tensor(op, name, value)
    _checks.dtypes(op, name, value, dtypes)
    _checks.shape(op, name, value, shape, "as image")
    _checks.same_device(op, name, value, "image", image)


# --- the ops ----------------------------------------------------------------------------------


def _match_fake(
    image: Tensor, guide: Tensor, source: Tensor, field: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    plane = image.shape[:2]
    return field.new_empty(plane), field.new_empty(plane)


def _vote_fake(image: Tensor, *others: Any) -> Tensor:
    return image.new_empty(image.shape)


def _check() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image (12, 13, 4), a hole of 2 x 3 pixels, its patches of 3 x 3, all matched with one."""
    image = (numbers(12, 13, 4) * 200 + 500).to(torch.int16)
    hole = torch.zeros(12, 13, dtype=torch.bool)
    hole[5:7, 5:8] = True
    target = torch.zeros(12, 13, dtype=torch.bool)
    target[4:8, 4:9] = True
    source = ~target
    source[0], source[-1], source[:, 0], source[:, -1] = False, False, False, False
    return image, hole, source, torch.where(target, 2 * 13 + 2, -1).int()


def _match_check() -> tuple[Any, ...]:
    image, _, source, field = _check()
    return image, image[..., :3].contiguous(), source, field, 1, 16, 100, 2, 1, 7


def _vote_check() -> tuple[Any, ...]:
    image, hole, _, field = _check()
    cost = torch.arange(12 * 13, dtype=torch.int32).view(12, 13) % 7 * 1000
    return image, field, cost, hole, hole.to(torch.int16) * 3, 1, 100, False


PATCH_MATCH = Op(
    reference.patch_match,
    fake=_match_fake,
    compiled=("cpp",),
    check=SelfTest(lambda _: [_match_check()]),
)
PATCH_VOTE = Op(
    reference.patch_vote,
    fake=_vote_fake,
    compiled=("cpp",),
    check=SelfTest(lambda _: [_vote_check()]),
)
