"""The command that fills an image or a folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from context_encoder.inpaint import main
from tests.helpers.known_networks import SHAPE, box_mask, noise


def call(capsys, *arguments):
    """Run the command; returns its status, standard output and standard error."""
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
        ({"--out": tmp_path / "out.bmp"}, ".png, .tif"),
        ({"--out": tmp_path}, "photo.png"),
        ({"--out": photo}, "--overwrite"),
        ({"--box": (1, 1, 500, 5)}, "box 1 1 500 5"),
        ({"--box": (0, 0, 80, 60)}, "covers the whole image"),
        ({"--box": None}, "--mask FILE"),
        ({"--mask": tmp_path / "small.png"}, "not both"),
        ({"--box": None, "--mask": tmp_path / "small.png"}, "6x5 pixels, the image 80x60"),
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
    status, text, err = call(capsys, "photo.png", "--box", 1, 2, 3)
    assert (status, text, err.count("\n")) == (2, "", 1)
    assert "'--box'. Expected 4 values" in err


@pytest.fixture
def folder(tmp_path):
    """Images in several folders, one of them damaged, and masks for some."""
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
    assert status == 3
    assert saved(out) == ["a.png", "sub/a.png", "twin.jpg.png", "twin.png.png"]
    mask = box_mask(40, 50, (10, 10, 15, 18))
    for name, original in (("a.png", "a.png"), ("sub/a.png", "sub/a.png")):
        with Image.open(out / name) as filled, Image.open(folder / "pictures" / original) as image:
            assert np.array_equal(np.asarray(filled)[~mask], np.asarray(image)[~mask])
    assert "filled 4 of 6 images" in text
    assert "sub/a.png: hole 1 of 1: 8x5 px at (10, 10)" in text
    told = err[err.index("skipped 2:") :].splitlines()
    assert told[1].startswith("  b.jpg: no mask b.* in")
    assert told[2].startswith("  broken.png: not an image")

    # The second time, all results exist.
    status, text, err = call(capsys, *arguments)
    assert status == 1
    assert "filled 0 of 6" in text
    assert err.count("--overwrite replaces it") == 4


def test_a_folder_with_one_box_and_results_inside_of_it(run, folder, capsys):
    pictures = folder / "pictures"
    arguments = (pictures, "--checkpoint", run, "--out", pictures / "out", "--overwrite")
    for _ in range(2):
        status, text, err = call(capsys, *arguments, "--box", 3, 4, 9, 8)
        assert status == 3
        assert "filled 5 of 6 images" in text
        assert "skipped 1:\n  broken.png" in err
    assert len(saved(pictures / "out")) == 5


def test_a_folder_with_one_mask_and_a_picture_of_another_size(run, folder, capsys):
    Image.fromarray(noise(30, 30, 3)).save(folder / "pictures" / "other.png")
    mask = folder / "masks" / "a.png"
    arguments = (folder / "pictures", "--checkpoint", run, "--out", folder / "out", "--mask", mask)
    status, text, err = call(capsys, *arguments)
    assert status == 3
    assert "filled 5 of 7" in text
    assert "50x40 pixels, the image 30x30" in err


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
