"""The feature-learning network: AlexNet, channel-wise layer, five up-convolutions.

Pathak et al. 2016, section 3.1 and figure 9b; AlexNet as Krizhevsky et al. 2012 and Caffe's
bvlc_alexnet have it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from cekernels import ChannelwiseLinear, LocalResponseNorm
from context_encoder.models.base import (
    ContextEncoder,
    OutputActivation,
    check_integer,
    init_he,
    output_activation,
    stage,
)
from context_encoder.models.registry import register_model
from context_encoder.utils.option_groups import OptionGroup, Preset

Pool = Literal["max", "conv"]
Norm = Literal["lrn", "batch", "none"]

_DECODER_CHANNELS = (128, 64, 64, 32, 3)


class AlexNetOptions(OptionGroup):
    """Options of AlexNet in training."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout after the channel-wise layer."
    )
    norm: Norm = Field(
        "lrn", description="Normalisation: local response as in AlexNet, batch or none."
    )


# Values of the paper's section 5.2 (see docs/recipes.md); the others are defaults.
_FEATURES: dict[str, Any] = {
    "model": "alexnet",
    "batch_size": 64,
    "lr": 1e-4,
    "lr_schedule": "constant",
    "resize": 256,
    "crop_scale": (227 / 256, 227 / 256),
    "steps": 100_000,
    "val_fraction": 0.05,
    "val_every": 2000,
    "log_every": 50,
}
_BY_HOLES: dict[str, Any] = {**_FEATURES, "dropout": 0.5, "overlap": 0}
_PRESETS = {
    "features-region": Preset({**_BY_HOLES, "mask": "region"}, "paper, section 5.2"),
    "features-block": Preset({**_BY_HOLES, "mask": "block"}, "paper, section 5.2"),
    "features-central": Preset({**_BY_HOLES, "mask": "central", "lr": 1e-3}, "paper, section 5.2"),
    "features-autoencoder": Preset(
        {**_FEATURES, "pretext": "autoencoder", "dropout": 0.5}, "paper, section 5.2"
    ),
    "features-denoising": Preset(
        {**_FEATURES, "pretext": "denoising", "dropout": 0.5},
        "paper, section 5.2; Vincent et al. 2010",
    ),
    # Crops show the same part of a photograph as above, at the 261 pixels that two patches need.
    "features-relative-patch": Preset(
        {**_FEATURES, "pretext": "relative-patch", "resize": 294}, "Doersch et al. 2015"
    ),
}


