"""The compared methods of filling a hole: networks and baselines.

A fill is called with images whose holes are blank, so that it cannot see the original.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from context_encoder.data import Crops
from context_encoder.evaluation.descriptors import (
    HOG_MISSING,
    Descriptor,
    EncoderFeatures,
    Hog,
    RawPixels,
    hog_available,
)
from context_encoder.evaluation.nearest_neighbours import Neighbours
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.masks import masks_with_fixed_hole
from context_encoder.runs import LoadedModel, Which, check_fills_holes, load_model
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.metrics import context_mean

__all__ = [
    "BASELINES",
    "CV2_RADIUS",
    "BaselineName",
    "Fill",
    "MaskedBatch",
    "Method",
    "Run",
    "baseline_methods",
    "load_run",
    "missing_for",
]

BaselineName = Literal[
    "mean",
    "context-mean",
    "membrane",
    "telea",
    "navier-stokes",
    "nn-hog",
    "nn-pixels",
    "nn-features",
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)

#: Radius, in pixels, of the neighbourhood of OpenCV's methods, as in OpenCV's examples.
CV2_RADIUS = 3
_CV2_MISSING = "OpenCV is needed: pip install 'context-encoder[evaluation]'"


class MaskedBatch(NamedTuple):
    """A batch to fill."""

    #: float32 ``(B, 3, S, S)`` in [-1, 1], 0 in the hole.
    image: Tensor
    #: bool ``(B, 1, S, S)``, True in the hole.
    mask: Tensor
    #: The files, which nearest-neighbour search excludes.
    paths: Sequence[Path]


#: Returns float32 ``(B, 3, S, S)`` in [-1, 1], on the CPU; only its hole is used.
Fill = Callable[[MaskedBatch], Tensor]


@dataclass(frozen=True)
class Method:
    """A method of filling holes: a row of the tables."""

    #: Unique, and fit for a file name.
    name: str
    #: Name in tables and sheets.
    label: str
    fill: Fill
    #: The kinds of mask it can fill; None for all.
    masks: frozenset[str] | None = None
    #: Additional cache-key inputs, besides images and masks; JSON values.
    depends_on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A trained network to evaluate."""

    name: str
    loaded: LoadedModel
    inpainter: Inpainter
    #: SHA-256 of the weights.
    digest: str

    @property
    def central_only(self) -> bool:
        """Whether it fills the centre of the image only."""
        return not self.inpainter.geometry.anywhere

    @property
    def depends_on(self) -> dict[str, Any]:
        """Cache-key inputs, see :class:`Method`."""
        return {"weights": self.digest, "fill": self.loaded.config.fill_color()}

    def methods(self, blend: bool) -> list[Method]:
        """The network's method and, with ``blend``, a second one with its seam removed."""
        masks = frozenset(masks_with_fixed_hole()) if self.central_only else None
        depends_on = self.depends_on | {"hole": self.inpainter.geometry.region}
        bare = _network_fill(self.inpainter)
        label = f"context encoder {self.name}"
        methods = [Method(self.name, label, bare, masks, depends_on)]
        if blend:
            label += ", seam removed"
            fill = _without_seam(bare)
            methods.append(Method(f"{self.name}-blended", label, fill, masks, depends_on))
        return methods


def load_run(path: Path, name: str, which: Which, device: str, batch_size: int) -> Run:
    """Load a network that fills holes.

    Raises:
        RunError: the checkpoint is missing or damaged, or its network does not fill holes.
        ValueError: the device does not exist.
    """
    loaded = load_model(path, which=which, device=choose_device(device, Processes()))
    check_fills_holes(loaded)
    inpainter = Inpainter.from_run(
        path, which=which, device=device, blend=False, batch_size=batch_size
    )
    weights = (loaded.path / "model.safetensors").read_bytes()
    return Run(name, loaded, inpainter, hashlib.sha256(weights).hexdigest())


def missing_for(baseline: BaselineName) -> str | None:
    """A message about the missing package of a baseline; None if it can run."""
    if baseline in ("telea", "navier-stokes") and importlib.util.find_spec("cv2") is None:
        return _CV2_MISSING
    if baseline == "nn-hog" and not hog_available():
        return HOG_MISSING
    return None


