"""Holes that meet their surroundings: membrane interpolation and seamless blending."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cekernels import _checks, reference
from cekernels._backends import IMPLS, Impl
from cekernels._interop import record
from cekernels._register import Op, Sharding
from cekernels._selfcheck import SelfTest, numbers


def remove_seam(image: Tensor, mask: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Add the smoothest correction to each hole that makes its edge meet the known pixels.

    The correction is a membrane: at the hole's edge it is the difference between known and filled
    pixel, within the hole it is harmonic (Laplace's equation with 4 neighbours; Pérez, Gangnet and
    Blake 2003). Where the hole holds a constant, the result is the membrane interpolation of the
    known pixels. Beyond the edge of the image there is nothing to meet; without any known pixel
    nothing is corrected.

    Args:
        image: floating point ``(B, C, H, W)``, a fill in the hole. Not differentiable.
        mask: bool or uint8 ``(B, 1, H, W)``, not 0 in the hole.
        impl: "auto", or the implementation to force: "reference" (a dense system: small holes
            only), "cpp" (conjugate gradients with multigrid: time and memory follow the area of
            the holes; the residual falls to 1e-7 of the right-hand side, in float32).

    Returns:
        as ``image``, ``(B, C, H, W)``; only pixels of the hole differ from ``image``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or an image
            that requires a gradient.
        ImplementationError: the forced implementation cannot serve the call.
    """
    op = "remove_seam"
    if not _checks.tensors(op, ("image", "mask"), image, mask):
        return record(remove_seam, image, mask, impl=impl)  # type: ignore[no-any-return]
    _checks.dims(op, "image", image, (4,), "(B, C, H, W)")
    _checks.dtypes(op, "image", image, _checks.FLOATING)
    _checks.no_gradient(op, "image", image)
    _checks.dtypes(op, "mask", mask, (torch.bool, torch.uint8))
    _checks.shape(op, "mask", mask, (image.shape[0], 1, *image.shape[2:]), "one per image")
    _checks.same_device(op, "mask", mask, "image", image)
    _checks.choice(op, "impl", impl, IMPLS)
    corrected: Tensor = REMOVE_SEAM.kernel(impl)(image, mask)
    return corrected


# --- the op -----------------------------------------------------------------------------------


def _fake(image: Tensor, mask: Tensor) -> Tensor:
    return image.new_empty(image.shape)


def _check() -> tuple[Tensor, Tensor]:
    """Single pixels with 4 known neighbours whose sum 4 divides: the solution is exact."""
    image = numbers(2, 3, 7, 8) * 4
    mask = torch.zeros(2, 1, 7, 8, dtype=torch.bool)
    mask[..., 1:-1:2, 1:-1:3] = True
    return image, mask


def _sharding(image: Any, mask: Any) -> list[Sharding]:
    return [([0], [0, 0]), ([1], [1, "whole"])]


REMOVE_SEAM = Op(
    reference.remove_seam,
    fake=_fake,
    compiled=("cpp",),
    check=SelfTest(lambda _: [_check()]),
    sharding=_sharding,
)
