"""Evaluation at the photographs' own resolution, with square holes, with and without a run."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from context_encoder import HoleFiller, Inpainter
from context_encoder.data import Crops
from context_encoder.evaluate import main
from context_encoder.evaluation.comparison import evaluate
from context_encoder.evaluation.options import EvaluateConfig
from context_encoder.evaluation.squares import by_hash, draw_squares, load_native_crops
from tests.helpers.small_runs import save_photos, save_untrained

CROP = 64


def noisy(path: Path, width: int, height: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def crops_named(*names: str, size: int = 256, numbers: tuple[int, ...] | None = None) -> Crops:
    images = torch.zeros(len(names), 3, size, size, dtype=torch.uint8)
    numbers = numbers or (0,) * len(names)
    return Crops(images, tuple(map(Path, names)), names, numbers, (), ())


# --- crops and holes ----------------------------------------------------------------------------


def test_crops_are_the_photographs_own_pixels(tmp_path: Path) -> None:
    small = noisy(tmp_path / "a.png", 90, 71)
    large = noisy(tmp_path / "b.png", 300, 200)
    tiny = noisy(tmp_path / "c.png", 80, 63)
    broken = tmp_path / "d.png"
    broken.write_bytes(b"no picture")
    paths = [small, large, tiny, broken]
    crops = load_native_crops(paths, ["a", "b", "c", "d"], size=CROP, samples=8)
    assert crops.names == ("a", "b", "a", "b")
    assert crops.numbers == (0, 0, 1, 1)
    with Image.open(small) as image:
        whole = np.asarray(image)
    first = crops.images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, whole[3 : 3 + CROP, 13 : 13 + CROP])
    windows = np.lib.stride_tricks.sliding_window_view(whole, (CROP, CROP, 3))[:, :, 0]
    second = crops.images[2].permute(1, 2, 0).numpy()
    assert (windows == second).all((2, 3, 4)).sum() == 1
    assert not np.array_equal(first, second)
    # Reduced to a short side of 1.5 crops: the centre of the photograph in two thirds of it.
    with Image.open(large) as image:
        centre = image.resize((144, 96), Image.Resampling.LANCZOS).crop((40, 16, 104, 80))
    np.testing.assert_array_equal(crops.images[1].permute(1, 2, 0).numpy(), np.asarray(centre))
    reasons = dict(crops.unreadable)
    assert set(reasons) == {"c", "d"}
    assert reasons["c"] == "80 x 63 pixels are less than a crop of 64"
    with pytest.raises(ValueError, match="no photograph gives a crop of 64 pixels; c: 80 x 63"):
        load_native_crops([tiny], ["c"], size=CROP)


def test_sides_take_turns_and_places_are_those_of_a_hash() -> None:
    names = [f"folder/{letter}.jpg" for letter in "abcde"]
    crops = crops_named(*names, names[0], names[1], numbers=(0,) * 5 + (1, 1))
    masks, sides = draw_squares(crops, (24, 48, 80, 112))
    assert sides == [24, 48, 80, 112, 24, 48, 80]
    for i, side in enumerate(sides):
        base = Path(crops.names[i]).name + ("#1" if i >= 5 else "")
        hashed = [hashlib.sha256(f"{base}:{axis}".encode()).digest() for axis in ("top", "left")]
        top, left = (16 + int.from_bytes(h[:8], "big") % (256 - 32 - side + 1) for h in hashed)
        expected = np.zeros((256, 256), bool)
        expected[top : top + side, left : left + side] = True
        np.testing.assert_array_equal(masks[i, 0].numpy(), expected)
    other, _ = draw_squares(crops, (24, 48, 80, 112), seed=1)
    assert not torch.equal(other, masks)


def test_several_holes_do_not_touch_and_must_fit() -> None:
    crops = crops_named("a.jpg", "b.jpg", size=128)
    masks, _ = draw_squares(crops, (20, 30), count=4)
    for mask, side in zip(masks[:, 0].numpy(), (20, 30), strict=True):
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 4
        assert mask.sum() == 4 * side * side
        assert not mask[:8].any()
        assert not mask[:, -8:].any()
    with pytest.raises(ValueError, match="9 holes of 30 pixels do not fit into a crop of 128"):
        draw_squares(crops, (30,), count=9)
    with pytest.raises(ValueError, match="`holes` must be from 1 to 112 pixels"):
        draw_squares(crops, (113,))


def test_a_choice_by_hash_does_not_depend_on_the_order() -> None:
    names = ["b.jpg", "a.jpg", "c.jpg"]
    expected = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [names[i] for i in by_hash(names)] == expected
    assert [sorted(names)[i] for i in by_hash(sorted(names))] == expected


# --- the whole ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        noisy(folder / f"{i}.png", 70 + i, 66, seed=i)
    flat = np.full((66, 70, 3), (90, 120, 150), np.uint8)
    Image.fromarray(flat).save(folder / "flat.png")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two networks, of which one was trained for the centre only; trained on other photographs."""
    root = tmp_path_factory.mktemp("runs")
    data = save_photos(root / "data", 4, seed=9)[0].parent
    anywhere = save_untrained(root / "anywhere", 0, data=data)
    return anywhere, save_untrained(root / "centre", 1, data=data, mask="central")


