"""Base classes of context encoders: encoder, bottleneck that connects all locations, decoder."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from cekernels import ChannelwiseLinear, fill_masked

OutputActivation = Literal["linear", "relu", "tanh"]


class Network(nn.Module):
    """A network that looks at a square image, parts of which may be missing.

    Most networks take the image alone, its hole filled with a constant colour; others take the
    mask too. :meth:`inputs` is the one place that knows::

        prediction = network(*network.inputs(image, mask, color))

    Args:
        image_size: S, the side of the square input in pixels.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def inputs(self, image: Tensor, mask: Tensor, color: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with for images with holes.

        Args:
            image: ``(B, 3, S, S)``, floating point, RGB in [-1, 1]; what it holds where the mask
                is set makes no difference to the network.
            mask: bool ``(B, 1, S, S)``, True where the image is missing.
            color: ``(3,)``, the colour of holes in training, for networks that see one.
        """
        return (fill_masked(image, mask, color),)

    def encode(self, *inputs: Tensor) -> Tensor:
        """The encoder's feature map, ``(B, C, n, n)``, of what :meth:`inputs` returns."""
        raise NotImplementedError


class InpaintingNetwork(Network):
    """A network that predicts the missing part of an image.

    It is called with what :meth:`Network.inputs` returns, and returns the prediction for
    ``output_region``, ``(B, 3, height, width)``, RGB in [-1, 1].

    Attributes:
        output_region: (top, left, height, width) of the prediction in pixels of the input.
    """

    output_region: tuple[int, int, int, int]

    @staticmethod
    def check_image_size(image_size: int) -> None:
        """ValueError, with a list of suitable sizes, if the network cannot handle the size.

        It is called before anything is built. A network that takes only some sizes overrides it.
        """
        check_integer("image_size", image_size, 1)


class Backbone(Network):
    """A network for feature extraction: an encoder of named stages and, optionally, more parts.

    ``model.encoder`` alone is fully convolutional and takes any size that gives a non-empty map;
    everything else takes ``image_size`` only.

    Args:
        image_size: S, the side of the square input in pixels.
        encoder: ``(B, 3, S, S)`` to a feature map.
    """

    def __init__(self, image_size: int, encoder: nn.Sequential) -> None:
        super().__init__(image_size)
        self.encoder = encoder

    def feature_parts(self) -> tuple[nn.Sequential, ...]:
        """The parts whose stages :meth:`features` returns, in the order of their application."""
        return (self.encoder,)

    def encode(self, *inputs: Tensor) -> Tensor:
        """The encoder's feature map, ``(B, C, n, n)``.

        Args:
            inputs: one tensor ``(B, 3, S, S)``, floating point, RGB in [-1, 1].

        Raises:
            TypeError, ValueError: it is of another type or shape.
        """
        (x,) = inputs
        self._check_input(x)
        features: Tensor = self.encoder(x)
        return features

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The output of every stage of :meth:`feature_parts`, by the stage's name, in order.

        A stage includes its activation: ``conv1`` is the output of the ReLU, as in Caffe, where
        the ReLU overwrites its input. ``channelwise_fc`` is taken before dropout. Gradients flow;
        call it in eval mode and under ``torch.no_grad()`` to extract features.
        Argument and errors as in :meth:`encode`.
        """
        self._check_input(x)
        outputs: dict[str, Tensor] = {}
        for part in self.feature_parts():
            for name, layer in part.named_children():
                x = outputs[name] = layer(x)
        return outputs

    def _check_input(self, x: Tensor) -> None:
        if _is_proxy(x):
            return
        if not x.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} takes floating point in [-1, 1], got {x.dtype}; "
                "uint8 images become that with x / 127.5 - 1"
            )
        expected = (3, self.image_size, self.image_size)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"{type(self).__name__} takes (B, {', '.join(map(str, expected))}), "
                f"got {tuple(x.shape)}; resize or crop the images, or build the model with "
                "another image_size"
            )


class ContextEncoder(Backbone, InpaintingNetwork):
    """Predicts the missing part of an image from the rest (Pathak et al. 2016, section 3).

    The three parts consist of named stages, so that weights have names such as
    ``encoder.conv1.conv.weight``, ``bottleneck.channelwise_fc.weight`` and
    ``decoder.up1.conv.weight``. All paths from the encoder to the decoder pass the bottleneck.

    Args:
        image_size: S, the side of the square input in pixels.
        encoder: ``(B, 3, S, S)`` to a feature map.
        bottleneck: connects every location of that map with every other one.
        decoder: maps the bottleneck's output to the prediction, ``(B, 3, height, width)``.
        output_region: (top, left, height, width) of the prediction in pixels of the input; None
            for the whole image.
    """

    def __init__(
        self,
        image_size: int,
        encoder: nn.Sequential,
        bottleneck: nn.Sequential,
        decoder: nn.Sequential,
        output_region: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__(image_size, encoder)
        self.output_region = output_region or (0, 0, image_size, image_size)
        self.bottleneck = bottleneck
        self.decoder = decoder

    def feature_parts(self) -> tuple[nn.Sequential, ...]:
        return (self.encoder, self.bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """Predict ``output_region``.

        Args:
            x: ``(B, 3, S, S)``, floating point, RGB in [-1, 1], the missing part filled with a
                constant colour.

        Returns:
            ``(B, 3, height, width)``, on the same scale.

        Raises:
            TypeError, ValueError: ``x`` is of another type or shape.
        """
        prediction: Tensor = self.decoder(self.bottleneck(self.encode(x)))
        return prediction


class WholeMapConv2d(nn.Conv2d):
    """A convolution, without bias, whose kernel is as large as the map: a matrix product.

    State dict and results are those of ``nn.Conv2d``. On the CPU it is computed as a matrix
    product: oneDNN's convolution would reorder all weights in each pass, which takes longer than
    the product. Torch's fused Adam copies each gradient that is not contiguous, so on the CPU the
    weights stay contiguous even with ``memory_format=torch.channels_last``. Maps of another size
    are convolved as usual.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if _is_proxy(x) or x.device.type != "cpu" or x.shape[2:] != self.kernel_size:
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1))[:, :, None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        _make_contiguous_on_cpu(self.weight)
        return self


class WholeMapConvTranspose2d(nn.ConvTranspose2d):
    """The up-convolution of a single location to a whole map; see :class:`WholeMapConv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=False)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if _is_proxy(input) or input.device.type != "cpu" or input.shape[2:] != (1, 1):
            return super().forward(input, output_size)
        product = input.flatten(1) @ self.weight.flatten(1)
        return product.view(-1, *self.weight.shape[1:])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        _make_contiguous_on_cpu(self.weight)
        return self


def _is_proxy(x: object) -> bool:
    """True in ``torch.fx.symbolic_trace``, where tensors have no shape or device yet."""
    return isinstance(x, Proxy)


def _make_contiguous_on_cpu(weight: Tensor) -> None:
    if weight.device.type == "cpu":
        weight.data = weight.data.contiguous()


def stage(
    conv: nn.Module, norm: nn.Module | None = None, activation: nn.Module | None = None
) -> nn.Sequential:
    """A convolution with its normalisation and activation: ``conv``, ``norm``, ``activation``."""
    layers = {"conv": conv, "norm": norm, "activation": activation}
    return nn.Sequential(
        OrderedDict((name, layer) for name, layer in layers.items() if layer is not None)
    )


def output_activation(name: OutputActivation) -> nn.Module | None:
    """The last layer of a decoder; ValueError for an unknown name."""
    if name == "linear":
        return None
    if name == "relu":
        return nn.ReLU()
    if name == "tanh":
        return nn.Tanh()
    raise ValueError(f"output must be 'linear', 'relu' or 'tanh', got {name!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """ValueError unless ``value`` is an int of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


@torch.no_grad()
def init_he(model: ContextEncoder) -> None:
    """Weights N(0, 2 / fan-in) (He et al. 2015), biases 0, in place.

    With this variance, ReLU layers train without batch normalisation. Fan-in is the number
    of inputs summed per output: an up-convolution of stride s spreads k^2 weights per channel
    over s^2 outputs. The last up-convolution starts ten times smaller, so that the first
    predictions are near mid-grey.
    """
    last: nn.ConvTranspose2d | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in: float = module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):
            area = math.prod(module.kernel_size) / math.prod(module.stride)
            fan_in = module.in_channels // module.groups * area
            last = module
        elif isinstance(module, ChannelwiseLinear):
            fan_in = module.weight.shape[2]
        else:
            continue
        module.weight.normal_(0, math.sqrt(2 / fan_in))
        if module.bias is not None:
            module.bias.zero_()
    if last is not None:
        last.weight.mul_(0.1)
