"""Local response normalisation against torch's in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cekernels
from cekernels import LocalResponseNorm, local_response_norm
from tests.helpers import implementation_cases as cases

IMPLS = [
    "reference",
    pytest.param(
        "cpp",
        marks=pytest.mark.skipif(bool(cases._backends.unavailable("cpp")), reason="not built"),
    ),
]
# One block of 64 positions, several with a short last one, one position, fewer channels than the
# window has.
SHAPES = [(2, 7, 3, 5), (3, 96, 13, 13), (1, 1, 1, 1), (2, 3, 1, 9), (2, 5, 70)]


def with_gradient(x: Tensor, grad: Tensor, *parameters: float, impl: str) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = local_response_norm(x, *parameters, impl=impl)  # type: ignore[arg-type]
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient_are_torchs(
    impl: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sizes, betas = (1, 4, 5, 9), (0.75, 0.5, 1.25)
    x, grad = 3 * cases.random(*shape, dtype=dtype), cases.random(*shape, seed=1, dtype=dtype)
    for size, beta in itertools.product(sizes, betas):
        wide = x.double().requires_grad_()
        truth = F.local_response_norm(wide, size, 0.3, beta, 1.5)
        (slope,) = torch.autograd.grad(truth, wide, grad.double())
        results = with_gradient(x, grad, size, 0.3, beta, 1.5, impl=impl)
        for result, expected in zip(results, (truth.detach(), slope), strict=True):
            assert result.dtype == dtype
            assert cases.error(result, expected) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("impl", IMPLS)
def test_layouts(impl: str) -> None:
    x, grad = cases.random(2, 6, 5, 7), cases.random(2, 6, 5, 7, seed=1)
    expected = with_gradient(x, grad, 5, 0.5, 0.75, 1.0, impl=impl)
    for a, g in itertools.product(cases.layouts(x), cases.layouts(grad)):
        results = with_gradient(a, g, 5, 0.5, 0.75, 1.0, impl=impl)
        last = a.is_contiguous(memory_format=torch.channels_last)
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-6)
            layout = torch.channels_last if last else torch.contiguous_format
            assert result.is_contiguous(memory_format=layout)


def test_number_of_threads_makes_no_difference() -> None:
    x, grad = cases.random(3, 10, 30, 30), cases.random(3, 10, 30, 30, seed=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(with_gradient(x, grad, 5, 0.5, 0.75, 1.0, impl="auto"))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_second_derivatives_are_right() -> None:
    x = cases.random(2, 6, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: local_response_norm(t, 4, 0.5, 0.75, 1.0), x)


def test_compiles_and_takes_torch_func() -> None:
    x = cases.random(2, 6, 4, 4)
    compiled = torch.compile(local_response_norm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, 5), local_response_norm(x, 5))
    slope = torch.func.grad(lambda t: local_response_norm(t, 5, 0.5).sum())(x)
    expected = with_gradient(x, torch.ones_like(x), 5, 0.5, 0.75, 1.0, impl="auto")[1]
    torch.testing.assert_close(slope, expected)


def test_the_module_takes_the_place_of_torchs() -> None:
    x = cases.random(2, 6, 4, 4)
    ours, theirs = LocalResponseNorm(5, alpha=0.2, k=2.0), nn.LocalResponseNorm(5, alpha=0.2, k=2.0)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)


def test_empty_inputs() -> None:
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        x = torch.zeros(shape, requires_grad=True)
        y = local_response_norm(x, 5)
        assert y.shape == shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3), 5), ValueError, r"input must be \(B, C, H, W\) or \(B, C, N\)"),
        ((torch.zeros(2, 3, 4, 4).int(), 5), TypeError, "input must have dtype float16"),
        ((torch.zeros(2, 3, 4, 4), 0), ValueError, "size must be a positive integer, got 0"),
        ((torch.zeros(2, 3, 4, 4), 2.5), ValueError, "size must be a positive integer, got 2.5"),
        (([[1.0]], 5), TypeError, r"input must be a torch.Tensor"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cekernels.local_response_norm(*arguments)  # type: ignore[arg-type]
