"""VOC07 classification by Krähenbühl's recipe (Krähenbühl et al. 2016; Pathak et al. 2016, 5.2)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from context_encoder.data import UnreadableImage, read_image, to_input
from context_encoder.models import Backbone
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.dataset import digest, read_annotated
from context_encoder.transfer.heads import fc6_fc7, fully_connected, map_shape
from context_encoder.transfer.metrics import classification_ap
from context_encoder.transfer.registry import register_transfer
from context_encoder.transfer.results import summary
from context_encoder.transfer.task import Task
from context_encoder.transfer.training import run_task
from context_encoder.transfer.voc import Item

Tuned = Literal["all", "fc6-8", "fc8", "linear"]


class ClassifyConfig(TransferConfig):
    """VOC07 classification: the classes present in an image."""

    tune: Tuned = Field(
        "all",
        description="Trained layers: all; fc6-8 or fc8 alone; or linear, one layer on the "
        "encoder's map instead of fc6 to fc8.",
    )
    scale: tuple[float, float] = Field(
        (0.5, 2.0), description="Range of the images' scaling factor, times size / 227."
    )
    test_crops: Annotated[int, Field(ge=1)] = Field(
        10, description="Random crops per test image whose scores are averaged."
    )
    lr_step: Annotated[int, Field(ge=1)] | None = Field(
        10_000, description="Steps per halving of lr."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-6, description="L2 penalty.")
    bias_decay: bool = Field(True, description="Apply the L2 penalty to biases too.")
    clip: Annotated[float, Field(gt=0)] | None = Field(
        10.0, description="Largest norm of the gradient."
    )


def random_crop(
    image: Image.Image, size: int, scale: tuple[float, float], rng: np.random.Generator
) -> Tensor:
    """A square of a randomly scaled image, mirrored or not: uint8 ``(3, size, size)``.

    The factor is uniform in ``scale``, times size / 227, and raised if the image would be
    smaller than the square.
    """
    factor = max(rng.uniform(*scale) * size / 227, size / min(image.size))
    side = size / factor
    left, top = (rng.uniform(0, max(length - side, 0)) for length in image.size)
    mirror = rng.random() < 0.5
    square = image.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, min(left + side, image.width), min(top + side, image.height)),
    )
    return torch.from_numpy(np.asarray(square)[:, :: -1 if mirror else 1].transpose(2, 0, 1).copy())


class Classify(Task):
    """Encoder, fc6 to fc8 (or one linear layer), per-class sigmoid loss."""

    def __init__(
        self, config: ClassifyConfig, network: Backbone, train: list[Item], test: list[Item]
    ) -> None:
        self.config, self.items, self._test = config, train, test
        self._size = network.image_size
        self.encoder = network.encoder
        channels, side = map_shape(network, self.encoder)
        dim, classes = config.fc_dim, len(config.classes)
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        inputs = channels * side**2
        if config.tune == "linear":
            fc8 = nn.Linear(inputs, classes)
        else:
            fc6, fc7, fc8 = nn.Linear(inputs, dim), nn.Linear(dim, dim), nn.Linear(dim, classes)
            layers |= fc6_fc7(fc6, fc7, config.dropout)
        fully_connected(fc8)
        head = nn.Sequential(OrderedDict(layers, fc8=fc8))
        self.model = nn.Sequential(OrderedDict(encoder=self.encoder, head=head))
        if config.tune != "all":
            self.encoder.requires_grad_(False)
        if config.tune == "fc8":
            head.requires_grad_(False)
            head.fc8.requires_grad_(True)

    def sample(
        self, image: Image.Image, item: Item, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        crop = random_crop(image, self._size, self.config.scale, rng)
        return crop, torch.from_numpy(item.presence(len(self.config.classes)))

    def losses(
        self, samples: list[tuple[Tensor, Tensor]], device: torch.device
    ) -> dict[str, Tensor]:
        """Cross-entropy summed over the classes that are not ignored, averaged over images."""
        images = torch.stack([image for image, _ in samples]).to(device)
        labels = torch.stack([label for _, label in samples]).to(device)
        scores = self.model(to_input(images)).float()
        loss = F.binary_cross_entropy_with_logits(
            scores, (labels == 1).float(), weight=(labels >= 0).float(), reduction="sum"
        )
        return {"loss": loss / len(samples)}

    def evaluate(self, device: torch.device) -> dict[str, Any]:
        config = self.config
        scores, labels, unreadable = [], [], 0
        for number, item in enumerate(tqdm(self._test, unit="image", dynamic_ncols=True)):
            try:
                image = read_image(item.image, upright=False)
            except UnreadableImage:
                unreadable += 1
                continue
            rng = np.random.default_rng((0, number))
            crops = torch.stack(
                [
                    random_crop(image, self._size, config.scale, rng)
                    for _ in range(config.test_crops)
                ]
            )
            scores.append(self.model(to_input(crops.to(device))).double().mean(0).cpu().numpy())
            labels.append(item.presence(len(config.classes)))
        if not scores:
            raise ValueError("none of the test images can be read")
        all_scores, all_labels = np.stack(scores), np.stack(labels)
        per_class = {
            name: {
                "ap_11_point": classification_ap(all_scores[:, k], all_labels[:, k], "11-point"),
                "ap_area": classification_ap(all_scores[:, k], all_labels[:, k], "area"),
            }
            for k, name in enumerate(config.classes)
        }
        return summary(per_class, len(scores), unreadable)


@register_transfer(
    "voc-classify",
    config=ClassifyConfig,
    summary="VOC07 classification by Krähenbühl's recipe",
    data="VOC2007, trainval / test",
    reports="AP by class and mean, 11-point and area",
)
def run(config: ClassifyConfig) -> int:
    """Train, evaluate and write the results; see :func:`run_task`."""
    low, high = config.scale
    if not 0 < low <= high:
        raise ValueError(f"`scale` must be 0 < from <= to, got {low} {high}")
    train, test = read_annotated(config)
    return run_task(
        config,
        "voc-classify",
        lambda network: Classify(config, network, train, test),
        digest(train),
    )
