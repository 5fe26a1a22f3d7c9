"""Images in tar shards: packing, reading, damage, and the webdataset library both ways."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from context_encoder.data import (
    PhotoFolder,
    ShardImage,
    StorageError,
    UnreadableImage,
    find_images,
    list_images,
    make_loader,
    read_image,
    shards,
    storage,
)
from context_encoder.data.pack import pack
from context_encoder.data.shards import are_shards, expand
from context_encoder.pack import main as pack_main
from context_encoder.train import main, parse
from context_encoder.transfer.labelled_folder import find_folders
from context_encoder.utils.cli import DONE, FAILED, MISUSED
from tests.helpers.photo_files import noise, save
from tests.helpers.small_runs import TINY, save_photos


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photos(root: Path, count: int = 10) -> Path:
    """Photographs in two folders, one of them broken, one with dots, one with the same stem."""
    save_photos(root, count, folders=("cats", "dogs"))
    save(root / "cats/a.b.jpg", noise(20, 30))
    save(root / "cats/0.jpg", noise(21, 30))
    save(root / "dogs/ü %.png", noise(22, 30))
    return root


def data_set(images: Any, **changes: Any) -> PhotoFolder:
    options: dict[str, Any] = {
        "size": 16, "resize": 32, "crop_scale": (0.5, 1.0), "flip": True, "seed": 3, "train": True,
        "cache_bytes": 0,
    }  # fmt: skip
    return PhotoFolder(images, root=images.root, **(options | changes))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- packing ------------------------------------------------------------------------------------


def test_shards_hold_the_bytes_of_the_files_in_their_order(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    report = pack(root, tmp_path / "shards", images_per_shard=5)
    assert (report.shards, report.images, report.skipped) == (3, 13, [])
    listed, packed = list_images(root), find_images(tmp_path / "shards")
    assert packed.names == listed.names
    assert [image.read_bytes() for image in packed] == [path.read_bytes() for path in listed]
    # The standard library agrees on the places of the bytes.
    for image in packed:
        with tarfile.open(image.shard) as archive:
            members = {m.offset_data: m for m in archive}
            assert members[image.offset].size == image.size
            keys = [m.name.rpartition("/")[2].partition(".")[0] for m in members.values()]
    assert len(keys) == len(set(keys))
    # Without the indexes, the shards give the same list.
    for index in (tmp_path / "shards").glob("*.index.json"):
        index.unlink()
    assert [i.read_bytes() for i in find_images(tmp_path / "shards")] == [
        path.read_bytes() for path in listed
    ]
    assert find_images(tmp_path / "shards").names == listed.names


def test_training_samples_are_those_of_the_folder(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    pack(root, tmp_path / "shards", images_per_shard=4)
    one, other = data_set(find_images(root)), data_set(find_images(tmp_path / "shards"))
    for key in ((e, i) for e in range(2) for i in range(len(one))):
        assert torch.equal(one[key]["image"], other[key]["image"])


def test_resized_shards_without_loss_give_the_same_samples(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for i in range(3):
        save(root / f"{i}.jpg", noise(100, 90 + i))
    pack(root, tmp_path / "shards", resize=32, encode="png")
    packed = find_images(tmp_path / "shards")
    assert packed.names == ["0.jpg", "1.jpg", "2.jpg"]
    assert read_image(packed[0]).size == (32, 36)
    one, other = data_set(find_images(root)), data_set(packed)
    assert all(torch.equal(one[0, i]["image"], other[0, i]["image"]) for i in range(3))


def test_what_cannot_be_read_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos")
    (root / "cats/broken.jpg").write_bytes(b"<html>")
    whole = (root / "cats/0.jpg").read_bytes()
    (root / "cats/half.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "shards"
    assert pack_main([str(root), str(out), "--images-per-shard", "6"]) == DONE
    said = capsys.readouterr().out
    assert "13 images in 3 shards" in said
    assert "left out 2 that cannot be read" in said
    assert "cats/half.jpg" in said
    assert pack_main([str(root), str(out), "--images-per-shard", "6"]) == DONE
    said = capsys.readouterr().out
    assert "3 of them there already" in said
    assert "left out 2" in said  # the indexes remember them
    assert pack_main([str(root), str(out), "--images-per-shard", "7"]) == MISUSED
    assert "images_per_shard differ" in capsys.readouterr().err
    assert pack_main([str(root), str(root)]) == MISUSED
    assert pack_main([str(root), str(tmp_path / "x"), "--resize", "9"]) == MISUSED
    assert "--encode" in capsys.readouterr().err
    for path in root.rglob("*.*"):
        path.write_bytes(b"broken")
    assert pack_main([str(root), str(tmp_path / "y")]) == FAILED


def test_packing_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos")
    pack(root, tmp_path / "whole", images_per_shard=3, labels=True)
    expected = files_of(tmp_path / "whole")
    from context_encoder.data import pack as module

    plain = module.write_file
    for crash in range(len(expected)):  # at every file that is written
        out, written = tmp_path / f"parts-{crash}", 0

        def write(path: Any, content: Any, crash: int = crash) -> None:
            nonlocal written
            if written == crash:
                raise KeyboardInterrupt
            written += 1
            plain(path, content)

        monkeypatch.setattr(module, "write_file", write)
        with pytest.raises(KeyboardInterrupt):
            pack(root, out, images_per_shard=3, labels=True)
        if crash == 5:
            with pytest.raises(ValueError, match="2 of 5 shards"):
                find_images(out)
        monkeypatch.setattr(module, "write_file", plain)
        if crash == 4:  # a torn file, as after a power failure
            (out / "shard-000001.tar").write_bytes(b"\0" * 100)
        report = pack(root, out, images_per_shard=3, labels=True)
        assert files_of(out) == expected
        assert report.images == 13


# --- webdataset ---------------------------------------------------------------------------------


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    pack(root, tmp_path / "shards", images_per_shard=5, labels=True)
    urls = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    assert urls == list(
        webdataset.shardlists.expand_urls(str(tmp_path / "shards/shard-{000000..000002}.tar"))
    )
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    listed = list_images(root)
    assert len(found) == len(listed)
    for sample, path in zip(found, listed, strict=True):
        assert sample[path.suffix[1:]] == path.read_bytes()
        assert sample["cls"] == str(("cats", "dogs").index(path.parent.name)).encode()
    decoded = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil")
    first = next(iter(decoded))
    image = first.get("jpg", first.get("png"))
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(read_image(listed[0])))
    assert first["cls"] == 0


@pytest.mark.parametrize("keyed", ["numbers", "paths"])
def test_we_read_webdataset_s_shards(tmp_path: Path, cache: Path, keyed: str) -> None:
    expected = []
    pattern = str(tmp_path / "w-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for i in range(10):
            pixels = noise(20, 24, seed=i)
            key = f"{i:06d}" if keyed == "numbers" else f"class{i % 2}/{i}"
            extra = {"json": {"width": 24}, "seg.png": Image.new("L", (4, 4)), "cls": i % 3}
            writer.write({"__key__": key, "png": Image.fromarray(pixels), **extra})
            expected.append(pixels)
    for location in (tmp_path / "w-{000..002}.tar", tmp_path / "w-*.tar"):
        images = find_images(location)
        assert len(images) == 10
        assert [int(image.label) for image in images] == [i % 3 for i in range(10)]
        for image, pixels in zip(images, expected, strict=True):
            assert np.array_equal(np.asarray(read_image(image)), pixels)
    # The index is made once, and nothing is written beside the shards.
    assert len(list((cache / "context-encoder/shards").iterdir())) == 3
    assert sorted(p.name for p in tmp_path.glob("w*")) == ["w-000.tar", "w-001.tar", "w-002.tar"]
    os.utime(tmp_path / "w-000.tar", (1, 1))
    assert len(find_images(tmp_path / "w-{000..002}.tar")) == 10
    assert len(list((cache / "context-encoder/shards").iterdir())) == 4


# --- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("s3://b/{2..1}.tar", ["s3://b/2.tar", "s3://b/1.tar"]),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names
    from braceexpand import braceexpand

    assert names == list(braceexpand(pattern))


def test_what_counts_as_shards(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    pack(root, tmp_path / "shards")
    shutil.copy(tmp_path / "shards/shard-000000.tar", root)
    assert are_shards(tmp_path / "shards")
    assert are_shards("https://example.org/a")
    assert are_shards(tmp_path / "none-{0..3}.tar")
    assert not are_shards(root)
    with pytest.raises(FileNotFoundError, match="no shard at"):
        find_images(tmp_path / "none-{0..3}.tar")
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match="compressed"):
        find_images(tmp_path / "a.tar.gz")
    assert parse(["--data", "memory://a/b"])[0].data == "memory://a/b"
    assert parse(["--data", "a/b"])[0].data == Path("a/b")


class _Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A server that refuses some requests with an error of its own."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012
    refuse = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if _Flaky.refuse:
            _Flaky.refuse -= 1
            raise RuntimeError("503 slow down")
        content: bytes = super().cat_file(path, start, end, **kwargs)
        return content


def test_shards_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 1e-3)
    root = photos(tmp_path / "photos")
    pack(root, tmp_path / "shards", images_per_shard=5)
    for protocol in ("memory", "flaky"):
        fsspec.filesystem(protocol).put(str(tmp_path / "shards"), "/bucket", recursive=True)
        expected = [path.read_bytes() for path in list_images(root)]
        for location in ("bucket", "bucket/shard-{000000..000002}.tar", "bucket/*.tar"):
            images = find_images(f"{protocol}://{location}")
            assert [image.read_bytes() for image in images] == expected
            assert images[0].shard.startswith(f"{protocol}://")
    image = images[3]
    _Flaky.refuse = 3
    assert np.array_equal(read_image(image), read_image(list_images(root)[3]))
    # Workers open connections of their own.
    loader = make_loader(data_set(images), batch_size=4, workers=2, num_steps=4)
    plain = make_loader(data_set(find_images(root)), batch_size=4, num_steps=4)
    for a, b in zip(loader, plain, strict=True):
        assert torch.equal(a["image"], b["image"])


# --- damage -------------------------------------------------------------------------------------


def test_a_damaged_shard_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    save_photos(root, 12)
    out = tmp_path / "shards"
    pack(root, out, images_per_shard=3)
    whole = find_images(out)
    shard = out / "shard-000001.tar"
    middle = whole[4]
    assert middle.shard == str(shard)

    def damaged(change: Any) -> tuple[list[bool], str]:
        before = shard.read_bytes()
        caplog.clear()
        change()
        images = find_images(out)
        assert images.names == whole.names  # so that a run can be resumed
        data = data_set(images)
        read = [data[0, i]["source"] == i for i in range(12)]
        shard.write_bytes(before)
        return read, caplog.text

    read, said = damaged(lambda: os.truncate(shard, middle.offset + 10))
    assert read == [True] * 4 + [False] * 2 + [True] * 6
    assert "shard-000001.tar is damaged: it has" in said
    assert "2 of its 3 images are lost" in said
    read, said = damaged(shard.unlink)
    assert read == [True] * 3 + [False] * 3 + [True] * 6
    assert "shard-000001.tar is missing; its 3 images are lost" in said

    def flip() -> None:
        content = bytearray(shard.read_bytes())
        content[middle.offset + middle.size // 2] ^= 1
        shard.write_bytes(content)

    read, _ = damaged(flip)
    assert read == [True] * 4 + [False] + [True] * 7


def test_foreign_shards_that_are_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "photos"
    save_photos(root, 6)
    pack(root, tmp_path / "shards", images_per_shard=3)
    out = tmp_path / "foreign"
    out.mkdir()
    content = (tmp_path / "shards/shard-000001.tar").read_bytes()
    shutil.copy(tmp_path / "shards/shard-000000.tar", out / "a.tar")
    (out / "b.tar").write_bytes(content[: len(content) // 2])
    (out / "c.tar").write_bytes(b"no tar file" * 999)
    images = find_images(out)
    assert 3 < len(images) < 6
    assert all(read_image(image).size == (80, 60) for image in images)
    assert "b.tar is damaged: it ends within" in caplog.text
    assert "c.tar is passed over: it is not an uncompressed tar file" in caplog.text
    for name in ("a", "b"):
        (out / f"{name}.tar").unlink()
    with pytest.raises(ValueError, match=r"no image in the 1 shards .* such as .*c\.tar"):
        find_images(out)


def test_shards_out_of_reach_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    root = tmp_path / "photos"
    save_photos(root, 4)
    pack(root, tmp_path / "shards")
    data = data_set(find_images(tmp_path / "shards"))
    assert data[0, 0]["source"] == 0
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(StorageError, match="has not answered"):
        data[0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [1]}, {"crc32": [1]}, {"labels": ["1"]}, {"offsets": [-5, 0, 0, 0]},
        {"offsets": [10**30, 0, 0, 0]}, {"sizes": [2**40, 1, 1, 1]}, {"sizes": [-1, 1, 1, 1]},
        {"crc32": [-7, 1, 1, 1]}, {"crc32": [2**70, 1, 1, 1]},
    ],
)  # fmt: skip
def test_an_index_with_impossible_numbers_counts_as_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    save_photos(tmp_path / "photos", 8)
    pack(tmp_path / "photos", tmp_path / "shards", images_per_shard=4)
    file = tmp_path / "shards/shard-000000.index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert len(find_images(tmp_path / "shards")) == 4
    assert f"its index {file} is damaged" in caplog.text


def test_pipes_among_shards_are_not_waited_for(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 4)
    pack(tmp_path / "photos", tmp_path / "shards", images_per_shard=1)
    out = tmp_path / "shards"
    for name in ("shard-000000.tar", "shard-000001.index.json", "pack.json"):
        (out / name).unlink()
        os.mkfifo(out / name)
    for name in ("shard-000002.tar", "shard-000002.index.json"):
        (out / name).unlink()
    os.mkfifo(out / "shard-000002.tar")
    images = find_images(out)
    assert images.names == ["0.png", "3.png"]
    with pytest.raises(UnreadableImage, match="a device or a pipe"):
        read_image(images[0])
    with pytest.raises(OSError, match="a device or a pipe"):
        pack(tmp_path / "photos", out, images_per_shard=1)


class _Server(MemoryFileSystem):
    """Answers as fsspec's HTTP file system does for some servers."""

    protocol = "server"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    whole = False
    down = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("server://").strip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.down:
            raise FileNotFoundError(path) from ConnectionRefusedError(111, "refused")
        found = super().info(path, **options)
        if found["type"] == "directory":  # a page that lists the files
            found |= {"type": "file", "size": 500, "mimetype": "text/html"}
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return [entry | {"size": None} for entry in super().ls(path, detail=True)]

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        if self.whole:
            start = end = None
        return bytes(super().cat_file(path, start, end, **options))


