"""VOC07 detection as Fast R-CNN (Girshick 2015; Pathak et al. 2016, section 5.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from context_encoder.config.train_config import MOST_STEPS
from context_encoder.data import UnreadableImage, read_image, to_input
from context_encoder.models import Backbone
from context_encoder.transfer import boxes as box_ops
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.dataset import digest, read_annotated
from context_encoder.transfer.heads import fc6_fc7, map_shape
from context_encoder.transfer.metrics import detection_ap
from context_encoder.transfer.proposals import find_proposals
from context_encoder.transfer.receptive_field import ReceptiveField
from context_encoder.transfer.registry import register_transfer
from context_encoder.transfer.results import summary
from context_encoder.transfer.task import Task
from context_encoder.transfer.training import run_task
from context_encoder.transfer.voc import Item

FloatArray = NDArray[np.float64]


class DetectConfig(TransferConfig):
    """VOC07 detection: classes and boxes of objects."""

    proposals: Path | None = Field(
        None,
        description="File of boxes: .npz, .json or .mat (see docs/transfer.md). Default: selective "
        "search if OpenCV has it, else a dense grid.",
    )
    max_proposals: Annotated[int, Field(ge=1)] = Field(2000, description="Per image.")
    short_side: Annotated[int, Field(ge=1)] = Field(
        600, description="Short side of the scaled images in pixels."
    )
    long_side: Annotated[int, Field(ge=1)] = Field(
        1000, description="Its upper limit for the long side."
    )
    roi_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Bins per side of RoI pooling. Default: the encoder's map."
    )
    rois: Annotated[int, Field(ge=4)] = Field(
        64, description="Boxes per training image; up to a quarter of them on objects."
    )
    max_iou: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="IoU above which the weaker of two boxes of a class is dropped."
    )
    min_score: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Score below which detections are dropped."
    )
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(40_000, description="Training steps.")
    batch_size: Annotated[int, Field(ge=1)] = Field(2, description="Images per step.")
    lr_step: Annotated[int, Field(ge=1)] | None = Field(30_000, description="Period of lr's decay.")
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="See `lr_step`.")


class FastRCNN(nn.Module):
    """Encoder without its last pooling, RoI max pooling, fc6, fc7, scores and box regression.

    Images are padded so that cell i of the map is centred at pixel ``stride * i`` (to half a
    pixel), as RoI pooling assumes.

    Args:
        network: the network whose encoder is used.
        classes: K, including the background as class 0.
        fc_dim, dropout: width of fc6 and fc7, and dropout after them.
        roi_size: see :class:`DetectConfig`.
    """

    def __init__(
        self, network: Backbone, classes: int, fc_dim: int, roi_size: int | None, dropout: float
    ) -> None:
        super().__init__()
        stages = list(network.encoder.named_children())
        self.roi_size = roi_size or map_shape(network, network.encoder)[1]
        if stages[-1][0].startswith("pool"):  # RoI pooling replaces it
            stages.pop()
        self.encoder = nn.Sequential(OrderedDict(stages))
        geometry = ReceptiveField.of(self.encoder)
        self.stride, self.padding = geometry.stride, int(geometry.offset)
        channels, _ = map_shape(network, self.encoder)
        fc6, fc7 = nn.Linear(channels * self.roi_size**2, fc_dim), nn.Linear(fc_dim, fc_dim)
        score, regress = nn.Linear(fc_dim, classes), nn.Linear(fc_dim, 4 * classes)
        layers = {"flatten": nn.Flatten(), **fc6_fc7(fc6, fc7, dropout)}
        self.head = nn.Sequential(OrderedDict(layers))
        self.score, self.regress = score, regress
        for layer, deviation in ((self.score, 0.01), (self.regress, 0.001)):
            nn.init.normal_(layer.weight, 0, deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Sequence[Tensor], rois: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores ``(R, K)`` and coded boxes ``(R, K, 4)`` of all RoIs of all images.

        Args:
            images: each ``(3, H, W)`` in [-1, 1].
            rois: ``(r, 4)`` per image, in its pixels; on the CPU, where their corners are read.
        """
        pooled = []
        for image, corners in zip(images, rois, strict=True):
            features = self.encoder(F.pad(image[None], [self.padding] * 4))[0]
            pooled.append(
                box_ops.roi_max_pool(features.float(), corners, self.stride, self.roi_size)
            )
        hidden = self.head(torch.cat(pooled))
        deltas: Tensor = self.regress(hidden)
        return self.score(hidden), deltas.view(len(deltas), -1, 4)


