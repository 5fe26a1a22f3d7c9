"""Export of a network to a file, checked in a fresh process before it is written."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from cekernels import decompositions
from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, find_images, load_crops, to_input
from context_encoder.encoder.backbone import last_of_encoder
from context_encoder.exporting.networks import EncoderNetwork, FillingNetwork, LowPrecision
from context_encoder.inpainting.membrane_network import included_network
from context_encoder.masks import build_mask_sampler
from context_encoder.models import MODELS, InpaintingNetwork
from context_encoder.pretexts import PRETEXTS, find_pretext
from context_encoder.runs import Which, check_fills_holes, load_model
from context_encoder.utils.files import check_new_file, make_folder, scratch_folder, write_file
from context_encoder.utils.metrics import hole_metrics
from context_encoder.utils.text import shortened
from context_encoder.utils.version import __version__

__all__ = ["METADATA_FILE", "ExportError", "Exported", "Format", "Part", "Precision",
           "export_network"]  # fmt: skip

Format = Literal["onnx", "pt2"]
Part = Literal["filling", "encoder"]
Precision = Literal["float32", "fp16", "int8"]

#: Name of the metadata in a .pt2 file.
METADATA_FILE = "metadata.json"

# The newest that runtimes of the last three years read.
_OPSET = 18
# Largest difference between a file and its network, as a fraction of the largest value (at least
# 1): float32 in another order of operations.
_TOLERANCE = 1e-4
# The most that fewer bits may cost: PSNR of the fill in dB; error of the features, as a fraction of
# their root mean square.
_MOST_LOSS = 0.1
_MOST_ERROR = 0.02
_CROPS = 64
_SECONDS = 600


class ExportError(RuntimeError):
    """A file cannot be made, or would not do what the network does."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what was checked."""

    path: Path
    part: Part
    bytes: int
    #: Largest difference to the network, where images are in [0, 1]; of features: as a fraction of
    #: the largest one.
    difference: float
    #: PSNR of the fills in dB less that in float32, or the relative error of the features; None in
    #: float32.
    loss: float | None
    metadata: dict[str, str]

    def lines(self) -> list[str]:
        """What the command prints."""
        lines = [
            f"saved {self.path}: {self.bytes / 2**20:.1f} MiB",
            f"checked in a fresh process with batches of 1 and 3: differs by {self.difference:.1g} "
            "at most from the network",
        ]
        if self.loss is not None:
            what = (
                f"{-self.loss:+.3f} dB (PSNR in the hole)"
                if self.part == "filling"
                else f"features differ by {100 * self.loss:.2f} % (root mean square)"
            )
            lines.append(f"compared with float32, on {_CROPS} crops: {what}")
        return [*lines, *(f"  {name}: {value}" for name, value in self.metadata.items())]


def export_network(
    run: Path | None,
    *,
    to: Format,
    out: Path | None = None,
    part: Part | None = None,
    size: int | None = None,
    layers: Sequence[str] | None = None,
    precision: Precision = "float32",
    which: Which = "best",
    overwrite: bool = False,
) -> Exported:
    """Write a trained network to a file that other programs run.

    Args:
        run: a run or checkpoint folder; None: the network that is included.
        to: "onnx", or "pt2", a program of torch.export; neither needs this package to run.
        out: the file; None: named after the network, in the current folder.
        part: "filling" (:class:`FillingNetwork`) or "encoder" (:class:`EncoderNetwork`); None: what
            the run was trained for.
        size: side of the images to fill, the network's own or, if it corrects the membrane, more;
            None: its own.
        layers: of the encoder; None: its last.
        precision: of the weights, see :class:`LowPrecision`.
        which: "best" or "last" checkpoint of a run folder.
        overwrite: whether the file may already exist.

    Raises:
        ImportError: a package of the extra ``export`` is missing.
        RunError: the checkpoint is missing or damaged, or does not have that part.
        ValueError, FileExistsError: options that do not fit.
        WriteError: the file cannot be written.
        ExportError: the precision costs too much, or the file does not do what the network does;
            nothing is written.
    """
    _check_packages(to)
    if out is not None:
        check_new_file(out, [f".{to}"], overwrite=overwrite)
    module, part, about = _wrapped(run, part, size, layers, which)
    if out is None:
        kind = "" if part == "filling" else "-encoder"
        reduced = "" if precision == "float32" else f"-{precision}"
        out = Path(f"{about['network']}-{module.size}{kind}{reduced}.{to}")
        check_new_file(out, [f".{to}"], overwrite=overwrite)
    loss = None
    program: nn.Module = module
    if precision != "float32":
        program = LowPrecision(module, precision)
        loss = _check_loss(module, program, precision)
    program.eval()
    metadata = _metadata(module, about, precision)
    with scratch_folder() as folder:
        file = folder / f"network.{to}"
        with _quiet():
            _save(module, program, to, file, metadata)
        difference = _check_file(module, program, file)
        make_folder(out.parent)
        content = file.read_bytes()
        write_file(out, content)
    return Exported(out, part, len(content), difference, loss, metadata)


