"""Which mask belongs to which image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from context_encoder.inpaint import main
from context_encoder.inpainting import HoleFiller
from context_encoder.inpainting.jobs import Settings, fill_folder, plan_folder
from context_encoder.inpainting.pairing import pair_masks
from tests.helpers.known_networks import box_mask, noise

MASK = box_mask(40, 50, (10, 10, 15, 18))


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ("x.png", "x.jpg"),
        ("x_mask.png", "x.jpg"),
        ("x_mask001.png", "x.jpg"),
        ("x_mask_1.tif", "x.jpg"),
        ("x-mask.png", "x.jpg"),
        ("x.mask.png", "x.jpg"),
        ("x mask (2).png", "x.jpg"),
        ("x_Mask.PNG", "x.jpg"),
        ("mask_x.png", "x.jpg"),
        ("x.jpg.png", "x.jpg"),
        ("x.jpg_mask.png", "x.jpg"),
        ("X.png", "x.jpg"),
        ("sub/x_mask.png", "sub/x.jpg"),
        ("x.y_mask.png", "x.y.jpg"),
        ("x_mask.png", "x_mask.jpg"),
        ("other/x.png", None),
        ("xmask.png", None),
        ("x1.png", None),
        ("mask.png", None),
    ],
)
def test_names_that_belong_together(mask, image):
    images = ["x.jpg", "sub/x.jpg", "x.y.jpg", "x_mask.jpg"]
    if image != "x_mask.jpg":
        images.pop()
    found = {name for name, masks in pair_masks(images, [mask]).items() if masks}
    assert found == ({image} if image else set())


def test_the_whole_name_decides_between_twins():
    masks = ["x.jpg.png", "x.png.png"]
    assert pair_masks(["x.jpg", "x.png"], masks) == {"x.jpg": masks[:1], "x.png": masks[1:]}
    assert pair_masks(["x.jpg"], ["x.png", "x_mask.png"]) == {"x.jpg": ["x_mask.png"]}
    assert pair_masks(["x.jpg", "X.jpg"], ["x.png"]) == {"x.jpg": ["x.png"], "X.jpg": []}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_several_masks_of_one_image_give_several_results(tmp_path, capsys):
    photos, masks, out = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    for name in ("a.jpg", "b.jpg"):
        save(photos / name, noise(40, 50, 3))
    for name in ("a_mask001.png", "a_mask002.png", "b.mask.png", "c.png"):
        save(masks / name, MASK)
    status, text, err = call(capsys, photos, "--mask", masks, "--out", out)
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a_mask001.png", "a_mask002.png", "b.png",
    ]  # fmt: skip
    assert "a.jpg with a_mask002.png: 1 small hole" in text
    assert "1 masks belong to no image: c.png" in err


def test_images_and_masks_in_one_folder(tmp_path, capsys):
    photos = tmp_path / "photos"
    save(photos / "a.png", noise(40, 50, 3))
    save(photos / "a_mask.png", MASK)
    erased = np.dstack((noise(40, 50, 3), np.where(MASK, 0, 255).astype(np.uint8)))
    save(photos / "b.png", erased)
    for _ in range(2):
        status, _, err = call(
            capsys, photos, "--mask", photos, "--out", photos / "out", "--overwrite"
        )
        assert (status, "belong" in err) == (0, False), err
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["a.png", "b.png"]
    with Image.open(photos / "out" / "b.png") as filled:
        assert (np.asarray(filled)[..., 3] == 255).all()
        assert np.array_equal(np.asarray(filled)[~MASK], erased[~MASK])


def test_a_hint_when_nothing_pairs(tmp_path, capsys):
    save(tmp_path / "photos" / "a.png", noise(40, 50, 3))
    save(tmp_path / "masks" / "b.png", MASK)
    status, text, err = call(
        capsys, tmp_path / "photos", "--mask", tmp_path / "masks", "--out", tmp_path / "out"
    )
    assert (status, text, err.count("\n")) == (2, "", 1)
    assert "a_mask*.*" in err
    assert "images a.png and masks b.png" in err


# --- no file ends a folder --------------------------------------------------------------------


def test_masks_that_cannot_be_meant_are_skipped_and_counted(tmp_path, capsys):
    for name in ("a", "b", "c"):
        save(tmp_path / "photos" / f"{name}.png", noise(40, 50, 3))
    save(tmp_path / "masks" / "a.png", MASK)
    save(tmp_path / "masks" / "b.png", ~MASK)
    save(tmp_path / "masks" / "c.png", noise(40, 50, 3))
    out = tmp_path / "out"
    status, text, err = call(
        capsys, tmp_path / "photos", "--mask", tmp_path / "masks", "--out", out
    )
    assert status == 3
    assert "filled 1 of 3 images" in text
    told = err[err.index("skipped 2:") :].splitlines()
    assert "--invert-mask" in told[1]
    assert "many grey levels" in told[2]
    assert [path.name for path in out.iterdir()] == ["a.png"]


def test_unusual_metadata_does_not_end_a_folder(tmp_path, capsys):
    """Densities that no other format holds, tags that cannot be encoded, cut-off files."""
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.fromarray(noise(40, 50, 3))
    exif = Image.Exif()
    exif[0x011A] = exif[0x011B] = 4294967295.0
    exif[0x0128] = 2
    image.save(photos / "density.jpg", exif=exif)
    image.save(photos / "exif.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    image.save(photos / "icc.png", icc_profile=b"no profile at all")
    data = (photos / "density.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(data[: len(data) // 2])
    (photos / "text.png").write_text("text")
    status, text, err = call(capsys, photos, "--box", 5, 5, 9, 9, "--out", tmp_path / "out")
    assert status == 3
    assert "filled 3 of 5 images" in text
    assert "cut.jpg: " in err
    assert "text.png: not an image" in err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (OverflowError("int too large"), "OverflowError: int too large (test_pairing.py, line"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (ValueError("odd"), "this is a bug, please report it"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_whatever_goes_wrong_with_one_image_is_one_line(error, told, tmp_path, capfd):
    for name in "abc":
        save(tmp_path / "photos" / f"{name}.png", noise(20, 20, 3))
    filler = HoleFiller(None, texture="off")

    def failing(image, *arguments, **options):
        if image.name == "b.png":
            raise error
        return filler(image, *arguments, **options)

    jobs, _ = plan_folder(tmp_path / "photos", tmp_path / "out", None)
    result = fill_folder(failing, jobs, Settings(boxes=[(5, 5, 8, 8)]))
    assert result.filled == 2
    (line,) = result.skipped
    assert line.startswith("b.png: ")
    assert told in line
    assert "\n" not in line


def test_ctrl_c_still_ends_a_folder(tmp_path):
    save(tmp_path / "photos" / "a.png", noise(20, 20, 3))

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    jobs, _ = plan_folder(tmp_path / "photos", tmp_path / "out", None)
    with pytest.raises(KeyboardInterrupt):
        fill_folder(interrupted, jobs)
