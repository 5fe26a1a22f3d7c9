"""``python -m context_encoder.features``: features of whole pictures, from any layer.

From Python::

    from context_encoder.features import extract_features, load_backbone
    features = extract_features(load_backbone("runs/first"), list_images("photos"), ["conv3"])
    features.values["conv3"]  # one row a picture: features.files

A picture is scaled so that its short side is the network's input, S pixels, and its middle square
is taken. Bare, or with a hole in it, whose surroundings the features then describe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tyro.conf import arg

from cekernels import fill_masked
from context_encoder.config import FILL_COLORS, ModelName, TrainConfig
from context_encoder.data import (
    UnreadableImage,
    list_images,
    read_square,
    to_input,
)
from context_encoder.data.images import relative_name
from context_encoder.masks import MaskSampler, build_mask_sampler
from context_encoder.models import Backbone, build_model
from context_encoder.prepare import Processes, choose_device
from context_encoder.runs import find_checkpoint, load_model, read_config
from context_encoder.weights import load_encoder

__all__ = [
    "PIXELS",
    "FeatureError",
    "Features",
    "average_to_grid",
    "encode_batch",
    "extract_features",
    "layer_names",
    "load_backbone",
    "main",
    "weights_digest",
]

#: The layer that is the input itself.
PIXELS = "pixels"


class FeatureError(ValueError):
    """Options or files that features cannot be taken with; says what is wrong."""


def load_backbone(
    checkpoint: Path | None = None,
    *,
    weights: Path | None = None,
    model: str = "alexnet",
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """A network to take features from, in eval mode, float32, on the CPU.

    Args:
        checkpoint: a run folder of any pretext (its best checkpoint) or a checkpoint folder; the
            run then decides ``model`` and ``image_size``.
        weights: otherwise, a file of encoder weights, see :mod:`context_encoder.weights`; its
            network has the layers of the encoder only.
        model: without a checkpoint, the name of the network, see
            :data:`context_encoder.models.MODELS`.
        image_size: side of its square input in pixels; None for the network's own.
        seed: of the random weights, if neither ``checkpoint`` nor ``weights`` is given.

    Returns:
        The network: ``.encoder`` (Sequential of named stages), ``.image_size`` and
        ``.features(x)``, the outputs of all stages by name.

    Raises:
        RunError: the checkpoint is not there or cannot be used.
        ValueError: arguments that do not go together, a size that the network cannot take, or
            a file of weights that does not fit.
    """
    if checkpoint is not None and weights is not None:
        raise ValueError("checkpoint and weights are both given; features come from one network")
    if checkpoint is not None:
        network = load_model(checkpoint).model
        if image_size not in (None, network.image_size):
            raise ValueError(
                f"{checkpoint} takes pictures of {network.image_size} pixels, image_size "
                f"{image_size} was asked for; leave it out"
            )
        return network
    if weights is not None:
        return load_encoder(Path(weights), model=model, image_size=image_size)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(model, image_size=image_size).eval()


def layer_names(model: Backbone) -> list[str]:
    """The layers whose features a network gives, in order."""
    return [name for part in model.feature_parts() for name, _ in part.named_children()]


@torch.no_grad()
def encode_batch(
    model: Backbone,
    images: Tensor,
    layers: Sequence[str],
    pool: int | Mapping[str, int] | None = None,
    *,
    mask: Tensor | None = None,
    fill: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The outputs of some layers for a batch of pictures.

    Args:
        model: from :func:`load_backbone`, on any device.
        images: uint8 ``(B, 3, S, S)``, RGB, S the network's ``image_size``; any device.
        layers: names of stages, such as ``conv1`` or ``pool5``, see :func:`layer_names`; or
            ``pixels``, the input to the network.
        pool: average each map to ``pool`` x ``pool`` cells where it is larger, or by layer to as
            many; None: as it is.
        mask: bool ``(B, 1, S, S)``, True where the picture is to be hidden; None for nowhere.
        fill: the hidden part's colour, RGB on [-1, 1]; None for the mean colour of ImageNet.

    Returns:
        For each layer float32 ``(B, C, h, w)``, on the network's device.

    Raises:
        TypeError, ValueError: pictures of another type or size, a layer that the network lacks,
            or ``pool`` below 1.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (B, 3, S, S), got {images.dtype}")
    sides = dict.fromkeys(layers, pool) if pool is None or isinstance(pool, int) else pool
    if any(side is not None and side < 1 for side in sides.values()):
        raise ValueError(f"pool must be at least 1, got {pool}")
    names = layer_names(model)
    unknown = [name for name in layers if name not in (*names, PIXELS)]
    if unknown or not layers:
        raise ValueError(
            f"the network has no layer {', '.join(unknown) or '(none was named)'}; its layers: "
            f"{', '.join(names)}"
        )
    device = next(model.parameters()).device
    x = to_input(images.to(device))
    if mask is not None:
        color = [c / 127.5 - 1 for c in FILL_COLORS["imagenet-mean"]] if fill is None else fill
        x = fill_masked(x, mask.to(device), torch.tensor(color, device=device))
    outputs = {PIXELS: x, **model.features(x)}
    chosen = {}
    for name in layers:
        value, side = outputs[name].float(), sides[name]
        if side is not None and max(value.shape[2:]) > side:
            value = average_to_grid(value, side)
        chosen[name] = value
    return chosen


def average_to_grid(value: Tensor, side: int) -> Tensor:
    """Adaptive average pooling of ``(B, C, H, W)`` to ``(B, C, side, side)``.

    As matrix products: on CPUs many times faster than torch's own.
    """
    rows, columns = (_averages(n, side).to(value) for n in value.shape[2:])
    return rows @ (value @ columns.T)


def _averages(length: int, cells: int) -> Tensor:
    """``(cells, length)``: row i averages from floor(i n / cells) to ceil((i + 1) n / cells)."""
    matrix = torch.zeros(cells, length)
    for i in range(cells):
        start, end = i * length // cells, -(-(i + 1) * length // cells)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@dataclass(frozen=True)
class Features:
    """Features of the pictures that could be read, one row each."""

    #: For each layer ``(N, C, h, w)``, on the CPU.
    values: dict[str, Tensor]
    #: The rows' files, relative to their common folder.
    files: list[str]
    #: The numbers of these in the list that was given.
    kept: list[int]
    #: Files that could not be read, and why.
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class Hole:
    """A mask for every picture, and the colour that it is filled with."""

    masks: MaskSampler
    fill: tuple[float, float, float]


def extract_features(
    model: Backbone,
    paths: Sequence[Path],
    layers: Sequence[str],
    *,
    root: Path | None = None,
    pool: int | Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
    workers: int = 0,
    hole: Hole | None = None,
    progress: bool = True,
) -> Features:
    """Features of picture files, in memory.

    Args:
        model: from :func:`load_backbone`, on any device.
        paths: the files.
        layers, pool: see :func:`encode_batch`.
        root: the folder that names are relative to; None for the deepest that holds them all.
        dtype: float32 or float16, of the result.
        batch_size: pictures at a time.
        workers: processes that read them; 0: this one.
        hole: what to hide of each picture, or None.
        progress: whether to show a bar.

    Raises:
        ValueError: as :func:`encode_batch`, no path, no picture that can be read, or values too
            large for ``dtype``.
    """
    if batch_size < 1:
        raise FeatureError(f"batch_size must be at least 1, got {batch_size}")
    if not paths:
        raise FeatureError("no picture files were given")
    paths = [Path(path) for path in paths]
    root = root or Path(os.path.commonpath([path.parent for path in paths]))
    values: dict[str, list[Tensor]] = {}
    read: list[tuple[str, str | None]] = []
    with tqdm(total=len(paths), unit="picture", disable=not progress, dynamic_ncols=True) as bar:
        for batch in _encoded(
            *(model, paths, root, layers, pool, dtype, batch_size, workers, hole, 0)
        ):
            for layer, value in batch.values.items():
                values.setdefault(layer, []).append(value)
            read += batch.files
            bar.update(len(batch.files))
    unreadable = [(name, reason) for name, reason in read if reason is not None]
    if len(unreadable) == len(read):
        name, reason = unreadable[0]
        raise FeatureError(
            f"none of the {len(paths)} pictures can be read, as {root / name}: {reason}"
        )
    kept = [number for number, (_, reason) in enumerate(read) if reason is None]
    return Features(
        {layer: torch.cat(parts) for layer, parts in values.items()},
        [read[number][0] for number in kept],
        kept,
        unreadable,
    )


class _Squares(Dataset[tuple[str, Tensor | str]]):
    """Name and middle square, uint8 ``(3, S, S)``, of each file; or name and why it has none."""

    def __init__(self, paths: Sequence[Path], root: Path, size: int) -> None:
        self.paths, self.root, self.size = paths, root, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[str, Tensor | str]:
        path = self.paths[number]
        name = relative_name(path, self.root)
        try:
            return name, read_square(path, self.size)
        except UnreadableImage as error:
            return name, error.reason


def _ignore_interrupt(_: int) -> None:
    # Ctrl-C goes to every process of the terminal; the main one stops its workers by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Encoded:
    """A batch: values of the pictures that could be read, one row each."""

    values: dict[str, Tensor]
    #: All its files in order, each with None or why it could not be read.
    files: list[tuple[str, str | None]]


def _encoded(
    model: Backbone,
    paths: Sequence[Path],
    root: Path,
    layers: Sequence[str],
    pool: int | Mapping[str, int] | None,
    dtype: torch.dtype,
    batch_size: int,
    workers: int,
    hole: Hole | None,
    first: int,
) -> Iterator[_Encoded]:
    """Batches of features, from the file with number ``first`` on."""
    model.eval()
    loader = DataLoader(
        _Squares(paths, root, model.image_size),
        batch_size=batch_size,
        sampler=range(first, len(paths)),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),  # otherwise it draws from the global one
    )
    number = first
    for batch in loader:
        images = [square for _, square in batch if isinstance(square, Tensor)]
        kept = [number + i for i, (_, square) in enumerate(batch) if isinstance(square, Tensor)]
        number += len(batch)
        values: dict[str, Tensor] = {}
        if images:
            mask = None
            if hole is not None:
                index = torch.tensor(kept)
                mask, _ = hole.masks(torch.zeros_like(index), index)
            fill = None if hole is None else hole.fill
            outputs = encode_batch(model, torch.stack(images), layers, pool, mask=mask, fill=fill)
            values = {name: value.to("cpu", dtype) for name, value in outputs.items()}
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise FeatureError(
                    f"{name} has values that {dtype} cannot hold, or that are not finite; "
                    "use float32, or another checkpoint"
                )
        yield _Encoded(values, [(name, s if isinstance(s, str) else None) for name, s in batch])


# --- a folder, into a file --------------------------------------------------------------------


class _Store:
    """Rows on the disk beside the file that they end up in, so that a stopped command goes on.

    ``OUT.partial/`` has an array of every layer (``.npy``, room for all files), ``settings.json``,
    and ``files.jsonl``: one line a file that is done, written after its row.
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
                    f"{self.folder} is from a command that was stopped, of another network, "
                    "pictures or options; remove it, or name another --out"
                )
            self._resume()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            new = kept.with_suffix(".new")
            new.write_text(json.dumps(settings))
            new.replace(kept)

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
            except ValueError:  # cut off in the writing
                break
            entries.append((entry["file"], entry["reason"]))
        self._note(entries)
        self._log.write_text("".join(f"{line}\n" for line in lines[: self.done]))

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

    def add(self, batch: _Encoded) -> None:
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
        new = self.out.with_name(f".new.{self.out.name}")
        if self.out.suffix == ".npz":
            np.savez(new, **arrays)  # type: ignore[arg-type]
        else:
            tensors = {layer: torch.from_numpy(array) for layer, array in arrays.items()}
            save_file(tensors, new)
        about = {
            "source": source,
            **self.settings,
            "shapes": {layer: list(array.shape) for layer, array in arrays.items()},
            "files": self.files,
            "unreadable": [{"file": f, "reason": reason} for f, reason in self.unreadable],
        }
        side = self.out.with_name(f"{self.out.name}.json")
        side.write_text(json.dumps(about, indent=1) + "\n")
        new.replace(self.out)
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Arguments:
    """Write features of all pictures in a folder, from any layers of a network.

    A file (.npz or .safetensors) with one array a layer, (pictures, channels, height, width), and
    FILE.json with the names of the pictures, row by row. Stopped with Ctrl-C, the same
    command goes on where it was. Pictures that cannot be read are left out, counted and named.
    Exit status: 0 done, 1 no picture could be read, 2 misused, 130 stopped.
    """

    data: Annotated[Path, arg(metavar="FOLDER", help="Folder of pictures, any nesting.")]
    out: Annotated[Path, arg(metavar="FILE", help="File to write: .npz or .safetensors.")]
    checkpoint: Annotated[
        Path | None, arg(metavar="RUN", help="Run or checkpoint folder, of any pretext.")
    ] = None
    weights: Annotated[
        Path | None, arg(metavar="FILE", help="Instead: a file of encoder weights.")
    ] = None
    random: Annotated[bool, arg(help="Instead: random weights of --seed.")] = False
    model: Annotated[
        ModelName | None,
        arg(help="Network for --weights and --random; a run knows its own. Default: alexnet."),
    ] = None
    image_size: Annotated[
        int | None,
        arg(metavar="PIXELS", help="Side of its input, for --weights and --random."),
    ] = None
    layers: Annotated[
        str | None,
        arg(metavar="A,B", help="Layers, such as conv1,pool5. Default: the encoder's last."),
    ] = None
    pool: Annotated[
        int | None,
        arg(metavar="N", help="Average maps that are larger to N x N cells (1: one vector)."),
    ] = None
    dtype: Annotated[Literal["float32", "float16"], arg(help="Of the numbers written.")] = "float32"
    mask: Annotated[
        Literal["central", "block", "region", "blob"] | None,
        arg(help="Hide this part of every picture, to describe what surrounds it."),
    ] = None
    seed: Annotated[int, arg(help="Of random weights and masks.")] = 0
    batch_size: Annotated[int, arg(help="Pictures at a time.")] = 32
    workers: Annotated[int, arg(help="Processes that read them; 0 for none.")] = 0
    device: Annotated[str, arg(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto"
    overwrite: Annotated[bool, arg(help="Replace a file that is already there.")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, see :class:`Arguments`."""
    args = tyro.cli(Arguments, prog="python -m context_encoder.features", args=arguments)
    try:
        return _extract_folder(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _extract_folder(args: Arguments) -> int:
    if args.out.suffix not in (".npz", ".safetensors"):
        raise FeatureError(f"--out {args.out} must end in .npz or .safetensors")
    if args.out.exists() and not args.overwrite:
        raise FeatureError(f"{args.out} is already there; replace it with --overwrite")
    for option, number, least in (
        ("--pool", args.pool, 1),
        ("--batch-size", args.batch_size, 1),
        ("--workers", args.workers, 0),
        ("--seed", args.seed, 0),
    ):
        if number is not None and number < least:
            raise FeatureError(f"{option} must be at least {least}, got {number}")
    model = _network(args)
    names = layer_names(model)
    layers = args.layers.split(",") if args.layers else [_last_of_encoder(model)]
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise FeatureError(
            f"--layers: the network has no layer {', '.join(unknown)}; it has {', '.join(names)}"
        )
    paths = list_images(args.data)
    device = choose_device(args.device, Processes())
    config = TrainConfig()
    if args.checkpoint is not None:
        config = read_config(find_checkpoint(args.checkpoint))
    hole = None
    if args.mask is not None:
        masks = build_mask_sampler(args.mask, model.image_size, args.seed)
        hole = Hole(masks, config.fill_color())
    listing = "\0".join(os.fspath(path.relative_to(args.data)) for path in paths)
    settings = {
        "layers": layers,
        "pool": args.pool,
        "dtype": args.dtype,
        "mask": args.mask,
        "mask_seed": None if args.mask is None else args.seed,
        "image_size": model.image_size,
        "network": weights_digest(model),
        "count": len(paths),
        "pictures": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    store = _Store(args.out, settings)
    dtype = torch.float32 if args.dtype == "float32" else torch.float16
    bar = tqdm(total=len(paths), initial=store.done, unit="picture", dynamic_ncols=True)
    if store.done < len(paths):
        with bar:
            for batch in _encoded(
                *(model.to(device), paths, args.data, layers, args.pool, dtype),
                *(args.batch_size, args.workers, hole, store.done),
            ):
                store.add(batch)
                bar.update(len(batch.files))
    bar.close()
    if store.unreadable:
        print(f"skipped {len(store.unreadable)} that cannot be read:", file=sys.stderr)
        for name, reason in store.unreadable[:10]:
            print(f"  {name}: {reason}", file=sys.stderr)
    if not store.files:
        shutil.rmtree(store.folder)
        print(f"error: none of the {len(paths)} pictures can be read", file=sys.stderr)
        return 1
    store.finish(str(args.checkpoint or args.weights or f"random weights, seed {args.seed}"))
    size = args.out.stat().st_size / 2**20
    print(f"saved {args.out}: {len(store.files)} pictures, {', '.join(layers)}, {size:.1f} MiB")
    return 0


def _network(args: Arguments) -> Backbone:
    given = [args.checkpoint is not None, args.weights is not None, args.random]
    if sum(given) != 1:
        raise FeatureError("say where the network comes from: --checkpoint, --weights or --random")
    if args.checkpoint is not None and (args.model, args.image_size) != (None, None):
        raise FeatureError(
            "--model and --image-size would do nothing: the run decides them; leave them out"
        )
    return load_backbone(
        args.checkpoint,
        weights=args.weights,
        model=args.model or "alexnet",
        image_size=args.image_size,
        seed=args.seed,
    )


def _last_of_encoder(model: Backbone) -> str:
    return [name for name, _ in model.encoder.named_children()][-1]


def weights_digest(model: Backbone) -> str:
    """SHA-256 of a network's weights and their names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
