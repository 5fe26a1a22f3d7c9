"""The 8-way relative-patch pretext (Doersch, Gupta and Efros 2015, "Unsupervised Visual
Representation Learning by Context Prediction"), a baseline in the paper's table 2.

Two patches are cut from one crop, and the network predicts at which of the eight places around the
first the second lies. Gap and jitter prevent solutions that continue lines across the border.

Differences from Doersch et al.: the encoder is the one that the other pretexts train (including its
pooling and normalisation), one pair per image and step, Adam, batch normalisation in the head
alone.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cekernels import random_below
from context_encoder.config import TrainConfig
from context_encoder.config.build import build_feature_network
from context_encoder.masks.base import sample_words
from context_encoder.models.patch import DIRECTIONS, PatchNetwork, patch_map
from context_encoder.optimization import Learner
from context_encoder.pretexts.base import (
    VALIDATION_SEED,
    Column,
    Pretext,
    Samples,
    feature_advice,
)
from context_encoder.pretexts.losses import MeanLosses
from context_encoder.pretexts.registry import register_pretext
from context_encoder.utils.metrics import to_unit
from context_encoder.utils.option_groups import OptionGroup

# No network's encoder has a larger stride.
_STRIDE = 32

_PLACES = zlib.crc32(b"patch places")
_COLORS = zlib.crc32(b"patch colors")
_NOISE = zlib.crc32(b"patch noise")


class RelativePatchOptions(OptionGroup):
    """Options of the relative-patch pretext."""

    patch_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Side of the patches in pixels. Default: the largest up to half of `size` "
        "that fits the model's strides.",
    )
    patch_gap: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Pixels between patches before jitter. Default: half of `patch_size`."
    )
    patch_jitter: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Largest shift of a patch in pixels. Default: 7/96 of `patch_size`."
    )
    patch_color: Literal["drop", "projection", "none"] = Field(
        "drop",
        description="Against chromatic aberration: replace two of three channels by noise, remove "
        "the green-magenta axis, or leave the colours.",
    )


@dataclass(frozen=True)
class PatchGrid:
    """Sizes in pixels: side of a patch, gap between patches, largest shift of a patch."""

    patch: int
    gap: int
    jitter: int

    @property
    def pitch(self) -> int:
        return self.patch + self.gap

    @property
    def crop(self) -> int:
        """Side of the smallest crop that holds any pair."""
        return 2 * self.patch + self.gap + 2 * self.jitter

    @classmethod
    def of(cls, config: TrainConfig) -> PatchGrid:
        """The grid of a resolved configuration."""
        options = config.options(RelativePatchOptions)
        sizes = (options.patch_size, options.patch_gap, options.patch_jitter)
        assert None not in sizes
        return cls(*sizes)  # type: ignore[arg-type]


def draw_places(
    grid: PatchGrid, size: int, seed: int, epoch: Tensor, index: Tensor, label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the positions of the two patches of each sample.

    The first is placed uniformly where the second has room, then each is shifted independently
    along both axes by -jitter .. jitter.

    Args:
        grid: the sizes.
        size: side of the crops in pixels, at least ``grid.crop``.
        seed: 0 to 2**64 - 1.
        epoch, index: int64 ``(B,)``; the draw is a function of these and the seed.
        label: int64 ``(B,)``, indices into :data:`DIRECTIONS`; None: drawn too.

    Returns:
        The labels, int64 ``(B,)``; and int64 ``(B, 2, 2)``: top and left of both patches.
    """
    words = sample_words(seed, _PLACES, epoch, index, 7)
    if label is None:
        label = random_below(words[:, 0], len(DIRECTIONS))
    # Not built from a list on the device: that copy would synchronize.
    number = label + (label >= 4).long()  # of the 3 x 3 places, without the middle
    step = torch.stack((torch.div(number, 3, rounding_mode="floor"), number % 3), 1) - 1
    low = grid.jitter + (-step).clamp(min=0) * grid.pitch
    room = size - grid.patch - 2 * grid.jitter - step.abs() * grid.pitch
    first = low + random_below(words[:, 1:3], room + 1)
    places = torch.stack((first, first + step * grid.pitch), 1)
    moves = random_below(words[:, 3:], 2 * grid.jitter + 1).view(-1, 2, 2) - grid.jitter
    return label, places + moves


