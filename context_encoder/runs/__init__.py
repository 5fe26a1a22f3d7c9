"""Run folders of training: writing, reading and resuming."""

from context_encoder.runs.checkpoint import (
    Checkpoint,
    RunError,
    RunState,
    Which,
    find_checkpoint,
    parse_state,
    read_checkpoint,
    read_config,
    read_config_as,
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
from context_encoder.runs.photos import Photos, contents_digest
from context_encoder.runs.places import check_places
from context_encoder.runs.resume import check_unchanged
from context_encoder.runs.strict import (
    MismatchError,
    check_finite,
    check_tensors,
    load_optimizer,
    optimizer_tensors,
)

__all__ = [
    "Checkpoint",
    "LoadedModel",
    "MismatchError",
    "Photos",
    "RunError",
    "RunFolder",
    "RunState",
    "Which",
    "check_fills_holes",
    "check_finite",
    "check_places",
    "check_tensors",
    "check_unchanged",
    "contents_digest",
    "find_checkpoint",
    "load_model",
    "load_optimizer",
    "load_weights",
    "model_from_config",
    "optimizer_tensors",
    "parse_state",
    "read_checkpoint",
    "read_config",
    "read_config_as",
    "run_root",
]