@dataclass(frozen=True)
class _Sample:
    image: Tensor  # uint8 (3, H, W)
    rois: Tensor  # (r, 4)
    labels: Tensor  # (r,): 0 background
    targets: Tensor  # (r, 4): coded boxes, for labels above 0


def sample_rois(
    proposals: FloatArray,
    truth: FloatArray,
    labels: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """Sample boxes for training: up to a quarter on objects, the others hard background.

    Boxes on an object have an IoU of at least 0.5 with it (the objects' own boxes are candidates).
    Background boxes have a largest IoU in [0.1, 0.5) or, if an image has none, below 0.5.

    Args:
        proposals: ``(N, 4)``.
        truth: objects ``(M, 4)``.
        labels: classes of the objects, ``(M,)``, from 1.
        count: largest number of boxes.
        rng: source of randomness.

    Returns:
        Boxes ``(R, 4)``, labels ``(R,)``, coded targets ``(R, 4)``, 0 for background.
    """
    candidates = np.concatenate([truth, proposals])
    overlaps = box_ops.iou(candidates, truth) if len(truth) else np.zeros((len(candidates), 1))
    best, which = overlaps.max(1), overlaps.argmax(1)
    on_object = np.flatnonzero(best >= 0.5)
    background = np.flatnonzero((best >= 0.1) & (best < 0.5))
    if not len(background):
        background = np.flatnonzero(best < 0.5)
    positives = rng.permutation(on_object)[: count // 4]
    negatives = rng.permutation(background)[: count - len(positives)]
    chosen = np.concatenate([positives, negatives])
    found = np.zeros(len(chosen), np.int64)
    targets = np.zeros((len(chosen), 4))
    if len(positives):
        found[: len(positives)] = labels[which[positives]]
        targets[: len(positives)] = box_ops.encode(candidates[positives], truth[which[positives]])
    return candidates[chosen], found, targets


class Detect(Task):
    """Fast R-CNN: cross-entropy over classes plus smooth L1 of the coded boxes."""

    def __init__(
        self,
        config: DetectConfig,
        network: Backbone,
        train: list[Item],
        test: list[Item],
        proposals: Mapping[str, FloatArray],
    ) -> None:
        self.config, self.items, self._test = config, train, test
        self._proposals = proposals
        self.model = FastRCNN(
            network, len(config.classes) + 1, config.fc_dim, config.roi_size, config.dropout
        )
        self.encoder = self.model.encoder

    def _scaled(self, image: Image.Image) -> tuple[Tensor, float]:
        config = self.config
        factor = min(config.short_side / min(image.size), config.long_side / max(image.size))
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), factor

    def sample(self, image: Image.Image, item: Item, rng: np.random.Generator) -> _Sample:
        counted = ~item.difficult
        # Parts of boxes outside the image have no cells on the map.
        rois, labels, targets = sample_rois(
            box_ops.clip(self._proposals[item.name], *image.size),
            box_ops.clip(item.boxes[counted], *image.size),
            item.labels[counted] + 1,
            self.config.rois,
            rng,
        )
        pixels, factor = self._scaled(image)
        if rng.random() < 0.5:
            pixels = pixels.flip(2)
            rois = box_ops.flip(rois, image.width)
            targets[:, 0] *= -1
        return _Sample(
            pixels,
            torch.from_numpy(rois * factor).float(),
            torch.from_numpy(labels),
            torch.from_numpy(targets).float(),
        )

    def losses(self, samples: list[_Sample], device: torch.device) -> dict[str, Tensor]:
        scores, deltas = self.model(
            [to_input(s.image.to(device)) for s in samples], [s.rois for s in samples]
        )
        labels = torch.cat([s.labels for s in samples])
        # Selected on the CPU: on the device, their number would need a synchronization.
        on_object = torch.nonzero(labels)[:, 0]
        targets = torch.cat([s.targets for s in samples])[on_object].to(device)
        chosen = deltas.float()[on_object.to(device), labels[on_object].to(device)]
        count = max(len(labels), 1)
        loss_class = F.cross_entropy(scores.float(), labels.to(device), reduction="sum") / count
        loss_box = F.smooth_l1_loss(chosen, targets, reduction="sum") / count
        return {
            "loss": loss_class + loss_box,
            "loss_class": loss_class.detach(),
            "loss_box": loss_box.detach(),
        }

    def detect(
        self, image: Image.Image, proposals: FloatArray, device: torch.device
    ) -> list[tuple[FloatArray, FloatArray]]:
        """Boxes ``(N, 4)`` and scores ``(N,)`` per class, after non-maximum suppression."""
        config = self.config
        empty = np.zeros((0, 4)), np.zeros(0)
        if not len(proposals):
            return [empty for _ in config.classes]
        proposals = box_ops.clip(proposals, *image.size)
        pixels, factor = self._scaled(image)
        rois = torch.from_numpy(proposals * factor).float()
        scores, deltas = self.model([to_input(pixels.to(device))], [rois])
        probability = scores.double().softmax(1).cpu().numpy()
        coded = deltas.double().cpu().numpy()
        result = []
        for k in range(1, len(config.classes) + 1):
            strong = probability[:, k] >= config.min_score
            found = box_ops.decode(proposals[strong], coded[strong, k])
            found, values = box_ops.clip(found, *image.size), probability[strong, k]
            kept = box_ops.nms(found, values, config.max_iou)
            result.append((found[kept], values[kept]))
        return result

    def evaluate(self, device: torch.device) -> dict[str, Any]:
        classes = self.config.classes
        found: list[dict[str, tuple[FloatArray, FloatArray]]] = [{} for _ in classes]
        truth: list[dict[str, tuple[FloatArray, NDArray[np.bool_]]]] = [{} for _ in classes]
        unreadable = 0
        for item in tqdm(self._test, unit="image", dynamic_ncols=True):
            try:
                image = read_image(item.image, upright=False)
            except UnreadableImage:
                unreadable += 1
                continue
            detections = self.detect(image, self._proposals[item.name], device)
            for k, detected in enumerate(detections):
                found[k][item.name] = detected
                mine = item.labels == k
                truth[k][item.name] = item.boxes[mine], item.difficult[mine]
        if unreadable == len(self._test):
            raise ValueError("none of the test images can be read")
        per_class = {
            name: {
                "ap_11_point": detection_ap(found[k], truth[k], "11-point"),
                "ap_area": detection_ap(found[k], truth[k], "area"),
            }
            for k, name in enumerate(classes)
        }
        return summary(per_class, len(self._test) - unreadable, unreadable)


@register_transfer(
    "voc-detect",
    config=DetectConfig,
    summary="VOC07 detection as Fast R-CNN",
    data="VOC2007, trainval / test",
    reports="AP by class and mean, 11-point and area",
)
def run(config: DetectConfig) -> int:
    """Train, evaluate and write the results; see :func:`run_task`."""
    train, test = read_annotated(config)
    cache = config.voc / f"proposals-{config.year}.npz"
    proposals = find_proposals([*train, *test], config.proposals, cache, config.max_proposals)
    return run_task(
        config,
        "voc-detect",
        lambda network: Detect(config, network, train, test, proposals),
        digest(train),
    )
