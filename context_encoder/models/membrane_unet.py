"""A U-Net that corrects the membrane and keeps the paper's bottleneck."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cekernels import ChannelwiseLinear
from context_encoder.models.base import InpaintingNetwork
from context_encoder.models.membrane import membrane
from context_encoder.models.registry import register_model
from context_encoder.utils.option_groups import OptionGroup, Preset

__all__ = ["MembraneUNet"]

# Channels from the outermost level inwards; a network of fewer levels has the last ones.
_CHANNELS = (8, 16, 32, 64, 128)
_FEWEST_LEVELS = 3
_LARGEST_MAP = 8

# The pixels that contrast is measured on lie within this part of the side from the hole.
_SURROUNDINGS = 1 / 8
# Added to the standard deviation: 1 % of the range from black to white.
_LEAST_CONTRAST = 0.02
# Other pixels count so much against those, for holes without surroundings.
_ELSEWHERE = 1e-4
# Scale of the heads: Adam moves their weights as fast as all others, and the correction is small.
_HEAD_GAIN = 0.15


_TOO_BLIND = "without `skips` and without `channelwise` the network sees too little of an image"


class MembraneUNetOptions(OptionGroup):
    """Options of the network that corrects the membrane."""

    start: Literal["membrane", "mean"] = Field(
        "membrane",
        description="What fills the hole before the correction: the membrane, or the mean colour "
        "of the known pixels.",
    )
    skips: bool = Field(True, description="Skip connections from encoder to decoder.")
    channelwise: bool = Field(
        True, description="The channel-wise fully-connected layer in the bottleneck."
    )
    mask_channel: bool = Field(True, description="The mask as a fourth channel of the input.")

    @model_validator(mode="after")
    def _sees_enough(self) -> MembraneUNetOptions:
        if not (self.skips or self.channelwise):
            raise ValueError(_TOO_BLIND)
        return self


@register_model(
    "membrane-unet",
    summary="correction of the membrane, with skip connections and the mask, 64 -> 64 pixels",
    image_size=64,
    options=MembraneUNetOptions,
    data_processes=False,
    presets={
        "membrane-unet": Preset(
            {
                "model": "membrane-unet",
                "loss": "log-l2",
                "overlap": 0,
                "steps": 800,
                "lr": 3e-3,
                "val_every": 200,
                "warmup_steps": 50,
                "ema": 0.99,
            },
            "ours",
            default=True,
        )
    },
)
class MembraneUNet(InpaintingNetwork):
    """Fills a hole with the membrane, plus a correction that it predicts.

    Where the context encoder of the paper starts from a constant colour, this one starts from the
    smoothest continuation of what is around the hole (:func:`membrane`), which is hard to beat for
    small holes, and adds what it does not know: edges that go on, and what lies in the middle of
    large holes. Convolutions of stride 2 lead to a map of at most 8 x 8, where the channel-wise
    fully-connected layer (Pathak et al. 2016, section 3.1) lets every place see every other;
    beside it, **skip connections** (Ronneberger et al. 2015) carry each level's map to the decoder.

    * Input: the image filled by the membrane, and the mask as a fourth channel (1 in the hole, -1
      elsewhere). Each image is shifted and scaled so that the known pixels around its hole have
      mean 0 (per channel) and standard deviation 1 (over all channels), and the correction is
      scaled back: so corrections are small in smooth surroundings.
    * Level l has 1/2^l of the input's side. Its map is a 4 x 4 convolution of stride 2 with batch
      normalisation and ReLU; from the second level on it sees the level above and the input
      averaged to that level's size.
    * The decoder goes back by 4 x 4 up-convolutions. From each level on the way a 3 x 3
      convolution (a head, 0 at first) adds detail to the correction, which is enlarged
      bilinearly from level to level. The finest head works at half the input's side.

    64 pixels: 3 levels of 32, 64 and 128 channels; 128 pixels: 4, from 16 channels on; 256 pixels:
    5, from 8 channels on. :meth:`grown` makes a network of twice the size that starts with the
    same results.

    Args:
        image_size: S, the side of the square input in pixels, at least 32; a multiple of 8 up to
            64, of 16 up to 128, of 32 up to 256 and so on.
        start: what the hole is filled with before: "membrane", or "mean" for the mean colour of
            the known pixels.
        skips: the skip connections, past the bottleneck too.
        channelwise: the channel-wise layer.
        mask_channel: the mask as input.

    Raises:
        ValueError: an argument that is none of these; neither skips nor channelwise.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        start: Literal["membrane", "mean"] = "membrane",
        skips: bool = True,
        channelwise: bool = True,
        mask_channel: bool = True,
    ) -> None:
        self.check_image_size(image_size)
        if not (skips or channelwise):
            raise ValueError(_TOO_BLIND)
        super().__init__(image_size)
        if start not in ("membrane", "mean"):
            raise ValueError(f"start must be 'membrane' or 'mean', got {start!r}")
        self.output_region = (0, 0, image_size, image_size)
        self.start = start
        self.skips = skips
        self.channelwise = channelwise
        self.mask_channel = mask_channel
        levels = _levels(image_size)
        channels = _channels(levels)
        side = image_size >> levels
        given = 3 + mask_channel

        self.encoder = nn.ModuleDict()
        before = 0
        for level, width in enumerate(channels, start=1):
            self.encoder[f"conv{level}"] = _stage(
                nn.Conv2d(before + given, width, 4, 2, 1, bias=False), width
            )
            before = width

        self.bottleneck = nn.ModuleDict()
        inputs = 0
        if channelwise:
            self.bottleneck["channelwise_fc"] = ChannelwiseLinear(
                before, (side, side), activation="relu"
            )
            inputs += before
        if skips:
            inputs += before
        self.bottleneck["mix"] = _stage(nn.Conv2d(inputs, before, 1, bias=False), before)
        self.bottleneck["refine"] = _Residual(before)

        self.decoder = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for number, width in enumerate(reversed(channels[:-1]), start=1):
            self.decoder[f"up{number}"] = _stage(
                nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), width
            )
            if number == 1:
                self.decoder["refine1"] = _Residual(width)
            before = width * (1 + skips)
            self.heads[f"head{number}"] = nn.Conv2d(before, 3, 3, padding=1)
        self._init_weights()

    @staticmethod
    def check_image_size(image_size: int) -> None:
        """ValueError unless a network can have that input size."""
        if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 32:
            raise ValueError(f"image_size must be an integer of at least 32, got {image_size!r}")
        multiple = 1 << _levels(image_size)
        if _levels(image_size) > len(_CHANNELS):
            raise ValueError(
                f"image_size must be at most {_LARGEST_MAP << len(_CHANNELS)}, got {image_size}"
            )
        if image_size % multiple:
            below = image_size // multiple * multiple
            raise ValueError(
                f"image_size {image_size} must be a multiple of {multiple}; "
                f"nearest: {below} or {below + multiple}"
            )

    def inputs(self, image: Tensor, mask: Tensor, color: Tensor) -> tuple[Tensor, ...]:
        """The image and the mask; no colour is seen."""
        return image, mask

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predict the whole image; only the hole is of interest.

        Args:
            image: ``(B, 3, S, S)``, floating point, RGB in [-1, 1]; what it holds where the mask
                is set makes no difference.
            mask: bool ``(B, 1, S, S)``, True where the image is missing.

        Returns:
            float32 ``(B, 3, S, S)``, on the same scale, not clamped.

        Raises:
            TypeError, ValueError: a wrong dtype or shape.
        """
        filled = self.starting_point(image, mask)
        return filled + self.correction(filled, mask)

    def starting_point(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image with its hole filled as ``start`` says, ``(B, 3, S, S)``."""
        self._check(image, mask)
        if self.start == "membrane":
            return membrane(image, mask)
        known = torch.where(mask, 0, image)
        count = (~mask).sum((2, 3), keepdim=True).clamp(min=1)
        return torch.where(mask, known.sum((2, 3), keepdim=True) / count, known)

    def encode(self, *inputs: Tensor) -> Tensor:
        """The innermost map of the encoder, ``(B, C, n, n)``; arguments of :meth:`forward`."""
        image, mask = inputs
        maps, _ = self._encode(self.starting_point(image, mask), mask)
        return maps[-1]

    def correction(self, filled: Tensor, mask: Tensor) -> Tensor:
        """What to add to :meth:`starting_point`, float32 ``(B, 3, S, S)``."""
        maps, contrast = self._encode(filled, mask)
        features = self._bottleneck(maps.pop())
        correction: Tensor | None = None
        for number in range(1, len(self.heads) + 1):
            features = self.decoder[f"up{number}"](features)
            if number == 1:
                features = self.decoder["refine1"](features)
            if self.skips:
                features = torch.cat((features, maps.pop()), 1)
            detail = self.heads[f"head{number}"](features)
            detail = detail.to(torch.promote_types(detail.dtype, torch.float32))
            correction = detail if correction is None else _doubled(correction) + detail
        assert correction is not None
        return _doubled(correction) * (_HEAD_GAIN * contrast)

    def _encode(self, filled: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of all levels, outermost first, and the contrast ``(B, 1, 1, 1)``."""
        mean, contrast = _surroundings(filled, mask)
        x = (filled - mean) / contrast
        if self.mask_channel:
            x = torch.cat((x, 2 * mask.to(x.dtype) - 1), 1)

        maps: list[Tensor] = []
        features = x
        for number, stage in enumerate(self.encoder.values()):
            if number:
                x = F.avg_pool2d(x, 2)
                features = torch.cat((features, x), 1)
            features = stage(features)
            maps.append(features)
        return maps, contrast

    def grown(self) -> MembraneUNet:
        """A network for images of twice the side, one level more, all others as they are.

        In eval mode its correction of a starting point is this one's of the same averaged to half
        the side, enlarged (up to where the contrast is measured): the new level's connections to
        the others and its head start at 0.
        """
        larger = MembraneUNet(
            2 * self.image_size,
            start=self.start,
            skips=self.skips,
            channelwise=self.channelwise,
            mask_channel=self.mask_channel,
        )
        state = larger.state_dict()
        for name, value in self.state_dict().items():
            part, stage, rest = name.split(".", 2)
            if part == "encoder":
                name = f"{part}.conv{int(stage.removeprefix('conv')) + 1}.{rest}"
            if state[name].shape != value.shape:
                # The first level now sees a map besides the input: its weights come before.
                state[name].zero_()
                state[name][:, -value.shape[1] :] = value
            else:
                state[name].copy_(value)
        larger.load_state_dict(state)
        return larger

    def _bottleneck(self, features: Tensor) -> Tensor:
        parts = []
        if self.channelwise:
            with torch.autocast(features.device.type, enabled=False):
                layer = self.bottleneck["channelwise_fc"]
                everywhere = layer(features.to(next(layer.parameters()).dtype).contiguous())
            parts.append(everywhere.to(features.dtype))
        if self.skips:
            parts.append(features)
        mixed: Tensor = self.bottleneck["mix"](torch.cat(parts, 1))
        refined: Tensor = self.bottleneck["refine"](mixed)
        return refined

    def _check(self, image: Tensor, mask: Tensor) -> None:
        expected = (3, self.image_size, self.image_size)
        if image.dim() != 4 or tuple(image.shape[1:]) != expected:
            raise ValueError(
                f"MembraneUNet takes (B, {', '.join(map(str, expected))}), "
                f"got {tuple(image.shape)}; resize or crop the images, or build the model with "
                "another image_size"
            )

    @torch.no_grad()
    def _init_weights(self) -> None:
        """He et al. 2015; what ends a residual block and the heads start at 0."""
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                # Each output sums a quarter of the 4 x 4 weights.
                module.weight.normal_(0, (2 / (4 * module.in_channels)) ** 0.5)
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
            elif isinstance(module, ChannelwiseLinear):
                module.weight.normal_(0, (2 / module.weight.shape[2]) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
        for module in self.modules():
            if isinstance(module, _Residual):
                module.norm2.weight.zero_()
        for head in self.heads.values():
            assert isinstance(head, nn.Conv2d)
            assert head.bias is not None
            head.weight.zero_()
            head.bias.zero_()


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside an identity (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        result: Tensor = x + self.norm2(self.conv2(inner))
        return result


def _stage(conv: nn.Module, channels: int) -> nn.Sequential:
    norm, activation = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, activation=activation))


def _levels(image_size: int) -> int:
    """How many times the side is halved."""
    levels = _FEWEST_LEVELS
    while image_size >> levels > _LARGEST_MAP:
        levels += 1
    return levels


def _channels(levels: int) -> tuple[int, ...]:
    return _CHANNELS[-levels:]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def _surroundings(filled: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(B, 3, 1, 1)`` and standard deviation ``(B, 1, 1, 1)`` of what is around the hole."""
    reach = round(_SURROUNDINGS * mask.shape[-1])
    hole = mask.to(filled.dtype)
    near = F.max_pool2d(hole, (2 * reach + 1, 1), 1, (reach, 0))
    near = F.max_pool2d(near, (1, 2 * reach + 1), 1, (0, reach))
    weight = (near + _ELSEWHERE) * (1 - hole)
    total = weight.sum((2, 3), keepdim=True).clamp(min=_ELSEWHERE)
    mean = (weight * filled).sum((2, 3), keepdim=True) / total
    squares = (weight * (filled - mean).square()).sum((1, 2, 3), keepdim=True)
    return mean, (squares / (filled.shape[1] * total)).sqrt() + _LEAST_CONTRAST
