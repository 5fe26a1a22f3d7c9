"""Filling pictures: windows, pictures of every mode, masks, seams, the command.

The networks are stand-ins whose output is known, so that results can be checked exactly.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from torch import nn

import context_encoder
from context_encoder import Inpainter
from context_encoder.config import TrainConfig
from context_encoder.data.images import UnreadableImage
from context_encoder.data.mask_images import InpaintError, mask_from_boxes, read_mask
from context_encoder.inpaint import main
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.image_io import read_picture
from context_encoder.inpainting.windows import WindowGeometry, plan_windows, reflect_indices
from context_encoder.runs import LoadedModel, RunError
from tests.helpers.small_runs import save_untrained

GREY = (0.0, 0.0, 0.0)
# Exact in 8 and in 16 bits, and a colour of the palettes below.
COLOR = (255, 51, 0)
LUMA = 0.299 * 255 + 0.587 * 51


class Constant(nn.Module):
    """Predicts one colour everywhere, and keeps what it was shown."""

    def __init__(self, size=32, color=COLOR, region=None):
        super().__init__()
        self.image_size = size
        self.output_region = region or (0, 0, size, size)
        self.register_buffer("color", torch.tensor(color) / 127.5 - 1)
        self.seen = []

    def forward(self, x):
        assert x.shape[1:] == (3, self.image_size, self.image_size)
        assert x.dtype == torch.float32
        self.seen.append(x.clone())
        return self.color.view(1, 3, 1, 1).expand(len(x), 3, *self.output_region[2:]).clone()


class Plane(nn.Module):
    """Fits a plane to the known pixels of each channel: exact for linear pictures."""

    FILL = (1.0, -1.0, 1.0)

    def __init__(self, size, region=None):
        super().__init__()
        self.image_size = size
        self.output_region = region or (0, 0, size, size)

    def forward(self, x):
        size = self.image_size
        y, x_ = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        basis = torch.stack((torch.ones(size, size), y, x_), -1).double()
        planes = []
        for image in x:
            known = (image != torch.tensor(self.FILL).view(3, 1, 1)).any(0)
            fit = torch.linalg.lstsq(basis[known], image[:, known].T.double()).solution
            planes.append((basis @ fit).permute(2, 0, 1))
        top, left, height, width = self.output_region
        return torch.stack(planes)[..., top : top + height, left : left + width].float()


def constant(*, blend=False, **options):
    return Inpainter(Constant(**options), fill_color=GREY, blend=blend)


def noise(*shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def box_mask(height, width, *boxes):
    mask = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


# --- windows ----------------------------------------------------------------------------------


def times_filled(mask, holes):
    times = np.zeros(mask.shape, int)
    for hole in holes:
        for window in hole.windows:
            top, left, bottom, right = window.box
            assert window.pixels.shape == (bottom - top, right - left)
            times[top:bottom, left:right] += window.pixels
    return times


def check_plan(mask, geometry):
    """What must hold for every plan; returns its windows."""
    holes = plan_windows(mask, geometry)
    assert np.array_equal(times_filled(mask, holes), mask)
    windows = [window for hole in holes for window in hole.windows]
    for window in windows:
        assert window.side >= geometry.size
        # What it fills lies in the part that the network can fill, after scaling too.
        top, left, height, width = geometry.region
        y0, x0, y1, x1 = window.box
        scale = geometry.size / window.side
        assert top <= (y0 - window.top) * scale
        assert (y1 - window.top) * scale <= top + height
        assert left <= (x0 - window.left) * scale
        assert (x1 - window.left) * scale <= left + width
        if geometry.anywhere:
            for start, length in ((window.top, mask.shape[0]), (window.left, mask.shape[1])):
                if window.side <= length:
                    assert 0 <= start <= length - window.side
                else:  # the picture is in its middle
                    assert -start == (window.side - length) // 2
        assert 0 <= window.missing <= 1
    return windows


GEOMETRIES = (
    WindowGeometry(16, (0, 0, 16, 16)),
    WindowGeometry(16, (4, 4, 8, 8)),
    WindowGeometry(15, (2, 5, 7, 4)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    spots=st.integers(1, 12),
    geometry=st.sampled_from(GEOMETRIES),
)
def test_every_masked_pixel_is_filled_once(seed, height, width, spots, geometry):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.3])
    for _ in range(spots):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 25), x : x + rng.integers(1, 25)] = True
    check_plan(mask, geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    "mask",
    [
        box_mask(1, 1, (0, 0, 1, 1)),
        box_mask(1, 300, (0, 1, 1, 299)),
        box_mask(300, 2, (0, 0, 299, 2)),
        ~box_mask(40, 40, (39, 39, 40, 40)),
        np.indices((60, 60)).sum(0) % 2 == 0,
        np.eye(90, dtype=bool),
    ],
    ids=["pixel", "row", "column", "all but one", "chessboard", "diagonal"],
)
def test_extreme_masks_are_filled_once(mask, geometry):
    check_plan(mask, geometry)


def test_a_small_hole_gets_a_native_window_around_it():
    mask = box_mask(100, 120, (40, 50, 48, 60))
    (hole,) = plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32)))
    (window,) = hole.windows
    assert (window.side, window.top, window.left) == (32, 28, 39)
    assert window.missing == pytest.approx(80 / 32**2)


def test_a_window_at_the_corner_is_shifted_inside():
    mask = box_mask(100, 120, (0, 117, 2, 120))
    (hole,) = plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert (hole.windows[0].top, hole.windows[0].left, hole.windows[0].side) == (0, 88, 32)


def test_a_large_hole_is_one_sixth_of_its_window_at_most():
    mask = box_mask(300, 300, (100, 90, 160, 150))
    (window,) = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert window.missing <= 1 / 6
    assert window.side == np.ceil(60 * 6**0.5)


def test_a_scratch_is_tiled_at_native_resolution():
    mask = box_mask(200, 400, (100, 10, 103, 390))
    windows = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    assert {window.side for window in windows} == {32}
    assert all(window.box[3] - window.box[1] <= 16 for window in windows)


def test_small_holes_that_are_near_share_a_window():
    near = box_mask(100, 100, (40, 40, 42, 42), (50, 44, 51, 48))
    (hole,) = plan_windows(near, WindowGeometry(32, (0, 0, 32, 32)))
    assert hole.parts == 2
    assert hole.box == (40, 40, 51, 48)
    far = box_mask(100, 100, (10, 10, 12, 12), (60, 10, 62, 12))
    assert len(plan_windows(far, WindowGeometry(32, (0, 0, 32, 32)))) == 2


def test_other_holes_count_as_missing():
    alone = box_mask(300, 300, (100, 100, 108, 108))
    crowded = alone | box_mask(300, 300, (100, 112, 160, 172))
    geometry = WindowGeometry(32, (0, 0, 32, 32))
    (only,) = check_plan(alone, geometry)
    small = check_plan(crowded, geometry)[0]
    assert small.box == only.box
    assert small.side > only.side == 32
    cut = crowded[small.top :, small.left :][: small.side, : small.side]
    assert small.missing == pytest.approx(cut.mean())


def test_missing_counts_the_reflected_picture():
    # The window is twice as large as the picture, whose hole touches its edge.
    mask = box_mask(20, 20, (0, 0, 4, 20))
    (window,) = check_plan(mask, WindowGeometry(32, (0, 0, 32, 32)))
    padded = np.pad(mask, 20, mode="symmetric")
    seen = padded[20 + window.top :, 20 + window.left :][: window.side, : window.side]
    assert window.side == 32
    assert seen.shape == (32, 32)
    assert window.missing == pytest.approx(seen.mean())


def test_a_centre_network_gets_the_hole_in_its_region_even_in_the_corner():
    geometry = WindowGeometry(32, (10, 10, 12, 12))
    mask = box_mask(100, 100, (0, 0, 4, 4))
    (window,) = check_plan(mask, geometry)
    assert window.missing == pytest.approx((8 * 8 - 4 * 4) / 32**2)  # mirrored, not in the region
    assert (window.top, window.left, window.side) == (-10, -10, 32)
    # Too large for the region by one pixel: scaled.
    (window,) = check_plan(box_mask(100, 100, (40, 40, 53, 52)), geometry)
    assert 32 * 13 / 12 <= window.side <= 32 * 13 / 12 + 3


@pytest.mark.parametrize(("start", "count", "length"), [(-7, 20, 3), (2, 9, 5), (0, 4, 1)])
def test_reflect_indices_is_numpys_symmetric_padding(start, count, length):
    padded = np.pad(np.arange(length), 40, mode="symmetric")
    expected = padded[40 + start : 40 + start + count]
    assert np.array_equal(reflect_indices(start, count, length), expected)


def test_an_empty_mask_needs_no_window():
    assert plan_windows(np.zeros((5, 5), bool), WindowGeometry(16, (0, 0, 16, 16))) == []


# --- filling ----------------------------------------------------------------------------------


def ramp(height, width):
    """A picture that is linear in x and y, within [40, 215]."""
    y, x = np.mgrid[:height, :width]
    y, x = y / max(height - 1, 1), x / max(width - 1, 1)
    return np.stack((40 + 175 * x, 40 + 175 * y, 215 - 80 * x - 95 * y), -1).round().astype("uint8")


@pytest.mark.parametrize(
    ("size", "region", "shape", "boxes"),
    [
        (32, None, (80, 90), [(30, 40, 40, 52)]),  # native
        (32, None, (80, 90), [(0, 0, 9, 9), (70, 80, 80, 90), (40, 40, 41, 41)]),  # corners, pixel
        (32, None, (200, 220), [(60, 70, 130, 120)]),  # scaled
        (32, None, (80, 300), [(40, 10, 43, 290)]),  # tiled
        (32, (8, 8, 16, 16), (80, 90), [(30, 40, 46, 50)]),  # centre, native
        (32, (8, 10, 15, 13), (200, 220), [(80, 70, 117, 120)]),  # off-centre, scaled
    ],
)
def test_a_linear_picture_is_continued(size, region, shape, boxes):
    """The predictions come back at their places and scales, whatever the window."""
    image, mask = ramp(*shape), box_mask(*shape, *boxes)
    shown = np.where(mask[..., None], noise(*shape, 3), image)  # what is masked is not looked at
    inpainter = Inpainter(Plane(size, region), fill_color=Plane.FILL, blend=False)
    result = inpainter(shown, mask)
    difference = np.abs(np.asarray(result.image).astype(int) - image)
    assert not difference[~mask].any()
    # Half a level of rounding; scaled, pixels next to the hole are means of one side only.
    scaled = any(window.side != size for window in result.report.windows)
    assert difference[mask].max() <= (3 if scaled else 1)


@pytest.mark.parametrize("region", [None, (8, 8, 16, 16)])
@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1000), (50, 2000), (31, 33), (32, 32), (3, 40)])
def test_pictures_of_any_shape_are_filled(shape, blend, region):
    """A flat picture has a flat continuation, through reflection and scaling too."""
    image = np.full((*shape, 3), COLOR, np.uint8)
    mask = noise(*shape, seed=1) < 20
    mask[: shape[0] // 2 + 1, : shape[1] // 3 + 1] = True
    mask[-1, -1] = False
    shown = np.where(mask[..., None], 7, image).astype(np.uint8)
    result = constant(region=region, blend=blend)(shown, mask)
    assert np.array_equal(np.asarray(result.image), image)
    assert result.image.size == (shape[1], shape[0])


def test_the_network_sees_the_fill_colour_in_all_holes_of_its_window():
    model = Constant(32)
    fill = (0.5, -0.25, 0.125)
    image = noise(60, 60, 3)
    mask = box_mask(60, 60, (10, 10, 14, 14), (30, 30, 33, 33), (32, 5, 35, 8))
    Inpainter(model, fill_color=fill)(image, mask)
    windows = plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32)))
    seen = torch.cat(model.seen)
    assert len(seen) == sum(len(hole.windows) for hole in windows)
    expected = np.where(mask[..., None], fill, image / 127.5 - 1)
    for x, hole in zip(seen, windows, strict=True):
        (window,) = hole.windows
        cut = expected[window.top :, window.left :][:32, :32]
        assert np.allclose(x.permute(1, 2, 0).numpy(), cut, atol=1e-6)


def test_a_scaled_window_hides_the_hole_entirely():
    """No masked value reaches the network: whatever is under the mask, it sees the same."""
    mask = box_mask(150, 150, (41, 43, 102, 97))
    seen = []
    for seed in (0, 1):
        model = Constant(32)
        shown = np.where(mask[..., None], noise(150, 150, 3, seed=seed), 100).astype(np.uint8)
        Inpainter(model, fill_color=(1.0, 1.0, 1.0))(shown, mask)
        seen.append(model.seen[0])
    assert torch.equal(*seen)
    flat = torch.tensor(100 / 127.5 - 1)
    hidden = (seen[0] == 1).all(1)
    assert torch.allclose(seen[0][~hidden.unsqueeze(1).expand_as(seen[0])], flat, atol=1e-6)
    # Missing is what covers any masked pixel: of 32 parts of the side, those that overlap the hole.
    ((window,),) = (hole.windows for hole in plan_windows(mask, WindowGeometry(32, (0, 0, 32, 32))))
    edges = np.arange(33) * window.side / 32
    rows, columns = (
        (edges[:-1] < stop) & (edges[1:] > start)
        for start, stop in (
            (41 - window.top, 102 - window.top),
            (43 - window.left, 97 - window.left),
        )
    )
    assert window.side > 32
    assert np.array_equal(hidden[0].numpy(), np.outer(rows, columns))


def test_a_centre_network_sees_its_whole_region_missing_and_only_its_hole_is_taken():
    class Bordered(Constant):
        """Another colour in the overlap band, which is not to be pasted."""

        def forward(self, x):
            out = super().forward(x)
            inner = out[..., 2:-2, 2:-2].clone()
            out[:] = -1
            out[..., 2:-2, 2:-2] = inner
            return out

    model = Bordered(32, region=(8, 8, 16, 16))
    inpainter = Inpainter(model, fill_color=GREY, hole=(10, 10, 12, 12), blend=False)
    image = np.full((64, 64, 3), 200, np.uint8)
    mask = box_mask(64, 64, (30, 30, 36, 40))
    result = np.asarray(inpainter(image, mask).image)
    assert (result[mask] == COLOR).all()
    missing = (model.seen[0][0] == 0).all(0)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[10:22, 10:22] = True
    assert torch.equal(missing, expected)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_each_hole_is_filled_from_its_own_window(batch_size):
    """A bar that hangs into a U: part of it lies in the U's box, but is not the U's to fill."""

    class Numbered(Constant):
        def forward(self, x):
            first = sum(map(len, self.seen))
            out = super().forward(x)
            for i in range(len(out)):
                out[i] = -1 + (first + i + 1) / 127.5
            return out

    mask = box_mask(200, 200, (60, 60, 140, 140)) & ~box_mask(200, 200, (60, 72, 128, 128))
    mask[50:100, 98:101] = True
    inpainter = Inpainter(Numbered(32), fill_color=GREY, blend=False, batch_size=batch_size)
    result = inpainter(np.zeros((200, 200, 3), np.uint8), mask)
    pixels = np.asarray(result.image)[..., 0]
    bar, *rest = result.report.holes
    assert bar.box == (50, 98, 100, 101)
    # Scaled up, the edge mixes with the black around it.
    for number, window in enumerate((*bar.windows, *rest[0].windows), 1):
        top, left, bottom, right = window.box
        assert np.median(pixels[top:bottom, left:right][window.pixels]) == number
    assert not pixels[~mask].any()


def test_batches_do_not_change_the_result():
    image, mask = noise(100, 100, 3), noise(100, 100, seed=2) < 8
    one, many = (
        Inpainter(Plane(32), fill_color=Plane.FILL, batch_size=size)(image, mask) for size in (1, 7)
    )
    assert len(one.report.windows) > 7
    assert np.array_equal(np.asarray(one.image), np.asarray(many.image))


def test_the_model_is_put_in_eval_mode_and_the_hole_must_be_in_its_output():
    inpainter = constant()
    assert not inpainter.model.training
    with pytest.raises(InpaintError, match=r"output_region \(8, 8, 16, 16\), got \(7, 8, 4, 4\)"):
        Inpainter(Constant(region=(8, 8, 16, 16)), fill_color=GREY, hole=(7, 8, 4, 4))


def test_a_prediction_that_is_not_finite_is_an_error():
    with pytest.raises(InpaintError, match="not finite"):
        constant(color=(float("nan"), 0, 0))(noise(40, 40, 3), box_mask(40, 40, (1, 1, 3, 3)))


# --- the seam ---------------------------------------------------------------------------------


def test_a_shifted_prediction_is_shifted_back():
    mask = box_mask(20, 24, (5, 6, 14, 18), (10, 3, 12, 8))
    truth = np.full((20, 24, 3), (0.1, -0.3, 0.7), np.float32)
    image = np.where(mask[..., None], truth + np.array([0.5, -0.2, 0.05]), truth).astype(np.float32)
    assert np.allclose(remove_seam(image, mask), truth, atol=1e-4)


def test_the_correction_solves_laplaces_equation():
    rng = np.random.default_rng(3)
    hole = rng.random((9, 11)) < 0.6
    image = rng.normal(size=(9, 11, 2)).astype(np.float32)
    corrected = remove_seam(image, hole)
    assert np.array_equal(corrected[~hole], image[~hole])
    change = (corrected - image).astype(float)
    for y, x in np.argwhere(hole):
        total = np.zeros(2)
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < 9 and 0 <= u < 11:
                if hole[v, u]:
                    total += change[v, u] - change[y, x]
                else:
                    total += image[v, u] - image[y, x] - change[y, x]
        assert np.allclose(total, 0, atol=1e-3)


def test_without_known_pixels_or_without_a_hole_nothing_changes():
    hole = box_mask(6, 6, (0, 0, 6, 6))
    image = noise(6, 6, 3).astype(np.float32)
    assert np.allclose(remove_seam(image, hole), image)
    nothing = np.zeros((6, 6), bool)
    assert np.array_equal(remove_seam(image, nothing), image)


# --- pictures of every mode -------------------------------------------------------------------


def png16(color_type, channels, height, width):
    """A PNG with 16 bits per channel, which Pillow cannot write."""
    values = noise(height, width * channels, high=65536, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body, values.reshape(height, width, channels)


def palette(alpha=None):
    image = Image.fromarray(noise(40, 50, high=16)).convert("P")
    image.putpalette(noise(16, 3, seed=5).tobytes())
    if alpha is not None:
        image.info["transparency"] = alpha
    return image


def in_mode(mode):
    """An image, how to save it, and the mode and pixels that must come back."""
    rgb, grey = Image.fromarray(noise(40, 50, 3)), Image.fromarray(noise(40, 50))
    if mode == "1":
        image = Image.fromarray(noise(40, 50) > 99)
        return image, {}, "L", np.asarray(image) * np.uint8(255)
    if mode == "L":
        return grey, {}, "L", np.asarray(grey)
    if mode == "LA":
        image = Image.fromarray(noise(40, 50, 2), "LA")
        return image, {}, "LA", np.asarray(image)
    if mode == "RGBA":
        image = Image.fromarray(noise(40, 50, 4))
        return image, {}, "RGBA", np.asarray(image)
    if mode == "L, one value transparent":
        alpha = np.where(np.asarray(grey) == 9, 0, 255).astype(np.uint8)
        return grey, {"transparency": 9}, "LA", np.stack((np.asarray(grey), alpha), -1)
    if mode == "RGB, one colour transparent":
        values = noise(40, 50, 3, high=3)
        alpha = np.where((values == (2, 0, 1)).all(-1), 0, 255).astype(np.uint8)
        options = {"transparency": (2, 0, 1)}
        return Image.fromarray(values), options, "RGBA", np.dstack((values, alpha))
    if mode == "P":
        colors = noise(16, 3, seed=5)
        return palette(), {}, "RGB", colors[np.asarray(palette())]
    if mode == "P, alpha":
        alpha = noise(16, seed=6)
        colors = np.column_stack((noise(16, 3, seed=5), alpha))
        image = palette(alpha.tobytes())
        return image, {}, "RGBA", colors[np.asarray(image)]
    if mode == "I;16":
        values = noise(40, 50, high=65536, dtype=np.uint16)
        return Image.fromarray(values), {}, "I;16", values
    assert mode == "RGB"
    return rgb, {}, "RGB", np.asarray(rgb)


MODES = [
    "1", "L", "LA", "RGB", "RGBA", "P", "P, alpha", "I;16",
    "L, one value transparent", "RGB, one colour transparent",
]  # fmt: skip
FILLED = {
    "L": round(LUMA),
    "LA": (round(LUMA), 255),
    "RGB": COLOR,
    "RGBA": (*COLOR, 255),
    "I;16": round(LUMA * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_pixels_outside_the_mask_are_bit_identical(mode, tmp_path):
    image, options, kept, expected = in_mode(mode)
    image.save(tmp_path / "in.png", **options)
    mask = noise(40, 50, seed=4) < 30
    constant(blend=False)(tmp_path / "in.png", mask).save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == kept
        pixels = np.asarray(out)
    assert pixels.dtype == expected.dtype
    assert np.array_equal(pixels[~mask], expected[~mask])
    assert (pixels[mask] == FILLED[kept]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".webp"])
def test_other_lossless_formats(mode, suffix, tmp_path):
    image, _, _, expected = in_mode(mode)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant(blend=False)(image, mask)
    if (mode, suffix) == ("I;16", ".webp"):
        with pytest.raises(InpaintError, match="WebP holds 8 bits"):
            result.save(tmp_path / "out.webp")
        assert list(tmp_path.iterdir()) == []
        return
    result.save(tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as out:
        pixels = np.asarray(out.convert(mode))
    assert np.array_equal(pixels[~mask], expected[~mask])


def test_16_bit_grey_is_filled_with_16_bits():
    values = (np.arange(40 * 50, dtype=np.uint16) * 31).reshape(40, 50)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant(color=(0.3, 0.3, 0.3))(values, mask)
    assert result.image.mode == "I;16"
    assert (np.asarray(result.image)[mask] == round(0.3 / 255 * 65535)).all()


def test_a_transparent_value_of_16_bit_grey_is_kept_but_not_painted(tmp_path):
    white = 65535
    values = noise(40, 50, high=65536, dtype=np.uint16)
    values[0, 0] = white
    Image.fromarray(values).save(tmp_path / "in.png", transparency=white)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    constant(color=(255, 255, 255))(tmp_path / "in.png", mask).save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.info["transparency"] == white
        assert (np.asarray(out)[mask] == white - 1).all()
        assert np.array_equal(np.asarray(out)[~mask], values[~mask])


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_read_with_8_bits_and_that_is_told(color_type, channels, tmp_path):
    data, values = png16(color_type, channels, 40, 50)
    (tmp_path / "in.png").write_bytes(data)
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant()(tmp_path / "in.png", mask)
    assert np.array_equal(np.asarray(result.image)[~mask], (values >> 8).astype(np.uint8)[~mask])
    assert "16 bits per channel" in str(result.report)


def test_16_bit_colour_in_tiff_and_ppm_is_told_and_16_bit_grey_is_not(tmp_path):
    values = noise(40, 50, 3, high=65536, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="rgb")
    (tmp_path / "c.ppm").write_bytes(b"P6 50 40 65535\n" + values.astype(">u2").tobytes())
    (tmp_path / "g.pgm").write_bytes(b"P5 50 40 65535\n" + values[..., 0].astype(">u2").tobytes())
    (tmp_path / "g.png").write_bytes(png16(0, 1, 40, 50)[0])
    for name in ("c.tif", "c.ppm"):
        assert "16 bits per channel" in " ".join(read_picture(tmp_path / name).notes)
    for name in ("g.pgm", "g.png"):
        picture = read_picture(tmp_path / name)
        assert picture.mode == "I;16"
        assert picture.notes == ()
    assert np.array_equal(read_picture(tmp_path / "g.pgm").pixels, values[..., 0])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb_and_that_is_told(mode, tmp_path):
    image = Image.fromarray(noise(40, 50, 3)).convert(mode)
    image.info["icc_profile"] = b"of another colour space"
    mask = box_mask(40, 50, (10, 10, 20, 20))
    result = constant()(image, mask)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(result.image)[~mask], expected[~mask])
    assert f"converted from {mode} to RGB" in str(result.report)
    assert "icc_profile" not in result.image.info


def test_modes_that_cannot_be_kept_are_refused():
    mask = box_mask(4, 4, (0, 0, 1, 1))
    with pytest.raises(InpaintError, match="float grey"):
        constant()(Image.fromarray(np.zeros((4, 4), np.float32)), mask)
    with pytest.raises(InpaintError, match="from 0 to 70000"):
        constant()(Image.fromarray(np.array([[0, 70000]] * 2, np.int32)), mask)
    for array in (np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4), np.float64), np.zeros((0, 4))):
        with pytest.raises(InpaintError, match="got " + str(array.dtype)):
            constant()(array, mask)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_told(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "in.png", exif=exif, dpi=(100, 200))
    with Image.open(tmp_path / "in.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    mask = box_mask(*upright.shape[:2], (5, 5, 9, 9))
    result = constant()(tmp_path / "in.png", mask)
    assert np.array_equal(np.asarray(result.image)[~mask], upright[~mask])
    assert ("turned upright" in str(result.report)) == (orientation > 1)
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.getexif().get(0x0112, 1) == 1
        dpi = (200, 100) if orientation >= 5 else (100, 200)
        assert out.info["dpi"] == pytest.approx(dpi, abs=0.1)


def test_a_mask_drawn_on_the_picture_before_it_was_turned_is_explained(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "in.png", exif=exif)
    with pytest.raises(InpaintError, match=r"50x40.*40x50 \(upright"):
        constant()(tmp_path / "in.png", np.zeros((40, 50), bool))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_icc_profile_and_resolution_are_kept_and_nothing_else(suffix, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "what was here before"
    Image.fromarray(noise(40, 50, 3)).save(
        tmp_path / "in.jpg", icc_profile=profile, dpi=(300, 300), exif=exif
    )
    result = constant()(tmp_path / "in.jpg", box_mask(40, 50, (5, 5, 9, 9)))
    result.save(tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.info["icc_profile"] == profile
        if suffix != ".webp":
            assert out.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert 0x010E not in out.getexif()


def test_of_an_animation_the_first_frame_is_taken_and_that_is_told(tmp_path):
    frames = [Image.fromarray(noise(40, 50, 3, seed=seed)) for seed in (1, 2, 3)]
    frames[0].save(tmp_path / "in.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture = read_picture(tmp_path / "in.webp")
    assert np.array_equal(picture.pixels[..., :3], np.asarray(frames[0]))
    assert "the first of 3 frames" in " ".join(picture.notes)


def test_transparent_pixels_lie_on_white_for_the_network():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = (10, 20, 30, 255)
    image[0, 1] = (10, 20, 30, 0)
    image[1, 0] = (0, 0, 0, 51)
    rgb = read_picture(image).rgb()
    assert np.allclose(rgb[0, 0], np.array([10, 20, 30]) / 127.5 - 1, atol=1e-6)
    assert np.allclose(rgb[0, 1], 1)
    assert np.allclose(rgb[1, 0], 0.8 * 2 - 1, atol=1e-6)


def test_the_callers_image_and_array_stay_as_they_are():
    array = noise(40, 50, 3)
    image = Image.fromarray(array.copy())
    mask = box_mask(40, 50, (5, 5, 9, 9))
    for source in (array, image):
        constant()(source, mask)
        assert np.array_equal(np.asarray(source), noise(40, 50, 3))


# --- masks ------------------------------------------------------------------------------------

SHAPE = box_mask(8, 10, (1, 2, 4, 9), (6, 0, 7, 1))


def drawn(kind):
    white = np.where(SHAPE, 255, 0).astype(np.uint8)
    grey = Image.fromarray(white)
    if kind == "1":
        return grey.convert("1")
    if kind == "RGB":
        return grey.convert("RGB")
    if kind == "LA, white on transparent white":
        return Image.fromarray(np.stack((np.full_like(white, 255), white), -1), "LA")
    if kind == "RGBA, transparent white":
        return Image.fromarray(np.dstack([np.full_like(white, 255)] * 3 + [white]))
    if kind == "RGBA, opaque":
        return Image.fromarray(np.dstack([white] * 3 + [np.full_like(white, 255)]))
    if kind == "P":
        image = Image.fromarray(SHAPE.astype(np.uint8) * 3).convert("P")
        image.putpalette(bytes([0, 0, 0] * 3 + [255, 255, 255]))
        return image
    if kind == "I;16":
        return Image.fromarray(np.where(SHAPE, 32768, 32767).astype(np.uint16))
    if kind == "I":
        return Image.fromarray(np.where(SHAPE, 65535, 0).astype(np.int32))
    if kind == "F":
        return Image.fromarray(SHAPE.astype(np.float32))
    if kind == "CMYK":
        return grey.convert("RGB").convert("CMYK")
    assert kind == "L, antialiased"
    return Image.fromarray(np.where(SHAPE, 128, 127).astype(np.uint8))


@pytest.mark.parametrize(
    "kind",
    [
        "1", "RGB", "LA, white on transparent white", "RGBA, transparent white", "RGBA, opaque",
        "P", "I;16", "I", "F", "CMYK", "L, antialiased",
    ],
)  # fmt: skip
@pytest.mark.parametrize("from_file", [False, True])
def test_masks_of_every_kind(kind, from_file, tmp_path):
    source = drawn(kind)
    if from_file:
        suffix = "tif" if kind in ("F", "CMYK", "I") else "png"
        source.save(tmp_path / f"mask.{suffix}")
        source = tmp_path / f"mask.{suffix}"
    mask, empty = read_mask(source, 10, 8)
    assert mask.dtype == bool
    assert np.array_equal(mask, SHAPE)
    assert empty is None


@pytest.mark.parametrize(
    "array",
    [
        SHAPE,
        SHAPE[..., None],
        SHAPE.astype(np.uint8),
        SHAPE.astype(np.uint8) * 255,
        SHAPE.astype(np.uint16) * 65535,
        SHAPE * 0.5,
        np.dstack([SHAPE] * 3).astype(np.float32),
        np.dstack([np.ones_like(SHAPE)] * 3 + [SHAPE]).astype(np.uint8) * 255,
        np.where(SHAPE, 128, 127).astype(np.uint8),
    ],
)
def test_masks_as_arrays(array):
    mask, empty = read_mask(array, 10, 8)
    assert np.array_equal(mask, SHAPE)
    assert empty is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 10), np.int64), "int64"),
        (np.zeros((8, 10, 2), np.uint8), r"\(8, 10, 2\)"),
        (np.full((8, 10), 255.0), "255 to 255"),
        (np.full((8, 10), np.nan), "nan"),
        (np.zeros((10, 8), bool), "8x10 pixels, the picture 10x8"),
    ],
)
def test_unfit_masks_are_refused(array, message):
    with pytest.raises(InpaintError, match=message):
        read_mask(array, 10, 8)


def test_an_exif_orientation_turns_the_mask_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(SHAPE).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png", 10, 8)[0], SHAPE)


def test_nothing_set_returns_the_picture_and_says_why():
    image = noise(40, 50, 3)
    result = constant()(image, np.full((40, 50), 76, np.uint8))
    assert np.array_equal(np.asarray(result.image), image)
    assert "nowhere white (at its brightest 29.8%)" in str(result.report)
    assert result.report.windows == ()


def test_everything_set_is_an_error():
    with pytest.raises(InpaintError, match="covers the whole picture"):
        constant()(noise(40, 50, 3), np.ones((40, 50), bool))


def test_boxes():
    expected = box_mask(40, 50, (1, 2, 3, 4), (10, 0, 40, 50))
    mask = mask_from_boxes([(2, 1, 4, 3), (0, 10, 50, 40)], 50, 40)
    assert np.array_equal(mask, expected)
    for box in ((0, 0, 51, 5), (-1, 0, 5, 5), (0, 0, 5, 41)):
        text = "box " + " ".join(map(str, box))
        with pytest.raises(InpaintError, match=text + ".* 50x40"):
            mask_from_boxes([box], 50, 40)
    with pytest.raises(InpaintError, match=r"box 5 5 5 9 .* empty"):
        mask_from_boxes([(5, 5, 5, 9)], 50, 40)
    with pytest.raises(InpaintError, match="four numbers"):
        mask_from_boxes([(5, 5, 5)], 50, 40)


def test_either_a_mask_or_boxes():
    image = noise(40, 50, 3)
    for options in ({}, {"mask": np.zeros((40, 50), bool), "boxes": [(0, 0, 1, 1)]}):
        with pytest.raises(InpaintError, match="either a mask or boxes"):
            constant()(image, **options)
    result = constant()(image, boxes=[(3, 4, 8, 6)])
    assert np.array_equal(result.mask, box_mask(40, 50, (4, 3, 6, 8)))


def test_damaged_files_and_images(tmp_path):
    data = io.BytesIO()
    Image.fromarray(noise(40, 50, 3)).save(data, "PNG")
    (tmp_path / "cut.png").write_bytes(data.getvalue()[:2000])
    mask = box_mask(40, 50, (5, 5, 9, 9))
    with pytest.raises(UnreadableImage, match=r"cut\.png: "):
        constant()(tmp_path / "cut.png", mask)
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(InpaintError, match="be read"):
        constant()(opened, mask)
    with pytest.raises(UnreadableImage, match=r"nowhere\.png"):
        constant()(noise(40, 50, 3), tmp_path / "nowhere.png")


# --- the report -------------------------------------------------------------------------------


def test_the_report_tells_window_scale_and_place():
    image = noise(300, 400, 3)
    mask = box_mask(300, 400, (60, 40, 155, 220), (250, 300, 252, 302), (256, 304, 258, 306))
    lines = constant()(image, mask).report.lines()
    area, size = 180 * 95, 32
    side = int(np.ceil((area * 6) ** 0.5))
    assert lines[0] == (
        f"hole 1 of 2: 180x95 px at (40, 60): window {side}x{side} scaled by {size / side:.2g} to "
        "32x32, so the fill is coarse; the picture is continued by reflection"
    )
    assert lines[1] == (
        "hole 2 of 2: 2 spots in 6x8 px at (300, 250): window 32x32, native resolution"
    )


def test_the_report_tells_tiles_and_missing_context():
    mask = box_mask(60, 300, (20, 10, 22, 290))
    (line,) = constant()(noise(60, 300, 3), mask).report.lines()
    assert line == "hole 1 of 1: 280x2 px at (10, 20): 18 windows of 32x32, native resolution"
    mask = ~box_mask(100, 100, (0, 0, 5, 100))
    (line,) = constant()(noise(100, 100, 3), mask).report.lines()
    assert "more than the 25% trained for" in line


def test_a_long_report_can_be_cut():
    mask = np.zeros((200, 200), bool)
    mask[10::40, 10::40] = True
    report = constant()(noise(200, 200, 3), mask).report
    assert len(report.holes) == 25
    assert len(report.lines()) == 25
    lines = report.lines(3)
    assert len(lines) == 4
    assert lines[3] == "and 22 more, 22 windows; all native resolution"


# --- runs and the command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network, as training writes it."""
    return save_untrained(tmp_path_factory.mktemp("runs") / "first", seed=0)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(60, 80, 3)).save(path)
    return path


