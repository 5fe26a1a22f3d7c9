"""The options of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from context_encoder.config import OpenConfig
from context_encoder.evaluation.fills import BaselineName
from context_encoder.evaluation.squares import check_squares
from context_encoder.masks import MASKS, MaskName, masks_without_files
from context_encoder.pretexts.base import VALIDATION_SEED
from context_encoder.runs import Which
from context_encoder.utils.registry import Registry

__all__ = ["EvaluateConfig", "check_options"]

#: Sides of the crops and of their holes for an evaluation without a run.
_NATIVE_CROP = 256
_NATIVE_HOLES = (24, 48, 80, 112)


class EvaluateConfig(OpenConfig):
    """Measure how well trained networks and baselines fill holes.

    Without `data`: the photographs that the first run held out, with the holes that training
    validates on. With `crop` or `holes`: larger crops at the photographs' own resolution, filled
    in windows as the command inpaint does. Without `checkpoint`: the same for the fill that inpaint
    makes without a network of yours. Existing results are not computed again, so an interrupted
    command continues when it is repeated.
    """

    selectors: ClassVar[Mapping[str, Registry[Any]]] = {"masks": MASKS}

    checkpoint: tuple[Path, ...] = Field(
        (),
        description="Run folders of training, or checkpoint folders in them; several are "
        "compared with each other. Default: none, the package's own fills beside baselines.",
    )
    data: Path | None = Field(
        None,
        description="Folder of photographs. Default: those the first run held out; without a "
        "run, those of the package that no training uses.",
    )
    samples: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Crops to evaluate on. Default: one per photograph, or those that the first "
        "run was validated on.",
    )
    crop: Annotated[int, Field(ge=32)] | None = Field(
        None,
        description="Side in pixels of crops at the photographs' own resolution. Default: "
        f"{_NATIVE_CROP} with `holes` or without a run, otherwise crops of the network's size.",
    )
    holes: tuple[int, ...] | None = Field(
        None,
        description="Sides in pixels of square holes, in turns. Default: "
        f"{' '.join(map(str, _NATIVE_HOLES))} with `crop` and without `masks`.",
    )
    holes_per_crop: Annotated[int, Field(ge=1)] = Field(
        1, description="Square holes in each crop, of the same side."
    )
    crop_scale: tuple[float, float] | None = Field(
        None,
        description="Range of a crop's side, as a fraction of the short side. Default: as in the "
        "first run's training.",
    )
    masks: tuple[MaskName, ...] | None = Field(
        None,
        description="Kinds of mask. Default: all that need no folder; none with `crop` or `holes`.",
    )
    # With this seed and no `data`, crops and holes are those of the run's validation.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        VALIDATION_SEED, description="Seed of the masks."
    )
    area_bins: tuple[float, ...] = Field(
        (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1),
        description="Edges of the bins of masked area, as fractions of the image.",
    )
    blend: bool = Field(
        True,
        description="Also measure each network's fill with its seam removed and with texture, as "
        "in inpaint.",
    )
    baselines: tuple[BaselineName, ...] | None = Field(
        None,
        description="Baselines. Default: all that the installed packages allow, without the parts "
        "of hole-filler.",
    )
    candidates: Path | None = Field(
        None,
        description="Folder of photographs for nearest-neighbour search. Default: those "
        "the first run was trained on.",
    )
    candidate_crops: Annotated[int, Field(ge=1)] = Field(
        256, description="Candidate crops, spread evenly over their photographs."
    )
    perceptual: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Measure the EfficientNet-Lite0 feature distance; auto: if its packages are "
        "installed.",
    )
    columns: tuple[str, ...] | None = Field(
        None,
        description="Methods in the sheets for comparison, by their names in results.csv. Default: "
        "the networks, then hole-filler, fsr, membrane, shiftmap.",
    )
    blind: bool = Field(
        False,
        description="Also draw sheets for a reader who must not know the methods, and a key file.",
    )
    leak_samples: Annotated[int, Field(ge=0)] = Field(
        2000,
        description="Training photographs that are decoded, at most, to find copies in another "
        "encoding or size; 0: only copies with the same bytes are found.",
    )
    out: Path | None = Field(
        None,
        description="Folder for the results. Default: evaluation in the first run's folder, or "
        "evaluation in the current one.",
    )
    html: Path | None = Field(
        None,
        description="Also write a report to this file (.html): tables that can be sorted, curves, "
        "sheets, in one file that needs nothing else. An older one is replaced.",
    )
    which: Which = Field(
        "best", description="Checkpoint of each run: best on held-out photographs, or last."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="Images at a time.")
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        names = values.get("masks")
        if not isinstance(names, (list, tuple)):
            native = values.get("crop") or values.get("holes") or not values.get("checkpoint")
            names = () if native else masks_without_files()
        return [("masks", MASKS.canonical(name)) for name in names if name in MASKS]

    @property
    def native(self) -> int | None:
        """Side of crops at the photographs' own resolution; None: those of the network's size."""
        if self.crop is not None:
            return self.crop
        return _NATIVE_CROP if self.holes or not self.checkpoint else None

    @property
    def squares(self) -> tuple[int, ...]:
        """Sides of the square holes; empty: none."""
        if self.holes is not None:
            return self.holes
        return _NATIVE_HOLES if self.native is not None and self.masks is None else ()


def check_options(config: EvaluateConfig) -> None:
    """ValueError for incompatible options."""
    edges = config.area_bins
    if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] < 0 or edges[-1] > 1:
        raise ValueError(f"`area_bins` must be two or more ascending parts of 1, got {edges}")
    if config.crop_scale is not None and not 0 < config.crop_scale[0] <= config.crop_scale[1] <= 1:
        raise ValueError(f"`crop_scale` must be 0 < from <= to <= 1, got {config.crop_scale}")
    if config.holes_per_crop > 1 and not config.squares:
        raise ValueError("`holes_per_crop` would do nothing: it needs `holes`")
    if config.native is None:
        return
    if config.crop_scale is not None:
        raise ValueError("`crop_scale` would do nothing: crops at their own resolution have a side")
    if not config.squares and not config.masks:
        raise ValueError("nothing would be missing: give `holes` a side, or `masks` a kind")
    check_squares(config.squares, config.native)
    searched = [name for name in config.baselines or () if name.startswith("nn-")]
    if searched:
        raise ValueError(
            f"`baselines` {searched[0]} searches crops of the network's size: it needs "
            "`checkpoint`, and neither `crop` nor `holes`"
        )
