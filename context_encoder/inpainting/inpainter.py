"""Inpainting of images of any size with a network for squares.

::

    from context_encoder import Inpainter
    inpainter = Inpainter.from_run("runs/first")
    inpainter("photo.jpg", "mask.png").save("filled.png")

:mod:`context_encoder.inpainting.windows` chooses the windows of the image for the network, and
:mod:`context_encoder.inpainting.image_io` reads images, :mod:`.encode` saves them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cekernels import fill_masked
from context_encoder.data.mask_images import ImageLike, InpaintError, InputOptions
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.correction import corrected_membrane
from context_encoder.inpainting.encode import write_picture
from context_encoder.inpainting.image_io import Hole, Picture, mode_of, read_with_mask
from context_encoder.inpainting.progress import Progress, hole_bar
from context_encoder.inpainting.windows import (
    PlannedHole,
    Window,
    WindowGeometry,
    plan_windows,
    reflect_indices,
)
from context_encoder.models import InpaintingNetwork, MembraneUNet, Network
from context_encoder.pretexts import find_pretext
from context_encoder.runs import Which, check_fills_holes, load_model
from context_encoder.utils.device import Processes, choose_device

__all__ = [
    "Inpainted",
    "Inpainter",
    "Report",
]

SHOWN_HOLES = 10

# Below this scale, the fill is visibly softer than its surroundings.
_COARSE = 0.5


class _Lines(Protocol):
    def lines(self, most: int | None = None) -> list[str]: ...


ReportT = TypeVar("ReportT", bound=_Lines)


@dataclass(frozen=True)
class Report:
    """The windows and remarks of an inpainting. ``str()`` gives it as text."""

    #: Side S of the network's input in pixels.
    size: int
    #: The missing fraction of a window above which a line warns.
    max_missing: float
    holes: tuple[PlannedHole, ...]
    #: Width and height of the image.
    picture_size: tuple[int, int]
    #: Remarks about reading the image and the mask, as sentences.
    notes: tuple[str, ...]

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows that the network processed."""
        return tuple(window for hole in self.holes for window in hole.windows)

    def lines(self, most: int | None = None) -> list[str]:
        """The notes, and one line per hole (or for the first ``most`` holes)."""
        lines = list(self.notes)
        shown = self.holes if most is None else self.holes[:most]
        lines += [
            f"hole {i} of {len(self.holes)}: {self._tell(hole)}" for i, hole in enumerate(shown, 1)
        ]
        rest = self.holes[len(shown) :]
        if rest:
            scaled = sum(hole.windows[0].side > self.size for hole in rest)
            lines.append(
                f"and {len(rest)} more, {sum(len(hole.windows) for hole in rest)} windows; "
                + (f"{scaled} of these holes scaled down" if scaled else "all native resolution")
            )
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _tell(self, hole: PlannedHole) -> str:
        top, left, bottom, right = hole.box
        side, count = hole.windows[0].side, len(hole.windows)
        text = f"{right - left}x{bottom - top} px at ({left}, {top})"
        if hole.parts > 1:
            text = f"{hole.parts} spots in {text}"
        text += f": window {side}x{side}" if count == 1 else f": {count} windows of {side}x{side}"
        scale = self.size / side
        if side == self.size:
            text += ", native resolution"
        else:
            text += f" scaled by {scale:.2g} to {self.size}x{self.size}"
            if scale < _COARSE:
                text += ", so the fill is coarse"
        width, height = self.picture_size
        if any(
            min(w.top, w.left) < 0 or w.top + side > height or w.left + side > width
            for w in hole.windows
        ):
            text += "; the image is continued by reflection"
        missing = max(window.missing for window in hole.windows)
        if missing > self.max_missing:
            text += (
                f"; {missing:.0%} of {'the' if count == 1 else 'a'} window's context is missing, "
                f"more than the {self.max_missing:.0%} trained for: do not expect much"
            )
        return text


