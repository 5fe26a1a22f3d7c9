"""Independent copies of the published networks, with their sizes and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from context_encoder.models import (
    Discriminator,
    build_discriminator,
    check_image_size,
)
from tests.helpers.small_models import down, on_meta, pictures, quick, up


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def local_response_norm(x: Tensor) -> Tensor:
    """Caffe: x / (1 + 1e-4 / 5 * sum of squares of the 5 channels around) ** 0.75."""
    squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
    total = torch.stack([squares[:, k : k + x.shape[1]] for k in range(5)]).sum(0)
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def alexnet_by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        weight, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
        return F.conv2d(x, weight, bias, **options)

    size = x.shape[-1]
    x = F.max_pool2d(local_response_norm(conv("encoder.conv1", x, stride=4).relu()), 3, 2)
    x = conv("encoder.conv2", x, padding=2, groups=2).relu()
    x = F.max_pool2d(local_response_norm(x), 3, 2)
    x = conv("encoder.conv3", x, padding=1).relu()
    x = conv("encoder.conv4", x, padding=1, groups=2).relu()
    x = conv("encoder.conv5", x, padding=1, groups=2).relu()
    x = F.max_pool2d(x, 3, 2)
    weight = weights["bottleneck.channelwise_fc.weight"]
    bias = weights["bottleneck.channelwise_fc.bias"]
    x = (torch.einsum("bci,coi->bco", x.flatten(2), weight) + bias).relu().reshape(x.shape)
    x = conv("bottleneck.mix", x).relu()
    for number in range(1, 6):
        weight, bias = (weights[f"decoder.up{number}.conv.{kind}"] for kind in ("weight", "bias"))
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=2)
        x = x if number == 5 else x.relu()
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def released_generator(region: str, units: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        *down(64, 64),
        *down(64, 128),
        *down(128, 256),
        *down(256, 512),
        nn.Conv2d(512, units, 4, bias=False),
        nn.BatchNorm2d(units),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(units, 512, 4, bias=False),
        nn.BatchNorm2d(512),
        nn.ReLU(),
        *up(512, 256),
        *up(256, 128),
        *up(128, 64),
        *(up(64, 64) if region == "dcgan-whole" else []),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    ]
    return nn.Sequential(*layers)


def released_discriminator(size: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        *(down(64, 64) if size == 128 else []),
        *down(64, 128),
        *down(128, 256),
        *down(256, 512),
        nn.Conv2d(512, 1, 4, bias=False),
        nn.Sigmoid(),
    ]
    return nn.Sequential(*layers)


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Both lists have all tensors in the order of the layers; otherwise load_state_dict fails."""
    keys, values = target.state_dict().keys(), source.state_dict().values()
    assert len(keys) == len(values)
    target.load_state_dict(dict(zip(keys, values, strict=True)))


