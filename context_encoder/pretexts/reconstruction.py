"""Pretexts that reconstruct the whole image: autoencoder and denoising autoencoder.

These are baselines of Pathak et al. 2016 (section 5.2, table 2): the same network, with a complete
input or a locally corrupted one (Vincent et al. 2010, "Stacked denoising autoencoders"), and a
loss over all pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cekernels import fill_masked
from context_encoder.config import PRETEXTS, TrainConfig, in_words
from context_encoder.masks.base import sample_words
from context_encoder.models import ContextEncoder
from context_encoder.optimization import Learner
from context_encoder.pretexts.base import (
    VALIDATION_SEED,
    Column,
    Pretext,
    Samples,
    feature_advice,
)
from context_encoder.pretexts.losses import MeanLosses, whole_loss
from context_encoder.pretexts.registry import register_pretext
from context_encoder.utils.metrics import (
    hole_contrast,
    hole_mean,
    hole_metrics,
    psnr_from_squared_error,
    to_unit,
)
from context_encoder.utils.option_groups import Need, OptionGroup

_STREAM = zlib.crc32(b"corruption")


@register_pretext(
    "autoencoder", takes="the image", gives="the image", uses=("loss",), whole_output=True
)
class Autoencoder(Pretext):
    """Reconstruction of the whole image from itself."""

    best_metric = "psnr"
    model: ContextEncoder

    def corrupt(self, samples: Samples, seed: int) -> Tensor:
        """The network's input, ``(B, 3, S, S)``."""
        return samples.image

    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        shown = self.corrupt(samples, self.config.seed)
        parts = learner.split(shown, samples.image)
        losses = MeanLosses(len(parts))
        for given, image in learner.micro_batches("model", parts):
            with learner.autocast():
                prediction = learner.network("model")(given)
            loss = whole_loss(prediction, image, kind=self.config.loss)
            learner.backward(loss)
            losses.add("loss", loss)
        learner.update_weights("model")
        return losses.named("loss")

    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        shown = self.corrupt(samples, VALIDATION_SEED)
        original, given = to_unit(samples.image), to_unit(shown)
        output = to_unit(self.model(shown))
        everywhere = torch.ones_like(original[:, :1], dtype=torch.bool)
        metrics = hole_metrics(output, original, everywhere)
        metrics["contrast"] = hole_contrast(original, everywhere)
        for name, baseline in self._baselines(original, given).items():
            squared_error = hole_mean((baseline - original).square(), everywhere)
            metrics[name] = psnr_from_squared_error(squared_error)
        return metrics, [("original", original), ("input", given), ("output", output)]

    def _baselines(self, original: Tensor, given: Tensor) -> dict[str, Tensor]:
        return {"psnr_mean_color": original.mean((2, 3), keepdim=True)}

    def describe(self) -> str:
        return "autoencoder"

    def summary(self, metrics: dict[str, float]) -> list[str]:
        psnr = metrics["psnr"]
        lines = [
            "held-out photographs reconstructed, PSNR averaged over the images:",
            f"  {'this network':<28} {psnr:6.2f} dB",
        ]
        for key, label in (
            ("psnr_mean_color", "their mean colour"),
            ("psnr_input", "the corrupted input"),
        ):
            if key in metrics:
                difference = psnr - metrics[key]
                lines.append(f"  {label:<28} {metrics[key]:6.2f} dB   ({difference:+.2f} dB)")
        return lines

    def advice(self, run: Path) -> list[str]:
        return feature_advice(run)


class DenoisingOptions(OptionGroup):
    """Options of the denoising autoencoder."""

    needs: ClassVar[tuple[Need, ...]] = (
        Need(("fill",), "noise", lambda noise: noise == "masking", "masking"),
    )

    noise: Literal["masking", "salt-pepper"] = Field(
        "masking", description="Corruption: blank cells, or black and white ones."
    )
    noise_amount: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="Fraction of the cells that is corrupted."
    )
    noise_cell: Annotated[int, Field(ge=1)] = Field(1, description="Side of a cell in pixels.")


@register_pretext(
    "denoising",
    takes="the image with corrupted cells",
    gives="the image",
    options=DenoisingOptions,
    uses=("fill", "loss"),
    whole_output=True,
)
class DenoisingAutoencoder(Autoencoder):
    """Reconstruction of an image from one with corrupted cells; the loss is over all pixels."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.options = config.options(DenoisingOptions)
        self._fill = torch.tensor(config.fill_color(), device=device)

    @classmethod
    def resolve(cls, config: TrainConfig) -> dict[str, Any]:
        cell = config.options(DenoisingOptions).noise_cell
        assert config.size is not None
        if cell > config.size // 4:
            raise ValueError(
                f"`noise_cell` {cell} is not a local corruption in {config.size} pixels; "
                f"use at most {config.size // 4}, or hide large parts with `pretext` "
                f"{in_words(PRETEXTS.names(lambda spec: spec.fills_holes))}"
            )
        return {}

    def corrupt(self, samples: Samples, seed: int) -> Tensor:
        options, image = self.options, samples.image
        hidden, white = corrupted_cells(
            *(seed, samples.epoch, samples.index, image.shape[-1]),
            amount=options.noise_amount,
            cell=options.noise_cell,
        )
        if options.noise == "masking":
            return fill_masked(image, hidden, self._fill)
        return torch.where(hidden, white.to(image.dtype) * 2 - 1, image)

    def _baselines(self, original: Tensor, given: Tensor) -> dict[str, Tensor]:
        return super()._baselines(original, given) | {"psnr_input": given}

    def describe(self) -> str:
        options = self.options
        cells = "pixels" if options.noise_cell == 1 else f"{options.noise_cell} px cells"
        return f"{options.noise} noise on {options.noise_amount:.0%} of the {cells}"


def corrupted_cells(
    seed: int, epoch: Tensor, index: Tensor, size: int, *, amount: float, cell: int
) -> tuple[Tensor, Tensor]:
    """Corrupted pixels, drawn independently per cell.

    The result is a function of ``(seed, epoch, index)``, the same on every device.

    Args:
        seed: 0 to 2**64 - 1.
        epoch, index: int64 ``(B,)``.
        size: S, side of the image in pixels.
        amount: probability that a cell is corrupted.
        cell: side of a cell in pixels; cells begin at the top-left corner, those at the other
            edges may be cut off.

    Returns:
        Two bool tensors ``(B, 1, S, S)``: corrupted pixels; and whether a corrupted pixel is
        white (half of the cells) or black.
    """
    side = -(-size // cell)
    words = sample_words(seed, _STREAM, epoch, index, side * side).view(-1, 1, side, side)
    hidden = (words >> 1) < round(amount * 2**31)
    white = (words & 1).bool()
    if cell > 1:
        hidden, white = (
            values.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[:, :, :size, :size]
            for values in (hidden, white)
        )
    return hidden.contiguous(), white.contiguous()
