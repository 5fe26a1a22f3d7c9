"""Filling images without a network, from Python and by the command."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from context_encoder import HoleFiller
from context_encoder.inpaint import main
from context_encoder.inpainting import InpaintError
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.progress import hole_bar
from tests.context_encoder.inpainting.test_texture import pattern
from tests.helpers.known_networks import box_mask, constant, noise

BOX = (33, 41, 57, 65)


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def psnr(filled, image, mask):
    """In the hole, of 8-bit values."""
    return 10 * np.log10(255**2 / np.mean((filled[mask].astype(float) - image[mask]) ** 2))


def bricks():
    return pattern().astype(np.uint8), box_mask(90, 110, BOX)


@pytest.mark.parametrize(
    ("network", "guide"),
    [(None, "linear prediction"), ("included", "network and linear prediction")],
)
def test_bricks_are_filled_better_than_by_a_membrane_or_the_mean(network, guide):
    image, mask = bricks()
    hidden = image.copy()
    hidden[mask] = (255, 0, 255)  # the hole is not looked at
    result = HoleFiller(network)(hidden, mask)
    filled = np.asarray(result.image)
    membrane = remove_seam(np.where(mask[..., None], 0, image).astype(np.float32), mask)
    mean = np.broadcast_to(image[~mask].mean(0), image.shape)
    assert psnr(filled, image, mask) > 3 + max(psnr(f, image, mask) for f in (membrane, mean))
    assert np.array_equal(filled[~mask], image[~mask])
    assert np.array_equal(result.mask, mask)
    assert str(result.report) == (
        f"hole 1 of 1: 24x24 px at (41, 33): {guide}, texture of known patches near the hole at "
        "strength 0.7"
    )
    again = np.asarray(HoleFiller(network)(hidden, mask).image)
    assert np.array_equal(again, filled)


def test_the_strength_of_the_texture():
    # Far enough from black and white that nothing is cut off.
    image, mask = 60 + noise(90, 110, 3, high=130), box_mask(90, 110, BOX)
    fills = {
        texture: np.asarray(HoleFiller(texture=texture)(image, mask).image)
        for texture in ("off", 0, 0.5, 1)
    }
    assert np.array_equal(fills["off"], fills[0])
    low, middle, high = (fills[s].astype(float)[mask] for s in (0, 0.5, 1))
    assert np.abs(high - low).mean() > 10
    # Between a quarter of the difference, for coarse structure, and half of it, for detail.
    share = ((middle - low) * (high - low)).sum() / ((high - low) ** 2).sum()
    assert 0.4 < share < 0.5
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(InpaintError, match="from 0 to 1, or off"):
            HoleFiller(texture=wrong)


@pytest.mark.parametrize(
    ("shape", "dtype", "high"),
    [((), np.uint8, 256), ((2,), np.uint8, 256), ((4,), np.uint8, 256), ((), np.uint16, 65536)],
)
def test_pixels_outside_are_those_of_the_picture_in_every_mode(shape, dtype, high):
    image = noise(60, 70, *shape, high=high, dtype=dtype)
    mask = box_mask(60, 70, (5, 5, 8, 9), (20, 20, 45, 50))
    filled = np.asarray(HoleFiller()(image, mask).image)
    assert filled.dtype == dtype
    assert np.array_equal(filled[~mask], image[~mask])
    assert (filled[mask] != image[mask]).any()
    if shape:
        assert (filled[..., -1][mask] == 255).all() or shape == (3,)


def test_16_bits_are_predicted_with_more_than_8():
    """A slope of 3 in 65535 per pixel, which 8 bits do not resolve."""
    image = np.broadcast_to(20000 + 3 * np.arange(60), (40, 60)).astype(np.uint16)
    mask = box_mask(40, 60, (18, 28, 22, 32))
    filled = np.asarray(HoleFiller()(image, mask).image)
    assert np.abs(filled.astype(int) - image)[mask].max() < 20
    assert np.array_equal(filled[~mask], image[~mask])
    flat = np.asarray(HoleFiller()(np.full((40, 60), 20001, np.uint16), mask).image)
    assert np.abs(flat.astype(int) - 20001).max() <= 1


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (9, 9), (20, 20), (1, 60)])
def test_very_small_pictures_are_filled(size):
    image = np.full((*size, 3), (200, 100, 50), np.uint8)
    mask = np.ones(size, bool)
    mask[0, 0] = False
    result = HoleFiller()(image, mask)
    assert np.abs(np.asarray(result.image).astype(int) - image).max() <= 1
    # None of them has a whole patch of known pixels.
    assert "at strength" not in str(result.report)
    assert ("no whole patch of known pixels is near" in str(result.report)) == (min(size) > 12)


def test_nothing_to_fill_and_nothing_to_fill_from():
    image = noise(20, 20, 3)
    result = HoleFiller()(image, np.zeros((20, 20), bool))
    assert np.array_equal(np.asarray(result.image), image)
    assert "nothing" in str(result.report)
    with pytest.raises(InpaintError, match="covers the whole image"):
        HoleFiller()(image, np.ones((20, 20), bool))
    with pytest.raises(InpaintError, match="either a mask or boxes"):
        HoleFiller()(image)


def test_the_report_counts_small_holes_and_lists_the_larger_ones():
    boxes = [(x, 10, x + 4, 15) for x in range(10, 90, 10)]
    boxes += [(x, y, x + 16, y + 16) for x in (10, 50, 90) for y in (40, 80)]
    report = HoleFiller(None, texture="off")(noise(110, 120, 3), boxes=boxes).report
    assert (report.small, report.small_pixels, len(report.large)) == (8, 160, 6)
    lines = report.lines(2)
    assert lines[0] == "8 small holes, 160 px: linear prediction"
    assert lines[1] == "hole 1 of 6: 16x16 px at (10, 40): linear prediction"
    assert lines[-1] == "and 4 more, filled in the same way"
    assert len(lines) == 4


def test_a_network_is_half_of_the_guide():
    """The picture is flat, so that linear prediction is known: its colour."""
    image = np.full((80, 80, 3), (55, 151, 100), np.uint8)
    mask = box_mask(80, 80, (30, 30, 50, 50), (5, 5, 8, 8))
    result = HoleFiller(constant(size=64), texture="off")(image, mask)
    filled = np.asarray(result.image).astype(int)
    assert np.abs(filled[30:50, 30:50] - (155, 101, 50)).max() <= 1
    assert np.abs(filled[5:8, 5:8] - image[0, 0]).max() <= 1
    assert "network and linear prediction" in str(result.report)


def test_the_bar_shows_the_time_left_when_work_takes_long(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    cases = ((Terminal, 1.2, True), (Terminal, 0, False), (io.StringIO, 1.2, False))
    for kind, wait, shown in cases:
        stream = kind()
        clock = [100.0]
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr("tqdm.std.time", lambda clock=clock: clock[0])
        with hole_bar(1000, show=True) as bar:
            clock[0] += wait
            bar.update(500.0)
        assert ("500/1.00k [" in stream.getvalue()) == shown
        assert ("<" in stream.getvalue()) == shown


# --- the command ------------------------------------------------------------------------------


def test_the_command_needs_no_checkpoint(tmp_path, capsys):
    image, mask = bricks()
    Image.fromarray(image).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "new" / "filled.png"
    common = (tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--out", out)
    expected = {None: HoleFiller(), "1": HoleFiller(texture=1), "off": HoleFiller(texture="off")}
    for texture, filler in expected.items():
        options = () if texture is None else ("--texture", texture)
        status, text, err = call(capsys, *common, "--overwrite", *options)
        assert (status, err) == (0, "")
        assert "hole 1 of 1: 24x24 px at (41, 33): network and linear prediction" in text
        assert ("at strength" in text) == (texture != "off")
        with Image.open(out) as filled:
            assert np.array_equal(np.asarray(filled), np.asarray(filler(image, mask).image))


def test_a_folder_without_a_checkpoint(tmp_path, capsys):
    deep = noise(40, 50, high=65536, dtype=np.uint16)
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    Image.fromarray(noise(40, 50, 3)).save(pictures / "a.png")
    Image.fromarray(deep).save(pictures / "sub" / "deep.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG nonsense")
    out = tmp_path / "out"
    status, text, err = call(capsys, pictures, "--box", 10, 10, 28, 25, "--out", out)
    assert status == 3
    assert "filled 2 of 3 images" in text
    assert "sub/deep.png: hole 1 of 1: 18x15 px at (10, 10): network and linear prediction" in text
    assert "skipped 1:\n  broken.png" in err
    mask = box_mask(40, 50, (10, 10, 25, 28))
    with Image.open(out / "sub" / "deep.png") as filled:
        assert np.array_equal(np.asarray(filled)[~mask], deep[~mask])


def test_texture_with_a_checkpoint(run, photo, tmp_path, capsys):
    common = (photo, "--box", 20, 10, 45, 32, "--checkpoint", run, "--device", "cpu")
    fills = {}
    for texture in (None, "off", "0.5"):
        options = () if texture is None else ("--texture", texture)
        out = tmp_path / f"{texture}.png"
        status, text, err = call(capsys, *common, "--out", out, *options)
        assert (status, err) == (0, "")
        with Image.open(out) as image:
            fills[texture] = np.asarray(image)
        assert ("network and linear prediction, texture" in text) == (texture == "0.5")
    assert np.array_equal(fills[None], fills["off"])  # the network as it is
    mask = box_mask(60, 80, (10, 20, 32, 45))
    assert (fills["0.5"] != fills[None])[mask].any()
    assert np.array_equal(fills["0.5"][~mask], fills[None][~mask])


def test_errors_without_a_checkpoint(photo, run, tmp_path, capsys):
    out = tmp_path / "out.png"
    for options, message in (
        (("--texture", 2), "--texture must be a number from 0 to 1, or off; got 2"),
        (("--texture", 2, "--checkpoint", run), "--texture must be"),
        (("--texture", "much"), "--texture"),
        (("--which", "last"), "--which is for a network; name one with --checkpoint"),
        (("--device", "cuda"), "--device is for a network"),
        (("--no-blend",), "--no-blend is for a network"),
    ):
        status, text, err = call(capsys, photo, "--box", 1, 1, 5, 5, "--out", out, *options)
        assert (status, text, err.count("\n")) == (2, "", 1), err
        assert message in err
        assert not out.exists()
    status, _, err = call(capsys, photo, "--box", 0, 0, 80, 60, "--out", out)
    assert status == 2
    assert "covers the whole image" in err
