"""The transfers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from context_encoder.transfer import classify, detect, probe, segment
from context_encoder.transfer.backbone import BackboneConfig


@dataclass(frozen=True)
class Transfer:
    """A way to judge an encoder."""

    #: Its options.
    config: type[BackboneConfig]
    #: Called with them; returns the exit status.
    run: Callable[[Any], int]
    #: One line for people.
    summary: str


TRANSFERS: dict[str, Transfer] = {
    "probe": Transfer(
        probe.ProbeConfig,
        probe.run,
        "accuracy of a linear classifier on each layer's frozen features",
    ),
    "voc-classify": Transfer(
        classify.ClassifyConfig, classify.run, "VOC07 classification by Krähenbühl's recipe"
    ),
    "voc-segment": Transfer(segment.SegmentConfig, segment.run, "VOC12 segmentation as FCN-32s"),
    "voc-detect": Transfer(detect.DetectConfig, detect.run, "VOC07 detection as Fast R-CNN"),
}
