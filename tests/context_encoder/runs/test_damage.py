"""Damaged run folders: each is refused in one line that says what is wrong, or is right after all.

Every case is tried on a folder of this version, whose checksums notice any change, and on one
without a manifest, as versions before 0.2 wrote them; with the command that resumes the run and
with the function that all other commands load a network by.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from context_encoder.config import TrainConfig
from context_encoder.runs import Checkpoint, RunError, RunFolder, load_model
from context_encoder.train import main
from tests.helpers.small_runs import TINY, save_photos

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    save_photos(root / "photos", 8)
    options = ["--steps", "2", "--lambda-adv", "0.01", "--data", str(root / "photos")]
    assert main([*TINY, *options, "--out", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def missing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def cut(name: str, part: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(part * len(content))])

    return damage


def flipped(name: str, place: float) -> Damage:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 0x40
        (folder / name).write_bytes(content)

    return damage


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def directory(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def tensors(name: str, change: Callable[[dict[str, Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name)

    return damage


def first(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    """Change the first tensor whose name contains ``part``."""

    def changed(found: dict[str, Tensor]) -> None:
        name = next(name for name in sorted(found) if part in name)
        found[name] = change(found[name]).contiguous()

    return changed


def without(part: str) -> Callable[[dict[str, Tensor]], None]:
    def changed(found: dict[str, Tensor]) -> None:
        del found[next(name for name in sorted(found) if part in name)]

    return changed


def value(name: str, key: str, new: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content[key] = new
        (folder / name).write_text(json.dumps(content))

    return damage


FILES = ("model.safetensors", "training.safetensors", "state.json", "config.json")
MODEL, JUDGE, TRAINING = "model.safetensors", "discriminator.safetensors", "training.safetensors"
DAMAGES: dict[str, Damage] = {
    **{f"{name} missing": missing(name) for name in (*FILES, JUDGE)},
    **{f"{name} empty": written(name, b"") for name in (*FILES, JUDGE)},
    **{f"{name} cut": cut(name, 0.7) for name in (*FILES, JUDGE)},
    **{f"{name} a pipe": pipe(name) for name in (*FILES, JUDGE)},
    **{f"{name} a folder": directory(name) for name in FILES},
    **{f"{name} random bytes": written(name, bytes(range(256)) * 9) for name in FILES},
    **{f"{name} with a flipped header": flipped(name, 0.0) for name in FILES},
    **{f"{name} nested": written(name, b"[" * 100_000) for name in FILES[2:]},
    **{f"{name} a list": written(name, b"[1]") for name in FILES[2:]},
    "weight missing": tensors(MODEL, without("weight")),
    "weight unexpected": tensors(MODEL, lambda found: found.update(x=torch.zeros(1))),
    "weight misshaped": tensors(MODEL, first("weight", lambda t: t[:1])),
    "weight int64": tensors(MODEL, first("weight", lambda t: t.long())),
    "weight float16": tensors(MODEL, first("weight", lambda t: t.half())),
    "weight NaN": tensors(MODEL, first("weight", lambda t: t * torch.nan)),
    "weight infinite": tensors(MODEL, first("weight", lambda t: t + torch.inf)),
    "variance negative": tensors(MODEL, first("running_var", lambda t: -t - 1)),
    "moment missing": tensors(TRAINING, without("exp_avg")),
    "all moments missing": tensors(TRAINING, lambda found: _drop(found, "optimizer.model")),
    "moment broadcast": tensors(TRAINING, first("exp_avg", lambda t: t.flatten()[:1])),
    "moment int64": tensors(TRAINING, first("exp_avg", lambda t: t.long())),
    "moment NaN": tensors(TRAINING, first("exp_avg", lambda t: t * torch.nan)),
    "second moment negative": tensors(TRAINING, first("exp_avg_sq", lambda t: -t - 1)),
    "step of Adam negative": tensors(TRAINING, first(".step", lambda t: -t)),
    "generator missing": tensors(TRAINING, without("random.cpu")),
    "generator short": tensors(TRAINING, first("random.cpu", lambda t: t[:99])),
    "unknown tensor": tensors(TRAINING, lambda found: found.update(x=torch.zeros(1))),
    "discriminator of the network": lambda f: shutil.copy(f / MODEL, f / JUDGE) and None,
    "step negative": value("state.json", "step", -1),
    "step a text": value("state.json", "step", "2"),
    "step infinite": value("state.json", "step", float("inf")),
    "step huge": value("state.json", "step", 10**30),
    "best a list": value("state.json", "best", [1]),
    "best NaN": value("state.json", "best", {"psnr": float("nan"), "step": 2}),
    "photos missing": value("state.json", "photos", None),
    "processes zero": value("state.json", "processes", 0),
    "window of other names": value("state.json", "window", {"names": ["a", "b"], "steps": 3}),
    "workers a million": value("config.json", "workers", 1_000_000),
    "workers 900": value("config.json", "workers", 900),
    "batch_size a million": value("config.json", "batch_size", 1_000_000),
    "unknown option": value("config.json", "colour", 1),
    "model unknown": value("config.json", "model", "large"),
    "size of another network": value("config.json", "size", 64),
}
#: Cases that only the resumed run can notice, as a network for use does not need these values.
ONLY_RESUME = ("training", "discriminator", "moment", "step of Adam", "generator", "unknown tensor")
ONLY_RESUME += ("all moments", "second moment", "best", "photos", "processes", "window")
ONLY_RESUME += ("workers 900",)


def _drop(found: dict[str, Tensor], start: str) -> None:
    for name in [name for name in found if name.startswith(start)]:
        del found[name]


@pytest.mark.parametrize("manifest", [True, False], ids=["this version", "without a manifest"])
def test_every_damage_is_refused_in_one_line(
    run: Path, tmp_path: Path, manifest: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of a network that is loaded all the same are those that were saved."""
    wanted = load_model(run, which="last").model.state_dict()
    for name, damage in DAMAGES.items():
        broken = Path(shutil.copytree(run, tmp_path / name.replace("/", " "), symlinks=True))
        folder = (broken / "checkpoints/last").resolve()
        if not manifest:
            (folder / "manifest.json").unlink()
            state = json.loads((folder / "state.json").read_text())
            del state["format"]
            (folder / "state.json").write_text(json.dumps(state))
        damage(folder)
        capsys.readouterr()
        status = main(["--resume", str(broken), "--steps", "3"])
        said = capsys.readouterr().err
        assert status == 2, (name, said)
        assert said.startswith("error: "), (name, said)
        assert said.count("\n") == 1, (name, said)
        try:
            loaded = load_model(broken, which="last").model.state_dict()
        except RunError as error:
            lines = str(error).count("\n")
            assert not lines, name
        else:
            assert name.startswith(ONLY_RESUME), name
            assert all(torch.equal(loaded[key], tensor) for key, tensor in wanted.items()), name
        shutil.rmtree(broken)


