"""Encoder weights out, for others, and in.

Three ways to name the weights of an encoder:

``native``
    Those of this package: ``conv1.conv.weight``, ``conv1.norm.running_mean``, ... Every network.
``torchvision``
    The keys of torchvision's AlexNet: ``features.0.weight``, ``features.0.bias``, then 3, 6, 8 and
    10 for conv2 to conv5. **The weights do not fit torchvision's class itself**, which has 64, 192,
    384, 256 and 256 channels and no groups. The paper's AlexNet, Caffe's, has 96, 256, 384, 384
    and 256, conv2, conv4 and conv5 in 2 groups, no padding in conv1, and local response
    normalisation after conv1 and conv2. They fit any class whose ``features`` holds such
    convolutions at torchvision's places, and give the same maps if it normalises as they were
    trained (the file's metadata says how: ``norm``).
``caffe``
    The layers of Caffe's bvlc_alexnet: ``conv1.weight`` and ``conv1.bias`` to conv5, in Caffe's
    shapes.

The latter two have no place for batch normalisation: it is folded into the convolutions, which
changes nothing in eval mode; nor for the convolutions that ``alexnet-poolfree`` pools with. In all
of them the images are RGB on [-1, 1] (``value / 127.5 - 1``), unlike torchvision's and Caffe's.

Weights that were trained on Caffe's images (BGR, ``value - mean``), as the authors' features
model was, come in with ``import --input caffe``: conv1 is rewritten to take this package's images
and give the same maps. A file of others does not say which images it is for: you have to.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from context_encoder.config import FILL_COLORS, in_words
from context_encoder.models import MODELS, Backbone, build_model, default_features_model

__all__ = [
    "ImportReport",
    "WeightsError",
    "export_encoder",
    "import_encoder",
    "load_encoder",
    "named_model",
    "read_weights",
    "take_own_pictures",
    "weights_metadata",
]

log = logging.getLogger(__name__)

Names = Literal["native", "torchvision", "caffe"]
Input = Literal["own", "caffe"]
Norm = Literal["lrn", "batch", "none"]

_PLACES = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
_SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
}
_PICKLED = (".pth", ".pt", ".bin", ".ckpt")
# How torch.save begins a file: a zip archive, before torch 1.6 a pickle.
_PICKLED_HEADS = (b"PK", b"\x80")
_INPUT = "RGB, value / 127.5 - 1"
# What others wrap their weights in.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "encoder.")


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit; says what is wrong."""


@dataclass(frozen=True)
class ImportReport:
    """What became of a file's weights. ``str()`` gives it as text."""

    #: Weights of the encoder that the file set.
    loaded: tuple[str, ...]
    #: Weights of the encoder that the file does not have.
    missing: tuple[str, ...]
    #: The file's name of a weight, its shape there, and the shape that is needed.
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    #: What the file has beside the encoder.
    left_over: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.missing and not self.misshaped

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)}: {_listed(self.loaded)}"]
        if self.misshaped:
            shapes = [f"{name} is {had}, needed {need}" for name, had, need in self.misshaped]
            lines.append(f"of another shape {len(shapes)}: {_listed(shapes, '; ')}")
        if self.missing:
            lines.append(f"not in the file {len(self.missing)}: {_listed(self.missing)}")
        if self.left_over:
            lines.append(f"not used {len(self.left_over)}: {_listed(self.left_over)}")
        return "\n".join(lines)


def _listed(names: Sequence[str], comma: str = ", ") -> str:
    shown = comma.join(names[:12]) or "none"
    return shown + (f"{comma}and {len(names) - 12} more" if len(names) > 12 else "")