@dataclass(frozen=True, eq=False)
class Inpainted(Generic[ReportT]):
    """A filled image."""

    #: In the image's own mode and depth (see :class:`context_encoder.inpainting.image_io.Picture`).
    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    #: bool ``(H, W)``: True where it was filled.
    mask: NDArray[np.bool_]
    report: ReportT
    #: Metadata of the image, as in ``info`` of Pillow's images.
    info: dict[str, Any]

    @classmethod
    def of(
        cls, picture: Picture, hole: Hole, rgb: NDArray[np.float32], report: ReportT
    ) -> Inpainted[ReportT]:
        """The picture with its hole filled from ``rgb``, float32 ``(H, W, 3)`` in [-1, 1]."""
        return cls(picture.filled(hole, rgb), hole.mask, report, picture.info)

    @property
    def image(self) -> Image.Image:
        """A Pillow image. Pillow holds no colours of 16 bits: it has 8 of them, ``pixels`` all."""
        pixels = self.pixels
        if pixels.ndim == 3 and pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        image = Image.fromarray(pixels)
        assert image.mode == mode_of(pixels)
        image.info.update(self.info)
        return image

    def save(self, path: str | os.PathLike[str], *, strip_metadata: bool = False) -> list[str]:
        """Save without loss, or as a JPEG of quality 95, which changes all pixels.

        ICC profile, resolution, EXIF and XMP are kept where the format holds them; thumbnails and
        maker notes are left out, because they may show the removed parts.

        Args:
            path: ends in .png, .tif, .tiff, .webp or .jpg. An existing file is replaced.
            strip_metadata: leave EXIF and XMP out.

        Returns:
            What the format could not hold, as sentences.

        Raises:
            InpaintError: the suffix is another one, or the format cannot hold the image.
            OSError: the file cannot be written.
        """
        return write_picture(self.pixels, self.info, path, strip_metadata=strip_metadata)


