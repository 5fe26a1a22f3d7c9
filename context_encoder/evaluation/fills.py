"""The compared methods of filling a hole: networks and baselines.

A fill is called with images whose holes are blank, so that it cannot see the original.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from context_encoder import inpainting
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
from context_encoder.inpainting.hole_filler import TEXTURE, HoleFiller
from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.inpainting.membrane_network import predict_holes
from context_encoder.masks import masks_with_fixed_hole
from context_encoder.runs import LoadedModel, Which, check_fills_holes, load_model
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.metrics import context_mean
from context_encoder.utils.opencv import OPENCV, RADIUS, OpenCVName, fill_by_opencv
from context_encoder.utils.opencv import missing_for as missing_for_opencv

__all__ = [
    "BASELINES",
    "BaselineName",
    "Fill",
    "MaskedBatch",
    "Method",
    "Run",
    "baseline_methods",
    "default_baselines",
    "includes_network",
    "load_run",
    "missing_for",
]

BaselineName = Literal[
    "mean",
    "context-mean",
    "membrane",
    "telea",
    "navier-stokes",
    "fsr",
    "shiftmap",
    "hole-filler",
    "hole-filler-no-network",
    "included-network",
    "linear-prediction",
    "nn-hog",
    "nn-pixels",
    "nn-features",
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
_NEIGHBOURS: tuple[BaselineName, ...] = ("nn-hog", "nn-pixels", "nn-features")
#: The parts of HoleFiller, which are measured on request.
_ON_REQUEST = ("hole-filler-no-network", "included-network", "linear-prediction")

_OPENCV_LABELS = {
    "telea": f"Telea (OpenCV, radius {RADIUS})",
    "navier-stokes": f"Navier-Stokes (OpenCV, radius {RADIUS})",
    "fsr": "FSR_FAST (OpenCV xphoto)",
    "shiftmap": "SHIFTMAP (OpenCV xphoto)",
}


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
    #: Whether several images at a time are faster than one at a time.
    batched: bool = False


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

    def methods(self, blend: bool, *, native: bool = False) -> list[Method]:
        """The network's methods: its prediction; with ``blend`` also without seam and with texture.

        Args:
            blend: see above.
            native: for images of any size, in windows as ``inpaint`` makes them; otherwise for
                images of the network's size.
        """
        # In windows, a network for the centre fills a hole anywhere.
        confined = self.central_only and not native
        masks = frozenset(masks_with_fixed_hole()) if confined else None
        depends_on = self.depends_on | {"hole": self.inpainter.geometry.region, "native": native}
        if native:
            depends_on |= {"code": _filling_code()}
        blending = copy.copy(self.inpainter)
        blending.blend = True
        bare = _window_fill(self.inpainter) if native else _network_fill(self.inpainter)
        label = f"context encoder {self.name}"
        methods = [Method(self.name, label, bare, masks, depends_on, batched=not native)]
        if blend:
            smooth = _window_fill(blending) if native else _without_seam(bare)
            textured = _hole_filler_fill(HoleFiller(blending, texture=TEXTURE))
            methods += [
                Method(
                    f"{self.name}-blended",
                    f"{label}, seam removed",
                    smooth,
                    masks,
                    depends_on,
                    batched=not native,
                ),
                Method(
                    f"{self.name}-textured",
                    f"{label}, with texture",
                    textured,
                    masks,
                    depends_on | {"texture": TEXTURE, "code": _filling_code()},
                ),
            ]
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
    if baseline in OPENCV:
        return missing_for_opencv(baseline)
    if baseline == "nn-hog" and not hog_available():
        return HOG_MISSING
    return None


def default_baselines(*, native: bool) -> list[BaselineName]:
    """The baselines that are measured unless others are asked for.

    Args:
        native: for images of any size; there are no neighbours to search then.
    """
    left_out = {*_ON_REQUEST, *(_NEIGHBOURS if native else ())}
    return [name for name in BASELINES if name not in left_out]


def includes_network(names: Sequence[BaselineName]) -> bool:
    """Whether the network whose weights are part of the package fills in some of the baselines."""
    return not {"hole-filler", "included-network"}.isdisjoint(names)


def baseline_methods(
    names: Sequence[BaselineName],
    runs: Sequence[Run],
    candidates: Crops | None,
    color: tuple[float, float, float],
) -> list[Method]:
    """The baselines as methods, in the order of :data:`BASELINES`.

    Args:
        names: the baselines.
        runs: nearest neighbours by features use the encoder of each run.
        candidates: crops for nearest-neighbour search; needed for the baselines named "nn-...".
        color: of the baseline "mean", RGB in [-1, 1].
    """
    methods = []
    for name in (name for name in BASELINES if name in names):
        if name in _NEIGHBOURS:
            assert candidates is not None
            methods += _neighbour_methods(name, runs, candidates)
        else:
            methods.append(_baseline(name, color))
    return methods


def _baseline(name: BaselineName, color: tuple[float, float, float]) -> Method:
    if name in OPENCV:
        return Method(name, _OPENCV_LABELS[name], opencv_fill(name), None, {"radius": RADIUS})
    if name == "mean":
        label = "mean colour (training's fill)"
        return Method(name, label, mean_fill(color), None, {"color": color}, batched=True)
    if name == "context-mean":
        return Method(name, "mean of the context", context_mean_fill, batched=True)
    if name == "membrane":
        label = "membrane (harmonic interpolation)"
        return Method(name, label, _without_seam(context_mean_fill), batched=True)
    label, fill = {
        "hole-filler": ("inpaint without a checkpoint", _hole_filler_fill(HoleFiller())),
        "hole-filler-no-network": (
            "inpaint without any network",
            _hole_filler_fill(HoleFiller(None)),
        ),
        "linear-prediction": (
            "linear prediction alone",
            _hole_filler_fill(HoleFiller(None, texture="off")),
        ),
        "included-network": ("included network alone", included_network_fill),
    }[name]
    return Method(name, label, fill, None, {"code": _filling_code()})


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


def opencv_fill(name: OpenCVName) -> Fill:
    """A fill by one of OpenCV's methods, see :mod:`context_encoder.utils.opencv`."""
    return _one_by_one(functools.partial(fill_by_opencv, name))


