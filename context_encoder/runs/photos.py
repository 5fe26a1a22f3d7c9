"""The training photographs and the held-out photographs of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, list_images, split_photos
from context_encoder.utils.files import check_regular


@dataclass(frozen=True)
class Photos:
    """The training files and the held-out files."""

    train: list[Path]
    train_root: Path
    val: list[Path]
    val_root: Path

    @classmethod
    def from_config(cls, config: TrainConfig) -> Photos:
        """List and split the files of a configuration.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: a folder cannot be used; the
                message says why.
        """
        root = embedded_photos() if config.data is None else config.data
        files = list_images(root)
        if config.val_data is not None:
            held_out = config.val_data.resolve()
            # Held-out photographs in a folder inside `data` must not be trained on.
            files = [file for file in files if held_out not in file.resolve().parents]
            if not files:
                raise ValueError(f"no photograph in `data` {root} lies outside `val_data`")
            return cls(files, root, list_images(config.val_data), config.val_data)
        train, val = split_photos(files, root, config.val_fraction)
        return cls(train, root, val, root)

    def digest(self) -> str:
        """A digest of the names of the training files, which determine the stream of samples."""
        names = [file.relative_to(self.train_root).as_posix() for file in self.train]
        return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()

    def contents_digest(self) -> str:
        """:func:`contents_digest` of the training files."""
        return contents_digest(self.train)


def contents_digest(files: Sequence[Path], most: int = 4096) -> str:
    """A digest of sizes and first bytes of files, whose contents may have been exchanged.

    Args:
        files: the files, of which there may be a million.
        most: number of files that are read, evenly spaced.
    """
    count = min(len(files), most)
    digest = hashlib.sha256()
    for i in range(count):
        digest.update(_beginning(files[i * len(files) // count]))
    return digest.hexdigest()


def _beginning(path: Path, length: int = 1 << 14) -> bytes:
    """Size and first bytes of a file; a mark for one that cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return b"%d:" % path.stat().st_size + hashlib.sha256(file.read(length)).digest()
    except OSError:
        return b"-"
