"""Atomic writing: files left after failures and concurrent writers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from context_encoder.utils import files
from context_encoder.utils.files import (
    WriteError,
    check_writable,
    file_digest,
    make_folder,
    point,
    pointed_at,
    read_text,
    remove_unfinished,
    save_tensors,
    write_file,
    write_folder,
)

OLD, NEW = b"old " * 1000, b"new " * 3000


def with_path(path: Path) -> None:
    with path.open("wb") as file:
        file.write(NEW)


#: All ways to give the content of a file.
CONTENTS: dict[str, Any] = {"bytes": NEW, "text": NEW.decode(), "function": with_path}
#: All system calls of the writer.
OPERATIONS = "open write fsync stat chmod replace".split()


@pytest.fixture(params=[True, False], ids=["replaced", "new"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "results" / "table.md"
    path.parent.mkdir()
    if request.param:
        path.write_bytes(OLD)
        path.chmod(0o640)
    return path


def test_contents_arrive(target: Path) -> None:
    for content in CONTENTS.values():
        write_file(target, content)
        assert target.read_bytes() == NEW
        assert os.listdir(target.parent) == [target.name]
    write_file(str(target), "é\udcff")  # a file name that is no UTF-8
    assert target.read_bytes() == "é\\udcff".encode()


def failing(
    monkeypatch: pytest.MonkeyPatch, operation: str, call: int, code: int
) -> Callable[[], int]:
    """Let the ``call``-th use of an operation fail; the result counts the uses."""
    used = 0
    owner: Any = Path if operation == "write" else os
    name = "write_bytes" if operation == "write" else operation
    real = getattr(owner, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal used
        used += 1
        if used == call:
            if operation == "write":  # a part is written before the disk is full
                args[0].open("wb").write(args[1][:100])
            raise OSError(code, os.strerror(code), "temporary")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    return lambda: used


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_error_at_any_operation_leaves_the_old_or_the_new_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    before = target.read_bytes() if target.exists() else None
    call = 0
    while True:
        call += 1
        with monkeypatch.context() as patch:
            count = failing(patch, operation, call, code)
            error: BaseException | None = None
            try:
                write_file(target, NEW)
            except OSError as problem:
                error = problem
            used = count()
        left = os.listdir(target.parent)
        there = target.read_bytes() if target.exists() else None
        assert left in ([], [target.name])
        assert there in (before, NEW)
        if used < call:  # fewer uses than that: nothing has failed
            assert error is None
            assert there == NEW
            break
        if error is not None:
            assert isinstance(error, WriteError)
            assert str(target) in str(error)
            assert os.strerror(code).lower() in str(error).lower()
            assert (error.errno, error.filename) == (code, str(target))
        if before is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(before)
    # All operations are used, except that a new file keeps its initial permissions.
    assert (call > 1) == (operation != "chmod" or before is not None)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_function_raises_is_passed_on(target: Path, error: BaseException) -> None:
    before = target.read_bytes() if target.exists() else None

    def raises(path: Path) -> None:
        path.write_bytes(NEW[:10])
        raise error

    with pytest.raises(type(error)) as found:
        write_file(target, raises)
    assert found.value is error
    assert (target.read_bytes() if target.exists() else None) == before
    assert len(os.listdir(target.parent)) == (before is not None)


def test_a_full_disk_is_told_for_a_function_too(target: Path) -> None:
    def full(path: Path) -> None:
        path.write_bytes(NEW[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError) as found:
        write_file(target, full)
    assert str(found.value) == (
        f"cannot write {target}: no space left on device; free some, or write elsewhere"
    )
    again = pickle.loads(pickle.dumps(found.value))
    assert str(again) == str(found.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_the_systems_own_full_device(target: Path) -> None:
    """A real error of the system: the output device is always full."""
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(WriteError, match="no space left on device"):
        write_file(target, lambda path: Path("/dev/full").write_bytes(NEW))
    assert (target.read_bytes() if target.exists() else None) == before


def test_tensors(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3)}
    save_tensors(target, tensors, {"key": "value"})
    assert torch.equal(load_file(target)["a"], tensors["a"])
    assert os.listdir(target.parent) == [target.name]
    old = target.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"part")
        raise SafetensorError(
            'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No '
            'space left on device" }'
        )

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(WriteError, match="no space left on device") as found:
        save_tensors(target, tensors)
    assert found.value.errno == errno.ENOSPC
    assert target.read_bytes() == old
    assert os.listdir(target.parent) == [target.name]


def test_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        for content in CONTENTS.values():
            path.unlink(missing_ok=True)
            write_file(path, content)
            assert stat.S_IMODE(path.stat().st_mode) == 0o640  # as open() makes it
        path.chmod(0o604)
        write_file(path, "again")
        save_tensors(path, {"a": torch.zeros(1)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_link_is_followed(tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    (there / "old").write_bytes(OLD)
    link.symlink_to("elsewhere/old")
    dangling.symlink_to(there / "made")
    for path, name in ((link, "old"), (dangling, "made")):
        write_file(path, NEW)
        assert path.is_symlink()
        assert (there / name).read_bytes() == NEW
    assert sorted(os.listdir(there)) == ["made", "old"]
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(WriteError, match="loop"):
        write_file(loop, NEW)


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "closed").write_bytes(OLD)
    (tmp_path / "closed").chmod(0o400)
    cases = {
        "nowhere/file": "no such file or directory; make its folder first",
        "file/below": "not a directory",
        ".": "it is a folder; name a file",
        "pipe": "it is a device or a pipe; name a file",
        "n" * 300: "name too long",
    }
    if os.geteuid():
        cases["closed"] = "permission denied"
    there = sorted(os.listdir(tmp_path))
    for name, message in cases.items():
        with pytest.raises(WriteError, match=message) as found:
            write_file(tmp_path / name, NEW)
        assert str(tmp_path / name) in str(found.value)
    assert sorted(os.listdir(tmp_path)) == there
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_long_names(tmp_path: Path) -> None:
    """The temporary name does not exceed the maximum length of a file name."""
    for name in ("n" * 255, "é" * 127, "漢" * 85):
        write_file(tmp_path / name, NEW)
        assert (tmp_path / name).read_bytes() == NEW


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which no file can be created, not even by root."""
    path = tmp_path / "closed"
    path.mkdir()
    (path / "file").write_bytes(OLD)
    path.chmod(0o500)
    if not os.geteuid():
        real = os.open

        def refuse(name: Any, flags: int, *rest: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and os.fspath(name).startswith(str(path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return real(name, flags, *rest, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
    yield path
    path.chmod(0o700)


def test_a_read_only_folder(closed: Path) -> None:
    for name in ("file", "other"):
        with pytest.raises(WriteError) as found:
            write_file(closed / name, NEW)
        assert str(found.value) == (
            f"cannot write {closed / name}: permission denied; change its permissions, or write "
            "elsewhere"
        )
        with pytest.raises(WriteError, match="permission denied"):
            check_writable(closed / name)
    with pytest.raises(WriteError, match="permission denied"):
        check_writable(closed / "a/b", folder=True)
    assert os.listdir(closed) == ["file"]
    assert (closed / "file").read_bytes() == OLD


def test_checking_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for path, folder in (("file", False), ("new", False), ("a/b/c", False), ("a/b", True)):
        check_writable(tmp_path / path, folder=folder)
    for path, folder, message in (
        (".", False, "it is a folder"),
        ("file", True, "file is a file, not a folder"),
        ("file/a", False, "file is a file, not a folder"),
    ):
        with pytest.raises(WriteError, match=message):
            check_writable(tmp_path / path, folder=folder)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD
    with pytest.raises(WriteError, match="cannot write"):
        make_folder(tmp_path / "file/a")
    make_folder(tmp_path / "a/b")
    make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()


def _write_often(path: Path, letter: bytes) -> None:
    for _ in range(60):
        write_file(path, letter * 100_000)


def test_processes_and_threads_that_write_the_same_file(tmp_path: Path) -> None:
    """A reader always finds the complete text of one writer."""
    path = tmp_path / "file"
    write_file(path, b"a" * 100_000)
    context = multiprocessing.get_context("fork")
    workers: list[Any] = [context.Process(target=_write_often, args=(path, b"b"))]
    workers += [threading.Thread(target=_write_often, args=(path, letter)) for letter in (b"c",)]
    for worker in workers:
        worker.start()
    reads = 0
    while any(worker.is_alive() for worker in workers):
        text = path.read_bytes()
        assert len(text) == 100_000
        assert len(set(text)) == 1
        reads += 1
    for worker in workers:
        worker.join()
    assert reads > 10
    assert workers[0].exitcode == 0
    assert os.listdir(tmp_path) == ["file"]


def test_other_libraries_write_by_it(tmp_path: Path) -> None:
    def savez(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, a=np.arange(3))

    write_file(tmp_path / "a.npz", savez)
    assert np.load(tmp_path / "a.npz")["a"].tolist() == [0, 1, 2]
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    write_file(tmp_path / "a.png", lambda path: image.save(path, format="PNG"))
    with Image.open(tmp_path / "a.png") as read:
        assert read.getpixel((2, 1)) == (1, 2, 3)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints/step_1"
    write_folder(folder, lambda new: write_file(new / "state", "1"))
    assert (folder / "state").read_text() == "1"
    with pytest.raises(WriteError, match=r"step_1: file exists"):
        write_folder(folder, lambda new: write_file(new / "state", "2"))
    assert (folder / "state").read_text() == "1"

    def full(new: Path) -> None:
        write_file(new / "state", "3")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match=r"step_2: no space left on device"):
        write_folder(folder.with_name("step_2"), full)
    assert os.listdir(folder.parent) == ["step_1"]


@pytest.mark.parametrize("operation", ["mkdir", "rename", "fsync"])
def test_a_folder_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    with monkeypatch.context() as patch:
        # The first mkdir is that of the parent, which exists.
        failing(patch, operation, 2 if operation == "mkdir" else 1, errno.EIO)
        with pytest.raises(WriteError):
            write_folder(tmp_path / "a", lambda new: write_file(new / "state", "1"))
    assert os.listdir(tmp_path) == []


def test_a_pointer_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = tmp_path / "last"
    assert pointed_at(pointer) is None
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point(pointer, name)
        assert pointed_at(pointer) == tmp_path / name
        assert pointer.resolve() == tmp_path / name
    for operation in ("symlink", "replace"):
        with monkeypatch.context() as patch:
            failing(patch, operation, 1, errno.EIO)
            with pytest.raises(WriteError, match="last"):
                point(pointer, "a")
        assert pointed_at(pointer) == tmp_path / "b"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]


def test_a_pointer_without_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    for name in ("a", "b"):
        point(tmp_path / "last", name)
        assert pointed_at(tmp_path / "last") == tmp_path / name
    assert os.listdir(tmp_path) == ["last"]


def test_what_is_left_under_temporary_names_is_removed(tmp_path: Path) -> None:
    kept = [".a.new", "b.new", ".c.0123456789ab.old"]
    for name in (*kept, ".last.0123456789ab.new"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".step_1.0123456789ab.new/inner").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        for read in (read_text, file_digest):
            with pytest.raises(OSError, match=reason):
                read(path)
    (tmp_path / "long").write_text("12345")
    assert read_text(tmp_path / "long", most=5) == "12345"
    with pytest.raises(OSError, match="5 bytes, at most 4"):
        read_text(tmp_path / "long", most=4)
