"""Storage that fails for a while, storage that goes away, and files that are damaged."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from context_encoder.data import (
    DataError,
    PhotoFolder,
    Replacements,
    StorageError,
    UnreadableImage,
    list_images,
    load_crops,
    make_loader,
    read_image,
    storage,
)
from context_encoder.train import main
from context_encoder.utils.cli import DONE, FAILED
from tests.helpers.photo_files import noise, photos, save
from tests.helpers.small_runs import TINY, save_photos

Fault = Callable[[Path], int | None]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    """Functions of a path that name the error that opening it gives."""
    found: list[Fault] = []
    plain = builtins.open

    def faulty(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | os.PathLike) and mode == "rb":
            for fault in found:
                code = fault(Path(file))
                if code is not None:
                    raise OSError(code, os.strerror(code), os.fspath(file))
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", faulty)
    monkeypatch.setattr(io, "open", faulty)
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 1e-4)
    monkeypatch.setattr(storage, "_LONGEST_PAUSE", 1e-3)
    return found


def samples(root: Path, epochs: int = 3, **options: Any) -> list[Any]:
    data = photos(root, cache_bytes=0, **options)
    return [data[epoch, index] for epoch in range(epochs) for index in range(len(data))]


def test_errors_in_a_fifth_of_the_opens_change_nothing(tmp_path: Path, faults: list[Fault]) -> None:
    save_photos(tmp_path, 20)
    before = samples(tmp_path)
    rng = random.Random(0)
    faults.append(lambda path: errno.EIO if rng.random() < 0.2 else None)
    after = samples(tmp_path)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(before, after, strict=True))
    assert not any(sample["unreadable"] for sample in after)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE])
def test_the_storage_is_waited_for(tmp_path: Path, faults: list[Fault], code: int) -> None:
    file = save(tmp_path / "a.png", noise(8, 9))
    left = 5

    def fault(path: Path) -> int | None:
        nonlocal left
        left -= 1
        return code if left > 0 else None

    faults.append(fault)
    assert read_image(file).size == (9, 8)
    assert left == 0


def test_a_file_that_its_disk_does_not_give_is_tried_again_each_time(
    tmp_path: Path, faults: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.01)
    paths = save_photos(tmp_path, 4)
    bad = [errno.EIO]
    faults.append(lambda path: bad[0] if bad and path == paths[1] else None)
    data = photos(tmp_path, cache_bytes=0)
    replaced = data[0, 1]
    assert replaced["source"] == 2
    assert replaced["unreadable"] == [("1.png", "Input/output error")]
    bad.clear()
    assert data[1, 1]["source"] == 1


@pytest.mark.parametrize("how", ["removed", "emptied", "forbidden", "dead"])
def test_a_folder_out_of_reach_ends_the_work(
    tmp_path: Path, faults: list[Fault], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    root = tmp_path / "photos"
    save_photos(root, 6)
    data = photos(root, cache_bytes=0)
    if how in ("removed", "emptied"):
        shutil.rmtree(root)
    if how == "emptied":
        root.mkdir()
    if how in ("forbidden", "dead"):
        faults.append(lambda path: errno.ESTALE)
        plain = os.scandir

        def scandir(path: Any) -> Any:
            if Path(path) == root:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
            return plain(path)

        monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError, match=r"the storage of .*photos/0\.png has not answered"):
        data[0, 0]


def test_a_missing_file_beside_others_is_replaced_at_once(tmp_path: Path) -> None:
    paths = save_photos(tmp_path, 3)
    data = photos(tmp_path, cache_bytes=0)
    paths[1].unlink()
    assert data[0, 1]["source"] == 2
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(paths[1])


def test_the_errors_cross_from_a_worker_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (StorageError("a b"), DataError("c")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    root = tmp_path / "photos"
    save_photos(root, 6)
    loader = make_loader(photos(root, cache_bytes=0), batch_size=2, workers=1, num_steps=500)
    batches = iter(loader)
    next(batches)
    shutil.rmtree(root)
    with pytest.raises(StorageError, match="has not answered") as raised:
        for _ in batches:
            pass
    assert "\n" not in str(raised.value)


def test_the_share_of_replaced_samples_is_limited() -> None:
    limit = Replacements(1000, 0.25)
    for _ in range(20):
        limit.add(32, 8, [])
    limit.add(32, 8, [("a.jpg", "empty")])
    with pytest.raises(DataError, match=r"65 of the last 256 .* such as a\.jpg: empty; .* 25%"):
        limit.add(32, 9, [])
    small = Replacements(10, 0.5)
    small.add(4, 4, [])
    small.add(4, 4, [])  # fewer samples than files say nothing yet
    with pytest.raises(DataError, match="12 of the last 12"):
        small.add(4, 4, [])
    everything = Replacements(10, 1.0)
    everything.add(99, 99, [])


def test_held_out_crops_come_from_the_files_that_can_be_read(tmp_path: Path) -> None:
    paths = save_photos(tmp_path, 40)
    for path in paths[:38]:
        path.write_bytes(b"broken")
    listed = list_images(tmp_path)
    options: dict[str, Any] = {"size": 16, "resize": 16, "crop_scale": (1.0, 1.0)}
    crops = load_crops(listed, tmp_path, samples=5, **options)
    assert sorted(crops.names) == ["38.png", "39.png"]
    assert len(crops.unreadable) == 38
    assert len(load_crops(listed, tmp_path, samples=80, **options)) == 4  # 2 of each
    for path in paths:
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 40 image files in"):
        load_crops(listed, tmp_path, samples=5, **options)


def run(*arguments: str) -> int:
    return main([*TINY, *arguments])


def state(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "checkpoints/last/state.json").read_text())
    return found


def test_a_run_whose_folder_vanishes_is_saved_and_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    monkeypatch.setattr("context_encoder.data.folder.DEFAULT_CACHE_BYTES", 0)
    root, away = tmp_path / "photos", tmp_path / "away"
    save_photos(root, 12)
    common = ("--data", str(root), "--steps", "12", "--val-every", "100")
    assert run(*common, "--out", str(tmp_path / "whole")) == DONE

    plain, count = PhotoFolder.__getitem__, 0

    def vanishing(self: Any, key: tuple[int, int]) -> Any:
        nonlocal count
        if self.train:
            count += 1
            self._cache.clear()
            if count == 22:
                root.rename(away)
        return plain(self, key)

    monkeypatch.setattr(PhotoFolder, "__getitem__", vanishing)
    out = tmp_path / "parts"
    capfd.readouterr()
    assert run(*common, "--out", str(out)) == FAILED
    assert "Traceback" not in capfd.readouterr().err
    said = (out / "log.txt").read_text()
    assert "stopped: the storage of" in said
    assert "; step 5 is saved; go on with: python -m context_encoder.train --resume" in said
    assert state(out)["step"] == 5
    away.rename(root)
    assert run("--resume", str(out)) == DONE
    for name in ("model", "training"):
        one, other = ((tmp_path / r / f"checkpoints/last/{name}.safetensors") for r in
                      ("whole", "parts"))  # fmt: skip
        assert one.read_bytes() == other.read_bytes()
    assert state(out)["replaced"] == 0


def test_a_folder_of_broken_pictures_ends_a_run_with_the_truth(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for path in save_photos(root, 100)[5:]:
        path.write_bytes(b"broken")
    (tmp_path / "held-out").mkdir()
    save_photos(tmp_path / "held-out", 4)
    common = ("--data", str(root), "--val-data", str(tmp_path / "held-out"), "--steps", "50")
    assert run(*common, "--out", str(tmp_path / "a")) == FAILED
    said = (tmp_path / "a/log.txt").read_text()
    assert "95 of the last 100 photographs that were drawn cannot be read" in said
    assert "`max_unreadable` allows 50%" in said
    assert run(*common, "--out", str(tmp_path / "b"), "--max-unreadable", "1") == DONE
    said = (tmp_path / "b/log.txt").read_text()
    assert "files that could not be read: 95" in said
    assert "other photographs took their place in 190 of 200 samples" in said
    assert state(tmp_path / "b")["replaced"] == 190