@pytest.fixture(scope="module")
def results(
    runs: tuple[Path, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("native")
    names = ["membrane", "telea", "hole-filler", "included-network"]
    options = ["--checkpoint", *map(str, runs), "--data", str(photos), "--out", str(out), "--blind"]
    options += [
        "--crop",
        str(CROP),
        "--holes",
        "14",
        "30",
        "--device",
        "cpu",
        "--baselines",
        *names,
    ]
    assert main(options) == 0
    return out


def test_networks_fill_larger_pictures_as_inpaint_does(
    runs: tuple[Path, Path], results: Path, photos: Path
) -> None:
    """Each row against the public interface, with PSNR in float64."""
    found = json.loads((results / "results.json").read_text())["masks"]["squares"]
    pictures = found["pictures"]
    assert pictures["photograph"] == ["0.png", "1.png", "2.png", "flat.png"]
    assert pictures["side"] == [14, 30, 14, 30]
    assert pictures["flat"] == [False, False, False, True]
    assert pictures["area"] == pytest.approx([(side / CROP) ** 2 for side in pictures["side"]])
    crops = load_native_crops(
        [photos / name for name in pictures["photograph"]], pictures["photograph"], size=CROP
    )
    masks, _ = draw_squares(crops, (14, 30))
    blended = [Inpainter.from_run(run, device="cpu") for run in runs]
    fillers = {
        "anywhere": Inpainter.from_run(runs[0], device="cpu", blend=False),
        "anywhere-blended": blended[0],
        "centre-blended": blended[1],
        "anywhere-textured": HoleFiller(blended[0]),
        "hole-filler": HoleFiller(),
    }
    for name, filler in fillers.items():
        for i in range(3):
            image = crops.images[i].permute(1, 2, 0).numpy()
            mask = masks[i, 0].numpy()
            blank = np.where(mask[..., None], 0, image).astype(np.uint8)
            filled = np.asarray(filler(blank, mask).image)
            error = np.square((filled[mask].astype(float) - image[mask]) / 255).mean()
            got = found["methods"][name]["per_image"]["psnr"][i]
            assert got == pytest.approx(-10 * np.log10(error), abs=0.05), (name, i)


def test_tables_by_side_leave_flat_holes_out(results: Path) -> None:
    found = json.loads((results / "results.json").read_text())["masks"]["squares"]
    with (results / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "membrane"]
    assert [(row["part"], row["side"], row["crops"]) for row in rows] == [
        ("all", "", "3"), ("side", "14", "2"), ("side", "30", "1"), ("flat", "", "1"),
    ]  # fmt: skip
    psnr = found["methods"]["membrane"]["per_image"]["psnr"]
    assert psnr[3] > 42  # a constant is continued exactly
    expected = [np.mean(psnr[:3]), np.mean([psnr[0], psnr[2]]), psnr[1], psnr[3]]
    assert [float(row["psnr_db"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert float(rows[0]["psnr_median_db"]) == pytest.approx(np.median(psnr[:3]), rel=1e-5)
    text = (results / "results.md").read_text()
    assert "1 of them is left out of all means and medians" in text
    assert "| method | 14 px (n=2) | 30 px (n=1) | all (n=3) | flat (n=1) |" in text


def test_without_a_run_it_measures_what_inpaint_does(photos: Path, tmp_path: Path) -> None:
    options = {"baselines": ("mean", "hole-filler"), "perceptual": "off", "out": tmp_path / "out"}
    config = EvaluateConfig(data=photos, crop=CROP, holes=(20,), holes_per_crop=2, **options)
    found = evaluate(config)
    (group,) = found.groups
    assert [method.name for method in group.methods] == ["mean", "hole-filler"]
    assert group.areas == pytest.approx([2 * (20 / CROP) ** 2] * 4)
    assert any("2 square holes per crop, of 20 pixels" in fact for fact in found.facts)
    again = evaluate(config)
    assert again.reused == again.parts == 2
    # Other kinds of mask at the same resolution.
    options = {**options, "masks": ("central",), "baselines": ("mean",)}
    (group,) = evaluate(EvaluateConfig(data=photos, crop=CROP, **options)).groups
    assert (group.mask, group.hole) == ("central", CROP // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--holes 250", "--holes must be from 1 to 224 pixels"),
        ("--crop 300 --baselines nn-hog", "--baselines nn-hog searches crops of the network's"),
        ("--checkpoint RUN --holes-per-crop 2", "--holes-per-crop would do nothing: it needs"),
        ("--crop-scale 0.5 0.5", "--crop-scale would do nothing"),
        ("--data PHOTOS", "no photograph gives a crop of 256 pixels; 0.png: 70 x 66 pixels"),
        ("--data PHOTOS --crop 64 --holes 20 --columns fast", "--columns must be among mean, "),
    ],
)
def test_bad_options_are_told(
    runs: tuple[Path, Path],
    photos: Path,
    tmp_path: Path,
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": str(runs[0]), "PHOTOS": str(photos)}
    words = [places.get(word, word) for word in options.split()]
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- sheets -------------------------------------------------------------------------------------


def test_sheets_have_at_most_six_columns_and_the_key_tells_the_letters(results: Path) -> None:
    """Letters are decoded from the pixels of the blind sheet by the sheet with names."""
    key = json.loads((results / "blind/squares-key.json").read_text())
    assert set(key) == {"1", "2", "3"}  # the flat hole is no case
    shown = ["anywhere-blended", "centre-blended", "hole-filler", "membrane", "telea"]
    assert all(sorted(row.values()) == sorted(shown) for row in key.values())
    assert len({tuple(row.values()) for row in key.values()}) > 1

    def cells(path: Path, columns: int) -> list[list[bytes]]:
        """The images of a sheet, found as what is far from white, row by row."""
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB")).astype(int)
        side = 3 * CROP  # enlarged to at least 192 pixels
        ink = (sheet < 250).any(2)
        tall = [y for y in range(len(ink) - side) if ink[y : y + side].any(1).all()]
        tops = [y for i, y in enumerate(tall) if not i or y > tall[i - 1] + side // 2]
        found = []
        for top in tops:
            filled = ink[top : top + side].mean(0) > 0.9
            starts = np.flatnonzero(np.diff(np.r_[0, filled.astype(int)]) == 1)
            found.append([sheet[top : top + side, x : x + side].tobytes() for x in starts])
            assert len(starts) == columns
        return found

    named = cells(results / "sheets/squares-1.png", 6)
    blind = cells(results / "blind/squares-1.png", 6)
    assert len(named) == len(blind) == 3
    for number, (with_names, without) in enumerate(zip(named, blind, strict=True), 1):
        assert without[0] == with_names[1]  # the input
        for letter, picture in zip("ABCDE", without[1:], strict=True):
            name = key[str(number)][letter]
            if name in shown[:4]:
                assert picture == with_names[2 + shown.index(name)], (number, letter)