def test_alexnet_is_the_published_network() -> None:
    model = quick("alexnet").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)  # biases that matter
        x = pictures(model).double() * 60  # large enough for the local response norm to matter
        torch.testing.assert_close(model(x), alexnet_by_hand(model.state_dict(), x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["dcgan-center", "dcgan-whole"])
def test_dcgan_is_the_released_network(name: str, training: bool) -> None:
    model = quick(name)
    with torch.no_grad():  # leave the statistics that batch normalisation starts with
        model.train()(pictures(model, 4, seed=5))
    other = released_generator(name, 60)
    copy_in_order(model, other)
    x = pictures(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(model.train(training)(x), other.train(training)(x))


@pytest.mark.parametrize("size", [64, 128])
def test_discriminator_is_the_released_one_before_its_sigmoid(size: int) -> None:
    torch.manual_seed(0)
    model, other = build_discriminator(size), released_discriminator(size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # logits far enough from 0
        copy_in_order(model, other)
        x = torch.rand(3, 3, size, size) * 2 - 1
        logits = model(x)
        assert logits.shape == (3,)
        assert logits.abs().max() > 1
        torch.testing.assert_close(logits.sigmoid(), other(x).flatten())


@pytest.mark.parametrize("name", ["alexnet", "alexnet-poolfree"])
def test_alexnet_sizes(name: str) -> None:
    model = on_meta(name)
    x: Tensor = torch.empty(2, 3, 227, 227, device="meta")
    shapes = {k: tuple(v.shape) for k, v in model.features(x).items()}
    assert shapes == {
        "conv1": (2, 96, 55, 55),
        "norm1": (2, 96, 55, 55),
        "pool1": (2, 96, 27, 27),
        "conv2": (2, 256, 27, 27),
        "norm2": (2, 256, 27, 27),
        "pool2": (2, 256, 13, 13),
        "conv3": (2, 384, 13, 13),
        "conv4": (2, 384, 13, 13),
        "conv5": (2, 256, 13, 13),
        "pool5": (2, 256, 6, 6),
        "channelwise_fc": (2, 256, 6, 6),
        "mix": (2, 256, 6, 6),
    }
    x = torch.empty(2, 256, 6, 6, device="meta")
    decoded = [tuple((x := layer(x)).shape[1:]) for layer in model.decoder]
    assert decoded == [
        (128, 11, 11),
        (64, 21, 21),
        (64, 41, 41),
        (32, 81, 81),
        (3, 161, 161),
        (3, 227, 227),
    ]


def test_dcgan_sizes() -> None:
    for name, widths in (
        ("dcgan-center", (512, 256, 128, 64, 3)),
        ("dcgan-whole", (512, 256, 128, 64, 64, 3)),
    ):
        model = on_meta(name)
        x: Tensor = torch.empty(2, 3, 128, 128, device="meta")
        assert {k: tuple(v.shape[1:]) for k, v in model.features(x).items()} == {
            "conv1": (64, 64, 64),
            "conv2": (64, 32, 32),
            "conv3": (128, 16, 16),
            "conv4": (256, 8, 8),
            "conv5": (512, 4, 4),
            "code": (4000, 1, 1),
        }
        x = torch.empty(2, 4000, 1, 1, device="meta")
        decoded = [tuple((x := layer(x)).shape[1:]) for layer in model.decoder]
        assert decoded == [(width, 4 << i, 4 << i) for i, width in enumerate(widths)]
    assert on_meta("dcgan-center").output_region == (32, 32, 64, 64)
    assert on_meta("dcgan-whole").output_region == (0, 0, 128, 128)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("alexnet", (99, 131, 259)), ("small", (32, 48, 64, 80, 128, 144, 256))],
)
def test_other_image_sizes(name: str, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        check_image_size(name, size)
        model = on_meta(name, image_size=size)
        assert (model.image_size, model.output_region) == (size, (0, 0, size, size))
        prediction = model(torch.empty(2, 3, size, size, device="meta"))
        assert prediction.shape == (2, 3, size, size)


def test_small_keeps_a_map_of_8_at_64_and_at_128() -> None:
    for size, depth in ((64, 3), (128, 4)):
        features = on_meta("small", image_size=size).features(
            torch.empty(1, 3, size, size, device="meta")
        )
        assert list(features) == [f"conv{i + 1}" for i in range(depth)] + ["channelwise_fc", "mix"]
        assert features["channelwise_fc"].shape == (1, 128, 8, 8)


@pytest.mark.parametrize("size", [32, 33, 48, 63, 64, 99, 128, 160, 227, 256])
def test_discriminators_of_any_size(size: int) -> None:
    with torch.device("meta"):
        model = Discriminator(size)
        assert model(torch.empty(5, 3, size, size)).shape == (5,)
    logit: Any = model.layers.logit
    assert 4 <= logit.kernel_size[0] <= 7


def test_alexnet_parameters() -> None:
    encoder = (
        (96 * 3 * 11 * 11 + 96)
        + (256 * 48 * 5 * 5 + 256)
        + (384 * 256 * 3 * 3 + 384)
        + (384 * 192 * 3 * 3 + 384)
        + (256 * 192 * 3 * 3 + 256)
    )
    channelwise = 331_776 + 9_216
    mix = 256 * 256 + 256
    decoder = (
        (256 * 128 * 25 + 128)
        + (128 * 64 * 25 + 64)
        + (64 * 64 * 25 + 64)
        + (64 * 32 * 25 + 32)
        + (32 * 3 * 25 + 3)
    )
    model = on_meta("alexnet")
    assert parameters(model.encoder) == encoder == 2_334_080
    layer = model.bottleneck.get_submodule("channelwise_fc")
    assert parameters(layer) == channelwise == 256 * 6**4 + 256 * 36
    assert parameters(model.bottleneck) == channelwise + mix
    assert parameters(model.decoder) == decoder
    pools = (96 * 96 * 9 + 96) + 2 * (256 * 256 * 9 + 256)
    assert parameters(on_meta("alexnet-poolfree")) == parameters(model) + pools
    # Batch normalisation replaces the bias and has one more weight per channel.
    normed = 96 + 256 + 384 + 384 + 256 + 256 + 128 + 64 + 64 + 32
    assert parameters(on_meta("alexnet", norm="batch")) == parameters(model) + normed
    assert parameters(on_meta("alexnet", norm="none")) == parameters(model)


def test_released_parameters() -> None:
    assert parameters(on_meta("dcgan-center")) == 71_124_544
    assert parameters(on_meta("dcgan-whole")) == 71_190_208
    with torch.device("meta"):
        assert parameters(Discriminator(64)) == 2_765_568
        assert parameters(Discriminator(128)) == 2_831_232


def test_small_parameters() -> None:
    convs = (3 * 32 * 16 + 32) + (32 * 64 * 16 + 2 * 64) + (64 * 128 * 16 + 2 * 128)
    bottleneck = (128 * 64 * 64 + 128 * 64) + (128 * 128 + 2 * 128)
    ups = (128 * 48 * 16 + 2 * 48) + (48 * 24 * 16 + 2 * 24) + (24 * 3 * 16 + 3)
    assert parameters(on_meta("small")) == convs + bottleneck + ups == 832_947
