"""Faults of the machine and of other processes, on training commands in processes of their own.

docs/reliability.md lists the faults. ``RELIABILITY_LONG=1`` takes more cases of each.
"""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from context_encoder.data import loader
from context_encoder.runs import (
    RunError,
    RunFolder,
    checkpoint,
    find_checkpoint,
    read_checkpoint,
    read_config,
)
from context_encoder.train import main
from context_encoder.training.trainer import Trainer
from tests.helpers.commands import TRAIN, TRANSFER, Command, start, start_ranks, until
from tests.helpers.crashes import at_operation, in_fork
from tests.helpers.small_runs import TINY, save_photos, save_untrained
from tests.helpers.vocdevkit import CLASSES, make_devkit

LONG = "RELIABILITY_LONG" in os.environ
ROOT = Path(__file__).parents[3]
HERE = [*TINY, "--preset", "laptop", "--val-every", "4", "--lr-schedule", "constant"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 12)
    return root


def begin(run: Path, photos: Path, *options: str, **how: Any) -> Command:
    arguments = [*HERE, "--data", str(photos), "--out", str(run), *options]
    return start(TRAIN, arguments, run.with_name(f"{run.name}.txt"), **how)


def go_on(run: Path, *options: str, **how: Any) -> Command:
    return start(TRAIN, ["--resume", str(run), *options], run.with_name(f"{run.name}.txt"), **how)


def step_of(run: Path) -> int:
    return int(read_checkpoint(find_checkpoint(run, "last")).state["step"])


def assert_same_run(a: Path, b: Path) -> None:
    """All tensors of the last checkpoint, and all lines of metrics but the speed."""
    for file in ("model", "training"):
        one, other = (load_file(run / f"checkpoints/last/{file}.safetensors") for run in (a, b))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items()), file
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (a, b)
    ]
    for row in rows[0] + rows[1]:
        row.pop("images_per_s", None)
    assert rows[0] == rows[1]


# --- faults that processes bring about in themselves --------------------------------------------


def _at_step(step: int, action: Any) -> None:
    real = Trainer.train_step

    def train_step(self: Trainer, batch: Any) -> Any:
        if self.step == step:
            action()
        return real(self, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def _bug() -> None:
    raise KeyError("a bug")


def _kill_worker() -> None:
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _slow() -> None:
    time.sleep(0.05)


def with_bug() -> None:
    _at_step(2, _bug)


def with_killed_worker() -> None:
    _at_step(2, _kill_worker)


def with_full_disk() -> None:
    _at_step(6, lambda: at_operation(1, _full))


def with_slow_steps() -> None:
    real = Trainer.train_step

    def train_step(self: Trainer, batch: Any) -> Any:
        time.sleep(0.05)
        return real(self, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (with_bug, ["Traceback", "KeyError: 'a bug'"]),
        (with_killed_worker, ["stopped: data process", "/dev/shm", "start again"]),
        (with_full_disk, ["stopped: ", "no space left on device", "--resume"]),
    ],
)
def test_an_error_ends_the_run_and_its_workers(
    tmp_path: Path, photos: Path, before: Any, words: list[str]
) -> None:
    run = tmp_path / "run"
    command = begin(run, photos, "--steps", "1000", "--workers", "2", before=before)
    assert command.wait(60) == 1
    said = command.said()
    assert all(word in said for word in words), said
    assert ("Traceback" in said) == (before is with_bug), said
    assert not (run / "checkpoints").exists() or step_of(run) == 4