def _check_packages(to: Format) -> None:
    needed = ("onnx", "onnxruntime", "onnxscript") if to == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"`to` onnx needs {', '.join(missing)}: pip install 'context-encoder[export]'"
        )


def _wrapped(
    run: Path | None,
    part: Part | None,
    size: int | None,
    layers: Sequence[str] | None,
    which: Which,
) -> tuple[FillingNetwork | EncoderNetwork, Part, dict[str, str]]:
    """The module to export, which part it is, and where it is from."""
    if run is None:
        if part == "encoder" or layers:
            raise ValueError(
                "the included network fills holes and gives no features; name the run of another "
                "network"
            )
        network = included_network()
        (name,) = MODELS.names(lambda spec: spec.network is type(network))
        about = {"network": name, "weights": "included in context-encoder"}
        return FillingNetwork(network, fill_color=(0, 0, 0), size=size), "filling", about
    loaded = load_model(run, which=which)
    config = loaded.config
    about = {
        "network": config.model,
        "weights": f"run {run.resolve().name}, step {loaded.step}, pretext {config.pretext}",
    }
    if part is None:
        fills = PRETEXTS[config.pretext].fills_holes and not layers
        part = "filling" if fills else "encoder"
    if part == "filling":
        if layers:
            raise ValueError("`layers` would do nothing: it needs `part` encoder")
        check_fills_holes(loaded)
        model = cast(InpaintingNetwork, loaded.model)
        hole = find_pretext(config.pretext).fixed_hole(config, model.output_region[2])
        filling = FillingNetwork(model, fill_color=config.fill_color(), hole=hole, size=size)
        return filling, part, about
    if size is not None:
        raise ValueError("`size` would do nothing: it needs `part` filling")
    backbone = loaded.backbone()
    return EncoderNetwork(backbone, layers or [last_of_encoder(backbone)]), part, about


def _metadata(
    module: FillingNetwork | EncoderNetwork, about: dict[str, str], precision: Precision
) -> dict[str, str]:
    """What a user of the file must know, by name."""
    n = module.size
    facts = {
        "producer": f"context-encoder {__version__}",
        **about,
        "precision": "float32"
        if precision == "float32"
        else f"weights {precision}, computed in float32",
    }
    if isinstance(module, FillingNetwork):
        facts |= {
            "task": "filling",
            "image_size": str(n),
            "image": f"float32 (batch, 3, {n}, {n}), RGB in [0, 1], rows from the top",
            "mask": f"float32 (batch, 1, {n}, {n}), 1 where the image is missing, 0 elsewhere",
            "filled": f"float32 (batch, 3, {n}, {n}), RGB in [0, 1]; outside the mask it is image",
        }
        if not module.geometry.anywhere:
            facts["hole"] = (
                f"(top, left, height, width) = {module.geometry.region}: the only pixels that this "
                "network can fill"
            )
        return facts
    sides = "height, width" if module.any_size else f"{n}, {n}"
    return facts | {
        "task": "features",
        "image_size": str(n),
        "image": f"float32 (batch, 3, {sides}), RGB in [0, 1], rows from the top; trained with {n} "
        "pixels",
        "layers": ", ".join(module.layers),
    }


