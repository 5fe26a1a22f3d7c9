"""The cache of decoded images: the same pixels from several processes, after crashes and damage."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_encoder.data import DecodedCache, PhotoFolder, make_loader
from context_encoder.data import decoded as module
from context_encoder.data import folder as folder_module
from context_encoder.data.shards import ShardImage

GIGABYTE = 10**9


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def same(one: Image.Image | None, other: Image.Image) -> bool:
    return one is not None and np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "photos" / f"{n}.png" for n in range(12)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        picture(number, 60 + number, 40).save(file)
    return files


def data(files: list[Path], decoded: DecodedCache | None) -> PhotoFolder:
    return PhotoFolder(
        files, root=files[0].parent, size=16, resize=24, crop_scale=(0.5, 1.0), flip=True, seed=3,
        train=True, cache_bytes=0, decoded=decoded,
    )  # fmt: skip


def batches(files: list[Path], decoded: DecodedCache | None, workers: int = 0) -> torch.Tensor:
    loader = make_loader(data(files, decoded), batch_size=4, num_steps=9, workers=workers)
    return torch.cat([batch["image"] for batch in loader])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The number of files that were decoded since the last call, in this process."""
    count, real = [0], folder_module.read_image

    def counting(*args: object, **options: object) -> Image.Image:
        count[0] += 1
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_module, "read_image", counting)

    def since() -> int:
        found, count[0] = count[0], 0
        return found

    return since


def test_batches_are_the_same_and_files_are_decoded_once(
    tmp_path: Path, photos: list[Path], read: Callable[[], int]
) -> None:
    wanted = batches(photos, None)
    read()
    cache = tmp_path / "new" / "cache"
    assert torch.equal(batches(photos, DecodedCache(cache, GIGABYTE)), wanted)
    assert read() == 12
    assert torch.equal(batches(photos, DecodedCache(cache, GIGABYTE)), wanted)
    assert read() == 0
    # Spawned or forked data processes and this one find what the others have added.
    both = tmp_path / "both"
    assert torch.equal(batches(photos, DecodedCache(both, GIGABYTE), workers=2), wanted)
    assert torch.equal(batches(photos, DecodedCache(both, GIGABYTE)), wanted)
    assert read() == 0


def test_a_changed_file_or_another_side_is_decoded_again(
    tmp_path: Path, photos: list[Path]
) -> None:
    cache = DecodedCache(tmp_path / "cache", GIGABYTE)
    before = cache.key(photos[0], 24)
    assert before == cache.key(str(photos[0]), 24)
    assert before != cache.key(photos[0], 25)
    assert before != cache.key(photos[1], 24)
    shutil.copy2(photos[0], tmp_path / "same.png")
    assert before != cache.key(tmp_path / "same.png", 24)
    picture(99).save(photos[0])
    assert before != cache.key(photos[0], 24)
    assert cache.key(tmp_path / "missing.png", 24) is None
    image = ShardImage("s3://b/0.tar", "a.jpg", 512, 99, 7, None)
    moved = ShardImage("s3://b/0.tar", "a.jpg", 512, 99, 8, None)
    assert cache.key(image, 24) != cache.key(moved, 24)
    assert cache.key(ShardImage("s3://b/0.tar", "a.jpg", 512, 99, None, None), 24) is None


def keys(count: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(count)]


def test_many_images_are_found_by_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PENDING", 5)
    writer, reader = (DecodedCache(tmp_path, GIGABYTE) for _ in range(2))
    known = keys(100)
    for number, key in enumerate(known):
        assert reader.get(key) is None
        writer.put(key, picture(number, 3 + number % 7, 5))
        assert same(reader.get(key), picture(number, 3 + number % 7, 5))
    later = pickle.loads(pickle.dumps(reader))
    assert all(same(later.get(k), picture(n, 3 + n % 7, 5)) for n, k in enumerate(known))
    assert later.get(os.urandom(16)) is None
    short = known[0][:8] + bytes(8)  # equal in what the table is sorted by
    assert later.get(short) is None


