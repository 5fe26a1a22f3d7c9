"""The network that corrects the membrane: what it keeps, what it reaches, how it grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from context_encoder.models import build_context_encoder, build_model
from context_encoder.models.membrane import membrane
from context_encoder.models.membrane_unet import MembraneUNet

VARIANTS: list[dict[str, Any]] = [
    {},
    {"channelwise": False},
    {"skips": False},
    {"start": "mean"},
    {"mask_channel": False},
]


def samples(size: int, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, size // 8, size // 8, generator=generator) * 2 - 1
    image = F.interpolate(image, size=size, mode="bilinear")
    mask = torch.zeros(count, 1, size, size, dtype=torch.bool)
    mask[..., size // 4 : size // 2, size // 3 : 2 * size // 3] = True
    return image, mask


def with_heads(network: MembraneUNet) -> MembraneUNet:
    """Corrections other than 0, statistics other than those of a fresh network; eval mode."""
    for head in network.heads.values():
        assert isinstance(head, torch.nn.Conv2d)
        torch.nn.init.normal_(head.weight, std=0.1)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(*samples(network.image_size, 8))
    return network.eval()


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_starts_at_its_starting_point(size: int, options: dict[str, Any]) -> None:
    network = MembraneUNet(size, **options).eval()
    image, mask = samples(size)
    start = network.starting_point(image, mask)
    with torch.no_grad():
        assert torch.equal(network(image, mask), start)
    if options.get("start") == "mean":
        assert start[0, :, mask[0, 0]].std(1).max() < 1e-6
    else:
        assert torch.equal(start, membrane(image, mask))


@pytest.mark.parametrize("options", VARIANTS)
def test_all_weights_are_trained(options: dict[str, Any]) -> None:
    network = with_heads(MembraneUNet(64, **options)).train()
    image, mask = samples(64, 4)
    for module in network.modules():  # what ends a residual block starts at 0 and blocks
        if type(module).__name__ == "_Residual":
            torch.nn.init.ones_(module.norm2.weight)  # type: ignore[union-attr]
    (network(image, mask) - image).square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_what_the_hole_hides_makes_no_difference() -> None:
    network = with_heads(MembraneUNet(64))
    image, mask = samples(64)
    with torch.no_grad():
        expected = network(image, mask)
        assert torch.equal(network(torch.where(mask, torch.nan, image), mask), expected)


def test_it_is_called_with_image_and_mask_of_which_it_encodes_the_innermost_map() -> None:
    network = with_heads(MembraneUNet(64))
    image, mask = samples(64)
    shown = network.inputs(image, mask, torch.zeros(3))
    assert shown[0] is image
    assert shown[1] is mask
    seen: list[Tensor] = []
    network.encoder["conv3"].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        assert torch.equal(network.encode(*shown), seen[0])
        hidden = network.encode(torch.where(mask, torch.nan, image), mask)
        network(*shown)
    assert torch.equal(hidden, seen[0])
    assert torch.equal(seen[2], seen[0])
    assert seen[0].shape == (2, 128, 8, 8)
    assert build_model("membrane-unet").output_region == (0, 0, 64, 64)
    with pytest.raises(ValueError, match="gives no features: its encoder needs the mask"):
        build_context_encoder("membrane-unet")


def test_brightness_and_contrast_pass_through() -> None:
    network = with_heads(MembraneUNet(64))
    image, mask = samples(64)
    shift = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1)
    with torch.no_grad():
        filled = network.starting_point(image, mask)
        correction = network.correction(filled, mask)
        shifted = network.correction(filled + shift, mask)
        brighter = network.correction(100 * filled, mask)
    assert correction.abs().max() > 0.01
    torch.testing.assert_close(shifted, correction, atol=1e-4, rtol=1e-3)
    # Up to the least contrast, which 100 times the contrast leaves behind.
    assert brighter.abs().mean() / correction.abs().mean() == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("channelwise", [True, False])
def test_the_channelwise_layer_lets_every_place_see_every_other(channelwise: bool) -> None:
    network = with_heads(MembraneUNet(128, channelwise=channelwise))
    image, mask = samples(128, 1)
    mask[:] = False
    mask[..., :24, :24] = True
    filled = network.starting_point(image, mask).requires_grad_()
    # The pixels whose contrast is measured lie near the hole; this corner can only be seen
    # through the bottleneck.
    network.correction(filled, mask)[..., :8, :8].sum().backward()
    assert filled.grad is not None
    far = filled.grad[..., -8:, -8:].abs().max()
    near = filled.grad[..., :8, :8].abs().max()
    assert (far > 1e-4 * near) == channelwise


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [64, 128])
def test_a_grown_network_starts_with_the_same_corrections(
    size: int, options: dict[str, Any]
) -> None:
    network = with_heads(MembraneUNet(size, **options))
    grown = network.grown().eval()
    image, mask = samples(size)
    assert grown.image_size == 2 * size
    with torch.no_grad():
        start = network.starting_point(image, mask)
        expected = F.interpolate(network.correction(start, mask), scale_factor=2, mode="bilinear")
        repeated = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (start, mask)]
        torch.testing.assert_close(grown.correction(*repeated), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [16, 31, 100, 512, 64.0, True])
def test_sizes_that_do_not_fit(size: Any) -> None:
    with pytest.raises(ValueError, match="image_size"):
        MembraneUNet(size)


def test_bad_input() -> None:
    network = MembraneUNet(64)
    image, mask = samples(64)
    with pytest.raises(ValueError, match="64"):
        network(image[..., :32, :32], mask[..., :32, :32])
    with pytest.raises(TypeError, match="bool"):
        network(image, mask.float())
    with pytest.raises(ValueError, match="start"):
        MembraneUNet(64, start="telea")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skips"):
        MembraneUNet(64, skips=False, channelwise=False)
