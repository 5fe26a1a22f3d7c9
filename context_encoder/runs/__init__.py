"""Run folders of training: writing, reading and resuming."""

from context_encoder.runs.checkpoint import (
    Checkpoint,
    RunError,
    Which,
    find_checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    read_config,
    run_root,
)
from context_encoder.runs.folder import RunFolder
from context_encoder.runs.load import (
    LoadedModel,
    check_fills_holes,
    load_model,
    load_weights,
    model_from_config,
)
from context_encoder.runs.photos import Photos
from context_encoder.runs.resume import check_unchanged

__all__ = [
    "Checkpoint",
    "LoadedModel",
    "Photos",
    "RunError",
    "RunFolder",
    "Which",
    "check_fills_holes",
    "check_unchanged",
    "find_checkpoint",
    "load_model",
    "load_optimizer",
    "load_weights",
    "model_from_config",
    "optimizer_tensors",
    "read_checkpoint",
    "read_config",
    "run_root",
]
