"""Networks that are small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from context_encoder.models import (
    ContextEncoder,
    build_model,
)

# One model per architecture, small enough to run.
QUICK: dict[str, dict[str, Any]] = {
    "alexnet": {"image_size": 99},
    "alexnet-poolfree": {"image_size": 99},
    "dcgan-center": {"bottleneck_units": 60},
    "dcgan-whole": {"bottleneck_units": 60},
    "small": {"image_size": 32},
}


def quick(name: str, **options: Any) -> ContextEncoder:
    torch.manual_seed(0)
    return build_model(name, **{**QUICK[name], **options})


def pictures(model: ContextEncoder, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, model.image_size, model.image_size)
    return torch.rand(shape, generator=generator) * 2 - 1


def on_meta(name: str, **options: Any) -> ContextEncoder:
    with torch.device("meta"):
        return build_model(name, **options)


def down(c_in: int, c_out: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]


def up(c_in: int, c_out: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
