"""The configuration of a training run: one definition for command line, file and checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ModelName = Literal["small", "alexnet", "alexnet-poolfree", "center", "random"]
MaskName = Literal["central", "block", "region", "blob", "folder", "voc"]
PresetName = Literal[
    "laptop",
    "features-region",
    "features-block",
    "features-central",
    "inpaint-center",
    "inpaint-region",
    "inpaint-blob",
]

# RGB on the [0, 255] scale.
FILL_COLORS: dict[str, tuple[float, float, float]] = {
    "imagenet-mean": (123.0, 117.0, 104.0),
    # train.lua of the released code puts the same numbers on other channels.
    "released-order": (117.0, 104.0, 123.0),
}


class TrainConfig(BaseModel):
    """Everything that determines a run. The defaults are those of the preset "laptop"."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: PresetName = Field("laptop", description="Named recipe that sets the defaults.")

    data: Path | None = Field(
        None, description="Folder of photographs, any nesting. Default: those that ship."
    )
    val_data: Path | None = Field(
        None, description="Folder of held-out photographs. Default: a part of --data is held out."
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.18, description="Fraction of the photographs that is held out (512 at most)."
    )
    val_samples: Annotated[int, Field(ge=1)] = Field(
        96, description="Fixed crops of held-out photographs to validate on."
    )
    resize: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Short side, in pixels, photographs are scaled to. Default: 2 x size."
    )
    crop_scale: tuple[float, float] = Field(
        (0.4, 1.0), description="Side of a random crop as a part of the short side, from .. to."
    )
    flip: bool = Field(True, description="Mirror half of the crops.")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Data processes. Default: none for --model small, else by CPU count."
    )

    model: ModelName = Field("small", description="Network.")
    size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Side of the square input in pixels. Default: the model's own."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout after the channel-wise layer (alexnet models)."
    )

    mask: MaskName = Field("region", description="Kind of mask.")
    mask_folder: Path | None = Field(
        None, description="Folder of mask images, white = missing (--mask folder)."
    )
    voc_root: Path | None = Field(
        None, description="VOCdevkit folder whose object shapes are used (--mask voc)."
    )
    fill: Literal["imagenet-mean", "released-order"] = Field(
        "imagenet-mean",
        description="Colour of the hole; released-order permutes the channels as train.lua does.",
    )

    loss: Literal["l2", "l1"] = Field("l2", description="Reconstruction loss.")
    normalize: Literal["mask", "all"] = Field(
        "mask", description="Divide it by the masked elements (paper) or by all (released code)."
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        7, description="Band of context, in pixels, that the network predicts too."
    )
    overlap_weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Weight of the band in the reconstruction loss."
    )
    lambda_rec: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the reconstruction loss."
    )
    lambda_adv: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the adversarial loss; 0 for none."
    )

    steps: Annotated[int, Field(ge=1)] = Field(1000, description="Training steps.")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Passes over the photographs; overrides --steps."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        32, description="Images a step, over all processes together."
    )
    lr: Annotated[float, Field(gt=0)] = Field(5e-3, description="Adam's rate for the network.")
    lr_discriminator_ratio: Annotated[float, Field(gt=0)] = Field(
        0.1, description="The discriminator's rate as a part of --lr."
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Cosine decays the rate to 0 over the run."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Steps over which the rate rises from 0."
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Adam's first beta.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2 penalty in Adam.")

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    amp: Literal["off", "bf16", "fp16"] = Field("off", description="Mixed precision by autocast.")
    compile: bool = Field(False, description="torch.compile the networks.")
    channels_last: bool = Field(True, description="Memory format of the convolutions.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of weights, crops and masks."
    )

    out: Path | None = Field(
        None, description="Run folder to make. Default: runs/<preset>-<date>-<time>."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(
        25, description="Steps between training lines; only there the device is waited for."
    )
    val_every: Annotated[int, Field(ge=1)] = Field(
        250, description="Steps between validations, checkpoints and sample sheets."
    )
    sample_rows: Annotated[int, Field(ge=1)] = Field(8, description="Rows of a sample sheet.")

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        """What is not given comes from the preset."""
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "laptop"), {}), **values}

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be 0 < from <= to <= 1, got {low} {high}")
        if self.mask == "folder" and self.mask_folder is None:
            raise ValueError("--mask folder needs --mask-folder FOLDER")
        if self.mask == "voc" and self.voc_root is None:
            raise ValueError("--mask voc needs --voc-root VOCDEVKIT")
        if self.lambda_rec == 0 and self.lambda_adv == 0:
            raise ValueError("lambda_rec and lambda_adv are both 0: nothing to train on")
        return self

    def fill_color(self) -> tuple[float, float, float]:
        """The hole's colour, RGB on [-1, 1]."""
        red, green, blue = FILL_COLORS[self.fill]
        return (red / 127.5 - 1, green / 127.5 - 1, blue / 127.5 - 1)


# The published recipes (see docs/recipes.md for where each number comes from). A preset lists
# what differs from TrainConfig's defaults.
_RELEASED: dict[str, Any] = {
    "overlap": 4,
    "overlap_weight": 10.0,
    "lambda_rec": 0.999,
    "lambda_adv": 0.001,
    "batch_size": 64,
    "lr": 2e-3,
    "lr_schedule": "constant",
    "beta1": 0.5,
    "resize": 350,
    "crop_scale": (128 / 350, 128 / 350),
    "steps": 100_000,
    "val_fraction": 0.05,
    "val_every": 2000,
    "log_every": 50,
}
_FEATURES: dict[str, Any] = {
    "model": "alexnet",
    "dropout": 0.5,
    "overlap": 0,
    "batch_size": 64,
    "lr_schedule": "constant",
    "resize": 256,
    "crop_scale": (227 / 256, 227 / 256),
    "steps": 100_000,
    "val_fraction": 0.05,
    "val_every": 2000,
    "log_every": 50,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "features-region": {**_FEATURES, "mask": "region", "lr": 1e-4},
    "features-block": {**_FEATURES, "mask": "block", "lr": 1e-4},
    "features-central": {**_FEATURES, "mask": "central", "lr": 1e-3},
    "inpaint-center": {**_RELEASED, "model": "center", "mask": "central"},
    "inpaint-region": {**_RELEASED, "model": "random", "mask": "region"},
    "inpaint-blob": {**_RELEASED, "model": "random", "mask": "blob"},
}

# The recipe that --model alone stands for.
MODEL_PRESETS: dict[str, str] = {
    "small": "laptop",
    "alexnet": "features-region",
    "alexnet-poolfree": "features-region",
    "center": "inpaint-center",
    "random": "inpaint-region",
}


def preset(name: str) -> TrainConfig:
    """The configuration of a named recipe."""
    return TrainConfig.model_validate({"preset": name})