def included_network_fill(holes: MaskedBatch) -> Tensor:
    """A fill by the network whose weights are part of the package, without texture."""
    filled = [
        predict_holes(np.ascontiguousarray((picture + 1) * np.float32(127.5)), mask)
        for picture, mask in _pictures(holes)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).div(127.5).sub(1)


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


def _window_fill(inpainter: Inpainter) -> Fill:
    def fill(holes: MaskedBatch) -> Tensor:
        filled = [inpainter.predict(picture, mask) for picture, mask in _pictures(holes)]
        return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2)

    return fill


def _hole_filler_fill(filler: HoleFiller) -> Fill:
    return _one_by_one(lambda picture, mask: np.asarray(filler(picture, mask).image))


def _one_by_one(
    fill_one: Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.uint8]],
) -> Fill:
    """A fill by a function of one 8-bit image ``(H, W, 3)`` and its mask ``(H, W)``."""

    def fill(holes: MaskedBatch) -> Tensor:
        filled = [
            fill_one(np.rint((picture + 1) * 127.5).astype(np.uint8), mask)
            for picture, mask in _pictures(holes)
        ]
        return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().div(127.5).sub(1)

    return fill


def _pictures(holes: MaskedBatch) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Each image ``(H, W, 3)`` in [-1, 1] and its mask ``(H, W)``."""
    pictures = holes.image.permute(0, 2, 3, 1).contiguous().numpy()
    return zip(pictures, holes.mask[:, 0].numpy(), strict=True)


@functools.cache
def _filling_code() -> str:
    """A digest of the code and of the weights of the package that fill holes.

    Results are kept, and the version of the package does not change with every edit.
    """
    digest = hashlib.sha256()
    folder = Path(inpainting.__file__).parent
    for file in sorted([*folder.glob("*.py"), *folder.glob("weights/*.safetensors")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _without_seam(bare: Fill) -> Fill:
    def fill(holes: MaskedBatch) -> Tensor:
        pictures = torch.where(holes.mask, bare(holes), holes.image).permute(0, 2, 3, 1).numpy()
        blended = [
            remove_seam(picture, mask)
            for picture, mask in zip(pictures, holes.mask[:, 0].numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(blended)).permute(0, 3, 1, 2)

    return fill
