"""The paper's pretext: fill a hole (Pathak et al. 2016, section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cekernels import fill_masked
from context_encoder.config import PRESETS, PRETEXTS, TrainConfig, in_words
from context_encoder.masks import (
    MASKS,
    MaskSampler,
    build_mask_sampler,
    masks_with_fixed_hole,
)
from context_encoder.models import MODELS, InpaintingNetwork, build_discriminator
from context_encoder.optimization import Learner, without_running_statistics
from context_encoder.pretexts.base import (
    VALIDATION_SEED,
    Column,
    Part,
    Pretext,
    Samples,
)
from context_encoder.pretexts.baselines import fills_without_network
from context_encoder.pretexts.losses import (
    MeanLosses,
    discriminator_loss,
    generator_loss,
    overlap_weights,
    reconstruction_loss,
    share_of_weights,
)
from context_encoder.pretexts.registry import register_pretext
from context_encoder.utils.metrics import (
    FLAT_CONTRAST,
    hole_contrast,
    hole_mean,
    hole_metrics,
    psnr_from_squared_error,
    to_unit,
)
from context_encoder.utils.option_groups import Need, OptionGroup


class InpaintingOptions(OptionGroup):
    """Options of the paper's pretext."""

    needs: ClassVar[tuple[Need, ...]] = (
        Need(("overlap_weight",), "overlap", lambda overlap: overlap != 0, "1 or more"),
        Need(("normalize",), "loss", lambda loss: loss != "log-l2", "l2 or l1"),
        Need(("lr_discriminator_ratio",), "lambda_adv", lambda weight: weight != 0, "above 0"),
    )
    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {"lr_discriminator_ratio", "lambda_rec", "lambda_adv"}
    )

    normalize: Literal["mask", "all"] = Field(
        "mask",
        description="Divide the reconstruction loss by the masked elements (paper) or by all "
        "(released code).",
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        7, description="Band of context, in pixels, that the network predicts too."
    )
    overlap_weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Weight of the band in the reconstruction loss."
    )
    lambda_rec: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the reconstruction loss."
    )
    lambda_adv: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the adversarial loss; 0 for none."
    )
    lr_discriminator_ratio: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Learning rate of the discriminator, as a fraction of `lr`."
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> InpaintingOptions:
        if self.lambda_rec == 0 and self.lambda_adv == 0:
            raise ValueError("`lambda_rec` and `lambda_adv` are both 0; set one above 0")
        return self

    def changed_on_resume(self, before: OptionGroup) -> list[str]:
        changed = super().changed_on_resume(before)
        assert isinstance(before, InpaintingOptions)
        # A run cannot gain or lose its discriminator halfway.
        if (self.lambda_adv > 0) != (before.lambda_adv > 0):
            changed.append("lambda_adv")
        return changed