def test_a_manifest_that_is_damaged_or_of_a_later_version(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (content, words) in enumerate(
        [
            (b"", "manifest.json is damaged"),
            (b"[" * 9999, "manifest.json is damaged"),
            (b'{"format": 3}', "its format, 3, is of a later version"),
            (b'{"format": 2, "files": {}}', "is not listed in manifest.json"),
            (None, "manifest.json is missing"),
        ]
    ):
        broken = Path(shutil.copytree(run, tmp_path / str(number), symlinks=True))
        file = (broken / "checkpoints/last").resolve() / "manifest.json"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert main(["--resume", str(broken), "--steps", "3"]) == 2
        assert words in capsys.readouterr().err
        with pytest.raises(RunError):
            load_model(broken, which="last")


def test_other_checkpoints_are_named(tmp_path: Path, run: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    last = (broken / "checkpoints/last").resolve()
    shutil.copytree(last, last.with_name("step_0000001"))
    flipped(MODEL, 0.9)(last)
    with pytest.raises(RunError, match=r"checksum differs.*intact: .*step_0000001"):
        load_model(broken, which="last")


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "unreadable.jsonl", ".lock"])
def test_pipes_in_a_run_folder_are_refused(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (broken / name).unlink(missing_ok=True)
    os.mkfifo(broken / name)
    assert main(["--resume", str(broken), "--steps", "3"]) == 2
    assert "a pipe" in capsys.readouterr().err


def test_damaged_lines_of_metrics_and_unreadable_files_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash or a full disk may leave part of a line, a power cut any bytes."""
    run = tmp_path / "run"
    good = [{"split": "train", "step": step, "loss": 0.5} for step in (1, 2, 3, 4)]
    other = b"".join(b"%s\n" % line for line in (
        b'{"split": "tra', b"\xff\xfe\x00", b"\x00" * 50, b'{"step": 1e400}', b"[1]", b"3", b"null",
        b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}",
    ))  # fmt: skip
    config = TrainConfig(preset="laptop", size=32, out=run)
    RunFolder(run).start(config)
    lines = [json.dumps(row).encode() + b"\n" for row in good]
    (run / "metrics.jsonl").write_bytes(lines[0] + other + b"".join(lines[1:]) + b'{"step": 2')
    names = [b'{"file": "a.png", "reason": "empty"}\n', b'{"file": "b.png", "reason": "empty"}\n']
    (run / "unreadable.jsonl").write_bytes(b"".join(names) + b'{"file": "a.p')
    resume = Checkpoint({}, None, {}, {"step": 3, "unreadable": ["a.png"]}, run)
    RunFolder(run, resume).start(config)
    assert (run / "metrics.jsonl").read_bytes() == b"".join(lines[:3])
    assert (run / "unreadable.jsonl").read_bytes() == names[0]
    assert "metrics.jsonl: 10 damaged lines are removed" in caplog.text