def test_three_lines_of_python(run, photo, tmp_path):
    mask = box_mask(60, 80, (10, 20, 22, 35))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inpainter = Inpainter.from_run(str(run))
    result = inpainter(photo, tmp_path / "mask.png")
    assert inpainter.geometry == WindowGeometry(32, (0, 0, 32, 32))
    assert np.allclose(inpainter._fill_color, TrainConfig().fill_color())
    filled = np.asarray(result.image)
    assert np.array_equal(filled[~mask], noise(60, 80, 3)[~mask])
    assert not np.array_equal(filled[mask], noise(60, 80, 3)[mask])


def test_a_network_trained_on_central_holes_fills_those(monkeypatch):
    def loaded(config, region):
        model = Constant(config.size, region=region)
        model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
        return lambda *_, **__: LoadedModel(model, config, 1, Path("run"))

    whole = TrainConfig(size=64, mask="central")
    monkeypatch.setattr("context_encoder.inpainting.inpainter.load_model", loaded(whole, None))
    assert Inpainter.from_run("run").geometry.region == (16, 16, 32, 32)
    centre = TrainConfig(model="center", size=128, mask="central", overlap=4)
    monkeypatch.setattr(
        "context_encoder.inpainting.inpainter.load_model", loaded(centre, (32, 32, 64, 64))
    )
    assert Inpainter.from_run("run").geometry.region == (36, 36, 56, 56)


