"""Files of encoder weights, written from a run or converted from another naming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from context_encoder.encoder.weights import (
    ImportReport,
    Input,
    Names,
    Norm,
    export_encoder,
    load_encoder,
    named_model,
    weights_metadata,
)
from context_encoder.runs import Which, load_model
from context_encoder.utils.files import check_new_file, make_folder, save_tensors


@dataclass(frozen=True)
class Saved:
    """A file of weights that was written."""

    path: Path
    tensors: int
    bytes: int


def export_run(
    checkpoint: Path,
    out: Path,
    *,
    names: Names = "native",
    which: Which = "best",
    overwrite: bool = False,
) -> Saved:
    """Write the encoder of a run to a .safetensors file.

    Args:
        checkpoint: run folder, or a checkpoint folder in it.
        out: the file; its parents are created.
        names: see :mod:`context_encoder.encoder.weights`.
        which: "best" or "last" checkpoint of a run folder.
        overwrite: whether ``out`` may already exist.

    Raises:
        RunError: the checkpoint cannot be used.
        WeightsError: the naming cannot hold its weights.
        ValueError, FileExistsError, WriteError: see :func:`check_new_file`.
    """
    check_new_file(out, (".safetensors",), overwrite=overwrite)
    loaded = load_model(checkpoint, which=which)
    backbone = loaded.backbone()
    tensors = export_encoder(backbone.encoder, names)
    metadata = weights_metadata(loaded.config.model, backbone, names)
    return _save(
        out, tensors, metadata | {"pretext": loaded.config.pretext, "step": str(loaded.step)}
    )


def import_file(
    weights: Path,
    out: Path,
    *,
    model: str | None = None,
    image_size: int | None = None,
    norm: Norm | None = None,
    pictures: Input | None = None,
    partial: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[ImportReport, Saved]:
    """Read encoder weights in any naming and write them natively to a .safetensors file.

    Args:
        weights: the file to read; ``model`` to ``seed`` are those of :func:`load_encoder`.
        out: the file to write; its parents are made.
        overwrite: whether ``out`` may be there already.

    Returns:
        What fitted, and what was written.

    Raises:
        WeightsError, ValueError: as :func:`load_encoder`.
        ValueError, FileExistsError, WriteError: see :func:`check_new_file`.
    """
    check_new_file(out, (".safetensors",), overwrite=overwrite)
    backbone, report = load_encoder(
        weights,
        model=model,
        image_size=image_size,
        norm=norm,
        pictures=pictures,
        partial=partial,
        seed=seed,
    )
    metadata = weights_metadata(named_model(weights, model), backbone, "native")
    return report, _save(out, export_encoder(backbone.encoder), metadata)


def _save(out: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Saved:
    make_folder(out.parent)
    save_tensors(out, tensors, metadata)
    return Saved(out, len(tensors), out.stat().st_size)