def export_encoder(encoder: nn.Sequential, names: Names = "native") -> dict[str, Tensor]:
    """The weights of an encoder under one of the namings at the top, on the CPU, contiguous.

    Raises:
        WeightsError: the naming has no place for this encoder's weights.
    """
    if names == "native":
        tensors = dict(encoder.state_dict())
    else:
        tensors = {}
        for name, convolution in _plain_convolutions(encoder, names).items():
            prefix = name if names == "caffe" else f"features.{_PLACES[name]}"
            for kind, value in zip(("weight", "bias"), convolution, strict=True):
                tensors[f"{prefix}.{kind}"] = value
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def _plain_convolutions(encoder: nn.Sequential, names: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of conv1 to conv5, batch normalisation folded in."""
    own = encoder.state_dict()
    others = {
        name for name, layer in encoder.named_children() if any(True for _ in layer.parameters())
    } - _SHAPES.keys()
    shapes = {name: tuple(own.get(f"{name}.conv.weight", torch.empty(0)).shape) for name in _SHAPES}
    if others or shapes != _SHAPES:
        raise WeightsError(
            f"`names` {names} has a place for AlexNet's conv1 to conv5 alone, this encoder has "
            f"{'also ' + ', '.join(sorted(others)) if others else 'other layers'}; "
            "use `names` native"
        )
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in _SHAPES:
        layer = encoder.get_submodule(name)
        conv, norm = layer.get_submodule("conv"), getattr(layer, "norm", None)
        assert isinstance(conv, nn.Conv2d)
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight = nn.Parameter(weight * scale.view(-1, 1, 1, 1))
            shift = norm.bias - norm.running_mean * scale
            bias = nn.Parameter(shift if bias is None else shift + bias * scale)
        assert bias is not None
        found[name] = (weight, bias)
    return found


def import_encoder(encoder: nn.Sequential, tensors: Mapping[str, Tensor]) -> ImportReport:
    """Set an encoder's weights from a file's, whichever naming they have; set all that fit.

    Args:
        encoder: changed in place.
        tensors: under names of one of the namings at the top, also with ``module.`` or
            ``encoder.`` before them.

    Returns:
        What fitted and what did not; nothing is raised for either.
    """
    own = encoder.state_dict()
    aliases = {
        f"{prefix}.{kind}": f"{name}.conv.{kind}"
        for name, place in _PLACES.items()
        for prefix in (name, f"features.{place}")
        for kind in ("weight", "bias")
    }
    loaded: dict[str, Tensor] = {}
    misshaped: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {}
    left_over = []
    for full_name, value in tensors.items():
        name = full_name
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        name = aliases.get(name, name)
        if name not in own or name in loaded:
            left_over.append(full_name)
        elif value.shape != own[name].shape:
            misshaped[name] = (full_name, tuple(value.shape), tuple(own[name].shape))
        else:
            loaded[name] = value.to(own[name].dtype)
    encoder.load_state_dict(loaded, strict=False)
    missing = [
        name
        for name in own
        # No output depends on the count of batches.
        if name not in {*loaded, *misshaped} and not name.endswith("num_batches_tracked")
    ]
    return ImportReport(tuple(loaded), tuple(missing), tuple(misshaped.values()), tuple(left_over))


@torch.no_grad()
def take_own_pictures(encoder: nn.Sequential) -> None:
    """Rewrite the first convolution of Caffe's weights for this package's images, in place.

    It saw ``value - mean`` of each channel, blue first; it gets ``value / 127.5 - 1``, red first.
    Its maps stay the same: the filters are flipped and scaled, their sums over the constant
    ``127.5 - mean`` go to the bias. The mean is ImageNet's, (104, 117, 123) in Caffe's order, as
    the authors say of their features model (pathak22/context-encoder, issue 17).

    Raises:
        WeightsError: the convolution pads: its zeros are the mean colour for Caffe and grey here,
            and no weights would give the same maps at the border. Or it has no bias.
    """
    conv = encoder.get_submodule("conv1.conv")
    assert isinstance(conv, nn.Conv2d)
    if conv.padding != (0, 0) or conv.bias is None:
        raise WeightsError(
            "`pictures` caffe is for a first convolution with bias and without padding, as "
            f"AlexNet's without batch normalisation; this one is {conv}"
        )
    weight = conv.weight.double().flip(1)
    mean = weight.new_tensor(FILL_COLORS["imagenet-mean"])
    conv.bias.add_((weight.sum((2, 3)) @ (127.5 - mean)).to(conv.bias))
    conv.weight.copy_(127.5 * weight)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a file and its metadata; nothing in it is executed.

    Args:
        path: .safetensors, or a .pth, .pt, .bin or .ckpt of PyTorch, which is read with
            ``weights_only=True``: a dictionary of tensors, bare or under "state_dict" or "model".

    Raises:
        WeightsError: it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights {path} {what}; name a file, or a run with `checkpoint`")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"weights {path} cannot be read: {error}") from error
    if suffix not in _PICKLED:
        raise WeightsError(
            f"weights {path} must end in .safetensors, {', '.join(_PICKLED[:-1])} or {_PICKLED[-1]}"
        )
    expected = (
        "expected a dictionary of tensors (a state dict) as torch.save writes it; safest is "
        ".safetensors"
    )
    with path.open("rb") as file:
        head = file.read(8)
    if not head.startswith(_PICKLED_HEADS):
        raise WeightsError(
            f"weights {path} cannot be read: no file of torch.save begins with {head!r}; {expected}"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"weights {path} cannot be read: damaged, or more than tensors, which is not loaded "
            f"because that could run code ({type(error).__name__}); {expected}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"weights {path} hold a {type(content).__name__}, not named tensors")
    return {str(name): v for name, v in content.items() if isinstance(v, Tensor)}, {}


def named_model(path: Path, model: str | None = None) -> str:
    """The network that a file of weights is for: ``model``, what the file says, or the default.

    Raises:
        ValueError: there is no such network.
    """
    if model is None and path.suffix.lower() == ".safetensors":
        with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            model = (file.metadata() or {}).get("model")
    return MODELS.canonical(model or default_features_model())


def load_encoder(
    path: Path,
    *,
    model: str | None = None,
    image_size: int | None = None,
    norm: Norm | None = None,
    pictures: Input | None = None,
    partial: bool = False,
    seed: int = 0,
) -> tuple[Backbone, ImportReport]:
    """An encoder with the weights in a file, in eval mode on the CPU, and what was loaded.

    Args:
        path: see :func:`read_weights`.
        model: the network whose encoder it is; None for what the file says, or
            :func:`context_encoder.models.default_features_model`.
        image_size: S; None for what the file says, or the network's own.
        norm: of a network that has the option, as AlexNet; None for what the file says, or local
            response normalisation.
        pictures: which the weights are for: "own", this package's, or "caffe", whose first
            convolution :func:`take_own_pictures` then rewrites; None for what the file says, or
            "own" with a warning.
        partial: whether weights that the file lacks, or has in another shape, may stay random.
        seed: of those.

    Raises:
        WeightsError: the file cannot be read, is of another network, or is partial; or
            ``pictures`` cannot be.
        ValueError: an unknown model, or a size that it cannot take.
    """
    tensors, metadata = read_weights(path)
    model = named_model(path, model)
    stated = metadata.get("model", model)
    if stated not in MODELS or MODELS.canonical(stated) != model:
        raise WeightsError(
            f"weights {path} are of `model` {metadata['model']}, `model` {model} was asked for"
        )
    if image_size is None and metadata.get("image_size", "").isdecimal():
        image_size = int(metadata["image_size"])
    options: dict[str, Any] = {}
    if "norm" in MODELS[model].options:
        options["norm"] = norm or metadata.get("norm", "lrn")
    elif norm is not None:
        owners = in_words(MODELS.names(lambda spec: "norm" in spec.options))
        raise WeightsError(f"`norm` {norm} is for `model` {owners}, not for `model` {model}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = build_model(model, image_size=image_size, **options)
    report = import_encoder(whole.encoder, tensors)
    if not report.loaded or not (report.complete or partial):
        hint = "" if not report.loaded else "; `partial` leaves the rest random"
        raise WeightsError(
            f"weights {path} do not fill the encoder of `model` {model}{hint}\n{report}"
        )
    if pictures == "caffe":
        if metadata.get("input") == _INPUT:
            raise WeightsError(
                f"weights {path} are for {_INPUT}, the file says; leave out `pictures` caffe"
            )
        if "conv1.conv.weight" not in report.loaded:
            raise WeightsError(
                f"`pictures` caffe rewrites conv1, which {path} does not fill\n{report}"
            )
        take_own_pictures(whole.encoder)
    elif pictures is None and metadata.get("input") != _INPUT:
        log.warning(
            "weights %s do not say which images they are for; taken as %s. If they are for "
            "Caffe's, convert them: python -m context_encoder.weights import --input caffe",
            *(path, _INPUT),
        )
    return Backbone(whole.image_size, whole.encoder).eval(), report


def weights_metadata(model: str, backbone: Backbone, names: Names) -> dict[str, str]:
    metadata = {
        "names": names,
        "model": model,
        "image_size": str(backbone.image_size),
        "input": _INPUT,
    }
    if "norm" in MODELS[model].options:
        kinds = {type(module) for module in backbone.encoder.modules()}
        batch = nn.BatchNorm2d in kinds and names == "native"  # else folded in
        metadata["norm"] = "lrn" if nn.LocalResponseNorm in kinds else "batch" if batch else "none"
    return metadata
