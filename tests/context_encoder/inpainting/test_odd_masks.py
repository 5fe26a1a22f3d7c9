"""Masks as editors export them, and masks that cannot be meant."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from context_encoder.data.mask_images import InpaintError, is_photograph
from context_encoder.inpaint import main
from tests.helpers.known_networks import COLOR, constant, noise
from tests.helpers.odd_masks import MARKS, REFUSED, OddMask, picture, shape, soft


def saved(odd: OddMask, where):
    made = odd.image()
    path = where / "mask.png"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made.save(path)
    return path


def same(mask, odd: OddMask) -> bool:
    different = mask ^ shape()
    if odd.about:
        edge = ndimage.distance_transform_edt(shape()) + ndimage.distance_transform_edt(~shape())
        different &= edge > 4
    return not different.any()


@pytest.mark.parametrize("odd", MARKS, ids=lambda odd: odd.name)
def test_what_is_marked_is_filled(odd, tmp_path):
    path = saved(odd, tmp_path)
    result = constant()(picture(), path)
    assert same(result.mask, odd)
    assert np.array_equal(result.pixels[~result.mask], picture()[~result.mask])
    with Image.open(path) as opened:
        assert np.array_equal(constant()(picture(), opened).mask, result.mask)


@pytest.mark.parametrize("odd", REFUSED, ids=lambda odd: odd.name)
def test_what_cannot_be_meant_is_refused_with_the_way_out(odd, tmp_path):
    path = saved(odd, tmp_path)
    with pytest.raises(InpaintError, match=odd.refused):
        constant()(picture(), path)
    if odd.meant:
        assert np.array_equal(constant()(picture(), path, **odd.meant).mask, shape())
    elif "whole" not in odd.refused:
        result = constant()(picture(), path, allow_unusual_mask=True)
        assert result.mask.mean() < 0.9


def test_the_rule_holds_for_arrays_of_bytes_and_not_for_bool():
    most = np.ones((40, 50), bool)
    most[0] = False
    image = noise(40, 50, 3)
    assert constant()(image, most).mask.sum() == most.sum()
    for array in (most.astype(np.uint8) * 255, most.astype(np.float32)):
        with pytest.raises(InpaintError, match=r"would fill 97.5% .* `invert_mask`"):
            constant()(image, array)
        assert np.array_equal(constant()(image, array, invert_mask=True).mask, ~most)
        assert np.array_equal(constant()(image, array, allow_unusual_mask=True).mask, most)


@pytest.mark.parametrize("channel", ["luminance", "alpha", "red", "green", "blue"])
def test_a_channel_can_be_named(channel, tmp_path):
    planes = [np.zeros((40, 50), np.uint8) for _ in range(4)]
    for number, plane in enumerate(planes):
        plane[5 * number : 5 * number + 4, 10:20] = 255
    Image.fromarray(np.dstack(planes)).save(tmp_path / "m.png")
    number = {"red": 0, "green": 1, "blue": 2, "alpha": 3, "luminance": 1}[channel]
    result = constant()(noise(40, 50, 3), tmp_path / "m.png", mask_channel=channel)
    assert np.array_equal(result.mask, planes[number] > 0)  # green is 0.587 of the luminance
    with pytest.raises(InpaintError, match="has no alpha channel"):
        constant()(noise(40, 50, 3), planes[0], mask_channel="alpha")


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_the_hole_grows_by_so_many_pixels(pixels):
    y, x = np.mgrid[:40, :50]
    for options in ({"mask": (y == 20) & (x == 25)}, {"boxes": [(25, 20, 26, 21)]}):
        result = constant()(noise(40, 50, 3), **options, grow=pixels)
        assert np.array_equal(result.mask, (y - 20) ** 2 + (x - 25) ** 2 <= pixels**2)


def test_growing_covers_the_fringe_of_an_anti_aliased_mask():
    mask = soft(1.5)
    grown = constant()(picture(), mask, grow=3).mask
    assert grown[mask > 20].all()
    assert not constant()(picture(), mask).mask[mask < 128].any()


def test_the_fill_fades_into_the_image():
    image = np.full((40, 50, 3), (10, 200, 100), np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:30, 10:40] = True
    result = constant()(image, mask, feather=4)
    row = result.pixels[20, :, 0].astype(int)
    # Linear, from the image at a distance of 5 to the fill in the hole.
    steps = (10 + (COLOR[0] - 10) * k / 5 for k in range(6))
    assert row[5:11].tolist() == [round(step) for step in steps]
    assert (result.pixels[mask] == COLOR).all()
    assert np.array_equal(result.pixels[~result.mask], image[~result.mask])
    assert result.mask[20].tolist() == [6 <= x < 44 for x in range(50)]


@pytest.mark.parametrize(
    "wrong",
    [{"grow": -1}, {"feather": 1.5}, {"mask_channel": "cyan"}, {"max_megapixels": 0}],
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(InpaintError, match=f"`{next(iter(wrong))}` must be"):
        constant()(noise(40, 50, 3), boxes=[(1, 1, 2, 2)], **wrong)


def test_an_animated_mask_and_one_that_is_turned(tmp_path):
    first = Image.fromarray(shape().astype(np.uint8) * 255)
    first.save(tmp_path / "m.gif", save_all=True, append_images=[Image.new("L", first.size)])
    result = constant()(picture(), tmp_path / "m.gif")
    assert np.array_equal(result.mask, shape())
    assert "first of 2 frames of the mask" in str(result.report)
    exif = Image.Exif()
    exif[0x0112] = 6
    first.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.jpg", exif=exif, quality=100)
    assert (constant()(picture(), tmp_path / "m.jpg").mask ^ shape()).mean() < 0.01


def test_levels_of_masks_and_of_photographs():
    rng = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 255, 160), (120, 1)).astype(np.uint8)
    assert is_photograph(ramp)
    assert is_photograph(rng.integers(0, 256, (120, 160)).astype(np.uint8))
    dithered = (rng.random((120, 160)) < 0.5).astype(np.uint8) * 255
    assert not is_photograph(dithered)
    assert not is_photograph(np.full((120, 160), 127, np.uint8))
    assert not is_photograph(soft(6))


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_nothing_and_names_the_option(tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    for number, odd in enumerate(REFUSED):
        folder = tmp_path / str(number)
        folder.mkdir()
        status = main(
            [str(tmp_path / "photo.png"), "--mask", str(saved(odd, folder)), "--out", str(out)]
        )
        text, err = capsys.readouterr()
        assert (status, text, err.count("\n")) == (2, "", 1), odd.name
        assert "--invert-mask" in err or "--mask-channel" in err, odd.name
        assert "`" not in err
        assert not out.exists()


def test_the_options_reach_the_mask(tmp_path, capsys):
    image = np.full((40, 50, 3), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    red = np.zeros((40, 50, 3), np.uint8)
    red[...] = 255
    red[20, 25, 0] = 0
    Image.fromarray(red).save(tmp_path / "mask.png")
    words = ["--invert-mask", "--mask-channel", "red", "--grow", "2", "--texture", "off"]
    image_io = [str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    out = tmp_path / "out.png"
    assert main([*image_io, *words, "--out", str(out)]) == 0
    assert "1 small hole, 13 px" in capsys.readouterr().out  # a disc of radius 2
    mask = io.BytesIO()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(mask, "PNG")
    (tmp_path / "mask.png").write_bytes(mask.getvalue())
    allowed = ["--allow-unusual-mask", "--overwrite", "--out", str(out)]
    assert main([*image_io, *allowed]) == 0
    assert "nothing to fill" in capsys.readouterr().out
