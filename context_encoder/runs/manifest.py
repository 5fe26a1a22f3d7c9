"""Manifest of a checkpoint folder: the version of its format, and a checksum of every file.

    manifest.json    {"format": 2, "files": {"model.safetensors": {"bytes": ..., "sha256": ...}}}

Checkpoints of versions before 0.2 have no manifest (format 1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from context_encoder.utils.files import file_digest, write_file
from context_encoder.utils.options import explain
from context_encoder.utils.text import read_text

__all__ = ["FORMAT", "MANIFEST_FILE", "DamageError", "check_files", "write_manifest"]

FORMAT = 2
MANIFEST_FILE = "manifest.json"


class DamageError(ValueError):
    """A file of a checkpoint is missing or is not as it was written; the message says which."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[2]
    files: dict[str, _File]


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files in a folder.

    Raises:
        WriteError: it cannot be written.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=2)
    write_file(folder / MANIFEST_FILE, text + "\n")


def check_files(folder: Path, names: Iterable[str]) -> bool:
    """Compare files of a checkpoint folder with its manifest.

    Args:
        folder: the checkpoint folder.
        names: the files to check. Those that the manifest does not list must not exist.

    Returns:
        Whether there is a manifest.

    Raises:
        DamageError: a file is missing or differs, or the manifest itself is damaged.
        OSError: a file cannot be read.
    """
    file = folder / MANIFEST_FILE
    if not file.exists():
        return False
    try:
        text = read_text(file, most=1 << 20)
        manifest = _Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DamageError(_reason(text, error)) from None
    except ValueError as error:
        raise DamageError(f"{MANIFEST_FILE} is damaged: {error}") from None
    for name in names:
        path, wanted = folder / name, manifest.files.get(name)
        if wanted is None:
            if path.exists():
                raise DamageError(f"{name} is not listed in {MANIFEST_FILE}")
        elif not path.exists():
            raise DamageError(f"{name} is missing")
        elif path.stat().st_size != wanted.bytes:
            raise DamageError(f"{name} has {path.stat().st_size} bytes instead of {wanted.bytes}")
        elif file_digest(path) != wanted.sha256:
            raise DamageError(f"{name} has changed since it was written (its checksum differs)")
    return True


def _reason(text: str, error: ValidationError) -> str:
    try:
        version = json.loads(text)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version = None
    if isinstance(version, int) and version > FORMAT:
        return f"its format, {version}, is of a later version; update this package"
    return f"{MANIFEST_FILE} is damaged: {explain(error)[0]}"
