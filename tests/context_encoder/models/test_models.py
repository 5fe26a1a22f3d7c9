"""Networks: the bottleneck, initialisation, layers, use and errors."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from context_encoder.models import (
    MODELS,
    AlexNetContextEncoder,
    ContextEncoder,
    DCGANContextEncoder,
    Discriminator,
    SmallContextEncoder,
    build_discriminator,
    build_model,
    check_image_size,
    default_image_size,
)
from context_encoder.models.base import WholeMapConv2d, WholeMapConvTranspose2d
from tests.helpers.small_models import on_meta, pictures, quick

#: Those that see the image alone; for the other, see test_membrane_unet.py.
NETWORKS = MODELS.names(lambda spec: spec.gives_features)


@pytest.mark.parametrize("name", ["alexnet", "small"])
@torch.no_grad()
def test_channelwise_layer_mixes_all_of_a_map_and_no_other(name: str) -> None:
    model = quick(name).double().eval()
    layer: Any = model.bottleneck.channelwise_fc
    layer.bias.fill_(100)  # every ReLU passes
    maps = model.encode(pictures(model).double())
    changed = maps.clone()
    changed[:, 7, 1, 0] += 1
    difference = (layer(changed) - layer(maps)).abs() > 1e-9
    assert difference[:, 7].all()
    difference[:, 7] = False
    assert not difference.any()


@torch.no_grad()
def test_channelwise_layer_is_the_authors_grouped_convolution() -> None:
    """kernel 6, 9216 outputs, 256 groups on pool5, then reshaped to 256 x 6 x 6."""
    torch.manual_seed(0)
    layer: Any = build_model("alexnet").double().bottleneck.channelwise_fc
    layer.bias.normal_()
    pool5 = torch.randn(3, 256, 6, 6, dtype=torch.float64)
    kernel, bias = layer.weight.reshape(9216, 1, 6, 6), layer.bias.reshape(9216)
    expected = F.conv2d(pool5, kernel, bias, groups=256).relu().reshape(3, 256, 6, 6)
    torch.testing.assert_close(layer(pool5), expected)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 227), ("small", 64)])
def test_opposite_corners_meet_in_the_channelwise_layer_only(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, image_size=size).eval()
    x = pictures(model, 1).requires_grad_()

    def corner_gradient() -> Tensor:
        (gradient,) = torch.autograd.grad(model(x)[0, :, 0, 0].sum(), x)
        return gradient[0, :, -1, -1]

    assert corner_gradient().abs().min() > 0
    with torch.no_grad():
        weight = model.bottleneck.get_parameter("channelwise_fc.weight")
        weight.copy_(torch.eye(weight.shape[1]))  # each location depends on itself only
    assert (corner_gradient() == 0).all()


@pytest.mark.parametrize("name", ["dcgan-center", "dcgan-whole"])
def test_opposite_corners_meet_in_the_code(name: str) -> None:
    model = quick(name).eval()
    x = pictures(model, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, :, 0, 0].sum(), x)
    assert gradient[0, :, -1, -1].abs().min() > 0


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_nothing_passes_the_bottleneck_by(name: str) -> None:
    model = quick(name).eval()
    first, second = (model(pictures(model, seed=seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
    for parameter in model.bottleneck.parameters():
        parameter.zero_()
    first, second = (model(pictures(model, seed=seed)) for seed in (1, 2))
    assert torch.equal(first, second)


@torch.no_grad()
def test_dropout_follows_the_channelwise_layer() -> None:
    bottleneck: Any = quick("alexnet", image_size=227).eval().bottleneck
    maps = torch.rand(4, 256, 6, 6)
    seen: list[Tensor] = []
    bottleneck.mix.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    bottleneck(maps)
    plain = bottleneck.channelwise_fc(maps)
    assert torch.equal(seen[-1], plain)
    bottleneck.train()(maps)
    alive = plain > 0
    kept = (seen[-1] != 0)[alive]
    assert abs(kept.double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(kept.numel())
    torch.testing.assert_close(seen[-1][alive][kept], 2 * plain[alive][kept])


def assert_normal(value: Tensor, std: float, mean: float = 0.0) -> None:
    """Within five standard errors."""
    n = value.numel()
    assert abs(value.double().mean().item() - mean) < 5 * std / math.sqrt(n)
    assert abs(value.double().std().item() / std - 1) < 5 / math.sqrt(2 * n)


def test_alexnet_starts_with_he_s_variance() -> None:
    torch.manual_seed(0)
    weights = build_model("alexnet").state_dict()
    fan_in = {
        "encoder.conv1.conv": 3 * 121,
        "encoder.conv2.conv": 48 * 25,
        "encoder.conv3.conv": 256 * 9,
        "encoder.conv4.conv": 192 * 9,
        "encoder.conv5.conv": 192 * 9,
        "bottleneck.channelwise_fc": 36,
        "bottleneck.mix.conv": 256,
        "decoder.up1.conv": 256 * 25 / 4,
        "decoder.up2.conv": 128 * 25 / 4,
        "decoder.up3.conv": 64 * 25 / 4,
        "decoder.up4.conv": 64 * 25 / 4,
        "decoder.up5.conv": 32 * 25 / 4 * 100,  # a tenth of the standard deviation
    }
    assert set(weights) == {f"{k}.{kind}" for k in fan_in for kind in ("weight", "bias")}
    for name, n in fan_in.items():
        assert_normal(weights[f"{name}.weight"], math.sqrt(2 / n))
        assert not weights[f"{name}.bias"].any()


@pytest.mark.parametrize("norm", ["lrn", "none"])
@pytest.mark.parametrize("name", ["alexnet", "alexnet-poolfree"])
@torch.no_grad()
def test_signal_neither_dies_nor_explodes_at_the_start(name: str, norm: str) -> None:
    model = quick(name, norm=norm, image_size=131).eval()
    x = F.interpolate(torch.randn(4, 3, 9, 9), size=(131, 131), mode="bicubic")
    stages = model.features(x)
    x = stages["mix"]
    for stage_name, layer in list(model.decoder.named_children())[:4]:
        x = stages[stage_name] = layer(x)
    for stage_name, value in stages.items():
        assert 0.2 < value.square().mean().sqrt() < 5, stage_name
    assert model.decoder[4:](x).abs().max() < 2


@pytest.mark.parametrize("model", [lambda: quick("dcgan-center"), lambda: Discriminator(64)])
def test_dcgan_start(model: Any) -> None:
    torch.manual_seed(0)
    kinds = set()
    for module in model().modules():
        kinds.add(type(module))
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert_normal(module.weight, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            assert_normal(module.weight, 0.02, mean=1)
            assert not module.bias.any()
    assert {nn.Conv2d, nn.BatchNorm2d} <= kinds


def test_same_seed_same_weights() -> None:
    first, second = (quick("small").state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "module",
    [*(pytest.param(lambda n=n: on_meta(n), id=n) for n in NETWORKS), lambda: Discriminator(64)],
)
def test_batch_norm_keeps_pytorch_s_constants(module: Any) -> None:
    for layer in module().modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("module", [lambda: quick("dcgan-center"), lambda: Discriminator(128)])
def test_dcgan_has_no_bias_but_batch_norm_s(module: Any) -> None:
    convs = [m for m in module().modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert convs
    assert all(conv.bias is None for conv in convs)


def test_small_has_no_batch_norm_at_its_ends() -> None:
    model: Any = on_meta("small")
    assert list(dict(model.encoder[0].named_children())) == ["conv", "activation"]
    assert list(dict(model.decoder[-1].named_children())) == ["conv"]
    inner = [*model.encoder[1:], *model.decoder[:-1], model.bottleneck.mix]
    assert all(isinstance(stage.norm, nn.BatchNorm2d) for stage in inner)


def test_poolfree_replaces_each_pooling() -> None:
    pooled, free = on_meta("alexnet"), on_meta("alexnet-poolfree")
    assert not any(isinstance(m, nn.MaxPool2d) for m in free.modules())
    for name in ("pool1", "pool2", "pool5"):
        pooling: Any = pooled.encoder.get_submodule(name)
        conv: Any = free.encoder.get_submodule(name).conv
        assert isinstance(pooling, nn.MaxPool2d)
        assert conv.kernel_size == (pooling.kernel_size, pooling.kernel_size) == (3, 3)
        assert conv.stride == (pooling.stride, pooling.stride) == (2, 2)


def test_alexnet_norms() -> None:
    def count(norm: str, kind: type[nn.Module]) -> int:
        return sum(isinstance(m, kind) for m in on_meta("alexnet", norm=norm).modules())

    assert (count("lrn", nn.LocalResponseNorm), count("lrn", nn.BatchNorm2d)) == (2, 0)
    assert (count("none", nn.LocalResponseNorm), count("none", nn.BatchNorm2d)) == (0, 0)
    # conv1 to conv5, mix, up1 to up4; not the last.
    assert (count("batch", nn.LocalResponseNorm), count("batch", nn.BatchNorm2d)) == (0, 10)


@pytest.mark.parametrize(
    ("name", "output", "low", "high"),
    [
        ("alexnet", "linear", -3, 3),
        ("alexnet", "relu", 0, 3),
        ("alexnet", "tanh", -1, 1),
        ("small", "linear", -3, 3),
        ("small", "tanh", -1, 1),
    ],
)
@torch.no_grad()
def test_output_range(name: str, output: str, low: float, high: float) -> None:
    """Channel 0 is pushed to -3, channel 1 to 3."""
    model = quick(name, output=output).eval()
    conv = [m for m in model.decoder.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    conv.weight.zero_()
    assert conv.bias is not None
    conv.bias.copy_(torch.tensor([-3.0, 3.0, 0.0]))
    prediction = model(pictures(model))
    assert prediction.amin().item() == pytest.approx(low, abs=0.01)
    assert prediction.amax().item() == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_fills_the_output_region(name: str) -> None:
    model = on_meta(name)
    size = default_image_size(name)
    prediction = model(torch.empty(2, 3, size, size, device="meta"))
    top, left, height, width = model.output_region
    assert model.image_size == size
    assert prediction.shape == (2, 3, height, width)
    assert top + height <= size
    assert left + width <= size


def test_defaults_agree_with_the_classes() -> None:
    for spec in MODELS.values():
        assert inspect.signature(spec.network).parameters["image_size"].default == spec.image_size
        spec.check_size(spec.image_size)
    center: Any = on_meta("dcgan-center")
    assert center.bottleneck.code.conv.out_channels == 4000


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_lie_in_three_parts(name: str) -> None:
    keys = on_meta(name).state_dict()
    assert {key.split(".")[0] for key in keys} == {"encoder", "bottleneck", "decoder"}
    assert "encoder.conv1.conv.weight" in keys
    assert "decoder.up1.conv.weight" in keys


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_features_are_what_each_stage_gave(name: str) -> None:
    """A later in-place layer must not change returned maps."""
    model = quick(name).eval()
    x = pictures(model)
    features = model.features(x)
    assert torch.equal(features[list(dict(model.encoder.named_children()))[-1]], model.encode(x))
    for part in (model.encoder, model.bottleneck):
        for stage_name, layer in part.named_children():
            x = layer(x.clone())
            assert torch.equal(features[stage_name], x), stage_name
    assert torch.equal(model.decoder(x), model(pictures(model)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = quick(name).train()
    model(pictures(model)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@torch.no_grad()
def test_channels_last_changes_nothing() -> None:
    for name in ("alexnet", "small"):
        model = quick(name).eval()
        x = pictures(model)
        expected = model(x)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        actual = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_alexnet_takes_only_sizes_of_which_it_reads_every_pixel() -> None:
    """At 128 pixels, the strides would omit the last column."""
    model = quick("alexnet").eval()
    for size, read in ((99, True), (128, False), (131, True)):
        x = torch.rand(2, 3, size, size, requires_grad=True)
        (gradient,) = torch.autograd.grad(model.encoder(x).square().sum(), x)
        assert (gradient != 0).any(1).any(0).all().item() is read
        assert gradient[..., :127, :127].any()
    with pytest.raises(ValueError, match="nearest: 99 or 131"):
        check_image_size("alexnet", 128)


def test_small_learns_pictures() -> None:
    model = quick("small").train()
    x = F.interpolate(torch.rand(6, 3, 4, 4) * 2 - 1, size=(32, 32), mode="bilinear")
    holed = x.clone()
    holed[..., 8:24, 8:24] = 0
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = (model(holed) - x)[..., 8:24, 8:24].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", 98, "99 .the smallest.*nearest: 99$"),
        ("alexnet", 224, "nearest: 195 or 227"),
        ("alexnet-poolfree", 67, "99 .the smallest"),
        ("dcgan-center", 64, "128 only, got 64"),
        ("dcgan-whole", 256, "128 only, got 256"),
        ("small", 16, "at least 32.*nearest: 32$"),
        ("small", 100, "multiples of 16.*nearest: 96 or 112"),
        ("small", 0, "at least 1"),
        ("small", -64, "at least 1"),
        ("small", 64.0, "must be an integer"),
        ("small", True, "must be an integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_built(
    name: str, size: Any, message: str
) -> None:
    state = torch.get_rng_state()
    for function in (
        lambda: check_image_size(name, size),
        lambda: build_model(name, image_size=size),
    ):
        with pytest.raises(ValueError, match=message) as error:
            function()
        assert f"model {name!r}" in str(error.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", [AlexNetContextEncoder, DCGANContextEncoder, SmallContextEncoder])
def test_classes_check_their_size_too(cls: Any) -> None:
    with pytest.raises(ValueError, match="image_size"):
        cls(100)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 33), (1, 3, 64, 64)])
def test_inputs_of_another_shape(shape: tuple[int, ...]) -> None:
    model = quick("small")
    for method in (model, model.encode, model.features):
        with pytest.raises(ValueError, match=r"takes \(B, 3, 32, 32\), got"):
            method(torch.zeros(shape))


def test_uint8_pictures() -> None:
    with pytest.raises(TypeError, match=r"x / 127\.5 - 1"):
        quick("small")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_discriminator_errors() -> None:
    with pytest.raises(ValueError, match="at least 32, got 16"):
        build_discriminator(16)
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\), got \(2, 3, 128, 128\)"):
        build_discriminator(64)(torch.zeros(2, 3, 128, 128))


def test_dcgan_cannot_train_on_one_picture() -> None:
    model = quick("dcgan-center")
    with pytest.raises(ValueError, match=r"batch of 1.*eval"):
        model.train()(pictures(model, 1))
    assert model.eval()(pictures(model, 1)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("alexnett", {}, ValueError, "no model 'alexnett'; there are alexnet, alexnet-poolfree"),
        ("small", {"dropout": 0.5}, TypeError, "no option 'dropout'; its options: output"),
        ("alexnet", {"pool": "conv"}, TypeError, "no option 'pool'; its options: norm"),
        ("dcgan-center", {"region": "whole"}, TypeError, "no option 'region'"),
        ("alexnet", {"norm": "layer"}, ValueError, "norm must be .*'layer'"),
        ("alexnet", {"dropout": 1.0}, ValueError, "dropout must be"),
        ("alexnet", {"output": "sigmoid"}, ValueError, "output must be .*'sigmoid'"),
        ("small", {"output": "relu"}, ValueError, "output must be .*'relu'"),
        ("dcgan-center", {"bottleneck_units": 0}, ValueError, "bottleneck_units must be .*got 0"),
    ],
)
def test_names_and_options(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_model(name, **options)


def test_class_options() -> None:
    with pytest.raises(ValueError, match="pool must be"):
        AlexNetContextEncoder(pool="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="region must be"):
        DCGANContextEncoder(region="left")  # type: ignore[arg-type]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("transposed", [False, True])
def test_whole_map_layers_are_convolutions(
    transposed: bool, memory_format: torch.memory_format
) -> None:
    """Output and gradients against torch's own convolution in float64."""
    torch.manual_seed(0)
    layer, plain, x = (
        (WholeMapConvTranspose2d(5, 7, 4), F.conv_transpose2d, torch.randn(3, 5, 1, 1))
        if transposed
        else (WholeMapConv2d(5, 7, 4), F.conv2d, torch.randn(3, 5, 4, 4))
    )
    layer.double().to(memory_format=memory_format)  # type: ignore[call-overload]
    x = x.double().contiguous(memory_format=memory_format).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    expected, output = plain(x, weight), layer(x)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output, (x, layer.weight), grad),
        torch.autograd.grad(expected, (x, weight), grad),
    )
    assert layer.weight.is_contiguous()


def test_whole_map_layers_convolve_other_sizes() -> None:
    torch.manual_seed(0)
    down, up = WholeMapConv2d(5, 7, 4), WholeMapConvTranspose2d(5, 7, 4)
    x = torch.randn(2, 5, 6, 5)
    torch.testing.assert_close(down(x), F.conv2d(x, down.weight))
    torch.testing.assert_close(up(x), F.conv_transpose2d(x, up.weight))


@pytest.mark.parametrize("model", [lambda: quick("dcgan-center"), lambda: Discriminator(64)])
def test_fused_adam_equals_the_plain_one_in_channels_last(model: Any) -> None:
    """The fused kernel needs gradients with the strides of their weights."""
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = model().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)
        x = torch.randn(2, 3, *((128, 128) if isinstance(net, ContextEncoder) else (64, 64)))
        for _ in range(2):
            net(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([p.detach() for p in net.parameters()])
    for plain, fused_ in zip(*weights, strict=True):
        torch.testing.assert_close(fused_, plain, rtol=1e-4, atol=1e-5)
