"""Configuration of a training run, used by the command line, files and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from context_encoder.config.open_config import OpenConfig, in_words
from context_encoder.config.presets import PRESETS, PresetName, default_preset
from context_encoder.config.pretexts import PRETEXTS, PretextName
from context_encoder.masks import MASKS, MaskName
from context_encoder.models import MODELS, ModelName
from context_encoder.utils.option_groups import Need
from context_encoder.utils.registry import Registry

#: Largest numbers of data processes and of images per step: above, a mistyped option or a damaged
#: file is more likely, with which a machine would be busy for hours before the first step.
MOST_WORKERS, MOST_IMAGES = 1024, 65536
#: Largest number of steps, which every library can count.
MOST_STEPS = 2**53 - 1


def _location(value: str | Path) -> str | Path:
    """A URL as it is, which a path would not keep; any other text as a path."""
    return Path(value) if isinstance(value, str) and "://" not in value else value


#: A path, or a URL as text.
Location = Annotated[str | Path, AfterValidator(_location)]

# RGB on the [0, 255] scale.
FILL_COLORS: dict[str, tuple[float, float, float]] = {
    "imagenet-mean": (123.0, 117.0, 104.0),
    # train.lua of the released code assigns the same values to other channels.
    "released-order": (117.0, 104.0, 123.0),
}


def fill_color(name: str = "imagenet-mean") -> tuple[float, float, float]:
    """A colour of :data:`FILL_COLORS`, RGB on [-1, 1]."""
    red, green, blue = FILL_COLORS[name]
    return (red / 127.5 - 1, green / 127.5 - 1, blue / 127.5 - 1)


class TrainConfig(OpenConfig):
    """Everything that determines a run: the fields below, and the options of its mask, model and
    pretext, see :class:`OpenConfig`. Values that are not given come from the preset."""

    selectors: ClassVar[Mapping[str, Registry[Any]]] = {
        "pretext": PRETEXTS,
        "model": MODELS,
        "mask": MASKS,
    }
    needs: ClassVar[tuple[Need, ...]] = (
        Need(("val_fraction",), "val_data", lambda folder: folder is None, "left out"),
        Need(("decoded_cache_gb",), "decoded_cache", lambda folder: folder is not None, "given"),
    )

    preset: PresetName = Field(
        default_factory=default_preset, description="Named recipe that sets the defaults."
    )
    pretext: PretextName = Field(
        default_factory=PRETEXTS.default,
        description="Task to learn from: fill a hole; reconstruct the whole image, from itself "
        "or from a corrupted one; predict the relative position of two patches.",
    )

    data: Location | None = Field(
        None,
        description="Photographs: a folder with any nesting, a text file that lists them, or tar "
        "shards (folder, pattern or URL). Default: the packaged ones.",
    )
    val_data: Location | None = Field(
        None, description="Held-out photographs, likewise. Default: a part of `data` is held out."
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.18, description="Fraction of the photographs that is held out (at most 512)."
    )
    val_samples: Annotated[int, Field(ge=1)] = Field(
        96, description="Fixed crops of held-out photographs to validate on."
    )
    resize: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Short side of the scaled photographs in pixels. Default: 2 x size."
    )
    crop_scale: tuple[float, float] = Field(
        (0.4, 1.0), description="Range of a random crop's side, as a fraction of the short side."
    )
    flip: bool = Field(True, description="Mirror half of the crops.")
    max_unreadable: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="Share of the photographs drawn that others may replace because they cannot "
        "be read; above it the run ends.",
    )
    decoded_cache: Path | None = Field(
        None,
        description="Folder for decoded photographs, which later epochs and other runs read "
        "instead of the files.",
    )
    decoded_cache_gb: Annotated[float, Field(gt=0)] = Field(
        50.0, description="Most gigabytes in `decoded_cache`; the other photographs are decoded."
    )
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] | None = Field(
        None,
        description="Data processes. Default: by CPU count; none for networks that train fast.",
    )

    model: ModelName = Field(default_factory=MODELS.default, description="Network.")
    size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Side of the square input in pixels. Default: the model's own."
    )
    mask: MaskName = Field(default_factory=MASKS.default, description="Kind of mask.")
    fill: Literal["imagenet-mean", "released-order"] = Field(
        "imagenet-mean",
        description="Colour of the hole; released-order permutes the channels as train.lua does.",
    )

    loss: Literal["l2", "l1", "log-l2"] = Field(
        "l2",
        description="Reconstruction loss: l2 (paper), l1, or the mean logarithm of each image's "
        "l2, which is the mean PSNR up to a factor (Chen et al. 2021).",
    )
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(1000, description="Training steps.")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Passes over the photographs; overrides `steps`."
    )
    batch_size: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = Field(
        32, description="Images per step, over all processes together."
    )
    accumulate: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = Field(
        1,
        description="Equal parts that a step's images are computed in, one after the other, to "
        "save memory; their gradients are added up. Batch normalisation sees one part at a time.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(5e-3, description="Adam's learning rate.")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Cosine decays the learning rate to 0 over the run."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Steps over which the learning rate rises from 0."
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Adam's first beta.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2 penalty in Adam.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Decay per step of a moving average of the weights, which is validated and "
        "saved as the network (Polyak and Juditsky 1992); 0 for the weights themselves.",
    )

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    amp: Literal["off", "bf16", "fp16"] = Field("off", description="Mixed precision by autocast.")
    compile: bool = Field(False, description="torch.compile the networks and the masks.")
    graph: bool = Field(
        False,
        description="Capture the step in a CUDA graph, so that the GPU does not wait for Python; "
        "on one GPU.",
    )
    channels_last: bool = Field(True, description="Memory format of the convolutions.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of weights, crops and masks."
    )

    out: Path | None = Field(
        None, description="Run folder to create. Default: runs/<preset>-<date>-<time>."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(
        25, description="Steps between log lines (each synchronizes with the device)."
    )
    val_every: Annotated[int, Field(ge=1)] = Field(
        250, description="Steps between validations, checkpoints and sample sheets."
    )
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between further checkpoints, without a validation."
    )
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        15.0, description="Most minutes between two checkpoints."
    )
    keep: Annotated[int, Field(ge=1)] = Field(
        1, description="Number of the last checkpoints to keep, besides the best one."
    )
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        120.0, description="Seconds of silence of a process after which the others end."
    )
    sample_rows: Annotated[int, Field(ge=1)] = Field(8, description="Rows of a sample sheet.")

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The given values, and those of the preset that are not given and have an effect.

        Without a preset, values that name the network or the pretext are completed by the
        defaults of the fields, and others by the preset of a run without options.
        """
        if "preset" not in values:
            named = {"model", "pretext"} & values.keys()
            values = {"preset": default_preset(MODELS.default() if named else None), **values}
        name = values["preset"]
        recipe = PRESETS[name].values if isinstance(name, str) and name in PRESETS else {}
        idle = idle_options({**recipe, **values})
        return {**{name: v for name, v in recipe.items() if name not in idle}, **values}

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"`crop_scale` must be 0 < from <= to <= 1, got {low} {high}")
        return self

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        chosen = []
        for selector, choices in cls.selectors.items():
            name = values.get(selector, choices.default())
            if isinstance(name, str) and name in choices:
                chosen.append((selector, choices.canonical(name)))
        pretext = dict(chosen).get("pretext")
        if pretext is not None and "mask" not in PRETEXTS[pretext].uses:
            chosen = [pair for pair in chosen if pair[0] != "mask"]
        return chosen

    @classmethod
    def idle_options(cls, values: Mapping[str, Any]) -> dict[str, str]:
        idle: dict[str, str] = {}
        chosen = dict(cls.chosen(values))
        if "pretext" in chosen:
            name = chosen["pretext"]
            spec = PRETEXTS[name]

            def reason(users: list[str]) -> str:
                return f"needs `pretext` {in_words(users)}, this run has `pretext` {name}"

            users: dict[str, list[str]] = {}
            for other, its in PRETEXTS.items():
                for used in its.uses:
                    users.setdefault(used, []).append(other)
            idle = {used: reason(by) for used, by in users.items() if used not in spec.uses}
            if "mask" in idle:
                for option_name, owners in cls.owners().items():
                    if owners[0][0] == "mask":
                        idle[option_name] = idle["mask"]
            if "model" in chosen and not MODELS[chosen["model"]].sees_color:
                seeing = in_words(MODELS.names(lambda other: other.sees_color))
                reason_fill = f"needs `model` {seeing}, this run has `model` {chosen['model']}"
                idle.setdefault("fill", reason_fill)
            if spec.encoder_only and "model" in chosen:
                for used in MODELS[chosen["model"]].bottleneck_options:
                    idle[used] = reason(PRETEXTS.names(lambda other: not other.encoder_only))
        return {**super().idle_options(values), **idle}

    def options_changed_on_resume(self, before: TrainConfig) -> list[str]:
        """The options of mask, model and pretext that differ but must not change on resume."""
        changed: list[str] = []
        chosen = self.chosen(dict(before))
        for group in dict.fromkeys(self.group_of(*pair) for pair in chosen):
            changed += self.options(group).changed_on_resume(before.options(group))
        return changed

    def fill_color(self) -> tuple[float, float, float]:
        """The hole's colour, RGB on [-1, 1]."""
        return fill_color(self.fill)


def idle_options(values: Mapping[str, Any]) -> dict[str, str]:
    """:meth:`OpenConfig.idle_options` of :class:`TrainConfig`."""
    return TrainConfig.idle_options(values)


def preset(name: str) -> TrainConfig:
    """The configuration of a named preset."""
    return TrainConfig.model_validate({"preset": name})
