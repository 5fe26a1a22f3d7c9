"""The joint loss: the overlap band against SciPy's dilation, the adversarial halves by formula."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from context_encoder.pretexts.losses import (
    discriminator_loss,
    generator_loss,
    log_l2_loss,
    overlap_weights,
    reconstruction_loss,
    whole_loss,
)
from context_encoder.utils.metrics import hole_metrics


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


def test_log_l2_is_the_mean_psnr_in_other_units() -> None:
    """Images whose errors differ a hundredfold; PSNR by the metric, on [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    scale = torch.tensor([0.05, 0.2, 0.5, 1.0]).view(4, 1, 1, 1)
    prediction = (target + scale * (torch.rand(target.shape, generator=generator) - 0.5)).clamp(-1)
    prediction = prediction.clamp(-1, 1).requires_grad_()
    mask = torch.rand(4, 1, 16, 16, generator=generator) < 0.4
    loss = log_l2_loss(prediction, target, mask)
    unit = ((prediction.detach() + 1) / 2, (target + 1) / 2)
    psnr = hole_metrics(*unit, mask)["psnr"].double().mean()
    # On [-1, 1] squared errors are 4 times as large; the least error costs the best image 0.4.
    expected = 2 * np.log(2) - psnr * np.log(10) / 10
    assert loss.item() == pytest.approx(expected.item(), abs=0.15)
    assert loss.item() > expected.item()

    # Exactly, with its gradient, in float64; as an entry of the losses.
    error = (prediction.detach().double() - target.double()).requires_grad_()
    per_image = [error[i][:, mask[i, 0]].square().mean() for i in range(4)]
    exact = torch.stack([(e + 1e-4).log() for e in per_image]).mean()
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.double(), error.grad, atol=1e-6, rtol=1e-4)
    assert (prediction.grad[~mask.expand_as(target)] == 0).all()
    for normalize in ("mask", "all"):
        again = reconstruction_loss(prediction, target, mask, kind="log-l2", normalize=normalize)
        assert torch.equal(again, loss)


def test_log_l2_weighs_the_band_and_takes_whole_and_empty_images() -> None:
    prediction, target = torch.zeros(2, 1, 1, 3), torch.tensor([[[[2.0, 3.0, 5.0]]]] * 2)
    weights = torch.tensor([[[[1.0, 10.0, 0.0]]], [[[0.0, 0.0, 0.0]]]])
    expected = (np.log((4 + 10 * 9) / 11 + 1e-4) + np.log(1e-4)) / 2
    assert log_l2_loss(prediction, target, weights).item() == pytest.approx(expected, rel=1e-5)
    whole = whole_loss(prediction, target, kind="log-l2")
    assert whole.item() == pytest.approx(np.log(38 / 3 + 1e-4), rel=1e-5)


def test_adversarial_halves() -> None:
    logits = torch.tensor([-1.5, 0.0, 30.0], dtype=torch.float64)
    d = torch.sigmoid(logits)
    assert discriminator_loss(logits, True).item() == pytest.approx(-d.log().mean().item())
    assert discriminator_loss(logits[:2], False).item() == pytest.approx(
        -(1 - d[:2]).log().mean().item()
    )
    assert generator_loss(logits).item() == discriminator_loss(logits, True).item()
