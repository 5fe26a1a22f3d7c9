"""The loader of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from context_encoder.data import (
    PhotoFolder,
    SampleStream,
    collate,
    embedded_photos,
    list_images,
    make_loader,
)
from tests.helpers.photo_files import broken_files, noise, photos, save


def batches(data: PhotoFolder, **options: Any) -> list[Any]:
    return list(make_loader(data, **({"batch_size": 4, "num_steps": 5} | options)))


def assert_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"unreadable"}:
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    "options", [{"workers": 1}, {"workers": 2}, {"workers": 1, "context": "spawn"}]
)
def test_batches_do_not_depend_on_the_workers(options: dict[str, Any]) -> None:
    root = embedded_photos()
    paths = list_images(root)[:12]
    data = PhotoFolder(
        paths, root=root, size=16, resize=24, crop_scale=(0.6, 1), flip=True, seed=8, train=True
    )
    alone = batches(data)
    assert alone[0]["image"].shape == (4, 3, 16, 16)
    assert alone[0]["image"].dtype == torch.uint8
    assert all(alone[0][key].dtype == torch.int64 for key in ("epoch", "index", "source"))
    expected = list(SampleStream(12, seed=8, batch_size=4, num_steps=5))
    keys = [k for b in alone for k in zip(b["epoch"].tolist(), b["index"].tolist(), strict=True)]
    assert keys == expected
    assert_same(alone, batches(data, **options))


def test_resumed_and_divided_loaders_give_the_same_batches() -> None:
    data = photos(embedded_photos())
    whole = batches(data)
    assert_same(whole[2:], batches(data, start_step=2, num_steps=3))
    parts = [batches(data, rank=r, world_size=2) for r in range(2)]
    images = [torch.cat([b["image"] for b in pair]) for pair in zip(*parts, strict=True)]
    assert all(torch.equal(a, b["image"]) for a, b in zip(images, whole, strict=True))


def test_evaluation_takes_every_sample_once() -> None:
    data = photos(embedded_photos(), train=False, crops_per_image=2)
    sizes = [len(b["image"]) for b in make_loader(data, batch_size=20, workers=1)]
    assert sizes == [20, 20, 20, 20, 6]
    parts = [
        [i for b in make_loader(data, batch_size=8, rank=r, world_size=2) for i in b["index"]]
        for r in range(2)
    ]
    assert sorted(int(i) for part in parts for i in part) == list(range(86))
    assert len(parts[0]) == len(parts[1])


def test_the_loader_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    batches(photos(embedded_photos()), workers=1, num_steps=1)
    batches(photos(embedded_photos()), num_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_report_unreadable_files_and_carry_on(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"good{i}.png", noise(20, 20, i))
    broken = broken_files(tmp_path / "broken")
    found = batches(photos(tmp_path), workers=2, num_steps=16)
    assert all(len(b["image"]) == 4 for b in found)
    reports = [report for b in found for report in b["unreadable"]]
    assert {name for name, _ in reports} == {f"broken/{path.name}" for path in broken}
    assert len(reports) <= 2 * len(broken)  # once by each worker
    assert all(reason for _, reason in reports)
    replaced = torch.cat([b["source"] != b["index"] for b in found])
    indices = torch.cat([b["index"] for b in found])
    assert torch.equal(replaced, indices < len(broken))


def test_no_readable_file_is_told_through_the_loader(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="none of the 1 image files"):
            batches(photos(tmp_path), workers=workers)


class ThreadCounter(PhotoFolder):
    def __getitem__(self, key: tuple[int, int]) -> Any:
        return super().__getitem__(key) | {"source": torch.get_num_threads()}


def test_workers_use_one_thread() -> None:
    root = embedded_photos()
    data = ThreadCounter(
        list_images(root),
        root=root,
        size=8,
        resize=8,
        crop_scale=(1, 1),
        flip=True,
        seed=0,
        train=True,
    )
    assert batches(data, workers=1, num_steps=1)[0]["source"].tolist() == [1] * 4


def test_upsampled_samples_are_counted_in_the_batch(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 4))
    save(tmp_path / "b.png", noise(40, 40))
    (batch,) = batches(photos(tmp_path), batch_size=2, num_steps=1)
    assert sorted(batch["upsampled"].tolist()) == [False, True]
    assert batch["upsampled"][batch["index"] == 0].all()


def test_collate_gathers_reports() -> None:
    data = photos(embedded_photos())
    samples = [data[0, 0], data[0, 1] | {"unreadable": [("x.jpg", "empty")]}]
    batch = collate(samples)
    assert batch["unreadable"] == [("x.jpg", "empty")]
    assert torch.equal(batch["image"][1], samples[1]["image"])


def test_loader_checks_its_arguments() -> None:
    data = photos(embedded_photos())
    with pytest.raises(ValueError, match="workers must be at least 0"):
        make_loader(data, batch_size=4, workers=-1)
    with pytest.raises(ValueError, match="positive multiple"):
        make_loader(data, batch_size=5, world_size=2)
    with pytest.raises(ValueError, match="are for training"):
        make_loader(photos(embedded_photos(), train=False), batch_size=4, num_steps=3)
