"""The training loop: order of calls, logs, checkpoints, resuming, errors."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from context_encoder.optimization import Learner
from context_encoder.runs import Checkpoint, RunFolder, find_checkpoint, read_checkpoint
from context_encoder.training import NonFiniteError, TrainingLoop
from context_encoder.training.run import _log_to
from context_encoder.utils.errors import outside_reason
from context_encoder.utils.files import WriteError


class Empty(BaseModel):
    pass


class Counting(TrainingLoop):
    """The loss is the number of the step, from 1; calls are recorded."""

    def __init__(self, **options: Any) -> None:
        network = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        super().__init__(
            Learner({"model": network}, {"model": optimizer}, torch.device("cpu")),
            **{"steps": 7, "batch_size": 2, "log_every": 2, "val_every": 3, **options},
        )
        self.calls: list[str] = []
        self.losses: dict[int, float] = {}
        self.stop_at = -1

    def prepare(self) -> None:
        self.calls.append("prepare")

    def batches(self) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        for step in range(self.step, self.steps):
            yield step + 1, [("a.png", "empty")] if step % 2 else []

    def train_step(self, batch: int) -> dict[str, Tensor]:
        assert batch == self.step + 1
        self.calls.append(str(batch))
        if batch == self.stop_at:
            self.stop_requested, self.stop_reason = True, "SIGTERM"
        return {"loss": torch.tensor(self.losses.get(batch, float(batch)))}

    def validate(self) -> None:
        self.calls.append(f"validate {self.step}")
        self.record("val", {"figure": 1.0})

    def save(self) -> None:
        self.calls.append(f"save {self.step}")
        assert self.run is not None
        tensors = {"w": torch.zeros(1)}
        self.run.save("last", Checkpoint(tensors, None, tensors, {"step": self.step}), Empty())


def fit(loop: TrainingLoop, path: Path, *, resume: bool = False) -> Any:
    run = RunFolder(path, read_checkpoint(find_checkpoint(path, "last")) if resume else None)
    run.start(Empty())
    return loop.fit(run)


def rows(path: Path, split: str) -> dict[int, dict[str, float]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found if row["split"] == split}


def test_what_is_called_when(tmp_path: Path) -> None:
    loop = Counting()
    outcome = fit(loop, tmp_path)
    assert (outcome.step, outcome.steps, outcome.interrupted) == (7, 7, False)
    assert loop.calls == [
        "prepare", "1", "2", "3", "validate 3", "save 3", "4", "5", "6", "validate 6", "save 6",
        "7", "validate 7", "save 7",
    ]  # fmt: skip
    assert list(rows(tmp_path, "val")) == [3, 6, 7]


def test_losses_are_means_since_the_line_before(tmp_path: Path) -> None:
    fit(Counting(), tmp_path)
    found = rows(tmp_path, "train")
    assert {step: row["loss"] for step, row in found.items()} == {2: 1.5, 4: 3.5, 6: 5.5, 7: 7}
    assert all(row["lr"] == 0.5 and row["images_per_s"] > 0 for row in found.values())


def test_a_stop_ends_after_the_step_and_saves_without_a_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Counting()
    loop.stop_at = 5
    with caplog.at_level("INFO"):
        outcome = fit(loop, tmp_path)
    assert (outcome.step, outcome.interrupted) == (5, True)
    assert loop.calls[-3:] == ["4", "5", "save 5"]
    assert "SIGTERM: stopped after step 5" in caplog.text


def test_a_stop_at_a_checkpoint_does_not_save_twice(tmp_path: Path) -> None:
    loop = Counting()
    loop.stop_at = 3
    assert fit(loop, tmp_path).interrupted
    assert loop.calls.count("save 3") == 1


def test_a_stop_before_the_first_step_saves_a_new_run_alone(tmp_path: Path) -> None:
    new, resumed = Counting(), Counting()
    resumed.mark_resumed(3)
    for name, loop in (("new", new), ("resumed", resumed)):
        loop.stop_requested = True
        assert fit(loop, tmp_path / name).interrupted
    assert new.calls == ["prepare", "save 0"]
    assert resumed.calls == ["prepare"]


def test_a_resumed_loop_goes_on_with_the_next_step(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(Counting(), whole)
    loop = Counting()
    loop.stop_at = 4
    fit(loop, parts)
    loop = Counting()
    loop.mark_resumed(4)
    fit(loop, parts, resume=True)
    assert loop.calls[:2] == ["prepare", "5"]
    for split in ("train", "val"):
        for a, b in zip(rows(whole, split).items(), rows(parts, split).items(), strict=True):
            assert {**a[1], "images_per_s": 0} == {**b[1], "images_per_s": 0}


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_is_seen_before_the_checkpoint(
    tmp_path: Path, log_every: int
) -> None:
    """Also between two log lines, and if a stop request causes the checkpoint."""
    for name, stop_at in (("scheduled", -1), ("stopped", 5)):
        loop = Counting(log_every=log_every)
        loop.losses[5] = float("inf")
        loop.stop_at = stop_at
        with pytest.raises(NonFiniteError, match=r"loss is inf within the .* step 3 is kept"):
            fit(loop, tmp_path / name)
        state = tmp_path / name / "checkpoints/last/state.json"
        assert json.loads(state.read_text())["step"] == 3


def test_skipped_files_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = Counting()
    fit(loop, tmp_path)
    assert loop.unreadable == {"a.png"}
    assert caplog.text.count("skipped a.png: empty") == 1
    assert (tmp_path / "unreadable.jsonl").read_text().count("\n") == 1


def test_a_loop_runs_without_a_folder() -> None:
    class Unsaved(Counting):
        def save(self) -> None:
            self.calls.append("save")

    loop = Unsaved(steps=1)
    assert loop.fit(None).step == 1
    assert loop.calls == ["prepare", "1", "validate 1", "save"]


def test_a_loss_that_is_never_finite_leaves_no_checkpoint_and_says_so(tmp_path: Path) -> None:
    loop = Counting(log_every=1)
    loop.losses[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss is nan .* No checkpoint was written\."):
        fit(loop, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="/dev/full: no space left"), _log_to(Path("/dev/full")):
        logging.getLogger("context_encoder").info("a line")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=str(tmp_path / "file")), _log_to(tmp_path / "file/log"):
        pass
    assert outside_reason(OSError(28, "No space left", b"/a/b")) == "/a/b: no space left"


def test_log_files_take_names_that_are_not_utf_8(tmp_path: Path) -> None:
    with _log_to(tmp_path / "log.txt"):
        logging.getLogger("context_encoder").warning("skipped %s", os.fsdecode(b"a\xff.png"))
    assert r"skipped a\udcff.png" in (tmp_path / "log.txt").read_text()