def test_the_command_itself_ends_after_an_error(tmp_path: Path, photos: Path) -> None:
    """As above, in an interpreter that ends as users' do."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from context_encoder.train import main\n"
        "from tests.context_encoder.training.test_faults import with_bug\n"
        "with_bug()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [*HERE, "--workers", "2", "--data", str(photos), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "KeyError: 'a bug'" in done.stderr


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_stop_signal_saves_and_the_run_resumes_bit_for_bit(
    tmp_path: Path, photos: Path, name: str
) -> None:
    """At any log_every; the window of the mean of losses is saved."""
    number = signal.Signals[name]
    run, whole = tmp_path / "run", tmp_path / "whole"
    long = ("--steps", "1000", "--log-every", "7", "--val-every", "500", "--workers", "1")
    command = begin(run, photos, *long, before=with_slow_steps)
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0)
    begun = time.monotonic()
    command.kill(number)
    assert command.wait(60) == 128 + number
    assert time.monotonic() - begun < 30
    assert f"go on with\n  python -m context_encoder.train --resume {run}" in command.said()
    done = step_of(run)
    assert 0 < done < 500
    if name != "SIGUSR1":
        return
    end = str(done + 9)
    assert go_on(run, "--steps", end).wait() == 0
    assert begin(whole, photos, *long, "--steps", end).wait() == 0
    assert_same_run(run, whole)


def test_a_stop_in_validation_or_reading_does_not_wait_for_it(tmp_path: Path, photos: Path) -> None:
    """The validation is made up for by the resumed run."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = begin(run, photos, "--steps", "8", before=with_endless_validation)
    until(lambda: "validating" in command.said())
    command.kill(signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert step_of(run) == 4
    assert go_on(run).wait() == 0
    assert begin(whole, photos, "--steps", "8").wait() == 0
    assert_same_run(run, whole)


def with_endless_validation() -> None:
    import context_encoder.training.trainer as module

    def validate(*_: Any) -> Any:
        print("validating", flush=True)
        time.sleep(1000)

    module.validate = validate


def test_a_signal_during_the_start_ends_with_its_status(tmp_path: Path, photos: Path) -> None:
    command = begin(tmp_path / "run", photos, before=with_endless_listing)
    until(lambda: "listing" in command.said())
    command.kill(signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in command.said()
    assert "Traceback" not in command.said()


def with_endless_listing() -> None:
    import context_encoder.runs.photos as module

    def find_images(*_: Any) -> Any:
        print("listing", flush=True)
        time.sleep(1000)

    module.find_images = find_images


# --- several processes --------------------------------------------------------------------------

MORE = ("--log-every", "1000", "--val-every", "1000", "--lambda-adv", "0.001")


def test_several_processes_stop_save_and_resume_bit_for_bit(tmp_path: Path, photos: Path) -> None:
    """SIGTERM to one of two processes; then a run in one process with the same samples."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [*HERE, *MORE, "--data", str(photos), "--steps", "1000"]
    ranks = start_ranks(2, [*arguments, "--out", str(run)], tmp_path, before=with_slow_steps)
    until(lambda: "img_s" in ranks[0].said() or " 4/" in ranks[0].said())
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert ranks[0].wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT), ranks[0].said()
    assert ranks[1].wait(60) == 128 + signal.SIGTERM
    done = step_of(run)
    assert 0 < done < 1000
    alone = Path(shutil.copytree(run, tmp_path / "alone", symlinks=True))
    end = str(done + 3)
    for words, out in (
        (["--resume", str(run), "--steps", end], run),
        ([*arguments, "--steps", end, "--out", str(whole)], whole),
    ):
        for rank in start_ranks(2, words, tmp_path):
            assert rank.wait() == 0, rank.said()
        assert step_of(out) == int(end)
    assert_same_run(run, whole)
    assert go_on(alone, "--steps", end).wait() == 0
    one, two = (read_checkpoint(find_checkpoint(r, "last")) for r in (alone, whole))
    assert (one.state["processes"], two.state["processes"]) == (1, 2)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_is_named(
    tmp_path: Path, photos: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    arguments = [
        *HERE, *MORE, "--data", str(photos), "--steps", "100000", "--out", str(run),
        "--timeout", "6",
    ]  # fmt: skip
    ranks = start_ranks(2, arguments, tmp_path, before=with_slow_steps)
    until(lambda: "img_s" in ranks[0].said() or " 4/" in ranks[0].said())
    os.kill(ranks[1].pid, number)
    try:
        assert ranks[0].wait(60) == 1
        said = ranks[0].said()
        assert f"process 1 (pid {ranks[1].pid} on " in said, said
        assert "Traceback" not in said
    finally:
        ranks[1].kill()
        ranks[1].wait()


def test_a_process_that_fails_ends_the_others_with_its_reason(tmp_path: Path, photos: Path) -> None:
    arguments = [*HERE, "--data", str(photos), "--steps", "100000", "--out", str(tmp_path / "run")]
    ranks = start_ranks(2, arguments, tmp_path, before=with_bug_in_second)
    assert [rank.wait(60) for rank in ranks] == [1, 1]
    assert "KeyError('a bug')" in ranks[0].said()


def with_bug_in_second() -> None:
    if os.environ["RANK"] == "1":
        with_bug()


def test_a_data_process_that_is_stopped_is_named_and_killed(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    command = begin(
        run, photos, "--steps", "1000", "--workers", "1", "--save-every", "1",
        before=with_stopped_worker,
    )  # fmt: skip
    until(lambda: "is stopped" in command.said())
    assert "no batch for " in command.said()
    begun = time.monotonic()
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 30
    assert step_of(run) >= 2


def with_stopped_worker() -> None:
    loader._LONG_WAIT = 1.0

    def stop() -> None:
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)

    _at_step(2, stop)


@pytest.mark.parametrize("broken", ["closed", "/dev/full", "pipe"])
def test_a_run_goes_on_without_its_console(tmp_path: Path, photos: Path, broken: str) -> None:
    run = tmp_path / "run"
    before = functools.partial(_lose_console, broken)
    assert begin(run, photos, "--steps", "4", before=before).wait() == 0
    assert step_of(run) == 4
    assert "done: 4 steps" in (run / "log.txt").read_text()


def _lose_console(how: str) -> None:
    if how == "/dev/full":
        os.dup2(os.open(how, os.O_WRONLY), 2)
    elif how == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
    else:  # what Python makes of a descriptor that is closed at its start
        sys.stderr = None  # type: ignore[assignment]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_transfer_ends_if_too_few_images_can_be_read(tmp_path: Path, workers: str) -> None:
    kit = make_devkit(tmp_path / "kit", 12, 2)
    for image in sorted((kit / "VOC2007/JPEGImages").iterdir())[1:12]:
        image.write_bytes(b"nothing")
    options = ["--voc", str(kit), "--classes", *CLASSES, "--model", "small", "--image-size", "32"]
    options += ["--batch-size", "4", "--fc-dim", "8", "--out", str(tmp_path / "run")]
    command = start(
        TRANSFER, ["voc-classify", *options, "--workers", workers], tmp_path / "said.txt"
    )
    assert command.wait() == 1
    assert "of the last 12 photographs that were drawn cannot be read" in command.said()
    assert "go on with: python -m context_encoder.transfer voc-classify" in command.said()


# --- disks and memory ---------------------------------------------------------------------------


def test_a_full_disk_at_every_write_is_one_line(tmp_path: Path, photos: Path) -> None:
    """Every file operation of a run from its start to its end fails once, each in its own run."""
    whole = tmp_path / "whole"
    assert begin(whole, photos, "--steps", "5").wait() == 0
    number, failed = 1, 0
    while True:
        run = tmp_path / f"run-{number}"
        command = begin(run, photos, "--steps", "5", before=functools.partial(fill_disk, number))
        status, said = command.wait(60), command.said()
        assert "Traceback" not in said, (number, said)
        assert "Exception ignored" not in said, (number, said)
        if status == 0:
            break
        failed += 1
        assert status in (1, 2), (number, said)
        lines = [line for line in said.splitlines() if "no space left" in line.lower()]
        assert lines, (number, said)
        if find_or_none(run):
            assert go_on(run, "--steps", "5").wait() in (0, 2)  # 2: it was done already
        else:
            assert begin(run, photos, "--steps", "5").wait() == 0
        assert_same_run(run, whole)
        shutil.rmtree(run)
        number += 1 if LONG else 17
    assert failed > 3


def find_or_none(run: Path) -> Path | None:
    try:
        return find_checkpoint(run, "last")
    except ValueError:
        return None


def fill_disk(number: int) -> None:
    """The operation fails, and all later ones, as on a disk that stays full."""
    at_operation(number, _full, onward=True)


def test_a_real_full_disk(tmp_path: Path, photos: Path) -> None:
    """A file system of 8 MB in memory, mounted in a namespace of its own."""
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=8m none "$0" && exec "$@"']
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([*mount, str(disk), "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    arguments = [*HERE, "--data", str(photos), "--steps", "200", "--keep", "50"]
    arguments += ["--out", str(disk / "run")]
    script = f'{sys.executable} -m context_encoder.train "$@"; echo "status $?"; du -a "$0"'
    done = subprocess.run(
        [*mount, str(disk), "sh", "-c", script, str(disk), *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "status 1" in done.stdout, done.stderr
    assert "no space left on device" in done.stderr
    assert f"--resume {disk / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "manifest.json" in done.stdout


def test_an_out_folder_that_vanishes_is_one_line(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    command = begin(run, photos, "--steps", "100000", before=with_slow_steps)
    until(lambda: (run / "checkpoints/last").exists())
    run.rename(tmp_path / "elsewhere")
    assert command.wait(60) == 1
    assert "Traceback" not in command.said()
    assert "stopped: " in command.said()
    assert str(run) in command.said()


def test_too_little_memory_is_one_line(tmp_path: Path, photos: Path) -> None:
    command = begin(tmp_path / "run", photos, "--batch-size", "512", before=with_little_memory)
    assert command.wait(120) == 1, command.said()
    assert "stopped: out of memory; lower --batch-size" in command.said(), command.said()
    assert "Traceback" not in command.said()


def with_little_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _at_step(0, lambda: resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2))


# --- the run folder -----------------------------------------------------------------------------


def test_two_trainings_cannot_write_into_one_folder(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = begin(run, photos, "--steps", "100000", before=with_slow_steps)
    until(lambda: (run / "checkpoints/last").exists())
    assert main(["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"another training writes into {run} (process {command.pid} on " in said
    command.kill()
    command.wait()
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == len({(json.loads(r)["split"], json.loads(r)["step"]) for r in rows})
    # The lock of a process that was killed is gone.
    assert main(["--resume", str(run), "--steps", str(step_of(run) + 1)]) == 0


def test_a_run_that_went_on_is_not_set_back(tmp_path: Path, photos: Path) -> None:
    """Another training continued and ended between the reading of the checkpoint and the lock."""
    run = tmp_path / "run"
    assert begin(run, photos, "--steps", "4").wait() == 0
    folder = find_checkpoint(run, "last")
    resumed = RunFolder(run, read_checkpoint(folder))
    assert go_on(run, "--steps", "8").wait() == 0
    with pytest.raises(RunError, match="has gone on since it was read"):
        resumed.start(read_config(folder))
    assert step_of(run) == 8


def test_a_checkpoint_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of a run that goes on find the next checkpoint."""
    run = save_untrained(tmp_path / "run", 0)
    links = run / "checkpoints"
    real = checkpoint.check_files
    moved = []

    def check_files(folder: Path, names: Any) -> bool:
        listed = real(folder, names)
        if not moved:
            moved.append(shutil.copytree(folder, links / "step_0000009"))
            for which in ("last", "best"):
                (links / which).unlink()
                (links / which).symlink_to("step_0000009")
            shutil.rmtree(folder)
        return listed

    monkeypatch.setattr(checkpoint, "check_files", check_files)
    assert read_checkpoint(links / "last").state["step"] == 3
    assert moved


def test_files_that_were_exchanged_are_noticed(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    run = tmp_path / "run"
    assert begin(run, data, "--steps", "1").wait() == 0
    names = sorted(data.iterdir())
    names[0].rename(data / "aside")
    names[1].rename(names[0])
    (data / "aside").rename(names[1])
    assert main(["--resume", str(run), "--steps", "2"]) == 2
    assert "files of the same names have other contents" in capsys.readouterr().err


# --- killing at random times --------------------------------------------------------------------


def test_kills_at_random_times_change_nothing(tmp_path: Path, photos: Path) -> None:
    kills = 100 if LONG else 10
    options = ("--steps", "100000", "--val-every", "40", "--save-every", "4", "--log-every", "7")
    run, whole = tmp_path / "run", tmp_path / "whole"
    rng = random.Random(0)
    command = begin(run, photos, *options, "--workers", "2")
    for _ in range(kills):
        time.sleep(rng.uniform(0.1, 1.5))
        command.kill()
        command.wait()
        said = len(command.said())
        if find_or_none(run):
            command = go_on(run)
        else:
            command = begin(run, photos, *options, "--workers", "2")
    until(lambda: len(command.said()) > said)  # the signal must not come before the command
    command.kill(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM, command.said()
    if not find_or_none(run):
        return  # a machine so slow that no save was reached
    end = str(step_of(run) + 1)
    assert go_on(run, "--steps", end).wait() == 0
    assert begin(whole, photos, *options, "--steps", end).wait() == 0
    assert_same_run(run, whole)


def test_kills_of_a_transfer_change_nothing(tmp_path: Path) -> None:
    devkit = make_devkit(tmp_path / "kit", 6, 4)
    common = [
        "voc-classify", "--voc", str(devkit), "--model", "small", "--image-size", "32", "--device",
        "cpu", "--fc-dim", "64", "--test-crops", "1", "--steps", "60", "--save-every", "3",
        "--workers", "1", "--log-every", "7", "--classes", *CLASSES,
    ]  # fmt: skip
    run, whole = tmp_path / "run", tmp_path / "whole"
    rng = random.Random(1)

    def attempt() -> Command:
        again = ["voc-classify", "--resume", str(run)]
        new = [*common, "--out", str(run)]
        return start(TRANSFER, again if find_or_none(run) else new, tmp_path / "run.txt")

    for _ in range(30 if LONG else 6):
        command = attempt()
        time.sleep(rng.uniform(0.1, 2.0))
        command.kill()
        command.wait()
    assert attempt().wait() == 0
    assert start(TRANSFER, [*common, "--out", str(whole)], tmp_path / "whole.txt").wait() == 0
    assert_same_run(run, whole)
    results = [json.loads((r / "results.json").read_text())["metrics"] for r in (run, whole)]
    assert results[0] == results[1]


def test_memory_and_file_handles_stay_flat(tmp_path: Path, photos: Path) -> None:
    """A soak run in short form: saves and validations at every step."""
    run = tmp_path / "run"
    steps = 3000 if LONG else 40
    options = ("--steps", str(steps), "--val-every", "1", "--log-every", "1", "--workers", "1")
    command = begin(run, photos, *options, before=with_account)
    assert command.wait(3000) == 0, command.said()
    rows = [line.split()[1:] for line in command.said().splitlines() if line.startswith("account")]
    handles, kilobytes = ([int(row[i]) for row in rows] for i in (0, 1))
    third = len(rows) // 3
    assert len(rows) == steps
    assert max(handles[third:]) <= max(handles[:third])
    assert max(kilobytes[third:]) < kilobytes[third] + 20_000


def with_account() -> None:
    real = RunFolder.prune

    def prune(self: RunFolder) -> None:
        real(self)
        handles = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print("\naccount", handles, pages * os.sysconf("SC_PAGE_SIZE") // 1024, flush=True)

    RunFolder.prune = prune  # type: ignore[method-assign]


def test_no_fault_is_injected_into_this_process() -> None:
    assert in_fork(lambda: 3) == 3
