"""Lists of images: folders, text files, and what a run makes of them."""

from __future__ import annotations

import errno
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from context_encoder.config import preset
from context_encoder.data import (
    UnreadableImage,
    find_images,
    list_images,
    read_image,
    split_photos,
    storage,
)
from context_encoder.runs import Photos
from tests.helpers.small_runs import save_photos

NAMES = ["b/1.jpg", "a/é.png", "a/x y.jpg", "c.jpg"]


def write_list(file: Path, names: list[str], end: str = "\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(name + end for name in names).encode())
    return file


def test_a_list_gives_the_images_of_the_folder_in_its_order(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = list_images(tmp_path)
    assert folder == sorted(tmp_path / name for name in NAMES)
    for number, end in enumerate(("\n", "\r\n", "\n\n")):
        listed = find_images(write_list(tmp_path / f"list-{number}.txt", NAMES, end))
        assert listed == folder
        assert listed.names == folder.names
        assert listed.root == tmp_path
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode())
    assert find_images(tmp_path / "list.txt") == folder


def test_lists_of_images_elsewhere(tmp_path: Path) -> None:
    here = tmp_path / "lists"
    write_list(here / "up.txt", ["../photos/a/1.jpg", "../photos/b/2.jpg"])
    write_list(here / "absolute.txt", [f"{tmp_path}/photos/b/2.jpg", f"{tmp_path}/photos/a/1.jpg"])
    write_list(here / "mixed.txt", ["../photos/b/2.jpg", f"{tmp_path}/photos/./a/1.jpg"])
    for name in ("up", "absolute", "mixed"):
        found = find_images(here / f"{name}.txt")
        assert (found.root, found.names) == (tmp_path / "photos", ["a/1.jpg", "b/2.jpg"])
        assert found[0] == tmp_path / "photos/a/1.jpg"
    dotted = find_images(write_list(here / "dotted.txt", ["./x/1.jpg", "x/2.jpg"]))
    assert (dotted.root, dotted.names) == (here, ["x/1.jpg", "x/2.jpg"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no image"),
        (b"\r\n \r\n", "names no image"),
        (b"a.jpg\nb.jpg\na.jpg\n", r"names a\.jpg twice"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_images(tmp_path / "list.txt")


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9.jpg")
    (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes(b"\xe9.jpg\n")
    assert find_images(tmp_path / "list.txt") == list_images(tmp_path) == [tmp_path / name]


def test_a_list_is_a_sequence_of_paths(tmp_path: Path) -> None:
    paths = sorted(save_photos(tmp_path, 30, folders=("a", "b")))
    listed = list_images(tmp_path)
    assert listed == paths
    assert list(listed[3:20:4]) == paths[3:20:4]
    assert (listed[-1], len(listed)) == (paths[-1], 30)
    assert listed + [tmp_path] == [*paths, tmp_path]  # noqa: RUF005 - what is tested
    assert pickle.loads(pickle.dumps(listed)) == paths
    with pytest.raises(IndexError):
        listed[30]
    sides, expected = split_photos(listed, tmp_path, 0.3), split_photos(paths, tmp_path, 0.3)
    assert [list(side) for side in sides] == [list(side) for side in expected]


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    save_photos(tmp_path, 8, folders=("a", "a/val", "b"))
    (tmp_path / "b/link.png").symlink_to(tmp_path / "a/val/1.png")
    config = preset("laptop")

    def names(data: Path, val_data: Path) -> tuple[list[str], list[str]]:
        photos = Photos.from_config(config.model_copy(update={"data": data, "val_data": val_data}))
        return [str(p.relative_to(tmp_path)) for p in photos.train], [
            str(p.relative_to(tmp_path)) for p in photos.val
        ]

    outside = ["a/0.png", "a/3.png", "a/6.png", "b/2.png", "b/5.png"]
    assert names(tmp_path, tmp_path / "a/val") == (
        outside, ["a/val/1.png", "a/val/4.png", "a/val/7.png"],
    )  # fmt: skip
    val = write_list(tmp_path / "val.txt", ["a/val/1.png", "b/5.png"])
    train, held_out = names(tmp_path, val)
    assert held_out == ["a/val/1.png", "b/5.png"]
    assert train == ["a/0.png", "a/3.png", "a/6.png", "a/val/4.png", "a/val/7.png", "b/2.png"]


def test_a_folder_that_its_storage_does_not_list_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 1e-3)
    paths = sorted(save_photos(tmp_path, 6, folders=("a", "b")))
    plain, failures = os.scandir, 4

    def scandir(path: Any) -> Any:
        nonlocal failures
        if Path(path).name == "b" and failures:
            failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_images(tmp_path) == paths
    assert failures == 0


def test_a_run_on_a_list_of_200_000_files_starts_in_seconds(tmp_path: Path) -> None:
    """Processor time, as other processes may be running; the files need not exist for it."""
    names = [f"n{i // 1000:04d}/{i:08d}.jpg" for i in range(200_000)]
    config = preset("laptop").model_copy(update={"data": write_list(tmp_path / "list.txt", names)})
    before = time.process_time()
    photos = Photos.from_config(config)
    photos.digest()
    assert time.process_time() - before < 3
    assert len(photos.train) == 200_000 - 512


def test_a_link_to_itself_is_one_unreadable_image(tmp_path: Path) -> None:
    """And does not cost the other images of its folder."""
    save_photos(tmp_path / "photos/sub", 2)
    (tmp_path / "photos/sub/loop.png").symlink_to("loop.png")
    (tmp_path / "photos/sub/gone.png").symlink_to("nowhere")
    found = list_images(tmp_path / "photos")
    assert found.names == ["sub/0.png", "sub/1.png", "sub/gone.png", "sub/loop.png"]
    with pytest.raises(UnreadableImage, match="symbolic links"):
        read_image(found[3])
