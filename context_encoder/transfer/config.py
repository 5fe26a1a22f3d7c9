"""Options of all transfers to PASCAL VOC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from context_encoder.config.train_config import MOST_IMAGES, MOST_STEPS, MOST_WORKERS
from context_encoder.transfer.backbone import BackboneConfig
from context_encoder.transfer.voc import CLASSES


class TransferConfig(BackboneConfig):
    """Options of all transfers to PASCAL VOC."""

    voc: Path = Field(Path("VOCdevkit"), description="VOCdevkit folder.")
    year: str = Field("VOC2007", description="Data set in that folder.")
    train_split: str = Field("trainval", description="Split to train on.")
    test_split: str = Field("test", description="Split to evaluate on.")
    classes: tuple[str, ...] = Field(CLASSES, description="Names of the classes, in order.")

    max_unreadable: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of the images drawn that others may replace; above it the run ends."
    )
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(80_000, description="Training steps.")
    batch_size: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = Field(
        16, description="Images per step."
    )
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="SGD's learning rate.")
    lr_step: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Period in steps after which lr is multiplied by `lr_gamma`."
    )
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="See `lr_step`.")
    bias_lr: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Learning rate of biases, as a multiple of that of weights."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 penalty.")
    bias_decay: bool = Field(False, description="Apply the L2 penalty to biases too.")
    clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the gradient."
    )
    fc_dim: Annotated[int, Field(ge=1)] = Field(4096, description="Width of fc6 and fc7.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="Dropout after fc6 and fc7."
    )

    amp: Literal["off", "bf16"] = Field("off", description="Mixed precision by autocast.")
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = Field(0, description="Data processes.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of new weights, order, crops and dropout."
    )
    out: Path | None = Field(
        None, description="Run folder to create. Default: runs/<command>-<time>."
    )
    resume: Path | None = Field(None, description="Run folder to continue with its options.")
    log_every: Annotated[int, Field(ge=1)] = Field(20, description="Steps between log lines.")
    save_every: Annotated[int, Field(ge=1)] = Field(1000, description="Steps between checkpoints.")
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        15.0, description="Most minutes between two checkpoints."
    )
    keep: Annotated[int, Field(ge=1)] = Field(
        1, description="Number of the last checkpoints to keep."
    )
