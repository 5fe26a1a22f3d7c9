"""Figures in the hole against scikit-image, and by hand."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from context_encoder.metrics import context_mean, hole_metrics, to_unit


def pictures(seed: int = 0, batch: int = 3, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    original = torch.rand(batch, 3, size, size, generator=generator)
    noise = 0.2 * torch.randn(batch, 3, size, size, generator=generator)
    return (original + noise).clamp(0, 1), original


def inner_holes(batch: int = 3, size: int = 40) -> torch.Tensor:
    mask = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    for i in range(batch):
        mask[i, :, 8 + i : 20 + 2 * i, 9 : 25 - i] = True
    return mask


def test_psnr_l1_l2_agree_with_scikit_image_on_the_masked_pixels() -> None:
    output, original = pictures()
    mask = inner_holes()
    got = hole_metrics(output, original, mask)
    for i in range(3):
        hole = mask[i, 0]
        a = original[i][:, hole].double().numpy()
        b = output[i][:, hole].double().numpy()
        assert got["psnr"][i].item() == pytest.approx(
            peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-4
        )
        assert got["l1"][i].item() == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
        assert got["l2"][i].item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)


def test_ssim_agrees_with_scikit_image_averaged_over_the_hole() -> None:
    output, original = pictures()
    mask = inner_holes()
    got = hole_metrics(output, original, mask)["ssim"]
    pasted = torch.where(mask, output, original)
    for i in range(3):
        _, full = structural_similarity(
            original[i].double().numpy(),
            pasted[i].double().numpy(),
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        expected = full[:, mask[i, 0].numpy()].mean()
        assert got[i].item() == pytest.approx(expected, abs=2e-4)


def test_pixels_outside_the_hole_do_not_count() -> None:
    output, original = pictures()
    mask = inner_holes()
    spoilt = torch.where(mask, output, torch.rand_like(output))
    for name, value in hole_metrics(output, original, mask).items():
        torch.testing.assert_close(hole_metrics(spoilt, original, mask)[name], value, msg=name)


def test_one_pixel_by_hand() -> None:
    original = torch.full((1, 3, 16, 16), 0.5)
    output = original.clone()
    output[0, :, 8, 8] = torch.tensor([0.6, 0.5, 0.2])
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 8, 8] = True
    got = hole_metrics(output, original, mask)
    assert got["l1"].item() == pytest.approx((0.1 + 0.3) / 3, rel=1e-5)
    assert got["l2"].item() == pytest.approx((0.01 + 0.09) / 3, rel=1e-5)
    assert got["psnr"].item() == pytest.approx(-10 * math.log10(0.1 / 3), rel=1e-5)


def test_perfect_fill_is_100_db_and_an_empty_mask_is_nan() -> None:
    _, original = pictures()
    mask = inner_holes()
    mask[1] = False
    got = hole_metrics(original, original, mask)
    assert got["psnr"][0].item() == pytest.approx(100)
    assert got["l1"][2].item() == 0
    assert got["ssim"][0].item() == pytest.approx(1)
    assert all(math.isnan(got[name][1].item()) for name in got)


def test_context_mean_is_the_mean_of_what_is_left() -> None:
    _, original = pictures()
    mask = inner_holes()
    got = context_mean(original, mask)
    for i in range(3):
        expected = original[i][:, ~mask[i, 0]].mean(1)
        torch.testing.assert_close(got[i, :, 0, 0], expected)
    assert context_mean(original, torch.ones_like(mask)).abs().max() == 0


def test_to_unit() -> None:
    assert to_unit(torch.tensor([-1.0, 0.0, 1.0, 1.5])).tolist() == [0, 0.5, 1, 1]
