"""The folder data set, the split, and the embedded photographs."""

from __future__ import annotations

import csv
import itertools
import os
import pickle
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from context_encoder.data import (
    PhotoFolder,
    embedded_photos,
    folder,
    list_images,
    scan_images,
    split_photos,
)
from tests.helpers.photo_files import noise, photos, save


def places(crop: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """All (top, left) where the crop lies in the image, to the last bit."""
    h, w = crop.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(image, (h, w), (0, 1))
    return list(zip(*np.nonzero((windows == crop.transpose(2, 0, 1)).all((2, 3, 4))), strict=True))


def hwc(sample: Any) -> np.ndarray:
    image: torch.Tensor = sample["image"]
    return image.permute(1, 2, 0).numpy()


def test_crops_of_unchanged_scale_are_pieces_of_the_image(tmp_path: Path) -> None:
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    data = photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5))
    found: list[tuple[int, int]] = []
    flips = 0
    for epoch in range(200):
        sample = data[epoch, 0]
        assert sample["image"].shape == (3, 12, 12)
        assert sample["image"].dtype == torch.uint8
        assert sample["image"].is_contiguous()
        assert (sample["epoch"], sample["index"], sample["source"]) == (epoch, 0, 0)
        crop = hwc(sample)
        plain, mirrored = places(crop, image), places(crop[:, ::-1], image)
        assert len(plain) + len(mirrored) == 1
        found += plain + mirrored
        flips += len(mirrored)
    assert 70 <= flips <= 130
    tops, lefts = zip(*found, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 12, 0, 28)  # every place occurs
    assert all(
        places(
            hwc(photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5), flip=False)[e, 0]),
            image,
        )
        for e in range(20)
    )


def test_scaled_crops_are_squares_of_the_wanted_sides(tmp_path: Path) -> None:
    # Red tells x and green tells y, so that a crop shows where it was taken.
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    save(tmp_path / "a.png", np.stack([x, y, x], -1))
    data = photos(tmp_path, size=32, resize=256, crop_scale=(0.25, 0.75))
    sides, middles = [], []
    for epoch in range(300):
        red, green = hwc(data[epoch, 0])[..., :2].astype(float).transpose(2, 0, 1)
        width = abs(red[16, 28] - red[16, 3]) / 25 * 32
        height = (green[28, 16] - green[3, 16]) / 25 * 32
        assert width == pytest.approx(height, abs=3)
        sides.append(height)
        middles.append(green[15:17, 15:17].mean())
    assert 61 < min(sides) < 70
    assert 186 < max(sides) < 195
    assert np.mean(sides) == pytest.approx(128, abs=10)
    assert np.mean(middles) == pytest.approx(127.5, abs=10)


@pytest.mark.parametrize(("resize", "train"), [(64, True), (256, True), (256, False)])
def test_shrinking_does_not_alias(tmp_path: Path, resize: int, train: bool) -> None:
    y, x = np.mgrid[:256, :256]
    checkers = np.uint8(255) * ((x + y) % 2).astype(np.uint8)
    save(tmp_path / "a.png", checkers)
    data = photos(tmp_path, size=32, resize=resize, crop_scale=(1.0, 1.0), train=train)
    np.testing.assert_allclose(hwc(data[0, 0]), 127.5, atol=4)


def test_resize_keeps_the_aspect_and_the_place(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    save(tmp_path / "a.png", np.broadcast_to(ramp[None, :, None], (100, 300, 3)).copy())
    data = photos(tmp_path, size=50, resize=50, crop_scale=(1.0, 1.0), train=False)
    # The centre third of the ramp, for every scale.
    expected = np.linspace(100, 200, 51)[:-1] + 1 - 0.5
    np.testing.assert_allclose(hwc(data[0, 0])[25, :, 0], expected / 299 * 255, atol=1.5)


def test_first_evaluation_crop_is_the_centre(tmp_path: Path) -> None:
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    options: dict[str, Any] = {"size": 12, "resize": 24, "crop_scale": (0.4, 0.6), "train": False}
    one = photos(tmp_path, **options)
    assert len(one) == 1
    np.testing.assert_array_equal(hwc(one[0, 0]), image[6:18, 14:26])
    many = photos(tmp_path, **options, crops_per_image=6, seed=99)
    assert len(many) == 6
    crops = [many[5, i]["image"] for i in range(6)]
    assert torch.equal(crops[0], one[0, 0]["image"])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(crops, 2))
    again = photos(tmp_path, **options, crops_per_image=6, seed=1)
    assert all(torch.equal(crop, again[0, i]["image"]) for i, crop in enumerate(crops))


