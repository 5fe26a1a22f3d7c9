"""The joint loss: the overlap band against SciPy's dilation, the adversarial halves by formula."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from context_encoder.pretexts.losses import (
    discriminator_loss,
    generator_loss,
    overlap_weights,
    reconstruction_loss,
)


@pytest.mark.parametrize("overlap", [1, 4, 7])
def test_band_is_the_dilated_hole_without_the_hole(overlap: int) -> None:
    generator = torch.Generator().manual_seed(overlap)
    mask = torch.rand(2, 1, 48, 40, generator=generator) > 0.997
    mask[0, 0, 10:30, 5:20] = True
    got = overlap_weights(mask, overlap, 10.0)
    square = np.ones((2 * overlap + 1, 2 * overlap + 1), bool)
    for i in range(2):
        hole = mask[i, 0].numpy()
        band = binary_dilation(hole, square) & ~hole
        np.testing.assert_array_equal(got[i, 0].numpy(), hole * 1.0 + band * 10.0)


def test_no_band_is_the_mask_itself() -> None:
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert overlap_weights(mask, 0, 10.0) is mask


def test_central_hole_and_its_band_are_the_network_s_patch() -> None:
    """The released commands: image of 128 pixels, patch of 64, 4 of them overlap the context."""
    mask = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    mask[..., 36:92, 36:92] = True
    weights = overlap_weights(mask, 4, 10.0)
    expected = torch.zeros(1, 1, 128, 128)
    expected[..., 32:96, 32:96] = 10
    expected[..., 36:92, 36:92] = 1
    assert torch.equal(weights, expected)


@pytest.mark.parametrize(("kind", "power"), [("l2", 2), ("l1", 1)])
def test_reconstruction_loss_by_hand(kind: str, power: int) -> None:
    prediction, target = torch.zeros(1, 1, 1, 3), torch.tensor([[[[2.0, 3.0, 5.0]]]])
    weights = torch.tensor([[[[1.0, 10.0, 0.0]]]])
    total = 2.0**power + 10 * 3.0**power
    got = reconstruction_loss(prediction, target, weights, kind=kind, normalize="mask")
    assert got.item() == pytest.approx(total / 11)
    got = reconstruction_loss(prediction, target, weights, kind=kind, normalize="all")
    assert got.item() == pytest.approx(total / 3)


def test_adversarial_halves() -> None:
    logits = torch.tensor([-1.5, 0.0, 30.0], dtype=torch.float64)
    d = torch.sigmoid(logits)
    assert discriminator_loss(logits, True).item() == pytest.approx(-d.log().mean().item())
    assert discriminator_loss(logits[:2], False).item() == pytest.approx(
        -(1 - d[:2]).log().mean().item()
    )
    assert generator_loss(logits).item() == discriminator_loss(logits, True).item()
