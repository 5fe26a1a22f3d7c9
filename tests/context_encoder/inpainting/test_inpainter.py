"""Inpainter: input of the network, position of its prediction, report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from context_encoder import Inpainter
from context_encoder.config import TrainConfig
from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.windows import WindowGeometry, plan_windows
from context_encoder.runs import LoadedModel, RunError
from tests.helpers.known_networks import COLOR, GREY, Constant, box_mask, constant, noise


class Plane(nn.Module):
    """Fits a plane to the known pixels of each channel: exact for linear images."""

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


def ramp(height, width):
    """An image that is linear in x and y, within [40, 215]."""
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
    """Predictions have the right position and scale for every window."""
    image, mask = ramp(*shape), box_mask(*shape, *boxes)
    shown = np.where(mask[..., None], noise(*shape, 3), image)  # masked pixels are not used
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
    """A constant image is continued as constant, also with reflection and scaling."""
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
    """The input of the network does not depend on the masked values."""
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
        """Another colour in the overlap band, which must not be pasted."""

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
    """A bar reaches into a U: part of it is in the U's box, but belongs to another hole."""

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
    # In scaling up, the edge mixes with the black around it.
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


def test_the_report_tells_window_scale_and_place():
    image = noise(300, 400, 3)
    mask = box_mask(300, 400, (60, 40, 155, 220), (250, 300, 252, 302), (256, 304, 258, 306))
    lines = constant()(image, mask).report.lines()
    # A sixth of the window would be a square of 321 pixels, which the image does not hold.
    assert lines[0] == (
        "hole 1 of 2: 180x95 px at (40, 60): window 300x300 scaled by 0.11 to 32x32, so the fill "
        "is coarse"
    )
    assert lines[1] == (
        "hole 2 of 2: 2 spots in 6x8 px at (300, 250): window 32x32, native resolution"
    )


def test_the_report_tells_that_the_image_is_continued():
    # A quarter, the most that is missing in training, makes 262 pixels necessary.
    mask = box_mask(200, 400, (60, 40, 155, 220))
    (line,) = constant()(noise(200, 400, 3), mask).report.lines()
    assert line == (
        "hole 1 of 1: 180x95 px at (40, 60): window 262x262 scaled by 0.12 to 32x32, so the fill "
        "is coarse; the image is continued by reflection"
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
    centre = TrainConfig(model="dcgan-center", size=128, mask="central", overlap=4)
    monkeypatch.setattr(
        "context_encoder.inpainting.inpainter.load_model", loaded(centre, (32, 32, 64, 64))
    )
    assert Inpainter.from_run("run").geometry.region == (36, 36, 56, 56)


def test_a_missing_run_or_device_is_a_clear_error(run, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Inpainter.from_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`device` must be"):
        Inpainter.from_run(run, device="abacus")