def test_evaluation_index_names_image_and_crop(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((20, 20, 3), 50 * i, np.uint8))
    data = photos(tmp_path, train=False, crops_per_image=4)
    samples = [data[0, i] for i in range(len(data))]
    assert [s["source"] for s in samples] == [i // 4 for i in range(12)]
    assert [int(s["image"].max()) for s in samples] == [50 * (i // 4) for i in range(12)]
    assert [s["index"] for s in samples] == list(range(12))


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    first, again = photos(embedded_photos()), photos(embedded_photos())
    keys = [(e, i) for e in (0, 1, 7) for i in (0, 5)]
    forward = {key: first[key]["image"] for key in keys}
    backward = {key: again[key]["image"] for key in reversed(keys)}
    assert all(torch.equal(forward[key], backward[key]) for key in keys)
    assert not torch.equal(forward[0, 0], forward[1, 0])
    other = photos(embedded_photos(), seed=4)
    assert not torch.equal(forward[0, 0], other[0, 0]["image"])


def test_draws_stay_the_same_between_versions(tmp_path: Path) -> None:
    # A run resumed with a newer version must continue with the same crops.
    image = noise(24, 40)
    save(tmp_path / "a.png", image)
    data = photos(tmp_path, size=12, resize=24, crop_scale=(0.5, 0.5), seed=0)
    crops = [hwc(data[epoch, 0]) for epoch in range(4)]
    found = [(*places(c, image), *places(c[:, ::-1], image)) for c in crops]
    assert found == [((10, 23),), ((4, 18),), ((2, 5),), ((3, 11),)]
    assert [bool(places(c, image)) for c in crops] == [False, True, True, False]  # mirrored or not


def test_small_images_are_enlarged_and_marked(tmp_path: Path) -> None:
    save(tmp_path / "1x1.png", np.array([[[9, 99, 199]]], np.uint8))
    save(tmp_path / "long.png", np.full((1, 500, 3), 77, np.uint8))
    save(tmp_path / "15.png", noise(15, 90))
    save(tmp_path / "16.png", noise(16, 16))
    data = photos(tmp_path)
    samples = {data.names[i]: data[0, i] for i in range(4)}
    marked = {name: sample["upsampled"] for name, sample in samples.items()}
    assert marked == {"1x1.png": True, "long.png": True, "15.png": True, "16.png": False}
    assert (hwc(samples["1x1.png"]) == (9, 99, 199)).all()
    assert (hwc(samples["long.png"]) == 77).all()


def test_memory_holds_images_up_to_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((64, 64, 3), 10 * i, np.uint8))
    room_for_two = 2 * 32 * 32 * 4

    def kept(cache_bytes: int) -> list[int]:
        """Images that can be read after their files are renamed, by the cache."""
        data = photos(tmp_path, cache_bytes=cache_bytes)
        before = [data[0, i]["image"] for i in range(3)]
        for path in list_images(tmp_path):
            path.rename(path.with_suffix(".gone"))
        try:
            after = [data[0, i] for i in range(3)]
        except ValueError:
            return []
        finally:
            for path in tmp_path.glob("*.gone"):
                path.rename(path.with_suffix(".png"))
        held = [i for i in range(3) if after[i]["source"] == i]
        assert all(torch.equal(before[i], after[i]["image"]) for i in held)
        return held

    assert kept(room_for_two) == [0, 1]
    assert kept(room_for_two - 1) == [0]
    assert kept(0) == []
    worker = SimpleNamespace(num_workers=2)
    monkeypatch.setattr(folder, "get_worker_info", lambda: worker)
    assert kept(room_for_two) == [0]


def test_memory_does_not_change_the_pixels() -> None:
    kept, fresh = photos(embedded_photos()), photos(embedded_photos(), cache_bytes=0)
    for epoch, index in itertools.product(range(2), range(0, 43, 6)):
        assert torch.equal(kept[epoch, index]["image"], fresh[epoch, index]["image"])


def test_a_pickled_data_set_leaves_its_memory_behind() -> None:
    data = photos(embedded_photos())
    empty = len(pickle.dumps(data))
    expected = data[0, 2]["image"]
    pickled = pickle.dumps(data)
    assert len(pickled) == empty
    assert torch.equal(pickle.loads(pickled)[0, 2]["image"], expected)


def test_unreadable_files_are_replaced_by_the_next_and_named_once(tmp_path: Path) -> None:
    for name in ("b", "e"):
        save(tmp_path / f"{name}.png", np.full((20, 20, 3), ord(name), np.uint8))
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    for name in ("c.jpg", "d.jpg", "é.jpg"):
        (tmp_path / name).touch()
    data = photos(tmp_path)
    assert data.names == ["a.jpg", "b.png", "c.jpg", "d.jpg", "e.png", "é.jpg"]
    samples = [data[0, i] for i in range(6)]
    assert [s["source"] for s in samples] == [1, 1, 4, 4, 4, 1]
    assert [s["index"] for s in samples] == list(range(6))
    assert [int(s["image"].max()) for s in samples] == [ord(c) for c in "bbeeeb"]
    named = [[name for name, _ in s["unreadable"]] for s in samples]
    assert named == [["a.jpg"], [], ["c.jpg", "d.jpg"], [], [], ["é.jpg"]]
    assert samples[2]["unreadable"][0] == ("c.jpg", "the file is empty")
    assert "begins with b'<html>'" in samples[0]["unreadable"][0][1]
    assert not any(data[1, i]["unreadable"] for i in range(6))
    # A replacement does not depend on earlier reads.
    assert torch.equal(photos(tmp_path)[0, 3]["image"], samples[3]["image"])


def test_no_readable_file_at_all(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    data = photos(tmp_path)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"none of the 2 image files in .* can be read; the first is a\.jpg"
        ):
            data[0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"resize": 15}, r"resize \(15\) must be at least size \(16\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.8)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale"),
        ({"crop_scale": (float("nan"), 1.0)}, "crop_scale"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"crops_per_image": 0, "train": False}, "crops_per_image"),
        ({"crops_per_image": 2}, "1 for training"),
        ({"cache_bytes": -1}, "cache_bytes"),
    ],
)
def test_photo_folder_checks_its_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        photos(embedded_photos(), **changes)


