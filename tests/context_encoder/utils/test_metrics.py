"""Metrics in the hole against scikit-image, torchmetrics, float64 and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from context_encoder.utils.metrics import context_mean, hole_metrics, to_unit


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


# --- holes against torchmetrics, and smallest and largest holes ----------------------------------


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM (Wang et al. 2004) at every pixel in float64, mirrored at the image's border."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, mode="mirror", axes=(1, 2))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * cov + c2) / (var_a + var_b + c2)


def hole(kind: str, size: int = 40) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    if kind == "inside":
        mask[12:25, 14:20] = True
    elif kind == "corner":
        mask[:9, :7] = True
    elif kind == "edge":
        mask[30:, 10:30] = True
    elif kind == "one pixel":
        mask[21, 17] = True
    elif kind == "one pixel in the corner":
        mask[-1, -1] = True
    elif kind == "full":
        mask[:] = True
    elif kind == "scattered":
        mask |= torch.rand(size, size, generator=torch.Generator().manual_seed(5)) < 0.3
    return mask


@pytest.mark.parametrize(
    "kind",
    ["inside", "corner", "edge", "one pixel", "one pixel in the corner", "full", "scattered"],
)
def test_every_kind_of_hole_agrees_with_independent_implementations(kind: str) -> None:
    output, original = pictures(seed=3)
    mask = hole(kind)
    got = hole_metrics(output, original, mask.expand(3, 1, -1, -1))
    pasted = torch.where(mask, output, original)
    for i in range(3):
        a, b = original[i][:, mask].double(), output[i][:, mask].double()
        expected = {
            "l1": mean_absolute_error(b.flatten(), a.flatten()),
            "l2": mean_squared_error(b.flatten(), a.flatten()),
            "psnr": torchmetrics_psnr(b, a, data_range=1.0),
        }
        for name, value in expected.items():
            assert got[name][i].item() == pytest.approx(value.item(), rel=1e-5), name
        full = ssim_map(original[i].double().numpy(), pasted[i].double().numpy())
        assert got["ssim"][i].item() == pytest.approx(full[:, mask.numpy()].mean(), abs=2e-4)
    if kind == "full":
        whole = structural_similarity(
            original[0].numpy(), output[0].numpy(), data_range=1.0, channel_axis=0,
            gaussian_weights=True, use_sample_covariance=False,
        )  # fmt: skip
        # scikit-image averages without the border, so the values are close, not equal.
        assert got["ssim"][0].item() == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("kind", ["inside", "corner", "one pixel", "full"])
def test_a_perfect_prediction_is_perfect_wherever_the_hole_is(kind: str) -> None:
    _, original = pictures()
    got = hole_metrics(original, original, hole(kind).expand(3, 1, -1, -1))
    assert got["l1"].tolist() == got["l2"].tolist() == [0, 0, 0]
    assert got["psnr"].tolist() == pytest.approx([100] * 3)
    assert got["ssim"].tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_images_of_a_batch_do_not_mix() -> None:
    output, original = pictures(seed=4)
    mask = inner_holes()
    together = hole_metrics(output, original, mask)
    for i in range(3):
        alone = hole_metrics(output[i : i + 1], original[i : i + 1], mask[i : i + 1])
        for name, value in alone.items():
            assert value.item() == pytest.approx(together[name][i].item(), rel=1e-5), name


def test_psnr_is_averaged_over_images_not_taken_of_the_average_error() -> None:
    original = torch.full((2, 3, 16, 16), 0.5)
    output = original + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    assert hole_metrics(output, original, mask)["psnr"].mean().item() == pytest.approx(30, abs=1e-3)