@register_model(
    "alexnet-poolfree",
    summary="AlexNet with strided convolutions instead of pooling, 227 -> 227 pixels",
    image_size=227,
    fixed={"pool": "conv"},
    options=AlexNetOptions,
    bottleneck_options=("dropout",),
    presets=_PRESETS,
)
@register_model(
    "alexnet",
    summary="AlexNet for feature learning, 227 -> 227 pixels",
    image_size=227,
    fixed={"pool": "max"},
    options=AlexNetOptions,
    bottleneck_options=("dropout",),
    presets=_PRESETS,
    features_default=True,
)
class AlexNetContextEncoder(ContextEncoder):
    """AlexNet's conv1 to pool5, channel-wise fully-connected layer, decoder; S to S pixels.

    At 227 pixels: 55 (conv1), 27 (pool1), 13 (pool2), 6 x 6 x 256 (pool5), the same after the
    bottleneck, then 11, 21, 41, 81, 161, and bilinear resizing to 227. Every layer but the last
    has a ReLU.

    Weights start as N(0, 2 / fan-in), see :func:`context_encoder.models.base.init_he`, which
    allows training without batch normalisation.

    Args:
        image_size: S = 35 + 32 n pixels, for a pool5 of n x n, n >= 2 (see
            :meth:`check_image_size`). The channel-wise layer has 256 n^4 weights.
        pool: "max" as in AlexNet, or "conv", the paper's pool-free encoder: each pooling becomes a
            convolution of the same kernel and stride, with ReLU.
        norm: "lrn", local response normalisation after conv1 and conv2 as in AlexNet; "batch",
            batch normalisation before every ReLU instead; or "none".
        dropout: probability of dropping an output of the channel-wise layer, in training.
        output: "linear"; "relu", one interpretation of the paper, which cannot predict the darker
            half of [-1, 1]; or "tanh".

    Raises:
        ValueError: an argument has another value.
    """

    def __init__(
        self,
        image_size: int = 227,
        *,
        pool: Pool = "max",
        norm: Norm = "lrn",
        dropout: float = 0.5,
        output: OutputActivation = "linear",
    ) -> None:
        self.check_image_size(image_size)
        if pool not in ("max", "conv"):
            raise ValueError(f"pool must be 'max' or 'conv', got {pool!r}")
        if norm not in ("lrn", "batch", "none"):
            raise ValueError(f"norm must be 'lrn', 'batch' or 'none', got {norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        last_activation = output_activation(output)
        batch_norm = norm == "batch"
        map_size = (image_size - 35) // 32

        super().__init__(
            image_size,
            _encoder(pool, norm),
            nn.Sequential(
                OrderedDict(
                    channelwise_fc=ChannelwiseLinear(256, (map_size, map_size), activation="relu"),
                    mix=nn.Sequential(
                        OrderedDict(
                            dropout=nn.Dropout(dropout),
                            # 1x1: the layer before mixes locations, this one the channels.
                            **dict(_conv(256, 256, 1, batch_norm=batch_norm).named_children()),
                        )
                    ),
                )
            ),
            _decoder(image_size, batch_norm, last_activation),
        )
        init_he(self)

    @staticmethod
    def check_image_size(image_size: int) -> None:
        """ValueError unless the strides of conv1 to pool5 fit and pool5 is at least 2 x 2.

        With any other size, a border of the image would be ignored; from a pool5 of 1 x 1, the
        up-convolutions would produce 1 x 1.
        """
        check_integer("image_size", image_size, 1)
        if image_size < 99 or image_size % 32 != 3:
            below = max(99, (image_size - 3) // 32 * 32 + 3)
            nearest = "99" if image_size < 99 else f"{below} or {below + 32}"
            raise ValueError(
                f"AlexNet's strides do not fit image_size {image_size}; use 99 (the smallest), "
                f"131, 163, 195, 227 (the paper's) or more in steps of 32; nearest: {nearest}"
            )


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    batch_norm: bool,
) -> nn.Sequential:
    """Convolution, optional batch normalisation (which replaces the bias), ReLU."""
    return stage(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=not batch_norm
        ),
        nn.BatchNorm2d(out_channels) if batch_norm else None,
        nn.ReLU(inplace=True),
    )


def _encoder(pool: Pool, norm: Norm) -> nn.Sequential:
    batch_norm = norm == "batch"
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def add_norm_and_pool(number: int, channels: int, lrn: bool) -> None:
        if lrn:
            # Caffe's constants: k is 1 (2 in the AlexNet paper), alpha is divided by the size.
            layers[f"norm{number}"] = LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)
        layers[f"pool{number}"] = (
            nn.MaxPool2d(3, 2)
            if pool == "max"
            else _conv(channels, channels, 3, stride=2, batch_norm=batch_norm)
        )

    layers["conv1"] = _conv(3, 96, 11, stride=4, batch_norm=batch_norm)
    add_norm_and_pool(1, 96, norm == "lrn")
    layers["conv2"] = _conv(96, 256, 5, padding=2, groups=2, batch_norm=batch_norm)
    add_norm_and_pool(2, 256, norm == "lrn")
    layers["conv3"] = _conv(256, 384, 3, padding=1, batch_norm=batch_norm)
    layers["conv4"] = _conv(384, 384, 3, padding=1, groups=2, batch_norm=batch_norm)
    layers["conv5"] = _conv(384, 256, 3, padding=1, groups=2, batch_norm=batch_norm)
    add_norm_and_pool(5, 256, lrn=False)
    return nn.Sequential(layers)


def _decoder(image_size: int, batch_norm: bool, last_activation: nn.Module | None) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 256
    for number, out_channels in enumerate(_DECODER_CHANNELS, start=1):
        last = number == len(_DECODER_CHANNELS)
        normed = batch_norm and not last
        layers[f"up{number}"] = stage(
            nn.ConvTranspose2d(channels, out_channels, 5, 2, 2, bias=not normed),
            nn.BatchNorm2d(out_channels) if normed else None,
            last_activation if last else nn.ReLU(inplace=True),
        )
        channels = out_channels
    layers["resize"] = nn.Upsample(size=(image_size, image_size), mode="bilinear")
    return nn.Sequential(layers)