@register_pretext(
    "inpainting",
    takes="an image with a hole",
    gives="the hole",
    options=InpaintingOptions,
    uses=("mask", "fill", "loss"),
    fills_holes=True,
    default=True,
)
class Inpainting(Pretext):
    """Masks, joint loss, and a discriminator if the adversarial loss has a weight."""

    best_metric = "psnr"
    model: InpaintingNetwork

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.options = config.options(InpaintingOptions)
        top, left, height, width = self.model.output_region
        self._region = (..., slice(top, top + height), slice(left, left + width))
        self.masks = masks_from_config(config, height).to(device)
        self._draw = torch.compile(self.masks) if config.compile else self.masks
        self._validation_masks = self.masks.with_seed(VALIDATION_SEED)
        self.discriminator = build_discriminator(height) if self.options.lambda_adv > 0 else None
        self.fill = torch.tensor(config.fill_color(), device=device)
        self._fixed_area = self._area_of_fixed_hole(device)
        self._baselines: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def _weights(self, mask: Tensor) -> Tensor:
        """Weights of the reconstruction loss in the region that the network predicts."""
        weights = overlap_weights(mask, self.options.overlap, self.options.overlap_weight)
        return weights[self._region]

    def _area_of_fixed_hole(self, device: torch.device) -> Tensor | None:
        """The sum of the weights of an image ``(1,)``, if all images have the same hole."""
        if not MASKS[self.config.mask].fixed_hole:
            return None
        index = torch.zeros(1, dtype=torch.int64, device=device)
        mask, _ = self.masks(index, index)
        return self._weights(mask).sum((1, 2, 3), dtype=torch.float64)

    def _area(self, area: Tensor) -> Tensor | None:
        """The sums of the weights ``(B,)`` of masks of this area; None: not known."""
        if self._fixed_area is not None:
            return self._fixed_area.expand(len(area))
        return area if self.options.overlap == 0 else None

    @classmethod
    def resolve(cls, config: TrainConfig) -> dict[str, Any]:
        if not MODELS[config.model].whole and not MASKS[config.mask].fixed_hole:
            whole = MODELS.names(lambda spec: spec.whole)
            raise ValueError(
                f"`model` {config.model} predicts the central region only, `mask` {config.mask} is "
                f"elsewhere; use `mask` {in_words(masks_with_fixed_hole())}, or `model` "
                f"{in_words(whole)}"
            )
        return {}

    @classmethod
    def fixed_hole(cls, config: TrainConfig, output_side: int) -> tuple[int, int, int, int] | None:
        if not MASKS[config.mask].fixed_hole:
            return None
        index = torch.zeros(1, dtype=torch.int64)
        mask, _ = masks_from_config(config, output_side)(index, index)
        rows, columns = (mask[0, 0].any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
        return rows[0], columns[0], len(rows), len(columns)

    def parts(self) -> dict[str, Part]:
        parts = super().parts()
        if self.discriminator is not None:
            rate = self.config.lr * self.options.lr_discriminator_ratio
            parts["discriminator"] = Part(self.discriminator, rate)
        return parts

    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        options, image, region = self.options, samples.image, self._region
        # Masks
        mask, pixels = self._draw(samples.epoch, samples.index)
        weights, area = self._weights(mask), self._area(pixels)
        target = image[region]

        shares: Any = (None,) * learner.accumulate
        shared = options.normalize == "mask" and self.config.loss != "log-l2"
        if shared and learner.world_size * learner.accumulate > 1:
            known = weights if area is None else area
            shares = share_of_weights(known, learner.world_size, learner.accumulate)
        parts = learner.split(image, mask, weights, target)
        areas: Any = [(None,)] * len(parts) if area is None else learner.split(area)
        losses = MeanLosses(len(parts))

        # Forward. Of several micro-batches, one graph at a time is in memory: the model runs
        # without gradients for the discriminator, and again for its own update.
        def predict(image: Tensor, mask: Tensor) -> Any:
            with learner.autocast():
                return learner.network("model")(*self.model.inputs(image, mask, self.fill))

        prediction = predict(image, mask) if len(parts) == 1 else None

        # Discriminator; batch norm must not mix real and predicted images in one batch.
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
            for image, mask, _, target in learner.micro_batches("discriminator", parts):
                with learner.autocast():
                    loss_real = discriminator_loss(
                        learner.network("discriminator")(target), real=True
                    )
                learner.backward(loss_real)
                if prediction is None:
                    with torch.no_grad(), without_running_statistics(self.model):
                        shown = predict(image, mask)
                else:
                    shown = prediction.detach()
                with learner.autocast():
                    loss_fake = discriminator_loss(
                        learner.network("discriminator")(shown), real=False
                    )
                learner.backward(loss_fake)
                losses.add("loss_d", loss_real + loss_fake)
            learner.update_weights("discriminator")
            self.discriminator.requires_grad_(False)

        # Losses. The gradient of loss_adv passes through the updated discriminator but not to its
        # weights, so processes share nothing here and learner.network is not needed.
        micro_batches = learner.micro_batches("model", parts)
        for part, share, (area,) in zip(micro_batches, shares, areas, strict=True):
            image, mask, weights, target = part
            output = predict(image, mask) if prediction is None else prediction
            with learner.autocast():
                loss_rec = reconstruction_loss(
                    output, target, weights, kind=self.config.loss, normalize=options.normalize,
                    area=area,
                )  # fmt: skip
                if share is not None:
                    loss_rec = loss_rec * share
                loss = options.lambda_rec * loss_rec
                if self.discriminator is not None:
                    loss_adv = generator_loss(self.discriminator(output))
                    loss = loss + options.lambda_adv * loss_adv
                    losses.add("loss_adv", loss_adv)
            learner.backward(loss)
            losses.add("loss_rec", loss_rec)
            losses.add("loss", loss)

        # Update
        learner.update_weights("model")
        return losses.named("loss", "loss_rec", "loss_d", "loss_adv")

    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        image = samples.image
        mask, area = self._validation_masks(samples.epoch, samples.index)
        if not bool(area.all()):
            empty = samples.index[area == 0][0].item()
            raise ValueError(
                f"the mask kind {self.config.mask!r} drew an empty mask for the held-out sample "
                f"{empty}; a mask needs at least one missing pixel"
            )
        prediction = self.model(*self.model.inputs(image, mask, self.fill))
        filled = complete(image, mask, prediction, self._region)
        original, output = to_unit(image), to_unit(filled)
        metrics = hole_metrics(output, original, mask) | self._compared(samples.index, image, mask)
        metrics["contrast"] = hole_contrast(original, mask)
        masked = to_unit(fill_masked(image, mask, self.fill))
        return metrics, [("original", original), ("input", masked), ("filled", output)]

    def _compared(self, index: Tensor, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """PSNR of fills without a network, ``(B,)`` each; computed once, as holes are fixed."""
        key = tuple(index.tolist())
        if key not in self._baselines:
            original = to_unit(image)
            fills = fills_without_network(original, mask)
            fills["mean_fill"] = to_unit(self.fill).view(1, 3, 1, 1)
            self._baselines[key] = {
                f"psnr_{name}": psnr_from_squared_error(hole_mean((fill - original).square(), mask))
                for name, fill in fills.items()
            }
        return self._baselines[key]

    def describe(self) -> str:
        return f"{self.config.mask} masks"

    def summary(self, metrics: dict[str, float]) -> list[str]:
        psnr = metrics["psnr"]
        lines = [
            "hole of held-out photographs, PSNR of each image: mean, median, gain in the mean",
            f"  {'this network':<28} {psnr:6.2f} {metrics['psnr_median']:6.2f} dB",
        ]
        for key, label in (
            ("psnr_membrane", "membrane (no network)"),
            ("psnr_telea", "OpenCV, Telea"),
            ("psnr_context_mean_fill", "mean of the surroundings"),
            ("psnr_mean_fill", "one mean colour"),
        ):
            if key in metrics:
                lines.append(
                    f"  {label:<28} {metrics[key]:6.2f} {metrics[f'{key}_median']:6.2f} dB"
                    f"   ({psnr - metrics[key]:+.2f} dB)"
                )
        if "psnr_telea" not in metrics:
            lines.append("  OpenCV, Telea: not compared, OpenCV is not installed")
        lines.append(
            f"  L1 {100 * metrics['l1']:.2f} %, L2 {100 * metrics['l2']:.2f} %, "
            f"SSIM {metrics['ssim']:.3f}"
        )
        if metrics["excluded"]:
            lines.append(
                f"  {metrics['images']:.0f} images; {metrics['excluded']:.0f} more are left out: "
                f"their hole is flat (contrast below {255 * FLAT_CONTRAST:g} of 255 levels)"
            )
        return lines

    def advice(self, run: Path) -> list[str]:
        lines = [
            "next, fill a hole in your own image (x0 y0 x1 y1 in pixels, or `mask` FILE):",
            "  python -m context_encoder.inpaint IMAGE.jpg --box 100 100 180 180 "
            f"--checkpoint {run} --out filled.png",
        ]
        if self.config.data is None:
            lines += [
                "or train a larger network on your own photographs:",
                "  python -m context_encoder.train --preset "
                f"{{{','.join(_other_presets(self.config.preset))}}} --data FOLDER",
            ]
        return lines


def _other_presets(own: str) -> list[str]:
    """The other presets that train a network to fill holes."""
    fillers = PRETEXTS.names(lambda spec: spec.fills_holes)
    return [
        name
        for name, preset in PRESETS.items()
        if name != own and preset.values.get("pretext", PRETEXTS.default()) in fillers
    ]


def masks_from_config(config: TrainConfig, output_side: int) -> MaskSampler:
    """The mask sampler of a resolved configuration.

    For a network that predicts its central region only, the hole leaves room for the overlap band.

    Raises:
        ValueError: there is no room for the band, or the sampler refuses an argument.
    """
    assert config.size is not None
    spec, hole = MASKS[config.mask], None
    if output_side < config.size:
        overlap = config.options(InpaintingOptions).overlap
        hole = output_side - 2 * overlap
        if hole < 1:
            raise ValueError(f"`overlap` {overlap} leaves no hole in {output_side} pixels")
    options = config.options(spec.options).model_dump()
    return build_mask_sampler(config.mask, config.size, config.seed, hole=hole, **options)


def complete(image: Tensor, mask: Tensor, prediction: Tensor, region: Any) -> Tensor:
    """The image with its hole filled from the prediction for ``region``."""
    whole = image.clone()
    whole[region] = prediction.to(image.dtype)
    return torch.where(mask, whole, image)