def test_servers_without_folders_or_ranges_or_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("server", _Server, clobber=True)
    save_photos(tmp_path / "photos", 4)
    pack(tmp_path / "photos", tmp_path / "shards")
    fsspec.filesystem("server").put(str(tmp_path / "shards"), "/bucket", recursive=True)
    images = find_images("server://bucket")
    assert images.names == ["0.png", "1.png", "2.png", "3.png"]
    assert images[1].read_bytes() == (tmp_path / "photos/1.png").read_bytes()
    monkeypatch.setattr(_Server, "whole", True)
    with pytest.raises(UnreadableImage, match="sends whole files"):
        read_image(images[1])
    monkeypatch.setattr(_Server, "down", True)
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    with pytest.raises(StorageError, match="has not answered"):
        find_images("server://bucket/shard-000000.tar")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nothing://x/y.tar", "nothing://x/y.tar cannot be opened: Protocol not known"),
        ("photos/{0..99999999999}.tar", "stands for 100000000000 shards"),
        ("{0..9999}/{0..9999}.tar", "stands for 100000000 shards"),
    ],
)
def test_locations_that_cannot_be_used(location: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_images(location)


def test_too_little_memory_is_no_failure_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photos(tmp_path / "photos", 2)
    pack(tmp_path / "photos", tmp_path / "shards")
    image = find_images(tmp_path / "shards")[0]

    def full(*_: object, **__: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(LocalFileSystem, "cat_file", full)
    with pytest.raises(UnreadableImage, match="the memory does not suffice"):
        read_image(image)


# --- training -----------------------------------------------------------------------------------


def test_every_sample_once_over_ranks_and_workers(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    save_photos(root, 24)
    pack(root, tmp_path / "shards", images_per_shard=5)
    data = data_set(find_images(tmp_path / "shards"))
    whole = list(make_loader(data, batch_size=8, num_steps=6))
    parts = [
        list(make_loader(data, batch_size=8, num_steps=6, workers=2, rank=r, world_size=2))
        for r in range(2)
    ]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(batch["image"], torch.cat([half["image"] for half in halves]))
    for epoch in range(2):
        seen = torch.cat([batch["source"] for batch in whole[3 * epoch : 3 * epoch + 3]])
        assert sorted(seen.tolist()) == list(range(24))


def test_a_run_on_shards_is_that_on_the_folder_and_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    save_photos(root, 12)
    pack(root, tmp_path / "shards", images_per_shard=5)
    command = [*TINY, "--steps", "6", "--data"]
    assert main([*command, str(root), "--out", str(tmp_path / "folder")]) == DONE
    plain, count = PhotoFolder.__getitem__, 0

    def stopping(self: Any, key: tuple[int, int]) -> Any:
        nonlocal count
        count += self.train
        if self.train and count == 14:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, key)

    monkeypatch.setattr(PhotoFolder, "__getitem__", stopping)
    out = tmp_path / "shards-run"
    assert main([*command, str(tmp_path / "shards"), "--out", str(out)]) == 143
    state = json.loads((out / "checkpoints/last/state.json").read_text())
    assert 0 < state["step"] < 6
    assert main(["--resume", str(out)]) == DONE
    for name in ("model", "training"):
        one, other = (
            (tmp_path / run / f"checkpoints/last/{name}.safetensors").read_bytes()
            for run in ("folder", "shards-run")
        )
        assert one == other


# --- labelled shards ----------------------------------------------------------------------------


def test_classes_of_shards(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    expected = find_folders(root, None, None)
    for labels in (False, True):
        out = tmp_path / f"shards-{labels}"
        pack(root, out, labels=labels)
        found = find_folders(out, None, None)
        assert found.classes == expected.classes == ["cats", "dogs"]
        assert found.train.labels == expected.train.labels
        assert all(isinstance(image, ShardImage) for image in found.train.files)
    # A folder to train on and shards to test on.
    mixed = find_folders(None, root, tmp_path / "shards-True")
    assert mixed.test is not None
    assert mixed.test.labels == expected.train.labels
    with webdataset.TarWriter(str(tmp_path / "numbers.tar")) as writer:
        for i in range(22):
            buffer = io.BytesIO()
            Image.fromarray(noise(8, 8, seed=i)).save(buffer, "PNG")
            writer.write({"__key__": f"{i:04d}", "png": buffer.getvalue(), "cls": i % 11})
    numbered = find_folders(tmp_path / "numbers.tar", None, None)
    assert numbered.classes == [str(i) for i in range(11)]
    assert numbered.train.labels == [i % 11 for i in range(22)]
    save_photos(tmp_path / "flat", 4)
    pack(tmp_path / "flat", tmp_path / "unlabelled")
    with pytest.raises(ValueError, match="has no classes"):
        find_folders(tmp_path / "unlabelled", None, None)
    with pytest.raises(ValueError, match="needs every image in a folder"):
        pack(tmp_path / "flat", tmp_path / "z", labels=True)
    assert shards.PACK_FILE == "pack.json"
