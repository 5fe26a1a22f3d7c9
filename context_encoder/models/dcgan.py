"""The inpainting networks of the released Torch code and their discriminators.

Pathak et al. 2016, figure 9a; train.lua (centre) and train_random.lua (random region).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from context_encoder.models.base import (
    ContextEncoder,
    WholeMapConv2d,
    WholeMapConvTranspose2d,
    check_integer,
    stage,
)
from context_encoder.models.registry import register_model
from context_encoder.utils.option_groups import Preset

Region = Literal["center", "whole"]

_IMAGE_SIZE = 128
_ENCODER_CHANNELS = (64, 64, 128, 256, 512)
_DECODER_CHANNELS = (512, 256, 128, 64)
_DISCRIMINATOR_CHANNELS = (64, 128, 256, 512)


# Values of the released commands (see docs/recipes.md); the others are defaults.
_RELEASED: dict[str, Any] = {
    "overlap": 4,
    "overlap_weight": 10.0,
    "lambda_rec": 0.999,
    "lambda_adv": 0.001,
    "batch_size": 64,
    "lr": 2e-3,
    "lr_schedule": "constant",
    "beta1": 0.5,
    "resize": 350,
    "crop_scale": (128 / 350, 128 / 350),
    "steps": 100_000,
    "val_fraction": 0.05,
    "val_every": 2000,
    "log_every": 50,
}


@register_model(
    "dcgan-whole",
    summary="released network for holes anywhere, 128 -> 128 pixels",
    image_size=_IMAGE_SIZE,
    fixed={"region": "whole"},
    min_batch=2,
    presets={
        "inpaint-region": Preset(
            {**_RELEASED, "model": "dcgan-whole", "mask": "region"},
            "paper's masks, released network",
        ),
        "inpaint-blob": Preset(
            {**_RELEASED, "model": "dcgan-whole", "mask": "blob"},
            "released code, `train_random.lua`",
        ),
    },
    aliases=("random",),
)
@register_model(
    "dcgan-center",
    summary="released network for the central hole, 128 -> the central 64 pixels",
    image_size=_IMAGE_SIZE,
    fixed={"region": "center"},
    whole=False,
    min_batch=2,
    presets={
        "inpaint-center": Preset(
            {**_RELEASED, "model": "dcgan-center", "mask": "central"},
            "released code, `train.lua`",
        )
    },
    aliases=("center",),
)
class DCGANContextEncoder(ContextEncoder):
    """128 pixels to a vector of 4000 units and back, as trained with an adversarial loss.

    All convolutions are 4 x 4 and have no bias (the released code sets biases to 0 at each step).
    Five of stride 2 encode to 4 x 4 x 512, one more produces the vector, and up-convolutions
    decode it to 64 or 128 pixels. Activations are leaky ReLU (0.2) up to the vector, ReLU after
    it, and tanh at the end; all layers but the first and the last have batch normalisation.

    Convolutions start as N(0, 0.02^2), batch normalisation as N(1, 0.02^2) with bias 0.

    Args:
        image_size: 128, the only size.
        region: "center": predict the central 64 x 64; "whole": predict all 128 x 128, with one
            more up-convolution of 64 channels.
        bottleneck_units: length of the vector, 4000 in the paper.

    Raises:
        ValueError: an argument has another value; or, on a call in training mode, the batch has
            one image, so that the vector has no batch statistics.
    """

    def __init__(
        self,
        image_size: int = _IMAGE_SIZE,
        *,
        region: Region = "center",
        bottleneck_units: int = 4000,
    ) -> None:
        self.check_image_size(image_size)
        check_integer("bottleneck_units", bottleneck_units, 1)
        if region not in ("center", "whole"):
            raise ValueError(f"region must be 'center' or 'whole', got {region!r}")

        decoder: OrderedDict[str, nn.Module] = OrderedDict()
        channels = bottleneck_units
        widths = _DECODER_CHANNELS if region == "center" else (*_DECODER_CHANNELS, 64)
        for number, width in enumerate(widths, start=1):
            decoder[f"up{number}"] = stage(
                WholeMapConvTranspose2d(channels, width, 4)
                if number == 1
                else nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            channels = width
        decoder[f"up{len(widths) + 1}"] = stage(
            nn.ConvTranspose2d(channels, 3, 4, 2, 1, bias=False), activation=nn.Tanh()
        )

        super().__init__(
            image_size,
            _downward(_ENCODER_CHANNELS),
            nn.Sequential(
                OrderedDict(
                    code=stage(
                        WholeMapConv2d(_ENCODER_CHANNELS[-1], bottleneck_units, 4),
                        nn.BatchNorm2d(bottleneck_units),
                        nn.LeakyReLU(0.2, inplace=True),
                    )
                )
            ),
            nn.Sequential(decoder),
            (32, 32, 64, 64) if region == "center" else None,
        )
        _init_normal(self)

    @staticmethod
    def check_image_size(image_size: int) -> None:
        """ValueError unless it is 128."""
        check_integer("image_size", image_size, 1)
        if image_size != _IMAGE_SIZE:
            raise ValueError(
                f"the released networks take image_size {_IMAGE_SIZE} only, got {image_size}"
            )

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if self.training and x.shape[0] == 1:
            raise ValueError(
                f"{type(self).__name__} cannot train on a batch of 1: batch normalisation of the "
                "bottleneck needs at least two images; for prediction call model.eval() first"
            )


class Discriminator(nn.Module):
    """Classifies real and predicted images; its input is the whole ``output_region``.

    It consists of 4 x 4 convolutions of stride 2 without bias until the map is 4 to 7 pixels wide,
    with batch normalisation in all but the first, leaky ReLU (0.2), and one convolution of that
    map's size. The released ones have 64 and 128 pixels; larger sizes add layers of 64 channels,
    as the released code does. Weights start as in :class:`DCGANContextEncoder`.

    It returns logits: the sigmoid of the released code is computed in
    ``torch.nn.functional.binary_cross_entropy_with_logits``, which is accurate where a sigmoid
    saturates.

    Args:
        size: side of the input in pixels, at least 32.

    Shape:
        ``(B, 3, size, size)``, floating point in [-1, 1], to ``(B,)``; large for real images.

    Raises:
        ValueError: the size is too small, or the input has another shape.
    """

    def __init__(self, size: int) -> None:
        check_integer("size of the discriminator's input", size, 32)
        super().__init__()
        self.size = size
        halvings = (size // 4).bit_length() - 1
        extra = (_DISCRIMINATOR_CHANNELS[0],) * (halvings - len(_DISCRIMINATOR_CHANNELS))
        channels = extra + _DISCRIMINATOR_CHANNELS[:halvings]
        self.layers = _downward(channels)
        self.layers.add_module("logit", WholeMapConv2d(channels[-1], 1, size >> halvings))
        _init_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, self.size, self.size):
            raise ValueError(
                f"Discriminator takes (B, 3, {self.size}, {self.size}), got {tuple(x.shape)}"
            )
        logits: Tensor = self.layers(x).flatten()
        return logits


def build_discriminator(size: int) -> Discriminator:
    """Build a discriminator for predictions of ``size`` x ``size`` pixels (``output_region``).

    Raises:
        ValueError: the size is below 32.
    """
    return Discriminator(size)


def _downward(channels: tuple[int, ...]) -> nn.Sequential:
    """conv1, conv2, ...: each halves the side; the first has no batch normalisation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    previous = 3
    for number, width in enumerate(channels, start=1):
        layers[f"conv{number}"] = stage(
            nn.Conv2d(previous, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width) if number > 1 else None,
            nn.LeakyReLU(0.2, inplace=True),
        )
        previous = width
    return nn.Sequential(layers)


@torch.no_grad()
def _init_normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.weight.normal_(0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1, 0.02)
            module.bias.zero_()
