"""A crash at every file operation around a save, and at every pair of operations.

A run of four saves is continued in a forked process, which crashes before one of its file
operations. Each time, the run must be found, be intact, and end with the same files as the
undisturbed run. ``RELIABILITY_LONG=1`` takes all pairs instead of a sample.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from context_encoder.runs import Checkpoint, RunError, RunFolder, find_checkpoint, read_checkpoint
from context_encoder.runs.checkpoint import step_folders
from context_encoder.utils.files import write_file
from tests.helpers.crashes import CRASHED, at_operation, crash, in_fork

LONG = "RELIABILITY_LONG" in os.environ
STEPS = 4


class Config(BaseModel):
    pass


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, if possible, as it is written some thousand times."""
    path = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp", f"crashes-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def go_on(run: Path, steps: int = STEPS) -> None:
    """Start the run or continue it, to the step ``steps``; every second step is the best."""
    try:
        resumed: Checkpoint | None = read_checkpoint(find_checkpoint(run, "last"))
    except RunError as error:
        if "does not exist" not in str(error) and "no checkpoint" not in str(error):
            raise
        resumed = None
    folder = RunFolder(run, resumed, keep=2)
    folder.start(Config())
    step = 0 if resumed is None else int(resumed.state["step"])
    best = {} if resumed is None else resumed.state["best"]
    while step < steps:
        step += 1
        folder.log("train", step, {"loss": 1 / step})
        if step % 2:
            best = {"step": step}
        tensors = {"weight": torch.full((3,), float(step))}
        state = {"step": step, "best": best}
        saved = folder.save("last", Checkpoint(tensors, tensors, tensors, state), Config())
        if step % 2:
            folder.mark_best(saved)
        folder.prune()
    folder.close()


def crash_at(number: int, run: Path) -> int:
    def work() -> int:
        at_operation(number, crash)
        go_on(run)
        return 0

    return in_fork(work)


def operations(run: Path) -> int:
    def work() -> int:
        count = at_operation(0, crash)
        go_on(run)
        return count()

    return in_fork(work)


def contents(run: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(run)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in run.rglob("*")
        if path.name != ".lock" and (path.is_symlink() or path.is_file())
    }


def check(run: Path, wanted: dict[str, bytes | str], what: str) -> None:
    """Whatever the crash left is intact, and continues to the same end."""
    for which in ("last", "best"):
        if step_folders(run / "checkpoints"):
            read_checkpoint(find_checkpoint(run, which))  # type: ignore[arg-type]
    go_on(run)
    found = contents(run)
    assert found.keys() == wanted.keys(), what
    assert found == wanted, what


def test_a_crash_at_every_operation_and_at_pairs(folder: Path) -> None:
    begun, undisturbed, first, second = (folder / name for name in ("0", "whole", "1", "2"))
    go_on(begun, steps=2)
    go_on(undisturbed)
    wanted = contents(undisturbed)
    assert {"checkpoints/last", "checkpoints/best"} < wanted.keys()
    assert sum(name.endswith("manifest.json") for name in wanted) == 2
    shutil.copytree(begun, first, symlinks=True)
    every = operations(first)
    assert every > 40
    cases = 0
    for number in range(1, every + 1):
        shutil.rmtree(first)
        shutil.copytree(begun, first, symlinks=True)
        assert crash_at(number, first) == CRASHED, number
        shutil.rmtree(second, ignore_errors=True)
        shutil.copytree(first, second, symlinks=True)
        left = operations(second)
        # A crash while the run recovers: each operation is met, at one first crash or another.
        for other in range(1 if LONG else 1 + number % 48, left + 1, 1 if LONG else 48):
            shutil.rmtree(second)
            shutil.copytree(first, second, symlinks=True)
            assert crash_at(other, second) == CRASHED, (number, other)
            check(second, wanted, f"{number}, {other}")
            cases += 1
        check(first, wanted, str(number))
        cases += 1
    assert cases > 150


def test_a_crash_at_every_operation_of_the_first_save(folder: Path) -> None:
    """The run that never saved can be begun again; nothing counts as a run too early."""
    undisturbed, run = folder / "whole", folder / "run"
    go_on(undisturbed)
    wanted = contents(undisturbed)
    for number in range(1, 40):
        assert crash_at(number, run) == CRASHED, number
        check(run, wanted, str(number))
        shutil.rmtree(run)


@pytest.mark.parametrize(
    "left",
    [
        ("last", "best"),
        (".last.old", "best"),
        (".last.new", "best"),
        (".last.old", ".best.old"),
        (".last.new", ".best.new"),
        (".last.new", ".last.old"),
    ],
)
def test_folders_of_earlier_versions_and_what_their_crashes_left(
    folder: Path, left: tuple[str, str]
) -> None:
    """Up to version 0.1 the folders ``last`` and ``best`` were replaced by two renames."""
    run = folder / "run"
    go_on(run, steps=1)
    old = folder / "old"
    shutil.copytree(run / "checkpoints/step_0000001", old)
    (old / "manifest.json").unlink()
    state = (old / "state.json").read_text()
    write_file(old / "state.json", state.replace(',\n  "format": 2', ""))
    shutil.rmtree(run / "checkpoints")
    for name in left:
        shutil.copytree(old, run / "checkpoints" / name)
    every = operations(Path(shutil.copytree(run, folder / "copy", symlinks=True)))
    for number in range(1, every + 1, 1 if LONG else 5):
        tried = Path(shutil.copytree(run, folder / str(number), symlinks=True))
        assert crash_at(number, tried) == CRASHED
        go_on(tried)
        found = read_checkpoint(find_checkpoint(tried, "last"))
        assert found.state["step"] == STEPS
        assert found.path.is_symlink()
        assert read_checkpoint(find_checkpoint(tried, "best")).state["step"] == 3
        assert len((tried / "metrics.jsonl").read_text().splitlines()) == STEPS
        shutil.rmtree(tried)


def test_the_order_of_writing_survives_a_power_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is flushed before its folder gets its name, and that before the link moves."""
    order: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted(real: object) -> object:
        def call(source: object, target: object) -> None:
            order.append(f"to {Path(str(target)).name}")
            real(source, target)  # type: ignore[operator]

        return call

    go_on(folder / "run", steps=1)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted(rename))
    monkeypatch.setattr(os, "replace", noted(replace))
    go_on(folder / "run", steps=2)
    named = order.index("to step_0000002")
    files = [i for i, what in enumerate(order) if what.startswith("to ") and i < named]
    assert {"to manifest.json", "to model.safetensors"} <= {order[i] for i in files}
    assert all(order[i - 1].startswith("fsync .") for i in files)
    assert order[named - 1].startswith("fsync .step_0000002")
    assert order[named + 1 :] == ["fsync checkpoints", "to last", "fsync checkpoints"]
