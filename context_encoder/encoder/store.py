"""Features of a folder of images in a file; an interrupted extraction can continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from context_encoder.encoder.backbone import layer_names, weights_digest
from context_encoder.encoder.extract import EncodedBatch, FeatureError, Masking, encode_files
from context_encoder.masks import build_mask_sampler
from context_encoder.models import Backbone
from context_encoder.runs import RunError, contents_digest
from context_encoder.runs.lock import LOCK_FILE, Lock
from context_encoder.utils.files import (
    check_new_file,
    check_regular,
    make_folder,
    read_text,
    reported,
    save_tensors,
    write_file,
)


class FeatureStore:
    """Feature rows on disk during the extraction, so that an interrupted command can continue.

    ``OUT.partial/`` has ``settings.json``, one file of rows per layer, and ``files.jsonl``: one
    line per finished file with the checksum of its rows, written after them. On continuing, only
    files whose rows are as they were written count as finished.

    Raises:
        FeatureError: another command writes ``out``, or began it with other settings.
        WriteError: it cannot be written.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.settings = settings
        self.files: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self._log = self.folder / "files.jsonl"
        self._shapes: dict[str, list[int]] = {}
        make_folder(self.folder)
        try:
            self._lock = Lock(self.folder, "command")
        except RunError as error:
            raise FeatureError(str(error)) from None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        kept = self.folder / "settings.json"
        if not kept.exists():
            for left in self.folder.iterdir():
                if left.name != LOCK_FILE:
                    left.unlink()
            write_file(kept, json.dumps(self.settings))
            return
        try:
            same = json.loads(read_text(kept)) == self.settings
        except (ValueError, RecursionError):
            raise FeatureError(f"{kept} is damaged; remove {self.folder}") from None
        if not same:
            raise FeatureError(
                f"{self.folder} is from an interrupted command with another network, other "
                "images or options; remove it, or name another `out`"
            )
        self._resume()

    def close(self) -> None:
        """Let other commands write ``out``."""
        self._lock.release()

    @property
    def done(self) -> int:
        return len(self.files) + len(self.unreadable)

    def _note(self, files: list[tuple[str, str | None]]) -> None:
        for name, reason in files:
            if reason is None:
                self.files.append(name)
            else:
                self.unreadable.append((name, reason))

    def _resume(self) -> None:
        """Take over the finished files, up to the first one whose line or rows are damaged."""
        lines = []
        with contextlib.ExitStack() as stack:
            rows = {}
            for layer in self.settings["layers"]:
                path = self._rows(layer)
                if path.exists():
                    check_regular(path)
                    rows[layer] = stack.enter_context(path.open("rb"))
            text = ""
            if self._log.exists():
                check_regular(self._log)
                text = self._log.read_bytes().decode("utf-8", "replace")
            for line in text.split("\n")[:-1]:
                try:
                    entry = json.loads(line)
                    name, reason = str(entry["file"]), entry["reason"]
                    if reason is None:
                        shapes = entry["shapes"]
                        check = 0
                        for layer in self.settings["layers"]:
                            check = zlib.crc32(rows[layer].read(self._bytes(shapes[layer])), check)
                        if check != entry["crc32"] or (self._shapes or shapes) != shapes:
                            break
                        self._shapes = shapes
                    self._note([(name, reason)])
                except (ValueError, TypeError, KeyError, RecursionError):
                    break
                lines.append(line)
        for layer in self.settings["layers"]:
            if self._rows(layer).exists():
                length = self._bytes(self._shapes[layer]) if self.files else 0
                os.truncate(self._rows(layer), len(self.files) * length)
        write_file(self._log, "".join(f"{line}\n" for line in lines))

    def _rows(self, layer: str) -> Path:
        return self.folder / f"{layer}.rows"

    def _bytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * int(np.dtype(self.settings["dtype"]).itemsize)

    def add(self, batch: EncodedBatch) -> None:
        """Append the rows of a batch.

        Raises:
            WriteError: they cannot be written.
        """
        arrays = {layer: value.numpy() for layer, value in batch.values.items()}
        self._shapes = {layer: list(a.shape[1:]) for layer, a in arrays.items()} or self._shapes
        checks = []
        for row in range(sum(reason is None for _, reason in batch.files)):
            check = 0
            for layer in self.settings["layers"]:
                check = zlib.crc32(arrays[layer][row].tobytes(), check)
            checks.append(check)
        for layer, array in arrays.items():
            self._append(self._rows(layer), array.tobytes())
        text, number = "", iter(checks)
        for name, reason in batch.files:
            entry: dict[str, Any] = {"file": name, "reason": reason}
            if reason is None:
                entry |= {"crc32": next(number), "shapes": self._shapes}
            text += json.dumps(entry) + "\n"
        self._append(self._log, text.encode())
        self._note(batch.files)

    def _append(self, path: Path, data: bytes) -> None:
        with reported(path), path.open("ab") as file:
            file.write(data)

    def finish(self, source: str) -> None:
        """Write the file and its ``.json``, and remove the folder."""
        arrays: dict[str, NDArray[Any]] = {}
        for layer in self.settings["layers"]:
            arrays[layer] = np.memmap(
                self._rows(layer),
                dtype=self.settings["dtype"],
                mode="c",
                shape=(len(self.files), *self._shapes[layer]),
            )
        about = {
            "source": source,
            **self.settings,
            "shapes": {layer: list(array.shape) for layer, array in arrays.items()},
            "files": self.files,
            "unreadable": [{"file": f, "reason": reason} for f, reason in self.unreadable],
        }
        side = self.out.with_name(f"{self.out.name}.json")
        write_file(side, json.dumps(about, indent=1) + "\n")
        if self.out.suffix == ".npz":
            write_file(self.out, lambda new: _save_npz(new, arrays))
        else:
            tensors = {layer: torch.from_numpy(array) for layer, array in arrays.items()}
            save_tensors(self.out, tensors)
        shutil.rmtree(self.folder)