def test_photo_folder_without_files_and_index_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image files were given"):
        PhotoFolder(
            [], root=tmp_path, size=1, resize=1, crop_scale=(1, 1), flip=False, seed=0, train=True
        )
    data = photos(embedded_photos())
    for index in (-1, 43):
        with pytest.raises(IndexError, match="43 samples"):
            data[0, index]


def names(count: int) -> list[Path]:
    return [Path(f"/photos/{i % 7}/{i}.jpg") for i in range(count)]


def test_split_is_stable_when_files_are_added() -> None:
    for smaller, larger in ((20, 21), (20, 200), (200, 2000)):
        train, val = split_photos(names(smaller), "/photos", 0.2)
        more_train, more_val = split_photos(names(larger), "/photos", 0.2)
        assert set(train) <= set(more_train)
        assert set(val) <= set(more_val)
    assert len(more_val) == pytest.approx(400, abs=60)


def test_split_keeps_every_file_once_and_in_order() -> None:
    paths = names(100)
    train, val = split_photos(paths, "/photos", 0.3)
    assert sorted(train + val) == sorted(paths)
    assert train == [p for p in paths if p in train]
    assert val == [p for p in paths if p in val]
    shuffled = paths[50:] + paths[:50]
    assert set(split_photos(shuffled, "/photos", 0.3)[1]) == set(val)


def test_split_does_not_depend_on_where_the_folder_lies() -> None:
    _, val = split_photos(names(50), "/photos", 0.2)
    moved = [Path("/elsewhere") / p.relative_to("/photos") for p in names(50)]
    _, moved_val = split_photos(moved, "/elsewhere", 0.2)
    assert [p.name for p in moved_val] == [p.name for p in val]


def test_split_of_accented_names_is_the_same_on_systems_that_decompose_them() -> None:
    accented = [Path("/p") / f"é{i}.jpg" for i in range(60)]
    decomposed = [Path(unicodedata.normalize("NFD", str(p))) for p in accented]
    assert decomposed != accented
    numbers = [
        [int(p.stem[-2:].strip("é\u0301")) for p in split_photos(paths, "/p", 0.3)[1]]
        for paths in (accented, decomposed)
    ]
    assert numbers[0] == numbers[1]
    split_photos([Path(os.fsdecode(b"/p/\xff.jpg")), accented[0]], "/p", 0.3)  # not UTF-8


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_split_never_leaves_a_side_empty(count: int, fraction: float) -> None:
    train, val = split_photos(names(count), "/photos", fraction)
    assert len(train) >= 1
    assert len(val) >= 1
    assert len(train) + len(val) == count


def test_split_is_limited_by_max_val() -> None:
    train, val = split_photos(names(2000), "/photos", 0.5)
    assert (len(train), len(val)) == (1488, 512)
    _, few = split_photos(names(2000), "/photos", 0.5, max_val=10)
    assert len(few) == 10
    assert set(few) < set(val)


def test_split_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"at least 2 images are needed.*; 1 found in /photos"):
        split_photos(names(1), "/photos", 0.2)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1"):
            split_photos(names(9), "/photos", fraction)
    with pytest.raises(ValueError, match="max_val must be at least 1"):
        split_photos(names(9), "/photos", 0.2, max_val=0)


def test_embedded_photos_are_complete_and_attributed() -> None:
    root = embedded_photos()
    with (root / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sizes = {root / row["file"]: (int(row["width"]), int(row["height"])) for row in rows}
    scan = scan_images(list_images(root))
    assert scan.sizes == sizes
    assert len(sizes) == 43
    assert not scan.unreadable
    links = {
        "CC0": "publicdomain/zero/1.0/",
        "CC0-1.0": "publicdomain/zero/1.0/",
        "CC-BY-2.0": "licenses/by/2.0/",
        "CC-BY-4.0": "licenses/by/4.0/",
        "Public Domain": "publicdomain/mark/1.0/",
    }
    attribution = (root / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()
    for row in rows:
        (line,) = (line for line in attribution if line.startswith(f"| {row['file']} |"))
        assert f"https://creativecommons.org/{links[row['licence']]}" in line


def test_embedded_photos_hold_out_a_few() -> None:
    root = embedded_photos()
    train, val = split_photos(list_images(root), root, 0.18)
    assert (len(train), len(val)) == (35, 8)
