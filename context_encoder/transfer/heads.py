"""Layers that transfers put on an encoder."""

from __future__ import annotations

import math

import torch
from torch import nn

from context_encoder.models import Backbone


def fully_connected(layer: nn.Linear | nn.Conv2d) -> None:
    """Krähenbühl's initialization of a layer, in place: weights N(0, .01), biases .1.

    With fewer than 4096 inputs, as in small networks, the weights start larger, so that the
    variance of the sum is the same.
    """
    inputs = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0, 0.01 * max(1.0, math.sqrt(4096 / inputs)))
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 0.1)


def fc6_fc7(
    fc6: nn.Linear | nn.Conv2d, fc7: nn.Linear | nn.Conv2d, dropout: float
) -> dict[str, nn.Module]:
    """The two layers before the scores by name, initialized, each with ReLU and dropout."""
    layers: dict[str, nn.Module] = {}
    for name, layer in (("6", fc6), ("7", fc7)):
        fully_connected(layer)
        layers |= {f"fc{name}": layer, f"relu{name}": nn.ReLU(), f"drop{name}": nn.Dropout(dropout)}
    return layers


def map_shape(network: Backbone, encoder: nn.Module) -> tuple[int, int]:
    """Channels and side of an encoder's map for an image of the network's size."""
    size = network.image_size
    with torch.no_grad():
        shape = encoder.eval()(torch.zeros(1, 3, size, size)).shape
    return int(shape[1]), int(shape[2])