def check_store(
    out: Path,
    *,
    pool: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Check the arguments that need no network; :func:`extract_folder` does this too."""
    check_new_file(out, (".npz", ".safetensors"), overwrite=overwrite)
    for name, number, least in (
        ("pool", pool, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("seed", seed, 0),
    ):
        if number is not None and number < least:
            raise FeatureError(f"`{name}` must be at least {least}, got {number}")


def _save_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add a suffix
        np.savez(file, **arrays)  # type: ignore[arg-type]


def extract_folder(
    model: Backbone,
    folder: Path,
    paths: Sequence[Path],
    out: Path,
    layers: Sequence[str],
    *,
    source: str,
    pool: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    mask: str | None = None,
    seed: int = 0,
    fill: tuple[float, float, float] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> FeatureStore:
    """Write features of image files to ``out`` and ``out.json``; continue an interrupted call.

    Args:
        model: from :func:`context_encoder.encoder.load_backbone`.
        folder: the folder that names are relative to.
        paths: the files in it.
        out: a file that ends in .npz or .safetensors.
        layers, pool: see :func:`context_encoder.encoder.encode_batch`.
        source: source of the network, for ``out.json``.
        dtype: dtype of the file.
        mask: kind of mask that hides a part of every image, or None.
        seed: seed of the masks.
        fill: colour of the hidden part, RGB on [-1, 1]; needed with ``mask``.
        batch_size: images at a time.
        workers: processes that read images; 0: this one.
        device: device of the network.
        overwrite: replace ``out`` if it exists.

    Returns:
        A store with the readable and the unreadable files. If none is readable, nothing is written.

    Raises:
        FeatureError: ``out`` was begun with other settings, the network lacks a layer, a number
            is below its minimum, or values are too large for ``dtype``.
        FileExistsError, ValueError, WriteError: ``out`` exists, has another suffix, or cannot
            be written.
    """
    check_store(
        out, pool=pool, batch_size=batch_size, workers=workers, seed=seed, overwrite=overwrite
    )
    names = layer_names(model)
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise FeatureError(
            f"`layers`: the network has no layer {', '.join(unknown)}; it has {', '.join(names)}"
        )
    hole = None
    if mask is not None:
        assert fill is not None
        hole = Masking(build_mask_sampler(mask, model.image_size, seed), fill)
    listing = "\0".join(os.fspath(path.relative_to(folder)) for path in paths)
    settings = {
        "layers": list(layers),
        "pool": pool,
        "dtype": dtype,
        "mask": mask,
        "mask_seed": None if mask is None else seed,
        "image_size": model.image_size,
        "network": weights_digest(model),
        "count": len(paths),
        "pictures": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(),
        "contents": contents_digest(paths),
    }
    make_folder(out.parent)
    with contextlib.closing(FeatureStore(out, settings)) as store:
        _fill(store, model.to(device), folder, paths, layers, pool, batch_size, workers, hole)
        if store.files:
            store.finish(source)
        else:
            shutil.rmtree(store.folder)
    return store


def _fill(
    store: FeatureStore,
    model: Backbone,
    folder: Path,
    paths: Sequence[Path],
    layers: Sequence[str],
    pool: int | None,
    batch_size: int,
    workers: int,
    hole: Masking | None,
) -> None:
    """Encode the files that the store does not have yet."""
    kind = torch.float32 if store.settings["dtype"] == "float32" else torch.float16
    bar = tqdm(total=len(paths), initial=store.done, unit="image", dynamic_ncols=True)
    if store.done < len(paths):
        with bar:
            for batch in encode_files(
                *(model, paths, folder, layers, pool, kind),
                *(batch_size, workers, hole, store.done),
            ):
                store.add(batch)
                bar.update(len(batch.files))
    bar.close()