def _example(module: FillingNetwork | EncoderNetwork, batch: int) -> tuple[Tensor, ...]:
    """Inputs of some batch size, the same in each call."""
    generator = torch.Generator().manual_seed(batch)
    n = module.size
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    image = nn.functional.interpolate(coarse, (n, n), mode="bilinear")
    if isinstance(module, EncoderNetwork):
        return (image,)
    mask = torch.zeros(batch, 1, n, n)
    top, left, height, width = (side * n // module.geometry.size for side in module.geometry.region)
    for i in range(batch):
        row, column = top + height * (i + 1) // 8, left + width // 4
        mask[i, :, row : row + height // 2, column : column + width // 2] = 1
    return image, mask


def _save(
    module: FillingNetwork | EncoderNetwork,
    program: nn.Module,
    to: Format,
    file: Path,
    metadata: dict[str, str],
) -> None:
    given = _example(module, 2)
    names = {0: "batch"}
    if isinstance(module, EncoderNetwork) and module.any_size:
        names |= {2: "height", 3: "width"}
    if to == "pt2":
        sizes = dict.fromkeys(names, torch.export.Dim.AUTO)
        exported = torch.export.export(
            program, given, dynamic_shapes=_per_input(program, given, sizes)
        )
        decomposed = exported.run_decompositions(decompositions())
        torch.export.save(decomposed, file, extra_files={METADATA_FILE: json.dumps(metadata)})
        return
    filling = isinstance(module, FillingNetwork)
    written = torch.onnx.export(
        program,
        given,
        dynamo=True,
        verbose=False,
        dynamic_shapes=_per_input(program, given, names),
        opset_version=_OPSET,
        input_names=["image", "mask"][: len(given)],
        output_names=["filled"] if filling else list(cast(EncoderNetwork, module).layers),
    )
    assert written is not None
    written.model.metadata_props.update(metadata)
    written.model.producer_name, written.model.producer_version = "context-encoder", __version__
    written.save(file, external_data=False)


def _per_input(program: nn.Module, given: Sequence[Tensor], axes: dict[int, Any]) -> Any:
    """The same axes of every input; a signature with ``*inputs`` takes one tuple of them."""
    each = tuple(axes for _ in given)
    return (each,) if isinstance(program, LowPrecision) else each


@torch.no_grad()
def _check_file(module: FillingNetwork | EncoderNetwork, program: nn.Module, file: Path) -> float:
    """Run the file in a fresh process; returns the largest difference to the network."""
    worst = 0.0
    examples = [_example(module, batch) for batch in (1, 3)]
    for given, outputs in zip(examples, _replay(file, examples), strict=True):
        expected = program(*given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for a, b in zip(outputs, expected, strict=True):
            if a.shape != tuple(b.shape) or not np.isfinite(a).all():
                raise ExportError(
                    f"the file gives {a.shape} where the network gives {tuple(b.shape)}, or values "
                    "that are not finite"
                )
            scale = max(1.0, float(b.abs().max()))
            worst = max(worst, float(np.abs(a - b.numpy()).max()) / scale)
    if worst > _TOLERANCE:
        raise ExportError(
            f"the file's results differ from the network's by {worst:.2g}, at most {_TOLERANCE:g} "
            "is expected; nothing was written"
        )
    return worst


def _replay(file: Path, examples: Sequence[Sequence[Tensor]]) -> list[list[Any]]:
    """The outputs that a fresh process gets from the file, for each of the inputs."""
    arrays = []
    for number, given in enumerate(examples):
        arrays += [file.with_name(f"{kind}{number}.npz") for kind in ("inputs", "outputs")]
        np.savez(arrays[-2], *(x.numpy() for x in given))
    program = f"from replay import main; main({str(file)!r}, {[str(path) for path in arrays]!r})"
    try:
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip()
        raise ExportError(
            f"the file does not run in a fresh process: {shortened(said.splitlines()[-1], 400)}"
        ) from error
    found = []
    for path in arrays[1::2]:
        with np.load(path) as outputs:
            found.append([outputs[name] for name in outputs.files])
    return found


@torch.no_grad()
def _check_loss(
    module: FillingNetwork | EncoderNetwork, reduced: nn.Module, precision: Precision
) -> float:
    """What the precision costs on the package's photographs; ExportError if it is too much."""
    files = find_images(embedded_photos())
    n = module.size
    defaults = TrainConfig()
    crops = load_crops(
        files,
        files.root,
        size=n,
        resize=max(n, defaults.resize or n),
        crop_scale=defaults.crop_scale,
        samples=_CROPS,
    )
    image = (to_input(crops.images) + 1) / 2
    if isinstance(module, EncoderNetwork):
        error = 0.0
        for name, a, b in zip(module.layers, module(image), reduced(image), strict=True):
            relative = float((a - b).square().mean().sqrt() / a.square().mean().sqrt())
            if not relative <= _MOST_ERROR:
                raise ExportError(
                    f"`precision` {precision}: the features {name} of {len(image)} crops differ by "
                    f"{100 * relative:.2f} % from those in float32 (root mean square), at most "
                    f"{100 * _MOST_ERROR:g} % is accepted; nothing was written"
                )
            error = max(error, relative)
        return error
    index = torch.arange(len(image))
    if module.geometry.anywhere:
        missing, _ = build_mask_sampler(defaults.mask, n, 0)(torch.zeros_like(index), index)
    else:
        missing = _example(module, 1)[1].bool().expand(len(image), -1, -1, -1)
    mask = missing.float()
    psnr = [
        torch.cat(
            [
                hole_metrics(network(image[i : i + 8], mask[i : i + 8]), image[i : i + 8],
                             missing[i : i + 8])["psnr"]
                for i in range(0, len(image), 8)
            ]
        )
        for network in (module, reduced)
    ]  # fmt: skip
    loss = float((psnr[0] - psnr[1]).mean())
    if not loss <= _MOST_LOSS or not math.isfinite(loss):
        raise ExportError(
            f"`precision` {precision}: the fills of {len(image)} crops have "
            f"{float(psnr[1].mean()):.2f} dB instead of {float(psnr[0].mean()):.2f} dB in the "
            f"hole; at most {_MOST_LOSS:g} dB may be lost; nothing was written"
        )
    return loss


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of exporters, which concern their own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript",
                                                    "onnx_ir")]  # fmt: skip
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
