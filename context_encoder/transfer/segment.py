"""VOC12 segmentation as FCN-32s (Long et al. 2015; Pathak et al. 2016, section 5.2)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
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
from context_encoder.data.images import stored_size
from context_encoder.models import Backbone
from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.dataset import digest, read_splits
from context_encoder.transfer.heads import fc6_fc7, map_shape
from context_encoder.transfer.metrics import confusion, iou_per_class
from context_encoder.transfer.receptive_field import ReceptiveField, Upsampling, bilinear_kernel
from context_encoder.transfer.registry import register_transfer
from context_encoder.transfer.results import summary
from context_encoder.transfer.task import Task
from context_encoder.transfer.training import run_task
from context_encoder.transfer.voc import VOID, Item, read_labels

# Long et al. sum the loss over the image, with a learning rate of 1e-10 and a decay of 5e-4. With
# the mean over an image of 500 x 375 pixels, equal steps need the values below.
_PIXELS = 500 * 375


class SegmentConfig(TransferConfig):
    """VOC12 segmentation: the class of every pixel."""

    year: str = Field("VOC2012", description="Data set in that folder.")
    train_split: str = Field("train", description="Split to train on.")
    test_split: str = Field("val", description="Split to evaluate on.")
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(
        100_000, description="Training steps."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(1, description="Images per step.")
    lr: Annotated[float, Field(gt=0)] = Field(1e-10 * _PIXELS, description="SGD's rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4 / _PIXELS, description="L2 penalty.")
    fc6_kernel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Side of fc6's kernel. Default: the encoder's map (6 for AlexNet)."
    )


class FCN(nn.Module):
    """Encoder, fc6 and fc7 as convolutions, scores, fixed bilinear upsampling to the image.

    Args:
        network: the network whose encoder is used.
        classes: K, including the background.
        fc_dim, fc6_kernel, dropout: see :class:`SegmentConfig`.
    """

    def __init__(
        self, network: Backbone, classes: int, fc_dim: int, fc6_kernel: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = network.encoder
        channels, side = map_shape(network, self.encoder)
        kernel = fc6_kernel or side
        geometry = ReceptiveField.of(self.encoder).then(kernel)
        self.upsampling = Upsampling.fit(geometry)
        fc6, fc7 = nn.Conv2d(channels, fc_dim, kernel), nn.Conv2d(fc_dim, fc_dim, 1)
        score = nn.Conv2d(fc_dim, classes, 1)
        layers = {**fc6_fc7(fc6, fc7, dropout), "score": score}
        self.head = nn.Sequential(OrderedDict(layers))
        nn.init.zeros_(score.weight)
        nn.init.zeros_(score.bias)  # type: ignore[arg-type]
        self.upscore = nn.ConvTranspose2d(
            classes, classes, self.upsampling.kernel, geometry.stride, groups=classes, bias=False
        )
        self.upscore.weight.requires_grad_(False)
        self.upscore.weight.copy_(bilinear_kernel(self.upsampling.kernel))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, K, H, W)`` of images ``(B, 3, H, W)`` of any size."""
        height, width = x.shape[2:]
        # Padding with 0, which is mid-grey.
        scores = self.head(self.encoder(F.pad(x, [self.upsampling.padding] * 4)))
        top = self.upsampling.crop
        upscored: Tensor = self.upscore(scores)
        return upscored[:, :, top : top + height, top : top + width]


class Segment(Task):
    """FCN-32s: softmax loss over the pixels that are not void."""

    def __init__(
        self, config: SegmentConfig, network: Backbone, train: list[Item], test: list[Item]
    ) -> None:
        self.config, self.items, self._test = config, train, test
        self._names = ("background", *config.classes)
        self.model = FCN(
            network, len(self._names), config.fc_dim, config.fc6_kernel, config.dropout
        )
        self.encoder = self.model.encoder

    def sample(
        self, image: Image.Image, item: Item, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        pixels, labels = self._read(image, item)
        if rng.random() < 0.5:
            pixels, labels = pixels.flip(2), labels.flip(1)
        return pixels, labels

    def _read(self, image: Image.Image, item: Item) -> tuple[Tensor, Tensor]:
        labels = read_labels(item, len(self.config.classes))
        check_size(item, image.size, labels)
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        return pixels, torch.from_numpy(labels)

    def losses(
        self, samples: list[tuple[Tensor, Tensor]], device: torch.device
    ) -> dict[str, Tensor]:
        height, width = (max(label.shape[i] for _, label in samples) for i in (0, 1))
        images = torch.zeros(len(samples), 3, height, width, device=device)
        labels = torch.full((len(samples), height, width), VOID, device=device)
        for n, (image, label) in enumerate(samples):
            images[n, :, : image.shape[1], : image.shape[2]] = to_input(image.to(device))
            labels[n, : label.shape[0], : label.shape[1]] = label.to(device)
        loss = F.cross_entropy(
            self.model(images).float(), labels, ignore_index=VOID, reduction="sum"
        )
        return {"loss": loss / (labels != VOID).sum().clamp(min=1)}

    def evaluate(self, device: torch.device) -> dict[str, Any]:
        count = len(self._names)
        matrix, unreadable = np.zeros((count, count)), 0
        for item in tqdm(self._test, unit="image", dynamic_ncols=True):
            try:
                pixels, labels = self._read(read_image(item.image, upright=False), item)
            except UnreadableImage:
                unreadable += 1
                continue
            prediction = self.model(to_input(pixels[None].to(device)))[0].argmax(0).cpu().numpy()
            matrix += confusion(prediction, labels.numpy(), count)
        if not matrix.any():
            raise ValueError("none of the test images can be read")
        values = iou_per_class(matrix)
        per_class = {name: {"iou": float(values[k])} for k, name in enumerate(self._names)}
        result = summary(per_class, len(self._test) - unreadable, unreadable)
        result["pixel_accuracy"] = float(np.diag(matrix).sum() / matrix.sum())
        return result


def check_size(item: Item, size: tuple[int, int], labels: NDArray[np.int64]) -> None:
    """ValueError unless an image has the size of its labels."""
    if size != labels.shape[::-1]:
        raise ValueError(
            f"{item.image} is {size[0]} x {size[1]} pixels, {item.segmentation} "
            f"{labels.shape[1]} x {labels.shape[0]}"
        )


@register_transfer(
    "voc-segment",
    config=SegmentConfig,
    summary="VOC12 segmentation as FCN-32s",
    data="VOC2012, train / val",
    reports="IoU by class and mean, the background included",
)
def run(config: SegmentConfig) -> int:
    """Train, evaluate and write the results; see :func:`run_task`."""
    train, test = read_splits(config, "Segmentation")
    for split, items in ((config.train_split, train), (config.test_split, test)):
        seen: set[int] = set()
        for item in tqdm(items, unit="image", desc=f"checking {split}", dynamic_ncols=True):
            labels = read_labels(item, len(config.classes))
            with suppress(UnreadableImage):
                check_size(item, stored_size(item.image), labels)
            seen.update(np.unique(labels).tolist())
        absent = [name for k, name in enumerate(config.classes, 1) if k not in seen]
        if absent:
            raise ValueError(f"no pixel of class {', '.join(absent)} in split {split!r}")
    return run_task(
        config, "voc-segment", lambda network: Segment(config, network, train, test), digest(train)
    )
