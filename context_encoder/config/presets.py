"""The published recipes by name: what each changes of the defaults of TrainConfig."""

from __future__ import annotations

from typing import Any

ALEXNETS = ("alexnet", "alexnet-poolfree")

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
    "batch_size": 64,
    "lr": 1e-4,
    "lr_schedule": "constant",
    "resize": 256,
    "crop_scale": (227 / 256, 227 / 256),
    "steps": 100_000,
    "val_fraction": 0.05,
    "val_every": 2000,
    "log_every": 50,
}
_FEATURES_BY_HOLES: dict[str, Any] = {**_FEATURES, "dropout": 0.5, "overlap": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "features-region": {**_FEATURES_BY_HOLES, "mask": "region"},
    "features-block": {**_FEATURES_BY_HOLES, "mask": "block"},
    "features-central": {**_FEATURES_BY_HOLES, "mask": "central", "lr": 1e-3},
    "features-autoencoder": {**_FEATURES, "pretext": "autoencoder", "dropout": 0.5},
    "features-denoising": {**_FEATURES, "pretext": "denoising", "dropout": 0.5},
    # Crops show the same part of a photograph as above, in the 261 pixels that two patches take.
    "features-relative-patch": {**_FEATURES, "pretext": "relative-patch", "resize": 294},
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
# The same for AlexNet and another pretext.
_ALEXNET_PRESETS: dict[str, str] = {
    "autoencoder": "features-autoencoder",
    "denoising": "features-denoising",
    "relative-patch": "features-relative-patch",
}


def default_preset(model: str | None, pretext: str | None) -> str:
    """The recipe for a network and a pretext, either of them None (or unknown) if not chosen."""
    if model in ALEXNETS and pretext in _ALEXNET_PRESETS:
        return _ALEXNET_PRESETS[pretext]
    return MODEL_PRESETS.get(model or "small", "laptop")
