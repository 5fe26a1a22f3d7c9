"""What is exported: a network with all that stands between an image and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_encoder.inpainting.windows import WindowGeometry
from context_encoder.models import Backbone, InpaintingNetwork, MembraneUNet, membrane, without_seam

__all__ = ["EncoderNetwork", "FillingNetwork", "LowPrecision"]


class FillingNetwork(nn.Module):
    """Image and mask in, filled image out: what :class:`Inpainter` does with one window.

    A network that corrects the membrane gets it at the size of the image, and only its correction
    is scaled. The seam of every other one is removed. Both are solved by
    :mod:`context_encoder.models.membrane`, which is less exact than :func:`cekernels.remove_seam`
    but consists of operations that can be exported. There is no texture.

    Args:
        network: in eval mode.
        fill_color: RGB in [-1, 1], for networks that see a colour in the hole.
        hole: the one region (top, left, height, width) that the network was trained to fill; None
            for holes anywhere in its ``output_region``.
        size: side of the images; None for the network's own.

    Raises:
        ValueError: the network does not take that size.
    """

    def __init__(
        self,
        network: InpaintingNetwork,
        *,
        fill_color: Sequence[float],
        hole: tuple[int, int, int, int] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        own = network.image_size
        self.network = network
        self.size = own if size is None else size
        self.corrects_membrane = isinstance(network, MembraneUNet) and network.start == "membrane"
        self.geometry = WindowGeometry(own, hole or network.output_region)
        if self.size != own and not self.corrects_membrane:
            raise ValueError(f"`size` must be {own}, the size that this network takes, got {size}")
        if self.size < own:
            raise ValueError(f"`size` must be {own} or more, got {size}")
        self.register_buffer("color", torch.tensor(tuple(fill_color)), persistent=False)
        self.register_buffer("down", _scaling(self.size, own), persistent=False)
        self.register_buffer("up", _scaling(own, self.size), persistent=False)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Fill the holes.

        Args:
            image: float32 ``(B, 3, N, N)``, RGB in [0, 1]; what it holds in the hole makes no
                difference, unless it is not finite.
            mask: float32 ``(B, 1, N, N)``, above 0.5 where the image is missing.

        Returns:
            float32 ``(B, 3, N, N)``, in [0, 1]; outside the hole it is ``image``.
        """
        missing = mask > 0.5
        scaled = image * 2 - 1
        filled = self._corrected(scaled, missing)
        return torch.where(missing, ((filled + 1) / 2).clamp(0, 1), image)

    def _corrected(self, image: Tensor, missing: Tensor) -> Tensor:
        if self.corrects_membrane:
            network = cast(MembraneUNet, self.network)
            filled = membrane(image, missing)
            if self.size == network.image_size:
                return filled + network.correction(filled, missing) * missing
            down, up = cast(Tensor, self.down), cast(Tensor, self.up)
            small = down @ filled @ down.T
            hidden = down @ missing.to(filled.dtype) @ down.T > 0.5
            return filled + up @ (network.correction(small, hidden) * hidden) @ up.T
        hidden = missing
        if not self.geometry.anywhere:
            region = torch.zeros(1, 1, self.size, self.size, dtype=torch.bool)
            top, left, height, width = self.geometry.region
            region[:, :, top : top + height, left : left + width] = True
            hidden = missing | region
        inputs = self.network.inputs(image, hidden, cast(Tensor, self.color))
        prediction = self.network(*inputs).float()
        top, left, height, width = self.network.output_region
        around = (left, self.size - left - width, top, self.size - top - height)
        whole = F.pad(prediction, around, mode="replicate")
        return without_seam(image, whole, missing)


def _scaling(before: int, after: int) -> Tensor:
    """``(after, before)``: bilinear scaling of one axis as a product, antialiased downwards."""
    rows = torch.eye(before)[None, None]
    scaled: Tensor = F.interpolate(
        rows, (after, before), mode="bilinear", antialias=after < before
    )[0, 0]
    return scaled


class EncoderNetwork(nn.Module):
    """Image in, features out: the outputs of some layers.

    Args:
        network: in eval mode.
        layers: names of stages of its encoder or bottleneck.

    Raises:
        ValueError: there is no such layer, or none is named.
    """

    def __init__(self, network: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        parts = [list(part.named_children()) for part in network.feature_parts()]
        names = [name for part in parts for name, _ in part]
        unknown = [name for name in layers if name not in names]
        if unknown or not layers:
            raise ValueError(
                f"`layers` must be among {', '.join(names)}, got {', '.join(unknown) or 'none'}"
            )
        last = max(names.index(name) for name in layers)
        self.layers = tuple(dict.fromkeys(layers))
        self.size = network.image_size
        #: Whether images of other sizes are taken too: only the encoder is convolutional.
        self.any_size = last < len(parts[0])
        stages = dict(stage for part in parts for stage in part)
        self.stages = nn.ModuleDict({name: stages[name] for name in names[: last + 1]})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of images.

        Args:
            image: float32 ``(B, 3, N, N)``, RGB in [0, 1].

        Returns:
            Per layer, float32 ``(B, C, h, w)``.
        """
        x = image * 2 - 1
        outputs = {}
        for name, stage in self.stages.items():
            x = outputs[name] = stage(x)
        return tuple(outputs[name] for name in self.layers)


class LowPrecision(nn.Module):
    """A network whose weights are stored in 16 or 8 bits, and which computes in float32.

    8 bits: each output channel has a scale of its own, its largest weight is 127. Biases,
    normalisation and everything else with fewer than two dimensions stay float32.

    Args:
        module: the network, which is not changed.
        precision: "fp16" or "int8".
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        super().__init__()
        # Not registered: its own float32 weights must not be in the file.
        self._module = [module]
        self._stored: list[tuple[str, str]] = []
        transposed = {
            f"{name}.weight"
            for name, part in module.named_modules()
            if isinstance(part, nn.ConvTranspose2d)
        }
        for number, (name, value) in enumerate(module.state_dict(keep_vars=True).items()):
            stored = value.detach().clone()
            key = f"w{number}"
            kept = stored.dim() < 2 or not stored.is_floating_point()
            if kept:
                kind = "float32"
            elif precision == "fp16":
                kind, stored = "fp16", stored.half()
            else:
                kind = "int8"
                axes = _summed(name in transposed, stored.dim())
                scale = stored.abs().amax(axes, keepdim=True).clamp(min=1e-12) / 127
                stored = (stored / scale).round().to(torch.int8)
                self.register_buffer(f"{key}_scale", scale)
            self.register_buffer(key, stored)
            self._stored.append((name, kind))

    def forward(self, *inputs: Tensor) -> Any:
        """As the network."""
        weights = {}
        for number, (name, kind) in enumerate(self._stored):
            value = cast(Tensor, getattr(self, f"w{number}"))
            if kind == "fp16":
                value = value.float()
            elif kind == "int8":
                value = value.float() * cast(Tensor, getattr(self, f"w{number}_scale"))
            weights[name] = value
        return torch.func.functional_call(self._module[0], weights, inputs)


def _summed(transposed: bool, dims: int) -> tuple[int, ...]:
    """The dimensions of a weight that one scale covers.

    Convolutions are (out, in, ...), up-convolutions (in, out, ...), and the channel-wise layer has
    (channel, out, in) with nothing shared between channels.
    """
    if dims == 3:
        return (2,)
    return tuple(d for d in range(dims) if d != int(transposed))
