"""Filling the holes of images, with the network of the package or another as the guide for texture.

::

    from context_encoder import HoleFiller
    HoleFiller()("photo.jpg", "mask.png").save("filled.png")

Which method fills which hole is decided in :mod:`context_encoder.inpainting.fill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from context_encoder.data.mask_images import ImageLike, InpaintError, InputOptions
from context_encoder.inpainting.fill import fill_holes, separate_small_holes
from context_encoder.inpainting.image_io import read_with_mask
from context_encoder.inpainting.inpainter import Inpainted, Inpainter
from context_encoder.inpainting.membrane_network import predict_holes
from context_encoder.inpainting.neighbourhoods import neighbourhoods
from context_encoder.inpainting.progress import Progress, hole_bar
from context_encoder.inpainting.texture import with_texture
from context_encoder.utils.bounding_box import bounding_box

__all__ = ["TEXTURE", "FillReport", "HoleFiller", "Texture", "texture_strength"]

#: Strength of the texture, 0 to 1; "off" is 0.
Texture = float | Literal["off"]

#: The default. On photographs of a tuning set, 0.5 is 0.2 dB more accurate, but stones, grass and
#: other fine texture lose so much contrast that the hole shows.
TEXTURE = 0.7

_HALF_RANGE = np.float32(127.5)


def texture_strength(texture: Texture) -> float:
    """The strength as a number.

    Raises:
        InpaintError: it is not a number from 0 to 1, nor "off".
    """
    strength = 0.0 if texture == "off" else float(texture)
    if not 0 <= strength <= 1:
        raise InpaintError(f"`texture` must be a number from 0 to 1, or off; got {texture}")
    return strength


@dataclass(frozen=True)
class FillReport:
    """Which method filled what. ``str()`` gives it as text."""

    #: Number of small holes, and their pixels.
    small: int
    small_pixels: int
    #: Each larger hole: top, left, bottom, right; bottom and right are exclusive.
    large: tuple[tuple[int, int, int, int], ...]
    #: Whether each larger hole has a whole patch of known pixels near, which texture needs.
    patches: tuple[bool, ...]
    #: A network's prediction is part of the guide in the larger holes.
    network: bool
    #: Strength of the texture in the larger holes.
    texture: float
    #: What happened on reading the image and the mask, as sentences.
    notes: tuple[str, ...]

    def method(self, number: int) -> str:
        """What fills a larger hole, by its index in ``large``."""
        guide = "network and linear prediction" if self.network else "linear prediction"
        if not self.texture:
            return guide
        if not self.patches[number]:
            return f"{guide}, no texture: no whole patch of known pixels is near"
        return f"{guide}, texture of known patches near the hole at strength {self.texture:g}"

    def lines(self, most: int | None = None) -> list[str]:
        """The notes, and what filled the small holes and each (or ``most``) of the larger ones."""
        lines = list(self.notes)
        if self.small:
            holes = "1 small hole" if self.small == 1 else f"{self.small} small holes"
            lines.append(f"{holes}, {self.small_pixels} px: linear prediction")
        shown = self.large if most is None else self.large[:most]
        for number, (top, left, bottom, right) in enumerate(shown, 1):
            size = f"{right - left}x{bottom - top} px at ({left}, {top})"
            lines.append(f"hole {number} of {len(self.large)}: {size}: {self.method(number - 1)}")
        if len(shown) < len(self.large):
            lines.append(f"and {len(self.large) - len(shown)} more, filled in the same way")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


class HoleFiller:
    """Fills the holes of images of any size, each with the method that suits its size.

    Holes up to 12 pixels across, however long, are filled by linear prediction from the pixels
    around them. Larger ones get the texture of the image's own patches on top; their guide is
    the mean of a network's prediction and of the linear prediction. Where no whole patch of known
    pixels is near, the guide is the fill. Runs on the CPU, apart from an inpainter's network.

    Args:
        network: for the larger holes. "included": the network whose weights are part of the
            package; None: linear prediction alone.
        texture: strength from 0 (or "off"), the guide alone, to 1, patches of the image: the
            sharpest fill, and the least accurate.
        seed: of the search for patches; the same seed gives the same fill.

    Raises:
        InpaintError: ``texture`` is out of range.
    """

    def __init__(
        self,
        network: Inpainter | Literal["included"] | None = "included",
        *,
        texture: Texture = TEXTURE,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.texture = texture_strength(texture)
        self.seed = seed

    def __call__(
        self,
        image: ImageLike,
        mask: ImageLike | None = None,
        *,
        boxes: Sequence[Sequence[int]] | None = None,
        progress: Progress = False,
        **reading: Any,
    ) -> Inpainted[FillReport]:
        """Fill the holes of one image.

        Args:
            image, mask, boxes, progress, reading: see :meth:`Inpainter.__call__`.

        Returns:
            As :meth:`Inpainter.__call__`.

        Raises:
            As :meth:`Inpainter.__call__`.
        """
        picture, hole, notes = read_with_mask(image, mask, boxes, InputOptions(**reading))
        missing = hole.mask
        # Large images are filled from what is near their holes. Elsewhere nothing is read of this.
        filled = np.empty((picture.height, picture.width, 3), np.float32)
        with hole_bar(int(missing.sum()), show=progress) as bar:
            for box in neighbourhoods(missing):
                given = replace(picture, pixels=picture.pixels[box]).rgb()
                given += 1  # in place: large images need the memory
                given *= _HALF_RANGE
                levels = fill_holes(
                    given,
                    missing[box],
                    None if self.network is None else self._predict,
                    strength=self.texture,
                    seed=self.seed,
                    progress=bar.update,
                )
                del given
                levels /= _HALF_RANGE
                levels -= 1
                filled[box] = levels
        return Inpainted.of(picture, hole, filled, self._report(missing, notes))

    def _predict(
        self, image: NDArray[np.float32], missing: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        if isinstance(self.network, Inpainter):
            return (self.network.predict(image / _HALF_RANGE - 1, missing) + 1) * _HALF_RANGE
        return predict_holes(image, missing)

    def _report(self, missing: NDArray[np.bool_], notes: Sequence[str]) -> FillReport:
        eight = np.ones((3, 3))
        box = bounding_box(missing)
        top, left = box[0].start, box[1].start
        small, large = separate_small_holes(missing[box])
        labels, count = ndimage.label(large, eight)
        boxes = ndimage.find_objects(labels)
        patches = np.zeros(count + 1, bool)
        if self.texture:
            whole = np.zeros_like(missing)
            whole[box] = large
            patches[labels[with_texture(whole)[box]]] = True
        return FillReport(
            small=int(ndimage.label(small, eight)[1]),
            small_pixels=int(small.sum()),
            large=tuple(
                (top + y.start, left + x.start, top + y.stop, left + x.stop) for y, x in boxes
            ),
            patches=tuple(patches[1:].tolist()),
            network=self.network is not None,
            texture=self.texture,
            notes=tuple(notes),
        )