def cut(image: Tensor, places: Tensor, patch: int) -> Tensor:
    """Squares of ``patch`` pixels, ``(B, N, C, p, p)``, at ``places`` ``(B, N, 2)`` (top, left)."""
    span = torch.arange(patch, device=image.device)
    sample = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(image.shape[1], device=image.device).view(1, 1, -1, 1, 1)
    rows = (places[:, :, :1] + span)[:, :, None, :, None]
    columns = (places[:, :, 1:] + span)[:, :, None, None, :]
    return image[sample, channel, rows, columns]


def treat_colors(patches: Tensor, kind: str, seed: int, epoch: Tensor, index: Tensor) -> Tensor:
    """Remove the hints that a lens's chromatic aberration gives about a patch's position.

    Args:
        patches: ``(B, 2, 3, p, p)`` on [-1, 1].
        kind: "drop": one channel of each patch is kept, and the other two are Gaussian noise of
            a hundredth of its standard deviation (their "color dropping"); "projection": the
            component along green - magenta, (-1, 2, -1), is removed; "none".
        seed, epoch, index: as for :func:`draw_places`.

    Returns:
        A tensor like ``patches``.
    """
    if kind == "none":
        return patches
    if kind == "projection":
        along = patches.new_ones(3, 1, 1)
        along[0], along[2] = -1, -1
        along[1] = 2
        return patches - along * (patches * along).sum(2, keepdim=True) / 6
    B, N, C = patches.shape[:3]
    kept = random_below(sample_words(seed, _COLORS, epoch, index, N), C).view(B, N, 1, 1, 1)
    keep = torch.arange(C, device=patches.device).view(1, 1, C, 1, 1) == kept
    deviation = torch.where(keep, patches, 0).sum(2).std((2, 3)).view(B, N, 1, 1, 1)
    noise = _gaussian(sample_words(seed, _NOISE, epoch, index, patches[0].numel()))
    return torch.where(keep, patches, noise.view(patches.shape).to(patches) * deviation / 100)


def _gaussian(words: Tensor) -> Tensor:
    """Standard normal numbers, float32, from 32-bit words ``(B, 2 n)`` (Box and Muller 1958)."""
    # Midpoints of 2**23 steps: exact in float32, and neither 0 nor 1.
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    first, second = uniform.chunk(2, dim=1)
    radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), 1)


