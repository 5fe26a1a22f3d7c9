"""Descriptors of the context of holes, and their distances."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from context_encoder.data import Crops
from context_encoder.models import Backbone
from context_encoder.runs import LoadedModel

__all__ = [
    "HOG_MISSING",
    "Descriptor",
    "EncoderFeatures",
    "Hog",
    "RawPixels",
    "hog_available",
]

HOG_MISSING = "HOG descriptors need scikit-image: pip install 'context-encoder[evaluation]'"
_BATCH = 64


class Descriptor(Protocol):
    """Distances between the context of holes and that of all candidates."""

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """Distances to each candidate.

        Args:
            image: float32 ``(B, 3, S, S)`` in [-1, 1]; pixels under the mask have no effect.
            mask: bool ``(B, 1, S, S)``, True in the hole.

        Returns:
            float32 ``(B, N)`` on the CPU, at least 0.
        """
        ...


class RawPixels:
    """Mean squared difference of the pixels outside the hole, on [-1, 1]."""

    def __init__(self, candidates: Crops) -> None:
        self._candidates = candidates

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`; 0 for all candidates if the hole covers the whole image."""
        result = torch.zeros(len(image), len(self._candidates))
        for part in torch.arange(len(self._candidates)).split(_BATCH):
            candidates = self._candidates.floats(part)
            for i, hole in enumerate(mask):
                squared = (candidates - image[i]).square()
                total = torch.where(hole, 0, squared).sum((1, 2, 3))
                result[i, part] = total / (3 * (~hole).sum().clamp(min=1))
        return result


def hog_available() -> bool:
    """Whether scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


class Hog:
    """Euclidean distance of histograms of oriented gradients (Dalal and Triggs 2005).

    It has 9 orientations in 16 x 16 cells, and blocks of 2 x 2 cells with L2-Hys normalisation.
    Only blocks outside the hole are compared. If there are none, raw pixels are compared instead.

    Raises:
        ImportError: scikit-image is missing.
    """

    def __init__(self, candidates: Crops) -> None:
        if not hog_available():
            raise ImportError(HOG_MISSING)
        self._cell = max(2, candidates.images.shape[-1] // 16)
        self._raw = RawPixels(candidates)
        self._candidates = torch.cat(
            [
                self._describe(candidates.floats(part))
                for part in tqdm(
                    torch.arange(len(candidates)).split(_BATCH),
                    desc="HOG of the candidates",
                    leave=False,
                    dynamic_ncols=True,
                )
            ]
        )

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`."""
        descriptors = self._describe(torch.where(mask, 0, image))
        free = ~self._touched(mask)
        result = torch.empty(len(image), len(self._candidates))
        for i, blocks in enumerate(free):
            if bool(blocks.any()):
                difference = self._candidates[:, blocks] - descriptors[i, blocks]
                result[i] = difference.square().sum((1, 2)).sqrt()
            else:
                result[i] = self._raw.distances(image[i : i + 1], mask[i : i + 1])[0]
        return result

    def _describe(self, image: Tensor) -> Tensor:
        """Descriptors of all blocks, ``(B, blocks, 36)``."""
        from skimage.feature import hog

        described = [
            hog(
                picture,
                orientations=9,
                pixels_per_cell=(self._cell, self._cell),
                cells_per_block=(2, 2),
                block_norm="L2-Hys",
                channel_axis=-1,
                feature_vector=False,
            )
            for picture in image.permute(0, 2, 3, 1).numpy()
        ]
        return torch.stack(
            [torch.from_numpy(d).float().flatten(0, 1).flatten(1) for d in described]
        )

    def _touched(self, mask: Tensor) -> Tensor:
        """Whether a block overlaps the hole, bool ``(B, blocks)``."""
        # A gradient reads the neighbouring pixels.
        reach = F.max_pool2d(mask.float(), 3, stride=1, padding=1)
        return F.max_pool2d(reach, 2 * self._cell, stride=self._cell).flatten(1) > 0


class EncoderFeatures:
    """Cosine distance of a network's features of the image with its hole hidden.

    Candidates are encoded again whenever the mask changes.

    Args:
        candidates: the crops to search.
        run: the network; an encoder alone is enough.
        layer: a stage of encoder or bottleneck, see
            :meth:`context_encoder.models.ContextEncoder.features`; None: the encoder's output.

    Raises:
        ValueError: the network has no such layer, or needs images of another size.
    """

    def __init__(self, candidates: Crops, run: LoadedModel, layer: str | None = None) -> None:
        model = run.model
        size = model.image_size
        if size != candidates.images.shape[-1]:
            raise ValueError(
                f"{run.path} takes images of {size} pixels, these have "
                f"{candidates.images.shape[-1]}"
            )
        if layer is not None:
            backbone = run.backbone()
            layers = [
                name for part in backbone.feature_parts() for name, _ in part.named_children()
            ]
            if layer not in layers:
                raise ValueError(f"{run.path} has no layer {layer!r}; it has {', '.join(layers)}")
        self._model, self._layer, self._candidates = model, layer, candidates
        self._device = next(model.parameters()).device
        self._fill = torch.tensor(run.config.fill_color(), device=self._device)
        self._mask: Tensor | None = None
        self._features: Tensor | None = None

    def distances(self, image: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Descriptor`."""
        return torch.cat(
            [self._distances(image[i : i + 1], mask[i : i + 1]) for i in range(len(image))]
        )

    def _distances(self, image: Tensor, mask: Tensor) -> Tensor:
        if self._features is None or self._mask is None or not torch.equal(mask, self._mask):
            parts = torch.arange(len(self._candidates)).split(_BATCH)
            self._features = torch.cat(
                [self._encode(self._candidates.floats(part), mask) for part in parts]
            )
            self._mask = mask.clone()
        similarity = self._encode(image, mask) @ self._features.T
        return (1 - similarity).clamp(min=0).cpu()

    @torch.inference_mode()
    def _encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features of unit length, ``(B, C)``."""
        holes = mask.to(self._device).expand(len(image), -1, -1, -1)
        inputs = self._model.inputs(image.to(self._device), holes, self._fill)
        if self._layer is None:
            features = self._model.encode(*inputs)
        else:
            assert isinstance(self._model, Backbone)
            features = self._model.features(*inputs)[self._layer]
        return F.normalize(features.flatten(1).float(), dim=1)
