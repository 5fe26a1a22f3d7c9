"""Checkpoint folders: contents, place in a run folder, and reading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from context_encoder.config import TrainConfig
from context_encoder.runs.manifest import MANIFEST_FILE, DamageError, check_files
from context_encoder.runs.places import found_again
from context_encoder.utils.files import check_regular, is_temporary, pointed_at
from context_encoder.utils.options import explain
from context_encoder.utils.text import read_text

Which = Literal["best", "last"]
MODEL_FILE = "model.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
TRAINING_FILE = "training.safetensors"
STATE_FILE = "state.json"
CONFIG_FILE = "config.json"
_FILES = (MODEL_FILE, DISCRIMINATOR_FILE, TRAINING_FILE, STATE_FILE, CONFIG_FILE)
_STEP_FOLDER = re.compile(r"step_(\d+)(?:-(\d+))?")
_MOST_CONFIG_BYTES = 1 << 24
Config = TypeVar("Config", bound=BaseModel)
Content = TypeVar("Content")


class RunError(ValueError):
    """A run or checkpoint folder is missing or cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint folder, apart from the configuration."""

    model: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None
    training: dict[str, Tensor]
    state: dict[str, Any]
    #: The folder that it was read from.
    path: Path = Path("the checkpoint")


class RunState(BaseModel):
    """The part of ``state.json`` that every checkpoint has."""

    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=0, lt=2**53, strict=True)]


State = TypeVar("State", bound=RunState)


def step_name(step: int) -> str:
    """The name of a checkpoint folder."""
    return f"step_{step:07d}"


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint folder; None for another name."""
    found = _STEP_FOLDER.fullmatch(folder.name)
    return None if found is None else int(found[1])


def step_folders(checkpoints: Path) -> list[Path]:
    """The folders of checkpoints by step, the last one first."""
    found = [
        (int(match[1]), int(match[2] or 0), entry)
        for entry in (checkpoints.iterdir() if checkpoints.is_dir() else ())
        if (match := _STEP_FOLDER.fullmatch(entry.name)) and entry.is_dir()
    ]
    return [entry for _, _, entry in sorted(found, reverse=True)]


def is_complete(folder: Path) -> bool:
    """Whether no file of a checkpoint folder is missing."""
    return all((folder / name).exists() for name in (MODEL_FILE, STATE_FILE, CONFIG_FILE))


def holds_checkpoint(checkpoints: Path) -> bool:
    """Whether there is a checkpoint, damaged or not, apart from what a first save left undone."""
    entries = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
    return any(
        entry.name in ("best", "last") or step_of(entry) is not None or is_complete(entry)
        for entry in entries
        if not is_temporary(entry)
    )


def find_checkpoint(path: Path, which: Which = "best") -> Path:
    """The checkpoint folder for ``path``, a run folder or a checkpoint folder.

    What a crash during a save has left is found too: without the pointer, the newest complete
    folder is the checkpoint.

    Raises:
        RunError: there is no such folder, or no checkpoint in it.
    """
    if not path.exists():
        raise RunError(f"checkpoint {path} does not exist; name a run folder, such as runs/first")
    if not path.is_dir():
        raise RunError(f"checkpoint {path} is a file; name the run folder that contains it")
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir():
        if (path / MODEL_FILE).exists() or (path / MANIFEST_FILE).exists():
            return path
    else:
        try:
            found = _pointed_or_left(checkpoints, which)
        except (OSError, ValueError) as error:
            raise RunError(f"checkpoints in {path} cannot be used: {_reason(error)}") from error
        if found is not None:
            return found
    raise RunError(
        f"{path} holds no checkpoint (looked for checkpoints/{which}/{MODEL_FILE}); a run writes "
        "its first one at its first validation"
    )


def _pointed_or_left(checkpoints: Path, which: Which) -> Path | None:
    for name in dict.fromkeys((which, "last")):
        pointer = checkpoints / name
        target = pointed_at(pointer)
        if target is not None and target.is_dir():
            return pointer if pointer.is_dir() else target
        # Earlier versions replaced the folder by two renames.
        for left in (f".{name}.old", f".{name}.new"):
            if target is None and is_complete(checkpoints / left):
                return checkpoints / left
    return next(filter(is_complete, step_folders(checkpoints)), None)


def run_root(path: Path) -> Path | None:
    """The run folder of a run or checkpoint folder; None for a checkpoint outside a run."""
    if (path / "checkpoints").is_dir():
        return path
    above = path.absolute().parent if path.is_symlink() else path.resolve().parent
    return above.parent if above.name == "checkpoints" else None


def read_config(folder: Path) -> TrainConfig:
    """The configuration in a run or checkpoint folder, or in a JSON file.

    Raises:
        RunError: the file is missing, or not a configuration of this version.
    """
    return read_config_as(TrainConfig, folder, "a training configuration")