@register_pretext(
    "relative-patch",
    takes="two patches of a crop",
    gives="at which of 8 places the second lies",
    options=RelativePatchOptions,
    encoder_only=True,
    min_batch=2,
)
class RelativePatch(Pretext):
    """Prediction of the position of the second of two patches."""

    best_metric = "accuracy"
    model: PatchNetwork

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.grid = PatchGrid.of(config)
        self._color = config.options(RelativePatchOptions).patch_color

    @classmethod
    def resolve(cls, config: TrainConfig) -> dict[str, Any]:
        assert config.size is not None
        options = config.options(RelativePatchOptions)
        with torch.device("meta"):
            encoder = build_feature_network(config).encoder
        # Sizes that fit the strides: one pixel less would give a smaller map.
        wanted = options.patch_size or config.size // 2
        near = range(max(1, wanted - _STRIDE), wanted + 2 * _STRIDE)
        fitting = [p for p in near if patch_map(encoder, p)[1] > patch_map(encoder, p - 1)[1]]
        if options.patch_size is None:
            patch = max([p for p in fitting if p <= wanted] or fitting[:1])
        elif options.patch_size in fitting:
            patch = options.patch_size
        else:
            nearest = sorted(sorted(fitting, key=lambda p: abs(p - wanted))[:2])
            raise ValueError(
                f"`patch_size` must fit the strides of `model` {config.model}, got "
                f"{wanted}; nearest: {' or '.join(map(str, nearest))}"
            )
        gap, jitter = options.patch_gap, options.patch_jitter
        return {
            "patch_size": patch,
            "patch_gap": patch // 2 if gap is None else gap,
            "patch_jitter": round(patch * 7 / 96) if jitter is None else jitter,
        }

    @classmethod
    def crop_size(cls, config: TrainConfig) -> int:
        return PatchGrid.of(config).crop

    @classmethod
    def build(cls, config: TrainConfig) -> PatchNetwork:
        # The decoder is built too, so that one seed gives all pretexts the same encoder weights.
        whole = build_feature_network(config)
        return PatchNetwork(whole.image_size, whole.encoder, PatchGrid.of(config).patch)

    def _pairs(
        self, samples: Samples, seed: int, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, places and patches of a batch."""
        keys = (seed, samples.epoch, samples.index)
        label, places = draw_places(self.grid, samples.image.shape[-1], *keys, label)
        patches = cut(samples.image, places, self.grid.patch)
        return label, places, treat_colors(patches, self._color, *keys)

    def train_step(self, samples: Samples, learner: Learner) -> dict[str, Tensor]:
        label, _, patches = self._pairs(samples, self.config.seed)
        parts = learner.split(label, patches)
        losses = MeanLosses(len(parts))
        for answer, pair in learner.micro_batches("model", parts):
            with learner.autocast():
                scores = learner.network("model")(pair)
                loss = F.cross_entropy(scores, answer)
            learner.backward(loss)
            losses.add("loss", loss)
            losses.add("accuracy", (scores.detach().argmax(1) == answer).float().mean())
        learner.update_weights("model")
        return losses.named("loss", "accuracy")

    def validate(self, samples: Samples) -> tuple[dict[str, Tensor], list[Column]]:
        """Evaluate every image with each of the eight labels, so that chance is exactly 12.5 %."""
        losses, right = [], []
        for answer in range(len(DIRECTIONS)):
            wanted = torch.full_like(samples.index, answer)
            # Different patches for each label.
            keyed = Samples(samples.image, samples.epoch + answer, samples.index)
            label, _, patches = self._pairs(keyed, VALIDATION_SEED, wanted)
            scores = self.model(patches)
            losses.append(F.cross_entropy(scores, label, reduction="none"))
            right.append((scores.argmax(1) == label).float())
        metrics = {"loss": torch.stack(losses).mean(0), "accuracy": torch.stack(right).mean(0)}
        return metrics, self._columns(samples)

    def _columns(self, samples: Samples) -> list[Column]:
        """The crop with the first patch framed white, the second green and a wrong prediction
        red; the patches as the network sees them."""
        label, places, patches = self._pairs(samples, VALIDATION_SEED)
        answer = self.model(patches).argmax(1)
        crop = to_unit(samples.image)
        size = crop.shape[-1]
        framed = crop.clone()
        steps = torch.tensor(DIRECTIONS)
        for i, (first, second) in enumerate(places.tolist()):
            if answer[i] != label[i]:
                guess = torch.tensor(first) + steps[answer[i]] * self.grid.pitch
                _frame(framed[i], guess.tolist(), self.grid.patch, (1.0, 0.0, 0.0))
            _frame(framed[i], first, self.grid.patch, (1.0, 1.0, 1.0))
            _frame(framed[i], second, self.grid.patch, (0.0, 0.8, 0.0))
        seen = to_unit(patches)
        large = [F.interpolate(seen[:, k], (size, size), mode="nearest") for k in range(2)]
        return [("white to green", framed), ("first", large[0]), ("second", large[1])]

    def describe(self) -> str:
        grid = self.grid
        return f"pairs of {grid.patch} px patches, gap {grid.gap}, jitter {grid.jitter}"

    def summary(self, metrics: dict[str, float]) -> list[str]:
        return [
            "held-out photographs, accuracy of the second patch's position:",
            f"  {'this network':<28} {metrics['accuracy']:7.1%}",
            f"  {'chance':<28} {1 / len(DIRECTIONS):7.1%}",
        ]

    def advice(self, run: Path) -> list[str]:
        return feature_advice(run)


def _frame(picture: Tensor, place: list[int], side: int, color: tuple[float, ...]) -> None:
    """Draw a square's outline, 1 pixel wide, into ``(3, H, W)``; parts outside are left out."""
    height, width = picture.shape[1:]
    top, left, bottom, right = place[0], place[1], place[0] + side - 1, place[1] + side - 1
    paint = picture.new_tensor(color)[:, None]
    rows, columns = slice(max(top, 0), bottom + 1), slice(max(left, 0), right + 1)
    for row in (top, bottom):
        if 0 <= row < height:
            picture[:, row, columns] = paint
    for column in (left, right):
        if 0 <= column < width:
            picture[:, rows, column] = paint
