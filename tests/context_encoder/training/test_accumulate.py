"""Gradient accumulation: a step in parts is the step on the whole batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from context_encoder.config import TrainConfig
from context_encoder.data import to_input
from context_encoder.pretexts import Samples, inpainting
from context_encoder.runs import Photos
from context_encoder.train import main
from context_encoder.training import Trainer, resolve
from context_encoder.utils.device import Processes
from tests.context_encoder.optimization.test_batch_statistics import in_processes
from tests.helpers.small_runs import TINY, make_trainer, save_photos

STEPS = 3
#: Of networks without batch normalisation.
ALEXNET = {"model": "alexnet", "size": 99, "resize": 110, "dropout": 0.0, "lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "region": {"mask": "region"},
    "adversarial": {"mask": "block", "lambda_adv": 0.1, "overlap": 3, "overlap_weight": 10.0},
    "all": {"mask": "block", "normalize": "all", "loss": "l1"},
    "log-l2": {"mask": "block", "loss": "log-l2"},
    "denoising": {"pretext": "denoising"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 8)
    return root


def judge(_: int) -> nn.Module:
    """A discriminator without batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 1), nn.Flatten(0),
    )  # fmt: skip


def train(processes: Processes, photos: Path, case: str, accumulate: int) -> dict[str, Tensor]:
    """Losses and weights of some steps in float64; "reductions": exchanges of gradients."""
    config = TrainConfig.model_validate(
        {
            "batch_size": 4,
            "workers": 0,
            "data": photos,
            "preset": "laptop",
            **ALEXNET,
            **CASES[case],
            "accumulate": accumulate,
        }
    )
    files = Photos.from_config(config)
    trainer = Trainer(resolve(config, files), files, torch.device("cpu"), processes)
    found: dict[str, Tensor] = {}
    reductions = torch.zeros((), dtype=torch.int64)

    def count(_: object, bucket: Any) -> Any:
        reductions.add_(1)
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    count.__annotations__.clear()  # torch compares them with the types, these are texts
    for name in trainer.pretext.parts():
        network = trainer.learner.network(name).train()
        if processes.world_size > 1:
            network.register_comm_hook(None, count)  # type: ignore[operator]
    for step, (batch, _) in zip(range(STEPS), trainer.batches(), strict=False):
        image = to_input(batch["image"], torch.channels_last).double()
        samples = Samples(image, batch["epoch"], batch["index"])
        for name, loss in trainer.pretext.train_step(samples, trainer.learner).items():
            loss = loss.double() / processes.world_size
            if processes.world_size > 1:
                torch.distributed.all_reduce(loss)
            found[f"{name}/{step}"] = loss
    for name, part in trainer.pretext.parts().items():
        found |= {f"{name}/{k}": v.contiguous() for k, v in part.module.state_dict().items()}
    return found | {"reductions": reductions}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(inpainting, "build_discriminator", judge)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name != "reductions":
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("double")
def test_parts_train_as_the_whole_batch(case: str, photos: Path) -> None:
    wanted = train(Processes(), photos, case, 1)
    for accumulate in (2, 4):
        check(train(Processes(), photos, case, accumulate), wanted)


@pytest.mark.usefixtures("double")
def test_the_comparison_finds_masks_that_count_wrongly(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = train(Processes(), photos, "region", 1)
    monkeypatch.setattr(inpainting, "share_of_weights", lambda *_: torch.ones(2))
    with pytest.raises(AssertionError):
        check(train(Processes(), photos, "region", 2), wanted)


def in_rank(processes: Processes, photos: Path, out: Path) -> None:
    torch.set_default_dtype(torch.float64)
    inpainting.build_discriminator = judge
    for accumulate in (1, 2):
        found = train(processes, photos, "adversarial", accumulate)
        if processes.first:
            save_file(found, out / f"{accumulate}.safetensors")


@pytest.mark.usefixtures("double")
def test_two_processes_exchange_gradients_once_per_update(photos: Path, tmp_path: Path) -> None:
    in_processes(in_rank, 2, photos, tmp_path)
    whole, parts = (load_file(tmp_path / f"{n}.safetensors") for n in (1, 2))
    check(whole, train(Processes(), photos, "adversarial", 1))
    check(parts, whole)
    assert parts["reductions"] == whole["reductions"] > 0


def test_the_model_sees_parts_and_counts_its_statistics_once_each(photos: Path) -> None:
    trainer = make_trainer(photos, accumulate=2, lambda_adv=0.01)
    sizes, judged = [], []
    trainer.model.register_forward_hook(lambda _, x, y: sizes.append((len(x[0]), y.requires_grad)))
    assert isinstance(trainer.pretext, inpainting.Inpainting)
    assert trainer.pretext.discriminator is not None
    trainer.pretext.discriminator.register_forward_hook(lambda _, x, y: judged.append(len(x[0])))
    trainer.prepare()
    batch, _ = next(trainer.batches())
    trainer.train_step(batch)
    # For the discriminator without gradients, then for the model's own update.
    assert sizes == [(2, False)] * 2 + [(2, True)] * 2
    assert judged == [2] * 6
    counts = [v for k, v in trainer.model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 for count in counts)


def test_a_step_that_ignores_the_parts_is_refused(photos: Path) -> None:
    trainer = make_trainer(photos, accumulate=2)
    loss = next(iter(trainer.model.parameters())).sum()
    with pytest.raises(RuntimeError, match="computes its batch in parts"):
        trainer.learner.backward(loss)
    with pytest.raises(ValueError, match="a batch of 3 cannot be divided into 2 equal parts"):
        trainer.learner.split(torch.ones(3, 1))


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def test_a_run_in_parts_logs_and_resumes_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, "--data", str(photos), "--accumulate", "2", "--steps", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*options, "--out", str(whole)]) == 0
    step = Trainer.train_step

    def stop_at_4(self: Trainer, batch: Any) -> Any:
        self.stop_requested |= self.step == 3
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", stop_at_4)
    main([*options, "--out", str(parts)])
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(["--resume", str(parts)]) == 0
    for row, other in zip(lines(whole), lines(parts), strict=True):
        assert row.keys() == other.keys()
        assert {k: row[k] for k in ("step", "loss", "lr")} == {
            k: other[k] for k in ("step", "loss", "lr")
        }
        assert row["images_per_s"] > 0
    saved = [load_file(run / "checkpoints/last/model.safetensors") for run in (whole, parts)]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
    # The number of parts may change: the memory of the machine may have.
    assert main(["--resume", str(parts), "--accumulate", "1", "--steps", "8"]) == 0


def test_images_per_second_count_every_part(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(photos, accumulate=2, steps=4)
    trainer.prepare()
    recorded: dict[str, float] = {}
    monkeypatch.setattr(trainer, "record", lambda split, values: recorded.update(values))
    monkeypatch.setattr("context_encoder.training.loop.time.monotonic", lambda: 2.0)
    for (batch, _), _ in zip(trainer.batches(), range(3), strict=False):
        trainer._add_to_sums(trainer.train_step(batch))
    trainer._mark = 0.0
    trainer._log_losses(trainer._progress_bar())
    assert recorded["images_per_s"] == 3 * 4 / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accumulate", "3"], "--batch-size 4 cannot be divided into --accumulate 3 equal parts"),
        (["--accumulate", "0"], "--accumulate must be at least 1, got 0"),
        (
            ["--pretext", "relative-patch", "--accumulate", "4"],
            "normalises over each of the --accumulate 4 parts of a batch; --batch-size must be at "
            "least 8",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    options: list[str], message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--data", str(photos), *options]) == 2
    assert message in capsys.readouterr().err
