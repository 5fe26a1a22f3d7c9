"""Options of all transfers for the pretrained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from context_encoder.encoder.backbone import load_backbone
from context_encoder.models import Backbone, ModelName, default_features_model


class BackboneConfig(BaseModel):
    """A trained run, a file of weights, or fresh random weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Path | None = Field(
        None, description="Run or checkpoint folder. Default: random weights of `model`."
    )
    weights: Path | None = Field(None, description="File of encoder weights, for `model`.")
    model: ModelName = Field(
        default_factory=default_features_model,
        description="Network, if no `checkpoint` is given.",
    )
    image_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Side of its square input in pixels. Default: its own."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

    @model_validator(mode="after")
    def _one_source(self) -> BackboneConfig:
        if self.checkpoint is not None and self.weights is not None:
            raise ValueError("`checkpoint` and `weights` both name weights; give one of them")
        return self

    def load(self, seed: int) -> Backbone:
        """The network, in eval mode on the CPU; ``seed`` is the seed of random weights.

        Raises:
            RunError, ValueError: the weights are missing, damaged or do not fit.
        """
        return load_backbone(
            self.checkpoint,
            weights=self.weights,
            model=self.model,
            image_size=self.image_size,
            seed=seed,
        )

    @property
    def is_random(self) -> bool:
        """Whether the weights are fresh random ones."""
        return self.checkpoint is None and self.weights is None

    def describe(self) -> str:
        """The source of the weights in a few words."""
        if self.is_random:
            return f"{self.model}, random weights"
        return str(self.checkpoint or self.weights)
