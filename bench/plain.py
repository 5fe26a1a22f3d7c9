"""Training and data loading as a straightforward PyTorch program, as a baseline.

The networks are the package's own, with its operations in plain PyTorch. Around them: images
filled channel by channel through boolean indexing, masks drawn by PIL on the CPU at each step,
unfused losses, a sigmoid with binary cross-entropy, weights in the layout of torch.nn, Adam in
the variant that torch.optim selects, and every loss read back with ``.item()`` at every step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from cekernels import ChannelwiseLinear, LocalResponseNorm
from context_encoder.config import TrainConfig
from context_encoder.models.base import WholeMapConv2d, WholeMapConvTranspose2d


class PlainTraining:
    """Counterpart of :class:`context_encoder.training.Trainer`, one step per call.

    Args:
        config: resolved.
        model, discriminator: copied, so that several trainings can start from the same weights.
        region: (top, left, height, width) of the model's prediction.
        device: device to train on.
        compiled: whether to apply torch.compile to the networks.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        discriminator: nn.Module | None,
        region: tuple[int, int, int, int],
        device: str,
        compiled: bool,
    ) -> None:
        self.config, self.device = config, device
        top, left, height, width = region
        self.inside = (..., slice(top, top + height), slice(left, left + width))
        self.hole = height - 2 * config.overlap
        self.model = _plain_copy(model).to(device)
        betas = (config.beta1, 0.999)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=betas)
        self.discriminator = None if discriminator is None else _plain_copy(discriminator)
        if self.discriminator is not None:
            self.discriminator.to(device)
            self.optimizer_d = torch.optim.Adam(
                self.discriminator.parameters(),
                lr=config.lr * config.lr_discriminator_ratio,
                betas=betas,
            )
        self.predict: Callable[[Tensor], Tensor] = self.model
        self.judge: Callable[[Tensor], Tensor] | None = self.discriminator
        if compiled:
            self.predict = torch.compile(self.model)
            self.judge = self.discriminator and torch.compile(self.discriminator)
        #: Masks of the last step.
        self.mask = torch.empty(0)
        self._random = random.Random(0)

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        config = self.config
        image = batch["image"].to(self.device).float() / 127.5 - 1
        self.mask = mask = self._masks(len(image)).to(self.device)
        weights = mask.float()
        if config.overlap:
            width = 2 * config.overlap + 1
            grown = F.max_pool2d(weights, width, stride=1, padding=config.overlap)
            weights = weights + config.overlap_weight * (grown - weights)
        holed = image.clone()
        for channel, value in enumerate(config.fill_color()):
            holed[:, channel][mask[:, 0]] = value

        prediction = self.predict(holed)
        real, weights = image[self.inside], weights[self.inside]
        losses: dict[str, float] = {}
        if self.discriminator is not None:
            assert self.judge is not None
            ones = torch.ones(len(image), device=self.device)
            self.discriminator.zero_grad()
            loss_real = F.binary_cross_entropy(torch.sigmoid(self.judge(real)), ones)
            loss_real.backward()
            judged = torch.sigmoid(self.judge(prediction.detach()))
            loss_fake = F.binary_cross_entropy(judged, torch.zeros_like(ones))
            loss_fake.backward()
            self.optimizer_d.step()
            losses["loss_d"] = loss_real.item() + loss_fake.item()

        self.model.zero_grad()
        squared = (prediction - real) ** 2
        loss_rec = (squared * weights).sum() / (weights.sum() * 3)
        loss = config.lambda_rec * loss_rec
        if self.judge is not None:
            loss_adv = F.binary_cross_entropy(torch.sigmoid(self.judge(prediction)), ones)
            loss = loss + config.lambda_adv * loss_adv
            losses["loss_adv"] = loss_adv.item()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "loss_rec": loss_rec.item(), **losses}

    def _masks(self, batch: int) -> Tensor:
        """bool ``(batch, 1, S, S)``: a central hole, or a random polygon per image."""
        size = self.config.size
        assert size is not None
        masks = np.zeros((batch, 1, size, size), bool)
        if self.config.mask == "central":
            first = (size - self.hole) // 2
            masks[:, :, first : first + self.hole, first : first + self.hole] = True
            return torch.from_numpy(masks)
        for mask in masks:
            image = Image.new("L", (size, size))
            x, y = self._random.uniform(0.3, 0.7), self._random.uniform(0.3, 0.7)
            corners = []
            for k in range(96):
                radius = self._random.uniform(0.2, 0.3) * size
                angle = 2 * np.pi * k / 96
                corners.append(
                    (x * size + radius * np.cos(angle), y * size + radius * np.sin(angle))
                )
            ImageDraw.Draw(image).polygon(corners, fill=1)
            mask[0] = np.asarray(image)
        return torch.from_numpy(masks)


def _plain_copy(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, module in list(copied.named_modules()):
        if isinstance(module, ChannelwiseLinear):
            module.impl = "reference"
        plain: nn.Conv2d | nn.ConvTranspose2d
        if isinstance(module, WholeMapConv2d):
            plain = nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size[0], bias=False
            )
        elif isinstance(module, WholeMapConvTranspose2d):
            plain = nn.ConvTranspose2d(
                module.in_channels, module.out_channels, module.kernel_size[0], bias=False
            )
        elif isinstance(module, LocalResponseNorm):
            size, alpha, beta, k = module.size, module.alpha, module.beta, module.k
            copied.set_submodule(name, nn.LocalResponseNorm(size, alpha, beta, k))
            continue
        else:
            continue
        plain.weight = module.weight
        copied.set_submodule(name, plain)
    return copied


def load_photo(
    path: Path, size: int, resize: int, crop_scale: tuple[float, float], draw: random.Random
) -> Tensor:
    """Read, shrink, crop, mirror: float ``(3, size, size)`` in [-1, 1]."""
    photo = Image.open(path).convert("RGB")
    short = min(photo.size)
    wide, high = (max(1, round(n * resize / short)) for n in photo.size)
    photo = photo.resize((wide, high), Image.Resampling.BICUBIC)
    side = max(1, round(draw.uniform(*crop_scale) * resize))
    left, top = draw.randint(0, wide - side), draw.randint(0, high - side)
    photo = photo.crop((left, top, left + side, top + side))
    if side != size:
        photo = photo.resize((size, size), Image.Resampling.BICUBIC)
    if draw.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 127.5 - 1