def baseline_methods(
    names: Sequence[BaselineName], runs: Sequence[Run], candidates: Crops | None
) -> list[Method]:
    """The baselines as methods, in the order of :data:`BASELINES`.

    Args:
        names: the baselines.
        runs: the mean colour is that of the first run's training; nearest neighbours by features
            use the encoder of each run.
        candidates: crops for nearest-neighbour search; needed for the baselines named "nn-...".
    """
    methods = []
    for name in (name for name in BASELINES if name in names):
        if name == "mean":
            color = runs[0].loaded.config.fill_color()
            methods.append(
                Method(
                    name, "mean colour (training's fill)", mean_fill(color), None, {"color": color}
                )
            )
        elif name == "context-mean":
            methods.append(Method(name, "mean of the context", context_mean_fill))
        elif name == "membrane":
            fill = _without_seam(context_mean_fill)
            methods.append(Method(name, "membrane (removing the seam of a mean)", fill))
        elif name in ("telea", "navier-stokes"):
            label = "Telea" if name == "telea" else "Navier-Stokes"
            methods.append(
                Method(
                    name,
                    f"{label} (OpenCV, radius {CV2_RADIUS})",
                    opencv_fill(name),
                    None,
                    {"radius": CV2_RADIUS},
                )
            )
        else:
            assert candidates is not None
            methods += _neighbour_methods(name, runs, candidates)
    return methods


def _neighbour_methods(name: str, runs: Sequence[Run], candidates: Crops) -> list[Method]:
    depends_on = {"candidates": candidates.digest}
    if name != "nn-features":
        descriptor: Descriptor = Hog(candidates) if name == "nn-hog" else RawPixels(candidates)
        label = "NN, HOG" if name == "nn-hog" else "NN, raw pixels"
        fill = neighbour_fill(Neighbours(candidates, descriptor))
        return [Method(name, label, fill, None, depends_on)]
    return [
        Method(
            f"{name}-{run.name}",
            f"NN, features of {run.name}",
            neighbour_fill(Neighbours(candidates, EncoderFeatures(candidates, run.loaded))),
            None,
            depends_on | run.depends_on,
        )
        for run in runs
    ]


def mean_fill(color: tuple[float, float, float]) -> Fill:
    """A fill with one colour, RGB in [-1, 1]."""
    filled = torch.tensor(color).view(1, 3, 1, 1)
    return lambda holes: filled.expand_as(holes.image)


def context_mean_fill(holes: MaskedBatch) -> Tensor:
    """A fill with the mean colour of the known pixels."""
    return context_mean(holes.image, holes.mask).expand_as(holes.image)


def opencv_fill(name: str) -> Fill:
    """A fill by OpenCV's inpainting of 8-bit pixels: Telea 2004, or Bertalmio et al. 2001."""
    import cv2

    flag = cv2.INPAINT_TELEA if name == "telea" else cv2.INPAINT_NS

    def fill(holes: MaskedBatch) -> Tensor:
        pictures = holes.image.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        masks = holes.mask[:, 0].byte().numpy()
        filled = [
            cv2.inpaint(np.ascontiguousarray(picture), mask, CV2_RADIUS, flag)
            for picture, mask in zip(pictures, masks, strict=True)
        ]
        return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().div(127.5).sub(1)

    return fill


def neighbour_fill(search: Neighbours) -> Fill:
    """A fill with the same region of the candidate whose context is nearest."""

    def fill(holes: MaskedBatch) -> Tensor:
        numbers, _ = search(holes.image, holes.mask, holes.paths)
        return search.candidates.floats(numbers[:, 0])

    return fill


def _network_fill(inpainter: Inpainter) -> Fill:
    @torch.inference_mode()
    def fill(holes: MaskedBatch) -> Tensor:
        device = inpainter.device
        return inpainter.complete(holes.image.to(device), holes.mask.to(device)).cpu()

    return fill


def _without_seam(bare: Fill) -> Fill:
    def fill(holes: MaskedBatch) -> Tensor:
        pictures = torch.where(holes.mask, bare(holes), holes.image).permute(0, 2, 3, 1).numpy()
        blended = [
            remove_seam(picture, mask)
            for picture, mask in zip(pictures, holes.mask[:, 0].numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(blended)).permute(0, 3, 1, 2)

    return fill