def test_a_missing_run_or_device_is_a_clear_error(run, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Inpainter.from_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--device"):
        Inpainter.from_run(run, device="abacus")


def call(capsys, *arguments):
    """Run the command; its status, and what it wrote to standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_fills_a_picture(run, photo, tmp_path, capsys):
    mask = box_mask(60, 80, (10, 20, 22, 35))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "new" / "out.png"
    common = (photo, "--checkpoint", run, "--out", out)
    status, text, err = call(capsys, *common, "--mask", tmp_path / "mask.png", "--device", "cpu")
    assert (status, err) == (0, "")
    assert "hole 1 of 1: 15x12 px at (20, 10): window 33x33" in text
    assert str(out) in text
    with Image.open(out) as image:
        filled = np.asarray(image)
    assert np.array_equal(filled[~mask], noise(60, 80, 3)[~mask])

    status, _, err = call(capsys, *common, "--box", 20, 10, 35, 22)
    assert status == 2
    assert "--overwrite" in err
    for options in (("--no-blend",), ("--which", "last", "--batch-size", 2)):
        boxes = ("--box", 20, 10, 35, 22, "--box", 50, 40, 52, 42)
        assert call(capsys, *common, *boxes, "--overwrite", *options)[0] == 0
        with Image.open(out) as image:
            changed = (np.asarray(image) != noise(60, 80, 3)).any(-1)
        assert changed[10:22, 20:35].any()
        assert changed[40:42, 50:52].any()
        changed[10:22, 20:35] = changed[40:42, 50:52] = False
        assert not changed.any()


def test_the_seam_is_removed_unless_asked_not_to(run, tmp_path, capsys):
    flat = np.full((60, 80, 3), (200, 30, 60), np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    steps = {}
    for option in ("--blend", "--no-blend"):
        out = tmp_path / f"{option}.png"
        common = (tmp_path / "flat.png", "--checkpoint", run, "--out", out)
        assert call(capsys, *common, "--box", 30, 20, 34, 24, option)[0] == 0
        with Image.open(out) as image:
            edge = np.asarray(image)[20, 30:34].astype(int)
        steps[option] = np.abs(edge - flat[0, 0]).mean()
    assert steps["--blend"] < 0.3 * steps["--no-blend"]


def test_errors_of_the_command_are_one_line(run, photo, tmp_path, capsys):
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("not a picture")
    out = tmp_path / "out.png"
    good = {"image": photo, "--checkpoint": run, "--out": out, "--box": (1, 1, 5, 5)}
    for change, message in (
        ({"image": tmp_path / "nowhere.png"}, "nowhere.png does not exist"),
        ({"image": tmp_path / "text.png"}, "text.png: not an image"),
        ({"--checkpoint": tmp_path / "none"}, "none does not exist"),
        ({"--out": tmp_path / "out.jpg"}, "save as out.png"),
        ({"--out": tmp_path / "out.bmp"}, ".png, .tif"),
        ({"--out": tmp_path}, "photo.png"),
        ({"--out": photo}, "--overwrite"),
        ({"--box": (1, 1, 500, 5)}, "box 1 1 500 5"),
        ({"--box": (0, 0, 80, 60)}, "covers the whole picture"),
        ({"--box": None}, "--mask FILE"),
        ({"--mask": tmp_path / "small.png"}, "not both"),
        ({"--box": None, "--mask": tmp_path / "small.png"}, "6x5 pixels, the picture 80x60"),
        ({"--box": None, "--mask": tmp_path / "nowhere.png"}, "nowhere.png does not exist"),
        ({"--box": None, "--mask": tmp_path}, "is a folder"),
        ({"--device": "abacus"}, "--device"),
    ):
        arguments = []
        for name, value in (good | change).items():
            if value is not None:
                values = value if isinstance(value, tuple) else (value,)
                arguments += [*([] if name == "image" else [name]), *values]
        status, text, err = call(capsys, *arguments)
        assert status == 2, change
        assert message in err, change
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        assert text == ""
        assert not out.exists()


def test_wrong_arguments_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["photo.png", "--box", "1", "2", "3"])
    assert stopped.value.code == 2


@pytest.fixture
def folder(tmp_path):
    """Pictures in several folders, one of them damaged, and masks for some."""
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    for name in ("a.png", "b.jpg", "sub/a.png", "twin.png", "twin.jpg"):
        path = pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40, 50, 3, seed=len(name))).save(path)
    (pictures / "broken.png").write_bytes(b"\x89PNG nonsense")
    mask = Image.fromarray(box_mask(40, 50, (10, 10, 15, 18)))
    for name in ("a.png", "sub/a.gif", "twin.png", "broken.png"):
        path = masks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return tmp_path


def saved(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_with_a_folder_of_masks(run, folder, capsys):
    out = folder / "out"
    arguments = (folder / "pictures", "--mask", folder / "masks", "--checkpoint", run, "--out", out)
    status, text, err = call(capsys, *arguments)
    assert status == 0
    assert saved(out) == ["a.png", "sub/a.png", "twin.jpg.png", "twin.png.png"]
    mask = box_mask(40, 50, (10, 10, 15, 18))
    for name, original in (("a.png", "a.png"), ("sub/a.png", "sub/a.png")):
        with Image.open(out / name) as filled, Image.open(folder / "pictures" / original) as image:
            assert np.array_equal(np.asarray(filled)[~mask], np.asarray(image)[~mask])
    assert "filled 4 of 6 pictures" in text
    assert "sub/a.png: hole 1 of 1: 8x5 px at (10, 10)" in text
    told = err[err.index("skipped 2:") :].splitlines()
    assert told[1].startswith("  b.jpg: no mask b.* in")
    assert told[2].startswith("  broken.png: not an image")

    # Again: all is there already.
    status, text, err = call(capsys, *arguments)
    assert status == 1
    assert "filled 0 of 6" in text
    assert err.count("--overwrite replaces it") == 4


def test_a_folder_with_one_box_and_results_inside_of_it(run, folder, capsys):
    pictures = folder / "pictures"
    arguments = (pictures, "--checkpoint", run, "--out", pictures / "out", "--overwrite")
    for _ in range(2):
        status, text, err = call(capsys, *arguments, "--box", 3, 4, 9, 8)
        assert status == 0
        assert "filled 5 of 6 pictures" in text
        assert "skipped 1:\n  broken.png" in err
    assert len(saved(pictures / "out")) == 5


def test_a_folder_with_one_mask_and_a_picture_of_another_size(run, folder, capsys):
    Image.fromarray(noise(30, 30, 3)).save(folder / "pictures" / "other.png")
    mask = folder / "masks" / "a.png"
    arguments = (folder / "pictures", "--checkpoint", run, "--out", folder / "out", "--mask", mask)
    status, text, err = call(capsys, *arguments)
    assert status == 0
    assert "filled 5 of 7" in text
    assert "50x40 pixels, the picture 30x30" in err


def test_errors_with_folders(run, folder, capsys):
    pictures = folder / "pictures"
    Image.fromarray(SHAPE).save(folder / "masks" / "a.bmp")
    common = (pictures, "--checkpoint", run)
    mask = ("--mask", folder / "masks")
    _, _, err = call(capsys, *common, *mask, "--out", folder / "out")
    assert "a.png: more than one mask: a.bmp and a.png" in err
    for options, message in (
        ((*mask, "--out", pictures), "name another"),
        ((*mask, "--out", folder / "masks" / "a.png"), "is a file"),
        (("--out", folder / "out"), "--mask FILE"),
    ):
        status, _, err = call(capsys, *common, *options)
        assert status == 2
        assert message in err
    (folder / "empty").mkdir()
    box = ("--box", 1, 1, 2, 2)
    status, _, err = call(
        capsys, folder / "empty", "--checkpoint", run, "--out", folder / "out", *box
    )
    assert status == 2
    assert "no image in" in err


def test_importing_the_package_is_light():
    code = (
        "import sys, context_encoder; assert 'torch' not in sys.modules; "
        "assert 'Inpainter' in dir(context_encoder)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = context_encoder.no_such_name


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(InpaintError, match="got a Tensor; give a path, a Pillow image or a"):
        read_picture(torch.zeros(4, 4))  # type: ignore[arg-type]
