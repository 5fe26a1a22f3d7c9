"""Features of a folder of images in a file; an interrupted extraction can continue."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from context_encoder.encoder.backbone import layer_names, weights_digest
from context_encoder.encoder.extract import EncodedBatch, FeatureError, Masking, encode_files
from context_encoder.masks import build_mask_sampler
from context_encoder.models import Backbone
from context_encoder.utils.files import check_new_file, make_folder, save_tensors, write_file


class FeatureStore:
    """Feature rows on disk during the extraction, so that an interrupted command can continue.

    ``OUT.partial/`` has one array per layer (``.npy``, with room for all files), ``settings.json``,
    and ``files.jsonl``: one line per finished file, written after its row.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.settings = settings
        self.files: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self._arrays: dict[str, NDArray[Any]] = {}
        self._log = self.folder / "files.jsonl"
        kept = self.folder / "settings.json"
        if kept.exists():
            if json.loads(kept.read_text()) != settings:
                raise FeatureError(
                    f"{self.folder} is from an interrupted command with another network, other "
                    "images or options; remove it, or name another `out`"
                )
            self._resume()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.folder)
            write_file(kept, json.dumps(settings))

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
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # an incomplete line
                break
            entries.append((entry["file"], entry["reason"]))
        self._note(entries)
        write_file(self._log, "".join(f"{line}\n" for line in lines[: self.done]))

    def _array(self, layer: str, value: Tensor) -> NDArray[Any]:
        if layer not in self._arrays:
            path = self.folder / f"{layer}.npy"
            if path.exists():
                array = np.lib.format.open_memmap(path, mode="r+")
            else:
                array = np.lib.format.open_memmap(
                    path,
                    mode="w+",
                    dtype=value.numpy().dtype,
                    shape=(self.settings["count"], *value.shape[1:]),
                )
            self._arrays[layer] = array
        return self._arrays[layer]

    def add(self, batch: EncodedBatch) -> None:
        row = len(self.files)
        for layer, value in batch.values.items():
            array = self._array(layer, value)
            array[row : row + len(value)] = value.numpy()
            array.flush()  # type: ignore[attr-defined]
        with self._log.open("a") as file:
            file.writelines(
                json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in batch.files
            )
        self._note(batch.files)

    def finish(self, source: str) -> None:
        """Write the file and its ``.json``, and remove the folder."""
        arrays = {}
        for layer in self.settings["layers"]:
            path = self.folder / f"{layer}.npy"
            arrays[layer] = np.lib.format.open_memmap(path, mode="r+")[: len(self.files)]
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
    }
    make_folder(out.parent)
    store = FeatureStore(out, settings)
    kind = torch.float32 if dtype == "float32" else torch.float16
    bar = tqdm(total=len(paths), initial=store.done, unit="image", dynamic_ncols=True)
    if store.done < len(paths):
        with bar:
            for batch in encode_files(
                *(model.to(device), paths, folder, layers, pool, kind),
                *(batch_size, workers, hole, store.done),
            ):
                store.add(batch)
                bar.update(len(batch.files))
    bar.close()
    if store.files:
        store.finish(source)
    else:
        shutil.rmtree(store.folder)
    return store
