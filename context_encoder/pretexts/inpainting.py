"""The paper's pretext: fill a hole (Pathak et al. 2016, section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cekernels import fill_masked
from context_encoder.config import TrainConfig
from context_encoder.config.build import masks_from_config
from context_encoder.models import ContextEncoder, build_discriminator
from context_encoder.optimization import Learner
from context_encoder.pretexts.base import (
    VALIDATION_SEED,
    Column,
    Part,
    Pretext,
    Samples,
)
from context_encoder.pretexts.losses import (
    discriminator_loss,
    generator_loss,
    overlap_weights,
    reconstruction_loss,
    share_of_weights,
)
from context_encoder.utils.metrics import (
    context_mean,
    hole_mean,
    hole_metrics,
    psnr_from_squared_error,
    to_unit,
)


class Inpainting(Pretext):
    """Masks, joint loss, and a discriminator where it has a weight."""

    best_metric = "psnr"
    model: ContextEncoder

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        top, left, height, width = self.model.output_region
        self._region = (..., slice(top, top + height), slice(left, left + width))
        self.masks = masks_from_config(config, height).to(device)
        self._validation_masks = self.masks.with_seed(VALIDATION_SEED)
        self.discriminator = build_discriminator(height) if config.lambda_adv > 0 else None
        self.fill = torch.tensor(config.fill_color(), device=device)

    @classmethod
    def resolve(cls, config: TrainConfig) -> dict[str, Any]:
        if config.model == "center" and config.mask != "central":
            raise ValueError(
                f"--model center predicts the central region only, --mask {config.mask} is "
                "elsewhere; use --mask central, or --model random"
            )
        return {}

    def parts(self) -> dict[str, Part]:
        parts = super().parts()
        if self.discriminator is not None:
            rate = self.config.lr * self.config.lr_discriminator_ratio
            parts["discriminator"] = Part(self.discriminator, rate)
        return parts

    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        config, image, region = self.config, samples.image, self._region
        # Masks
        mask, _ = self.masks(samples.epoch, samples.index)
        weights = overlap_weights(mask, config.overlap, config.overlap_weight)[region]
        target = image[region]

        # Forward
        with learner.autocast():
            prediction = learner.network("model")(fill_masked(image, mask, self.fill))

        # Discriminator, on real and predicted images apart: batch norm must not see them mixed.
        judged: dict[str, Tensor] = {}
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
            with learner.autocast():
                loss_real = discriminator_loss(learner.network("discriminator")(target), real=True)
            learner.backward(loss_real)
            with learner.autocast():
                logits = learner.network("discriminator")(prediction.detach())
                loss_fake = discriminator_loss(logits, real=False)
            learner.backward(loss_fake)
            learner.update_weights("discriminator")
            self.discriminator.requires_grad_(False)
            judged["loss_d"] = loss_real + loss_fake

        # Losses; the gradient of loss_adv passes through the new discriminator, not to its weights,
        # so there is nothing to share among processes and it is not called by learner.network.
        with learner.autocast():
            loss_rec = reconstruction_loss(
                prediction, target, weights, kind=config.loss, normalize=config.normalize
            )
            if config.normalize == "mask" and learner.world_size > 1:
                loss_rec = loss_rec * share_of_weights(weights, learner.world_size)
            loss = config.lambda_rec * loss_rec
            if self.discriminator is not None:
                judged["loss_adv"] = generator_loss(self.discriminator(prediction))
                loss = loss + config.lambda_adv * judged["loss_adv"]

        # Update
        learner.backward(loss)
        learner.update_weights("model")
        losses = {"loss": loss, "loss_rec": loss_rec, **judged}
        return {name: value.detach() for name, value in losses.items()}

    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        image = samples.image
        mask, _ = self._validation_masks(samples.epoch, samples.index)
        masked = fill_masked(image, mask, self.fill)
        filled = complete(image, mask, self.model(masked), self._region)
        original, output = to_unit(image), to_unit(filled)
        metrics = hole_metrics(output, original, mask)
        for name, color in (
            ("psnr_mean_fill", to_unit(self.fill).view(1, 3, 1, 1)),
            ("psnr_context_mean_fill", context_mean(original, mask)),
        ):
            squared_error = hole_mean((color - original).square(), mask)
            metrics[name] = psnr_from_squared_error(squared_error)
        return metrics, [("original", original), ("input", to_unit(masked)), ("filled", output)]

    def describe(self) -> str:
        return f"{self.config.mask} masks"

    def summary(self, metrics: dict[str, float]) -> list[str]:
        psnr = metrics["psnr"]
        lines = [
            "hole of held-out photographs, PSNR averaged per image:",
            f"  {'this network':<28} {psnr:6.2f} dB",
        ]
        for key, label in (
            ("psnr_context_mean_fill", "mean of the surroundings"),
            ("psnr_mean_fill", "one mean colour"),
        ):
            lines.append(f"  {label:<28} {metrics[key]:6.2f} dB   ({psnr - metrics[key]:+.2f} dB)")
        lines.append(
            f"  L1 {100 * metrics['l1']:.2f} %, L2 {100 * metrics['l2']:.2f} %, "
            f"SSIM {metrics['ssim']:.3f}"
        )
        return lines

    def advice(self, run: Path) -> list[str]:
        lines = [
            "next, fill a hole in a picture of your own (x0 y0 x1 y1 in pixels, or --mask FILE):",
            "  python -m context_encoder.inpaint PICTURE.jpg --box 100 100 180 180 "
            f"--checkpoint {run} --out filled.png",
        ]
        if self.config.data is None:
            lines += [
                "or train the paper's network on your own photographs:",
                "  python -m context_encoder.train --preset inpaint-center --data FOLDER",
            ]
        return lines


def complete(image: Tensor, mask: Tensor, prediction: Tensor, region: Any) -> Tensor:
    """The picture with its hole filled from the prediction for ``region``, elsewhere as it was."""
    whole = image.clone()
    whole[region] = prediction.to(image.dtype)
    return torch.where(mask, whole, image)
