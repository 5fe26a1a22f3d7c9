"""Removing a seam: against a direct sparse solver, harmonic functions and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from cekernels import _backends, remove_seam

BUILT = _backends.unavailable("cpp")
needs_cpp = pytest.mark.skipif(BUILT is not None, reason=f"C++: {BUILT}")
IMPLS = ["reference", pytest.param("cpp", marks=needs_cpp)]


def direct(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The membrane itself for an image (H, W), by a sparse direct solver in float64."""
    height, width = hole.shape
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    rows, columns, values = [], [], []
    right = np.zeros(hole.sum())
    for y, x in np.argwhere(hole):
        i = number[y, x]
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= v < height and 0 <= u < width):
                continue
            rows.append(i), columns.append(i), values.append(1.0)
            if hole[v, u]:
                rows.append(i), columns.append(number[v, u]), values.append(-1.0)
            else:
                right[i] += image[v, u]
    matrix = sparse.coo_matrix((values, (rows, columns)), shape=(len(right), len(right)))
    filled = image.astype(np.float64)
    filled[hole] = spsolve(matrix.tocsc(), right)
    return filled


def holes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    square = np.zeros((50, 60), bool)
    square[7:37, 11:48] = True
    specks = rng.random((50, 60)) < 0.1
    sieve = rng.random((50, 60)) < 0.8
    border = np.zeros((50, 60), bool)
    border[:20, 30:] = True
    pin = np.ones((15, 15), bool)
    pin[4, 5] = False
    line = np.zeros((1, 40), bool)
    line[0, 3:30] = True
    return {"square": square, "specks": specks, "sieve": sieve, "border": border, "pin": pin,
            "line": line}  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", holes())
def test_a_hole_of_zeros_becomes_the_membrane(name: str, impl: str) -> None:
    hole = holes()[name]
    image = np.random.default_rng(1).uniform(-1, 1, hole.shape).astype(np.float32)
    image[hole] = 0
    given = torch.from_numpy(image)[None, None]
    filled = remove_seam(given, torch.from_numpy(hole)[None, None], impl=impl)  # type: ignore[arg-type]
    np.testing.assert_allclose(filled[0, 0].numpy(), direct(image, hole), rtol=0, atol=2e-4)
    assert np.array_equal(filled[0, 0].numpy()[~hole], image[~hole])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_fill_that_is_off_by_a_harmonic_function_is_mended(impl: str) -> None:
    hole = torch.from_numpy(holes()["square"])[None, None].expand(2, 1, -1, -1)
    y, x = torch.meshgrid(torch.arange(50.0), torch.arange(60.0), indexing="ij")
    true = torch.rand(2, 3, 50, 60, generator=torch.Generator().manual_seed(0))
    off = 0.01 * x - 0.02 * y + 0.0004 * (x * x - y * y)
    # With the gradient across the edge taken to be 0 the fill must not have one there.
    flat = torch.where(hole, off, 0.0).expand_as(true)
    filled = remove_seam(flat.clone(), hole, impl=impl)  # type: ignore[arg-type]
    assert filled.abs().max() < flat.abs().max()
    smooth = remove_seam(torch.where(hole, 0.0, off).expand_as(true).contiguous(), hole, impl=impl)  # type: ignore[arg-type]
    torch.testing.assert_close(smooth, off.expand_as(smooth), atol=2e-4, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("missing", [True, False])
def test_nothing_or_everything_missing_changes_nothing(missing: bool, impl: str) -> None:
    image = torch.rand(1, 2, 9, 7)
    mask = torch.full((1, 1, 9, 7), missing)
    torch.testing.assert_close(remove_seam(image, mask, impl=impl), image)  # type: ignore[arg-type]


@needs_cpp
def test_pieces_do_not_touch_each_other() -> None:
    mask = torch.zeros(1, 1, 1000, 1500, dtype=torch.bool)
    for i in range(700):
        y, x = 13 + i // 35 * 48, 10 + i % 35 * 42
        mask[..., y : y + 3, x : x + 3] = True
    image = torch.rand(1, 3, 1000, 1500)
    small = remove_seam(image, mask)
    part = np.s_[..., 0:48, 0:48]
    torch.testing.assert_close(small[part], remove_seam(image[part], mask[part]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_those_of_float32_rounded(dtype: torch.dtype, impl: str) -> None:
    mask = torch.from_numpy(holes()["square"])[None, None]
    image = torch.rand(1, 2, 50, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = remove_seam(image.float(), mask, impl="reference")
    found = remove_seam(image, mask, impl=impl)  # type: ignore[arg-type]
    assert found.dtype == dtype
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(found.float(), expected, atol=2e-4 + 2 * rounding, rtol=0)


def test_bad_arguments_are_named() -> None:
    image, mask = torch.rand(1, 3, 5, 5), torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(TypeError, match="image must have dtype float16"):
        remove_seam(image.int(), mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        remove_seam(image, mask[0])
    with pytest.raises(ValueError, match="no gradient"):
        remove_seam(image.requires_grad_(), mask)
