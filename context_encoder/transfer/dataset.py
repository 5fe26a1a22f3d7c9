"""The splits of PASCAL VOC for training and evaluation of a transfer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from context_encoder.transfer.config import TransferConfig
from context_encoder.transfer.voc import Item, check_classes, read_split


def read_splits(
    config: TransferConfig, kind: Literal["Main", "Segmentation"]
) -> tuple[list[Item], list[Item]]:
    """Images for training and for evaluation; errors as in :func:`read_split`.

    Raises:
        ValueError: an image is in both splits.
    """
    train, test = (
        read_split(config.voc, config.year, split, kind, config.classes)
        for split in (config.train_split, config.test_split)
    )
    common = {item.name for item in train} & {item.name for item in test}
    if common:
        raise ValueError(
            f"{len(common)} images are in split {config.train_split!r} as well as in "
            f"{config.test_split!r}, the first: {min(common)}; use splits without common images"
        )
    return train, test


def read_annotated(config: TransferConfig) -> tuple[list[Item], list[Item]]:
    """Images for training and for evaluation with their objects; see :func:`read_splits`.

    Raises:
        ValueError: also if a split lacks a class.
    """
    train, test = read_splits(config, "Main")
    check_classes(config.train_split, train, config.classes)
    check_classes(config.test_split, test, config.classes)
    return train, test


def digest(items: Sequence[Item]) -> str:
    """A digest of the names of the images."""
    return hashlib.sha256("\0".join(item.name for item in items).encode()).hexdigest()
