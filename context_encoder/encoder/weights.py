"""Export and import of encoder weights.

There are three ways to name the weights of an encoder:

``native``
    The names of this package: ``conv1.conv.weight``, ``conv1.norm.running_mean``, ..., for every
    network.
``torchvision``
    The keys of torchvision's AlexNet: ``features.0.weight``, ``features.0.bias``, then 3, 6, 8 and
    10 for conv2 to conv5. **The weights do not fit torchvision's class itself**, which has 64, 192,
    384, 256 and 256 channels and no groups. The paper's AlexNet, Caffe's, has 96, 256, 384, 384
    and 256, conv2, conv4 and conv5 in 2 groups, no padding in conv1, and local response
    normalisation after conv1 and conv2. The weights fit any class whose ``features`` has such
    convolutions at torchvision's indices, and give the same maps if the class normalises as in
    training (``norm`` in the file's metadata).
``caffe``
    The layers of Caffe's bvlc_alexnet: ``conv1.weight`` and ``conv1.bias`` to conv5, in Caffe's
    shapes.

The latter two have no names for batch normalisation, which is folded into the convolutions (without
effect in eval mode), nor for the convolutions with which ``alexnet-poolfree`` pools. In all
of them the images are RGB on [-1, 1] (``value / 127.5 - 1``), unlike torchvision's and Caffe's.

Weights that were trained on Caffe's images (BGR, ``value - mean``), as the authors' features
model was, are read with ``import --input caffe``: conv1 is rewritten to take this package's images
and give the same maps. Files of other programs do not say which images they are for, so users must.
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

from context_encoder.config import in_words
from context_encoder.models import MODELS, Backbone, build_context_encoder, default_features_model
from context_encoder.runs import MismatchError, check_finite
from context_encoder.utils.text import shortened

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
# First bytes of files by torch.save: a zip archive, or a pickle before torch 1.6.
_PICKLED_HEADS = (b"PK", b"\x80")
_INPUT = "RGB, value / 127.5 - 1"
# Keys under which other programs nest their weights.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "encoder.")


class WeightsError(ValueError):
    """A file of weights cannot be read or does not fit; the message says why."""


@dataclass(frozen=True)
class ImportReport:
    """Result of loading a file's weights. ``str()`` gives it as text."""

    #: Weights of the encoder that the file set.
    loaded: tuple[str, ...]
    #: Weights of the encoder that the file does not have.
    missing: tuple[str, ...]
    #: The file's name of a weight, its shape there, and the shape that is needed.
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    #: Weights of the file that the encoder does not have.
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
    """The weights of an encoder in one of this module's namings, contiguous, on the CPU.

    Raises:
        WeightsError: the naming cannot hold this encoder's weights.
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
            f"`names` {names} can hold AlexNet's conv1 to conv5 only, this encoder has "
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
    """Set all weights of an encoder that fit those of a file in any naming.

    Args:
        encoder: changed in place.
        tensors: named in one of this module's namings, also with the prefix ``module.`` or
            ``encoder.``.

    Returns:
        A report of the weights that fit and those that do not; neither raises an error.
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
        # The output does not depend on the number of batches.
        if name not in {*loaded, *misshaped} and not name.endswith("num_batches_tracked")
    ]
    return ImportReport(tuple(loaded), tuple(missing), tuple(misshaped.values()), tuple(left_over))


# The mean that Caffe's networks were trained with, RGB on [0, 255].
_CAFFE_MEAN = (123.0, 117.0, 104.0)


@torch.no_grad()
def take_own_pictures(encoder: nn.Sequential) -> None:
    """Rewrite the first convolution of Caffe's weights for this package's images, in place.

    Caffe's input is ``value - mean`` per channel in BGR order; ours is ``value / 127.5 - 1`` in
    RGB order. The maps stay the same: the filters are flipped and scaled, and their products with
    the constant ``127.5 - mean`` are added to the bias. The mean is ImageNet's, (104, 117, 123) in
    Caffe's order, as the authors say of their features model (pathak22/context-encoder, issue 17).

    Raises:
        WeightsError: the convolution has no bias; or it pads. Zeros are the mean colour for Caffe
            and grey here, so no weights would give the same maps at the border.
    """
    conv = encoder.get_submodule("conv1.conv")
    assert isinstance(conv, nn.Conv2d)
    if conv.padding != (0, 0) or conv.bias is None:
        raise WeightsError(
            "`pictures` caffe is for a first convolution with bias and without padding, as "
            f"AlexNet's without batch normalisation; this one is {conv}"
        )
    weight = conv.weight.double().flip(1)
    mean = weight.new_tensor(_CAFFE_MEAN)
    conv.bias.add_((weight.sum((2, 3)) @ (127.5 - mean)).to(conv.bias))
    conv.weight.copy_(127.5 * weight)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a file, without executing any code in it.

    Args:
        path: .safetensors, or a .pth, .pt, .bin or .ckpt of PyTorch, which is read with
            ``weights_only=True``: a dictionary of tensors, bare or under "state_dict" or "model".

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
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
            raise WeightsError(f"weights {path} cannot be read: {shortened(error)}") from error
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
    except Exception as error:  # damaged pickles can raise any error
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
    """The network for a file of weights: ``model``, the one named in the file, or the default.

    Raises:
        ValueError: the network is unknown.
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
    """An encoder with the weights of a file, in eval mode on the CPU, and a report.

    Args:
        path: see :func:`read_weights`.
        model: the network of the encoder; None for the file's metadata, or
            :func:`context_encoder.models.default_features_model`.
        image_size: S in pixels; None for the file's metadata, or the network's default.
        norm: normalisation of a network with this option, such as AlexNet; None for the file's
            metadata, or local response normalisation.
        pictures: images that the weights were trained on: "own", this package's, or "caffe", for
            which :func:`take_own_pictures` rewrites the first convolution; None for the file's
            metadata, or "own" with a warning.
        partial: whether weights that are missing in the file, or misshaped, may stay random.
        seed: seed of the random weights.

    Raises:
        WeightsError: the file cannot be read, is of another network, or is partial; or
            ``pictures`` does not fit it.
        ValueError: the model is unknown, or cannot handle the size.
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
        whole = build_context_encoder(model, image_size=image_size, **options)
    report = import_encoder(whole.encoder, tensors)
    try:
        check_finite(whole.encoder.state_dict())
    except MismatchError as error:
        raise WeightsError(f"weights {path} cannot be used: {error}") from error
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

        def has(kind: type[nn.Module]) -> bool:
            return any(isinstance(module, kind) for module in backbone.encoder.modules())

        batch = has(nn.BatchNorm2d) and names == "native"  # otherwise folded
        metadata["norm"] = "lrn" if has(nn.LocalResponseNorm) else "batch" if batch else "none"
    return metadata