class Inpainter:
    """Fills the holes of images of any size with a network for squares.

    Args:
        model: an :class:`context_encoder.models.InpaintingNetwork`, or a module that takes
            float32 ``(B, 3, S, S)``, RGB in [-1, 1], the hole filled with ``fill_color``, and
            returns ``(B, 3, h, w)``; has ``image_size``, S, and ``output_region``, the (top, left,
            h, w) that it returns. Moved to ``device``, float32 and eval mode, in place.
        fill_color: RGB in [-1, 1], as in training; for networks that see a colour.
        hole: the one region (top, left, height, width) of its input that was missing in
            training, and is therefore the only one to fill; None: holes were anywhere in what
            the network returns.
        blend: remove the seam, see :func:`context_encoder.inpainting.remove_seam`; False: the
            prediction as it is. Networks that correct the membrane leave no seam, and lose 0.06 dB
            by its removal: their prediction stays as it is.
        batch_size: windows at a time.
        device: device of the network.

    Raises:
        InpaintError: ``hole`` is not in ``output_region``, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fill_color: tuple[float, float, float],
        hole: tuple[int, int, int, int] | None = None,
        blend: bool = True,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise InpaintError(f"batch_size must be at least 1, got {batch_size}")
        self.device = torch.device(device)
        self.model = model.to(self.device, torch.float32).eval()
        self._corrects_membrane = isinstance(model, MembraneUNet) and model.start == "membrane"
        self.blend = blend and not self._corrects_membrane
        self.batch_size = batch_size
        self.region: tuple[int, int, int, int] = tuple(model.output_region)  # type: ignore[arg-type]
        hole = hole or self.region
        if not _within(hole, self.region):
            raise InpaintError(
                f"hole (top, left, height, width) must lie in the model's output_region "
                f"{self.region}, got {hole}"
            )
        self.geometry = WindowGeometry(int(model.image_size), hole)  # type: ignore[arg-type]
        self._fill_color = torch.tensor(fill_color, device=self.device)

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike[str],
        *,
        which: Which = "best",
        device: str = "auto",
        blend: bool = True,
        batch_size: int = 16,
    ) -> Inpainter:
        """Load the network of a run.

        Args:
            path: a run folder, as training makes it, or one of its checkpoint folders.
            which: "best" or "last" checkpoint of a run folder.
            device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
            blend, batch_size: see the class.

        Raises:
            RunError: there is no checkpoint, it cannot be used, or its pretext does not fill
                holes.
            ValueError: the device does not exist.
        """
        loaded = load_model(Path(path), which=which, device=choose_device(device, Processes()))
        check_fills_holes(loaded)
        config, model = loaded.config, cast(InpaintingNetwork, loaded.model)
        return cls(
            model,
            fill_color=config.fill_color(),
            hole=find_pretext(config.pretext).fixed_hole(config, model.output_region[2]),
            blend=blend,
            batch_size=batch_size,
            device=next(model.parameters()).device,
        )

    def __call__(
        self,
        image: ImageLike,
        mask: ImageLike | None = None,
        *,
        boxes: Sequence[Sequence[int]] | None = None,
        progress: Progress = False,
        **reading: Any,
    ) -> Inpainted[Report]:
        """Fill the holes of one image.

        Args:
            image: a file, a Pillow image or an array (see
                :func:`context_encoder.inpainting.image_io.read_picture`), of any size.
            mask: of the same size, white where to fill: a file, a Pillow image or an array (see
                :func:`context_encoder.data.mask_images.read_mask`).
            boxes: instead of a mask, rectangles ``(x0, y0, x1, y1)`` in pixels, x1 and y1
                exclusive.
            progress: show a progress bar on standard error, if that is a terminal and the work
                exceeds a second; or a function of the pixels done since its last call.
            reading: fields of :class:`context_encoder.data.mask_images.InputOptions`, such as
                ``invert_mask=True`` or ``grow=2``.

        Returns:
            The filled image. Outside the mask its pixels are those of ``image``, bit for bit;
            inside, they are opaque. An array of bool in which nothing is set leaves all pixels as
            they are.

        Raises:
            UnreadableImage: a file cannot be read as an image.
            InpaintError: an image that cannot be kept, a mask that does not fit it or cannot be
                meant, a box outside of it, nothing left outside the mask, an option out of range,
                or a prediction that is not finite.
        """
        picture, hole, notes = read_with_mask(image, mask, boxes, InputOptions(**reading))
        missing = hole.mask
        holes = plan_windows(missing, self.geometry)
        filled = picture.rgb()
        windows = [window for hole in holes for window in hole.windows]
        with hole_bar(int(missing.sum()), show=progress) as bar:
            self._fill(filled, missing, windows, bar.update)
        report = Report(
            self.geometry.size,
            self.geometry.max_missing,
            tuple(holes),
            (picture.width, picture.height),
            tuple(notes),
        )
        return Inpainted.of(picture, hole, filled, report)

    def predict(
        self, image: NDArray[np.float32], missing: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Fill the holes of an image in memory.

        Args:
            image: float32 ``(H, W, 3)``, RGB in [-1, 1]; missing pixels are not looked at.
            missing: bool ``(H, W)``, True where to fill. Known pixels must be left.

        Returns:
            float32 ``(H, W, 3)``; outside the hole it is ``image``.

        Raises:
            InpaintError: the prediction is not finite.
        """
        filled = image.copy()
        holes = plan_windows(missing, self.geometry)
        self._fill(filled, missing, [window for hole in holes for window in hole.windows])
        return filled

    @torch.inference_mode()
    def _fill(
        self,
        picture: NDArray[np.float32],
        missing: NDArray[np.bool_],
        windows: Sequence[Window],
        progress: Callable[[float], object] | None = None,
    ) -> None:
        """Write the predictions for all windows into the missing pixels of ``picture``.

        Missing pixels are never read, so the order of the windows does not matter.
        """
        if self._corrects_membrane and self.geometry.anywhere:
            # The membrane of the picture itself: only the correction is scaled.
            network = cast(MembraneUNet, self.model)
            filled = corrected_membrane(
                network, picture, missing, windows, batch_size=self.batch_size, progress=progress
            )
            self._check_finite(filled[missing])
            picture[:] = filled
            return
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            seen = [self._look(picture, missing, window) for window in batch]
            image, holes = (torch.cat(parts) for parts in zip(*seen, strict=True))
            results = self.complete(image, holes)
            for window, result in zip(batch, results, strict=True):
                if window.side != self.geometry.size:
                    result = F.interpolate(
                        result[None], (window.side, window.side), mode="bicubic"
                    )[0]
                top, left, bottom, right = window.box
                part = result[
                    :,
                    top - window.top : bottom - window.top,
                    left - window.left : right - window.left,
                ]
                values = part.permute(1, 2, 0).cpu().numpy()
                picture[top:bottom, left:right][window.pixels] = values[window.pixels]
                if progress is not None:
                    progress(float(window.pixels.sum()))

    def _look(
        self, picture: NDArray[np.float32], missing: NDArray[np.bool_], window: Window
    ) -> tuple[Tensor, Tensor]:
        """Pixels of a window, ``(1, 3, S, S)``, and missing pixels, bool ``(1, 1, S, S)``."""
        height, width = missing.shape
        grid = np.ix_(
            reflect_indices(window.top, window.side, height),
            reflect_indices(window.left, window.side, width),
        )
        image = torch.from_numpy(picture[grid]).to(self.device).permute(2, 0, 1)[None]
        hole = torch.from_numpy(missing[grid]).to(self.device)[None, None]
        size = self.geometry.size
        if window.side == size:
            return image, hole
        # A pixel after downscaling is the mean of its known pixels. It is missing if any of them
        # is missing, so that all pixels taken from the prediction are predicted.
        known = (~hole).float()
        small = F.interpolate(
            torch.cat((image * known, known), 1), (size, size), mode="bilinear", antialias=True
        )
        image = small[:, :3] / small[:, 3:].clamp(min=1e-6)
        return image, F.adaptive_max_pool2d(hole.float(), size) > 0

    def complete(self, image: Tensor, hole: Tensor) -> Tensor:
        """Squares of the network's own size with their missing pixels predicted.

        Args:
            image: float32 ``(B, 3, S, S)``, RGB in [-1, 1]; missing pixels are ignored.
            hole: bool ``(B, 1, S, S)``, True where to fill, on the same device.

        Returns:
            float32 ``(B, 3, S, S)``.

        Raises:
            InpaintError: the prediction is not finite.
        """
        hidden = hole
        if not self.geometry.anywhere:
            # In training this whole region was always missing. Showing the network a part of it
            # makes the prediction worse, by 0.5 to 2.4 dB after seam removal.
            hidden = hole.clone()
            top, left, height, width = self.geometry.region
            hidden[:, :, top : top + height, left : left + width] = True
        if isinstance(self.model, Network):
            inputs = self.model.inputs(image, hidden, self._fill_color)
        else:
            inputs = (fill_masked(image, hidden, self._fill_color),)
        prediction = self.model(*inputs).float()
        self._check_finite(prediction)
        # Holes outside the prediction belong to other windows, but upscaling this one must not mix
        # the fill colour into its edge.
        size = self.geometry.size
        top, left, height, width = self.region
        whole = F.pad(
            prediction,
            (left, size - left - width, top, size - top - height),
            mode="replicate",
        )
        filled = torch.where(hole, whole, image)
        if self.blend:
            for i in range(len(filled)):
                blended = remove_seam(
                    filled[i].permute(1, 2, 0).cpu().numpy(), hole[i, 0].cpu().numpy()
                )
                filled[i] = torch.from_numpy(blended).permute(2, 0, 1)
        return filled

    @staticmethod
    def _check_finite(prediction: Tensor | NDArray[np.float32]) -> None:
        if not bool(torch.as_tensor(prediction).isfinite().all()):
            raise InpaintError(
                "the network's prediction is not finite: its weights are damaged; take another "
                "checkpoint"
            )


def _within(inner: tuple[int, int, int, int], outer: tuple[int, int, int, int]) -> bool:
    return all(
        a >= b and a + length <= b + room
        for a, length, b, room in zip(inner[:2], inner[2:], outer[:2], outer[2:], strict=True)
    )