def _add(folder: Path, number: int, known: list[bytes]) -> None:
    cache = DecodedCache(folder, GIGABYTE)
    for index, key in enumerate(known):
        cache.put(key, picture(1000 * number + index))


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    known = [keys(40) for _ in range(3)]
    for _ in range(2):  # the second time into the segments of the first
        processes = [context.Process(target=_add, args=(tmp_path, n, known[n])) for n in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    cache = DecodedCache(tmp_path, GIGABYTE)
    for number in range(3):
        for index, key in enumerate(known[number]):
            assert same(cache.get(key), picture(1000 * number + index))
    assert len(list(tmp_path.glob("*.index"))) <= 3


def test_no_end_of_a_killed_process_is_read(tmp_path: Path) -> None:
    first, second, third = keys(3)
    DecodedCache(tmp_path, GIGABYTE).put(first, picture(1))
    pixels, index = tmp_path / "1.pixels", tmp_path / "1.index"
    whole = pixels.read_bytes(), index.read_bytes()
    DecodedCache(tmp_path, GIGABYTE).put(second, picture(2))
    both = pixels.read_bytes(), index.read_bytes()
    for cut in (*range(len(whole[0]), len(both[0]), 997), len(both[0])):
        for end in range(len(whole[1]), len(both[1])):
            if cut < len(both[0]) and end > len(whole[1]):
                continue  # pixels are written before the record
            pixels.write_bytes(both[0][:cut])
            index.write_bytes(both[1][:end])
            cache = DecodedCache(tmp_path, GIGABYTE)
            assert same(cache.get(first), picture(1))
            assert cache.get(second) is None
            cache.put(third, picture(3))
            assert same(DecodedCache(tmp_path, GIGABYTE).get(third), picture(3))
            assert same(cache.get(first), picture(1))


def test_damage_is_never_an_image(tmp_path: Path) -> None:
    (key,) = keys(1)
    DecodedCache(tmp_path, GIGABYTE).put(key, picture(1))
    pixels, index = tmp_path / "1.pixels", tmp_path / "1.index"
    for file, step in ((pixels, 501), (index, 1)):
        content = file.read_bytes()
        for position in range(0, len(content), step):
            for spoiled in (
                content[:position],
                content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :],
            ):
                file.write_bytes(spoiled)
                cache = DecodedCache(tmp_path, GIGABYTE)
                assert cache.get(key) is None
        file.write_bytes(content)
    cache = DecodedCache(tmp_path, GIGABYTE)
    assert same(cache.get(key), picture(1))
    pixels.write_bytes(b"")  # cut off while it is open
    assert cache.get(key) is None


def test_what_is_added_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known, each = keys(9), 60 * 40 * 3
    cache = DecodedCache(tmp_path, 4 * each)
    with caplog.at_level(logging.INFO):
        for key in known:
            cache.put(key, picture(1))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.pixels")) == 4 * each
    assert [cache.get(key) is not None for key in known] == [True] * 4 + [False] * 5
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path} is full (0.0 GB); the other images are decoded each time"
    ]
    with pytest.raises(ValueError, match="most_bytes must be at least 0"):
        DecodedCache(tmp_path, -1)


@pytest.mark.parametrize("call", ["pwrite", "pread", "open", "scandir"])
def test_a_folder_that_fails_costs_time_only(
    call: str, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    wanted = batches(photos, None)
    known = DecodedCache(tmp_path / "cache", GIGABYTE)
    known.put(os.urandom(16), picture(1))
    del known

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, call, fail)
    cache = DecodedCache(tmp_path / "cache", GIGABYTE)
    key = cache.key(photos[0], 24)
    assert key is not None
    assert cache.get(key) is None
    cache.put(key, picture(1))
    monkeypatch.undo()
    text = "the cache of decoded images"
    assert [r.levelname for r in caplog.records if text in r.getMessage()] == ["WARNING"]
    assert torch.equal(batches(photos, DecodedCache(tmp_path / "cache", GIGABYTE)), wanted)


def test_strange_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "3.index")
    os.mkfifo(tmp_path / "3.pixels")
    (tmp_path / "x.index").write_text("not ours")
    (tmp_path / "4.index").mkdir()
    (tmp_path / "5.index").write_bytes(bytes(400))
    for name in ("007", "99999999999999", "\u0663"):  # no names of ours, though numbers
        (tmp_path / f"{name}.index").write_bytes(bytes(400))
        (tmp_path / f"{name}.pixels").write_bytes(bytes(400))
    cache = DecodedCache(tmp_path, GIGABYTE)
    (key,) = keys(1)
    cache.put(key, picture(1))
    assert same(DecodedCache(tmp_path, GIGABYTE).get(key), picture(1))
    assert (tmp_path / "x.index").read_text() == "not ours"
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        DecodedCache(file, GIGABYTE)


def test_files_are_closed_and_unlocked_with_the_cache(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        cache = DecodedCache(tmp_path, GIGABYTE)
        cache.put(os.urandom(16), picture(number))
        del cache
        assert len(os.listdir("/proc/self/fd")) == before
    assert [file.name for file in tmp_path.glob("*.index")] == ["1.index"]


def test_a_segment_that_another_process_takes_at_once_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([False])
    monkeypatch.setattr(module, "_lock", lambda segment: next(refusals, True))
    (key,) = keys(1)
    DecodedCache(tmp_path, GIGABYTE).put(key, picture(1))
    assert (tmp_path / "1.pixels").stat().st_size == 0
    assert (tmp_path / "2.pixels").stat().st_size > 0
    assert same(DecodedCache(tmp_path, GIGABYTE).get(key), picture(1))
