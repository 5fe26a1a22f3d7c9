"""A small network for machines without a GPU, with the paper's bottleneck."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from cekernels import ChannelwiseLinear
from context_encoder.models.base import (
    ContextEncoder,
    check_integer,
    init_he,
    output_activation,
    stage,
)
from context_encoder.models.registry import register_model
from context_encoder.utils.option_groups import Preset

_ENCODER_CHANNELS = (32, 64, 128, 128)
_DECODER_CHANNELS = (64, 48, 24)


@register_model(
    "small",
    summary="small network for machines without a GPU, 64 -> 64 pixels",
    image_size=64,
    data_processes=False,
    presets={"laptop": Preset({}, "ours")},
    default=True,
)
class SmallContextEncoder(ContextEncoder):
    """Strided convolutions, channel-wise fully-connected layer, up-convolutions; S to S pixels.

    Three convolutions of stride 2 up to 64 pixels (8 x 8 x 128 at 64 pixels), or four above (8 x
    8 x 128 at 128), are followed by the channel-wise layer (Pathak et al. 2016, section 3.1), a
    1 x 1 convolution that mixes channels, and as many up-convolutions. Convolutions and
    up-convolutions are 4 x 4 with ReLU and batch normalisation, except in the first and the last.
    It has 0.83 M parameters at 64 pixels. Weights start as in
    :func:`context_encoder.models.base.init_he`.

    Args:
        image_size: S, a multiple of 16 pixels, at least 32. The channel-wise layer has
            128 (S / 8)^4 weights up to 64 pixels, 128 (S / 16)^4 above.
        output: "linear" or "tanh".

    Raises:
        ValueError: an argument has another value.
    """

    def __init__(
        self, image_size: int = 64, *, output: Literal["linear", "tanh"] = "linear"
    ) -> None:
        self.check_image_size(image_size)
        if output not in ("linear", "tanh"):
            raise ValueError(f"output must be 'linear' or 'tanh', got {output!r}")
        depth = 3 if image_size <= 64 else 4
        map_size = image_size >> depth

        encoder: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for number, width in enumerate(_ENCODER_CHANNELS[:depth], start=1):
            normed = number > 1
            encoder[f"conv{number}"] = stage(
                nn.Conv2d(channels, width, 4, 2, 1, bias=not normed),
                nn.BatchNorm2d(width) if normed else None,
                nn.ReLU(inplace=True),
            )
            channels = width

        bottleneck = OrderedDict(
            channelwise_fc=ChannelwiseLinear(channels, (map_size, map_size), activation="relu"),
            mix=stage(
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ),
        )

        decoder: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(_DECODER_CHANNELS[-(depth - 1) :], start=1):
            decoder[f"up{number}"] = stage(
                nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            channels = width
        decoder[f"up{depth}"] = stage(
            nn.ConvTranspose2d(channels, 3, 4, 2, 1), activation=output_activation(output)
        )

        super().__init__(
            image_size, nn.Sequential(encoder), nn.Sequential(bottleneck), nn.Sequential(decoder)
        )
        init_he(self)

    @staticmethod
    def check_image_size(image_size: int) -> None:
        """ValueError unless it is a multiple of 16, at least 32."""
        check_integer("image_size", image_size, 1)
        if image_size < 32 or image_size % 16:
            below = max(32, image_size // 16 * 16)
            nearest = "32" if image_size < 32 else f"{below} or {below + 16}"
            raise ValueError(
                "the small network takes multiples of 16 pixels, at least 32, got image_size "
                f"{image_size}; nearest: {nearest}"
            )
