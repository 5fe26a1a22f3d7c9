"""The membrane of a batch against the exact solution and what a harmonic function must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from context_encoder.inpainting.blending import remove_seam
from context_encoder.models.membrane import membrane, without_seam


def exact(image: Tensor, mask: Tensor) -> Tensor:
    """Solved with a sparse factorisation, image by image."""
    filled = [
        remove_seam(picture.permute(1, 2, 0).numpy(), hole[0].numpy())
        for picture, hole in zip(torch.where(mask, 0, image), mask, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2)


def boxes(height: int, width: int) -> Tensor:
    mask = torch.zeros(3, 1, height, width, dtype=torch.bool)
    mask[0, :, height // 4 : height // 2, width // 3 : width // 2] = True
    mask[1, :, : height // 3, width // 2 :] = True  # reaches the edge of the image
    mask[2] = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.7
    return mask


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 75), (128, 32), (5, 3)])
def test_converges_to_the_exact_solution(
    height: int, width: int, generator: torch.Generator
) -> None:
    mask = boxes(height, width)
    image = torch.rand(3, 3, height, width, generator=generator)
    expected = exact(image, mask)
    errors = [
        (membrane(image, mask, cycles) - expected)[mask.expand_as(image)].square().mean().sqrt()
        for cycles in (0, 2, 12)
    ]
    assert errors[1] < 0.03
    assert errors[2] < 0.003
    assert errors[2] <= errors[1] <= errors[0] + 1e-6


def test_a_seam_removed_converges_to_the_exact_solution(generator: torch.Generator) -> None:
    mask = boxes(37, 75)
    image, prediction = torch.rand(2, 3, 3, 37, 75, generator=generator)
    expected = exact_without_seam(image, prediction, mask)
    errors = [
        float((without_seam(image, prediction, mask, cycles) - expected).abs().max())
        for cycles in (0, 2, 12)
    ]
    assert errors[1] < 0.1
    assert errors[2] < 0.003
    assert errors[2] <= errors[1] <= errors[0]


def exact_without_seam(image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    filled = [
        remove_seam(picture.permute(1, 2, 0).numpy(), hole[0].numpy())
        for picture, hole in zip(torch.where(mask, prediction, image), mask, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_cycles_converge_for_squares_that_fit_the_coarse_pixels(
    size: int, generator: torch.Generator
) -> None:
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
    image = torch.rand(1, 1, size // 4, size // 4, generator=generator)
    image = F.interpolate(image, size=size, mode="bilinear")
    expected = exact(image, mask)
    errors = [
        (membrane(image, mask, cycles) - expected)[mask].square().mean().sqrt().item()
        for cycles in (0, 2, 8, 16)
    ]
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.1 * errors[1]
    assert errors[3] < 1e-4


def test_linear_images_are_their_own_membrane() -> None:
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 20:44, 16:40] = True
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.stack((rows, columns, 3 - rows - 2 * columns))[None] / 64
    torch.testing.assert_close(membrane(image, mask, 12), image, atol=1e-3, rtol=0)


def test_values_stay_between_those_around_the_hole(generator: torch.Generator) -> None:
    mask = boxes(64, 64)
    image = torch.rand(3, 1, 64, 64, generator=generator)
    filled = membrane(image, mask)
    assert filled.min() >= -0.02
    assert filled.max() <= 1.02


def test_known_pixels_stay_and_hidden_ones_do_not_matter(generator: torch.Generator) -> None:
    mask = boxes(32, 48)
    image = torch.rand(3, 3, 32, 48, generator=generator)
    filled = membrane(image, mask)
    hidden = membrane(torch.where(mask, torch.nan, image), mask)
    assert torch.equal(torch.where(mask, 0, filled), torch.where(mask, 0, image))
    assert torch.equal(filled, hidden)


def test_images_do_not_mix(generator: torch.Generator) -> None:
    mask = boxes(32, 32)
    image = torch.rand(3, 3, 32, 32, generator=generator)
    alone = torch.cat([membrane(image[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(membrane(image, mask), alone, atol=1e-6, rtol=0)


def test_nothing_known_and_nothing_missing(generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 16, 16, generator=generator)
    everything = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    assert torch.equal(membrane(image, everything), torch.zeros_like(image))
    assert torch.equal(membrane(image, ~everything), image)


def test_gradients_reach_the_known_pixels() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5, 3:6] = True
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: membrane(x, mask), image)
    membrane(image, mask).sum().backward()
    assert image.grad is not None
    assert (image.grad[mask] == 0).all()
    # Each pixel in the hole is an average of known ones.
    assert float(image.grad.sum()) == pytest.approx(64, abs=0.05)


@pytest.mark.parametrize(
    ("image", "mask", "cycles", "error"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8).bool(), 2, TypeError),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), 2, TypeError),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8).bool(), 2, ValueError),
        (torch.zeros(3, 8, 8), torch.zeros(1, 8, 8).bool(), 2, ValueError),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).bool(), -1, ValueError),
    ],
)
def test_bad_input(image: Tensor, mask: Tensor, cycles: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        membrane(image, mask, cycles)
