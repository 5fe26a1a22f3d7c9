"""The paper's random region masks: deformed silhouettes pasted anywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cekernels import random_below, rasterize_polygons
from context_encoder.masks.arithmetic import SINE_BITS, TURN_BITS, integer_sqrt, sine_table
from context_encoder.masks.base import MaskSampler

#: Vertices per outline.
VERTICES = 96
#: Length, in an outline's int16 coordinates, of the square root of its area.
UNIT = 1 << 12

MAX_SHAPES = 3
# Limits of the deformation: stretch along one axis (and shrinking along the other); steepest
# slope of a sinusoidal shear; its shortest and longest wave, in square roots of the area.
_STRETCH, _SLOPE, _WAVES = 1.5, 0.4, (1.5, 3.0)
# The drawn area is at least 2/5 of the largest safe one.
_SMALLEST_SHARE = 0.4

_TURN = 1 << TURN_BITS
_QUARTER = _TURN // 4
_FINE_BITS = 16  # a deformed outline has 2**16 steps per square root of its area
_WORDS_PER_SHAPE = 14

_SLOWEST, _FASTEST = (int(_TURN / length) for length in reversed(_WAVES))  # per unit
_STEEPEST = int(_SLOPE / (2 * math.pi) * (_TURN << _FINE_BITS))
# The first words of a shape become integers below these bounds (after the number of outlines): is
# it mirrored, first angle, stretch, a shear's wave, phase and slope along each axis, last angle,
# size. The other two words are for its place.
_SHEAR = (_FASTEST - _SLOWEST + 1, _TURN, _STEEPEST + 1)
_BOUNDS = (2, _TURN, int((_STRETCH - 1) * 4096) + 1, *_SHEAR, *_SHEAR, _TURN, 129)


def clearance_needed(longest_edge: float) -> float:
    """The minimum distance of an outline's edges that keeps it simple under every deformation.

    Lengths are in square roots of the outline's area. The deformation is a stretch, then two
    sinusoidal shears, each applied to the vertices only. The stretch shortens distances by
    ``_STRETCH`` at most, a shear by its smallest singular value ``m``. Besides, a shear would
    bend an edge of length h away from its chord by up to ``c h**2 / 8``, where c is the shear's
    largest second derivative. Two edges that start this far apart, and share no vertex, are
    therefore still apart at the end, with a margin for the rounding of coordinates.
    """
    shrink = (math.sqrt(_SLOPE**2 + 4) - _SLOPE) / 2
    bend = _SLOPE * 2 * math.pi / _WAVES[0] / 8
    edge = _STRETCH * longest_edge
    margin = 0.004
    before_second = (margin + 2 * bend * (edge / shrink) ** 2) / shrink
    return _STRETCH * (before_second + 2 * bend * edge**2) / shrink


class RegionMasks(MaskSampler):
    """One to three deformed silhouettes, over at most a quarter of the image.

    The paper (section 3.3) takes arbitrary shapes from the segmentation masks of PASCAL VOC 2012,
    deforms them and pastes them anywhere into other images, over up to a quarter of the image,
    so that shape and image are not correlated. Here an outline is drawn from a
    table, mirrored or not, rotated, stretched by up to 1.5 along one axis and shrunk along the
    other (with the rotations before and after, any shear too), and warped by a sinusoidal shear
    along each of two perpendicular axes. It may stick out of the image by a quarter of its
    width and height.

    **The limit holds by construction.** A simply connected region of area A whose outline
    travels X pixels horizontally and Y pixels vertically (there and back) contains at most
    ``A + (X + Y) / 2 + 1`` pixel centres, as follows. The unit squares around these centres lie
    in the region's sum with the unit square, that is, with a horizontal and then a vertical unit
    segment. The first widens every interval of every horizontal line by 1 and so adds Y / 2 to
    the area. The second adds, for every vertical line, the number of pieces in which the region
    meets a unit-wide strip around it; as the pieces along x form a tree (the Reeb graph), whose
    part over a strip has one vertex more than edges for each of its pieces, this number
    integrates to X / 2 + 1. The outlines of a sample are scaled together so that the sum of
    their bounds is at most S**2 // 4, with allowance for vertices rounded to 1/256 pixel. Then
    the area, not the bound, is multiplied by a number between 2/5 and 1.

    The bound needs deformed outlines to be simple, which :func:`clearance_needed` ensures.
    All outlines have the same orientation, so that overlapping ones unite under the non-zero rule.
    """

    kind = "region"
    outlines: Tensor
    sines: Tensor
    bounds: Tensor

    def __init__(self, size: int, seed: int, outlines: Tensor) -> None:
        """
        Args:
            size, seed: see :class:`MaskSampler`.
            outlines: int16 ``(K, 96, 2)``, closed polygons (x, y) of positive orientation whose
                area is ``UNIT**2``, from :func:`.silhouettes.silhouettes` or
                :func:`.outlines.trace_outline`.

        Raises:
            TypeError, ValueError: a wrong dtype or shape, or an argument out of its range.
        """
        super().__init__(size, seed)
        if outlines.dtype != torch.int16 or outlines.shape[1:] != (VERTICES, 2):
            raise TypeError(
                f"outlines must be an int16 tensor (K, {VERTICES}, 2), "
                f"got {outlines.dtype} {tuple(outlines.shape)}"
            )
        if not outlines.shape[0]:
            raise ValueError("outlines must hold at least one outline, got none")
        self.register_buffer("outlines", outlines.clone(), persistent=False)
        self.register_buffer("sines", sine_table(), persistent=False)
        bounds = torch.tensor([outlines.shape[0], *_BOUNDS])
        self.register_buffer("bounds", bounds, persistent=False)

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        batch = index.shape[0]
        words = self.words(epoch, index, 2 + MAX_SHAPES * _WORDS_PER_SHAPE)
        number = 1 + random_below(words[:, :1], MAX_SHAPES)
        of_shapes = words[:, 2:].view(batch, MAX_SHAPES, _WORDS_PER_SHAPE)
        drawn = random_below(of_shapes[..., : len(self.bounds)], self.bounds)  # all at once
        *deformation, size = drawn[..., None].unbind(2)
        places = of_shapes[..., len(self.bounds) :, None].movedim(2, 0)
        outlines = self._deformed(*deformation)

        # Sizes differ by up to two; an absent shape shrinks to a point, which covers nothing.
        present = torch.arange(MAX_SHAPES, device=index.device)[:, None] < number[:, :, None]
        weight = torch.where(present, 128 + size, 0)
        outlines = (outlines * weight) >> 8
        scale = self._largest_scale(outlines, number)
        low = int(_SMALLEST_SHARE * 2**30)
        share = integer_sqrt(low + random_below(words[:, 1:2], 2**30 - low + 1))  # times 2**15
        scale = ((scale * share) >> 15)[:, :, None]
        outlines = (outlines * scale + (1 << 13)) >> 14

        # Points side by side, as the rasterizer reads them, in the copy that makes them int32.
        vertices = self._placed(outlines, places).movedim(0, -1).flatten(0, 1)
        vertices = vertices.to(torch.int32, memory_format=torch.contiguous_format)
        contours = torch.arange(batch * MAX_SHAPES + 1, device=index.device) * VERTICES
        samples = torch.arange(batch + 1, device=index.device) * MAX_SHAPES
        return rasterize_polygons(vertices.view(-1, 2), contours, samples, self.size, self.size)

    def _deformed(
        self,
        outline: Tensor,
        mirror: Tensor,
        angle: Tensor,
        stretch: Tensor,
        wave_x: Tensor,
        phase_x: Tensor,
        slope_x: Tensor,
        wave_y: Tensor,
        phase_y: Tensor,
        slope_y: Tensor,
        last_angle: Tensor,
    ) -> Tensor:
        """x and y, int64 ``(2, B, shapes, V)`` with 16 fractional bits, of area one up to rounding.

        The arguments are what is drawn, ``(B, shapes, 1)``.
        """
        x, y = (self.outlines[outline[..., 0]].long() << (_FINE_BITS - 12)).unbind(-1)
        mirrored = mirror == 1
        # Mirroring reverses the orientation; reversing the order restores it.
        x, y = torch.where(mirrored, -x.flip(-1), x), torch.where(mirrored, y.flip(-1), y)

        x, y = self._rotated(x, y, angle)
        longer = 4096 + stretch
        shorter = torch.div(1 << 24, longer, rounding_mode="floor")
        x, y = (x * longer) >> 12, (y * shorter) >> 12
        x = x + self._wave(y, wave_x, phase_x, slope_x)
        y = y + self._wave(x, wave_y, phase_y, slope_y)
        return torch.stack(self._rotated(x, y, last_angle))

    def _rotated(self, x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        sine, cosine = self.sines[angle], self.sines[(angle + _QUARTER) & (_TURN - 1)]
        return (x * cosine - y * sine) >> SINE_BITS, (x * sine + y * cosine) >> SINE_BITS

    def _wave(self, along: Tensor, wave: Tensor, phase: Tensor, slope: Tensor) -> Tensor:
        """The displacement of a sinusoidal shear at positions ``along``."""
        steps = _SLOWEST + wave  # of the turn, per unit
        # slope = 2 pi * amplitude / wavelength
        amplitude = torch.div(slope, steps, rounding_mode="floor")
        at = (phase + ((along * steps) >> _FINE_BITS)) & (_TURN - 1)
        return (amplitude * self.sines[at]) >> SINE_BITS

    def _largest_scale(self, outlines: Tensor, number: Tensor) -> Tensor:
        """The largest scale within the limit, ``(B, 1)``, from 2**-16 unit to 2**-22 pixel.

        It is the largest p with ``A (p / 2**22)**2 + H p / 2**22 <= S**2 // 4 - 1.5 n``, A and H
        being the sums of area and half travel of the n outlines, rounded up. For vertices
        rounded to 1/256 pixel, 1/256 is added to H and 1/2 to the 1 that each outline counts.
        """
        following = outlines.roll(-1, -1)
        (x, y), (next_x, next_y) = outlines, following
        twice_area = (x * next_y - y * next_x).sum((1, 2))[:, None]
        travel = (outlines - following).abs().sum((0, 2, 3))[:, None]
        area = (twice_area + (1 << 21) - 1) >> 21  # times 2**-20
        half_travel = (travel * 257 + (1 << 19) - 1) >> 19  # times 2**-10
        limit = 2 * (self.size**2 // 4) - 3 * number
        # area p**2 + half_travel 2**12 p <= limit 2**23, each term below 2**59
        b = half_travel << 11
        root = integer_sqrt(b * b + area * (limit << 23))
        return torch.div(root - b, area, rounding_mode="floor")

    def _placed(self, position: Tensor, word: Tensor) -> Tensor:
        """A random position with at most a quarter of the extent outside the image."""
        low, high = position.amin(-1, keepdim=True), position.amax(-1, keepdim=True)
        extent, side = high - low, self.size * 256
        room = (side - extent // 2).clamp(min=0)
        first = (side - extent - room) // 2
        return position - low + first + random_below(word, room + 1)