def read_config_as(kind: type[Config], folder: Path, what: str) -> Config:
    """:func:`read_config` for the configuration ``kind``, which messages call ``what``."""
    file = folder / CONFIG_FILE if folder.is_dir() else folder
    if not file.exists():
        raise RunError(f"{file} does not exist")
    try:
        if not folder.is_dir():
            return kind.model_validate_json(read_text(file, most=_MOST_CONFIG_BYTES))
        config = kind.model_validate_json(_of_running(folder, _config_text))
        return found_again(config, run_root(folder) or folder)
    except ValidationError as error:
        reasons = "; ".join(explain(error))
        raise RunError(f"{file} is not {what}: {reasons}") from error
    except (DamageError, OSError) as error:
        others = _others(folder) if folder.is_dir() else ""
        raise RunError(f"{file} cannot be read: {_reason(error)}{others}") from error
    except ValueError as error:
        raise RunError(f"{file} is not {what}: {error}") from error


def _config_text(folder: Path) -> str:
    check_files(folder, [CONFIG_FILE])
    return read_text(folder / CONFIG_FILE, most=_MOST_CONFIG_BYTES)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; tensors are on the CPU.

    Raises:
        RunError: a file is missing or damaged; the message names other checkpoints of the run.
    """
    try:
        return replace(_of_running(folder, _read), path=folder)
    except (DamageError, OSError) as error:
        raise RunError(
            f"checkpoint {folder} cannot be read: {_reason(error)}{_others(folder)}"
        ) from error


def read_model(folder: Path) -> tuple[dict[str, Tensor], int]:
    """The weights of the network in a checkpoint folder, and their step.

    Raises:
        RunError: a file is missing or damaged.
    """

    def read(real: Path) -> tuple[dict[str, Tensor], int]:
        listed = check_files(real, [MODEL_FILE, STATE_FILE])
        return _tensors(real / MODEL_FILE), _state(real, listed)["step"]

    try:
        return _of_running(folder, read)
    except (DamageError, OSError) as error:
        raise RunError(
            f"checkpoint {folder} cannot be read: {_reason(error)}{_others(folder)}"
        ) from error


def _of_running(folder: Path, read: Callable[[Path], Content]) -> Content:
    """The result of ``read`` for the folder that a pointer leads to.

    A run that goes on may move the pointer and remove the folder in the meantime; then it is done
    again for the new one.
    """
    while True:
        real = folder.resolve()
        try:
            return read(real)
        except (DamageError, OSError):
            if folder.resolve() == real:
                raise


def parse_state(kind: type[State], checkpoint: Checkpoint) -> State:
    """The contents of ``state.json`` as ``kind``; RunError if they are not."""
    try:
        return kind.model_validate(checkpoint.state)
    except ValidationError as error:
        reason = "; ".join(explain(error))
        raise RunError(f"{checkpoint.path / STATE_FILE} cannot be used: {reason}") from error


def _read(folder: Path) -> Checkpoint:
    listed = check_files(folder, _FILES)
    discriminator = folder / DISCRIMINATOR_FILE
    return Checkpoint(
        model=_tensors(folder / MODEL_FILE),
        discriminator=_tensors(discriminator) if discriminator.exists() else None,
        training=_tensors(folder / TRAINING_FILE),
        state=_state(folder, listed),
        path=folder,
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    check_regular(file)
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype of its own
        raise DamageError(f"{file.name} is damaged: {error}") from error


def _state(folder: Path, listed: bool) -> dict[str, Any]:
    try:
        state = json.loads(read_text(folder / STATE_FILE))
        if not isinstance(state, dict):
            raise DamageError(f"{STATE_FILE} is damaged: it holds a {type(state).__name__}")
        RunState.model_validate(state)
    except DamageError:
        raise
    except ValidationError as error:
        raise DamageError(f"{STATE_FILE} is damaged: {explain(error)[0]}") from None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{STATE_FILE} is damaged: {error}") from error
    if "format" in state and not listed:
        raise DamageError(f"{MANIFEST_FILE} is missing")
    return state


def _others(folder: Path) -> str:
    """The other checkpoints of the run that are intact, as the end of a message."""
    root = run_root(folder)
    names = [] if root is None else [str(other) for other in _intact(root, folder.resolve())]
    return f"; intact: {', '.join(names)}" if names else ""


def _intact(root: Path, but: Path) -> Iterator[Path]:
    for other in step_folders(root / "checkpoints"):
        if other.resolve() != but:
            try:
                _read(other)
            except (DamageError, OSError):
                continue
            yield other


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{error.filename}: {reason}"
    return str(error)
