"""The configuration of a training run: one definition for command line, file and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from context_encoder.config.presets import ALEXNETS, PRESETS
from context_encoder.utils.options import option

PretextName = Literal["inpainting", "autoencoder", "denoising", "relative-patch"]
ModelName = Literal["small", "alexnet", "alexnet-poolfree", "center", "random"]
MaskName = Literal["central", "block", "region", "blob", "folder", "voc"]
PresetName = Literal[
    "laptop",
    "features-region",
    "features-block",
    "features-central",
    "features-autoencoder",
    "features-denoising",
    "features-relative-patch",
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
    pretext: PretextName = Field(
        "inpainting",
        description="Task to learn from: fill a hole; give the whole picture back, as it was or "
        "from a corrupted one; tell how two patches lie to each other.",
    )

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
    norm: Literal["lrn", "batch", "none"] = Field(
        "lrn",
        description="Normalisation (alexnet models): local response as in AlexNet, batch or none.",
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

    noise: Literal["masking", "salt-pepper"] = Field(
        "masking",
        description="Corruption (--pretext denoising): cells blanked, or black and white.",
    )
    noise_amount: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="Part of the cells that is corrupted (--pretext denoising)."
    )
    noise_cell: Annotated[int, Field(ge=1)] = Field(
        1, description="Side of such a cell in pixels (--pretext denoising)."
    )

    patch_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Side of the patches in pixels (--pretext relative-patch). Default: the "
        "largest up to half of --size that the model's strides fit.",
    )
    patch_gap: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Pixels between them before jitter. Default: half of --patch-size."
    )
    patch_jitter: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Pixels each is moved by at most. Default: 7/96 of --patch-size."
    )
    patch_color: Literal["drop", "projection", "none"] = Field(
        "drop",
        description="Against chromatic aberration (--pretext relative-patch): replace two of three "
        "channels by noise, take green against magenta out, or leave the colours.",
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
        recipe = PRESETS.get(values.get("preset", "laptop"), {})
        idle = idle_options({**recipe, **values})
        return {**{name: v for name, v in recipe.items() if name not in idle}, **values}

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"--crop-scale must be 0 < from <= to <= 1, got {low} {high}")
        if self.mask == "folder" and self.mask_folder is None:
            raise ValueError("--mask folder needs --mask-folder FOLDER")
        if self.mask == "voc" and self.voc_root is None:
            raise ValueError("--mask voc needs --voc-root VOCDEVKIT")
        if self.lambda_rec == 0 and self.lambda_adv == 0:
            raise ValueError("--lambda-rec and --lambda-adv are both 0: nothing to train on")
        for name, reason in idle_options(self.model_dump()).items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(refusal(name, reason))
        return self

    def fill_color(self) -> tuple[float, float, float]:
        """The hole's colour, RGB on [-1, 1]."""
        red, green, blue = FILL_COLORS[self.fill]
        return (red / 127.5 - 1, green / 127.5 - 1, blue / 127.5 - 1)


# Which options need what: (names, the option that decides, whether its value will do, its values
# in words). Where several lines name an option, all must hold.
_NEEDS: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    (
        "mask mask_folder voc_root normalize overlap overlap_weight lambda_rec lambda_adv "
        "lr_discriminator_ratio",
        "pretext",
        lambda pretext: pretext == "inpainting",
        "inpainting",
    ),
    (
        "fill",
        "pretext",
        lambda pretext: pretext in ("inpainting", "denoising"),
        "inpainting or denoising",
    ),
    ("loss", "pretext", lambda pretext: pretext != "relative-patch", "one that makes pictures"),
    (
        "noise noise_amount noise_cell",
        "pretext",
        lambda pretext: pretext == "denoising",
        "denoising",
    ),
    (
        "patch_size patch_gap patch_jitter patch_color",
        "pretext",
        lambda pretext: pretext == "relative-patch",
        "relative-patch",
    ),
    ("dropout norm", "model", lambda model: model in ALEXNETS, "alexnet or alexnet-poolfree"),
    (
        "dropout",
        "pretext",
        lambda pretext: pretext != "relative-patch",
        "one with the channel-wise layer",
    ),
    ("mask_folder", "mask", lambda mask: mask == "folder", "folder"),
    ("voc_root", "mask", lambda mask: mask == "voc", "voc"),
    ("overlap_weight", "overlap", lambda overlap: overlap != 0, "1 or more"),
    ("lr_discriminator_ratio", "lambda_adv", lambda weight: weight != 0, "above 0"),
    ("fill", "noise", lambda noise: noise == "masking", "masking"),
    ("val_fraction", "val_data", lambda folder: folder is None, "left out"),
)


def idle_options(values: Mapping[str, Any]) -> dict[str, str]:
    """The options that would do nothing, each with the reason.

    Args:
        values: of a configuration, checked or not; what is missing has its default.
    """
    idle: dict[str, str] = {}
    for names, decider, serves, wanted in _NEEDS:
        value = values.get(decider, TrainConfig.model_fields[decider].default)
        if not serves(value):
            for name in names.split():
                idle.setdefault(
                    name,
                    f"needs {option(decider)} {wanted}, this run has {option(decider)} {value}",
                )
    return idle


def refusal(name: str, reason: str) -> str:
    """The sentence that refuses an idle option."""
    return f"{option(name)} would do nothing: it {reason}; leave it out"


def preset(name: str) -> TrainConfig:
    """The configuration of a named recipe."""
    return TrainConfig.model_validate({"preset": name})
