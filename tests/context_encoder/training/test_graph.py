"""A captured training step: what may be captured, and that replaying it trains as before.

No GPU is needed: tests.helpers.capture checks the rules and stands in for CUDA graphs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from context_encoder.config import TrainConfig
from context_encoder.runs import Photos
from context_encoder.train import main
from context_encoder.training import Trainer, graph, resolve, run
from context_encoder.training.graph import CapturedStep, check_capture
from context_encoder.utils.device import Processes
from tests.helpers.capture import CaptureRules, ForbiddenInCaptureError, record_on_cpu
from tests.helpers.small_runs import TINY, save_photos

CPU, META = torch.device("cpu"), torch.device("meta")
STEPS = 4
ADVERSARIAL = {"lambda_adv": 0.01, "overlap": 2}
#: Together: every pretext, every kind of mask that is drawn, every loss.
CASES: dict[str, dict[str, Any]] = {
    "adversarial": {**ADVERSARIAL, "mask": "region", "ema": 0.9, "warmup_steps": 2},
    "block": {"mask": "block", "loss": "log-l2"},
    "blob": {"mask": "blob", "loss": "l1"},
    "accumulated": {**ADVERSARIAL, "mask": "block", "accumulate": 2},
    "membrane-unet": {"preset": "membrane-unet"},
    "alexnet": {"model": "alexnet", "size": 99, "resize": 110, "batch_size": 2},  # dropout
    "autoencoder": {"pretext": "autoencoder"},
    "denoising": {"pretext": "denoising"},
    "relative-patch": {"pretext": "relative-patch"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 8)
    return root


def make(photos: Path, device: torch.device = CPU, **options: Any) -> Trainer:
    values = {"size": 32, "batch_size": 4, "workers": 0, "data": photos, "preset": "laptop"}
    if options.get("model") == "alexnet":
        values |= {"dropout": 0.5}
    config = TrainConfig.model_validate({**values, "steps": STEPS, **options})
    files = Photos.from_config(config)
    resolved = resolve(config, files)
    return Trainer(resolved, files, device, Processes(), record=record_on_cpu)


# --- the rules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "breach",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.unique(x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.equal(x, x),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x + torch.as_tensor([1.0, 2.0, 3.0]),
    ],
)
def test_the_rules_find_what_a_capture_forbids(breach: Callable[[Tensor], object]) -> None:
    with CaptureRules(), pytest.raises(ForbiddenInCaptureError):
        breach(torch.arange(3.0))


@pytest.mark.parametrize(
    "breach",
    [
        lambda x, host: x.cpu(),
        lambda x, host: x.to("cpu", torch.float64),
        lambda x, host: x.copy_(host),
        lambda x, host: host.to(x.device),
        lambda x, host: torch.zeros(3),
        lambda x, host: x * host.sum(),  # one number, which would become a constant
    ],
)
def test_the_rules_find_copies_between_host_and_device(breach: Callable[..., object]) -> None:
    x, host = torch.empty(3, device=META), torch.ones(3)
    with CaptureRules("meta"), pytest.raises(ForbiddenInCaptureError):
        breach(x, host)


def test_the_rules_allow_what_stays_on_the_device() -> None:
    x, index = torch.empty(3, device=META), torch.empty(2, dtype=torch.int64, device=META)
    with CaptureRules("meta") as rules:
        (x[index] * 2 + torch.zeros(2, device=META)).clamp(min=0).sum().to(torch.float64)
        torch.where(x > 0, x, 0.0)
    assert rules.names


@pytest.mark.parametrize("case", CASES)
def test_the_step_obeys_the_rules(case: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no values: nothing can have been read from it."""
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    trainer = make(photos, META, **CASES[case])
    trainer.prepare()
    (batch, _), size = next(trainer.batches()), trainer.pretext.crop_size(trainer.config)
    assert batch["image"].shape[2:] == (size, size)
    inputs = {name: batch[name].to(META) for name in ("image", "epoch", "index")}
    with CaptureRules("meta") as rules:
        losses = trainer._on_device(**inputs)
    assert rules.names.count("aten::_fused_adam_") == len(trainer.learner.optimizers)
    assert all(loss.is_meta and loss.dim() == 0 for loss in losses.values())


# --- replays ----------------------------------------------------------------------------------


def train(trainer: Trainer) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    trainer.prepare()
    found = []
    for batch, _ in trainer.batches():
        losses = trainer.train_step(batch)
        trainer.step += 1
        found.append({name: loss.clone() for name, loss in losses.items()})
    assert trainer.step == STEPS
    trainer.random = torch.get_rng_state()  # type: ignore[attr-defined]
    return found


def everything(trainer: Trainer) -> dict[str, Tensor]:
    found = {
        f"{n}.{k}": v for n, p in trainer._parts.items() for k, v in p.module.state_dict().items()
    }
    if trainer.average is not None:
        found |= {f"average.{k}": v for k, v in trainer.average.module.state_dict().items()}
    found |= trainer.loop_state()[0] | {"random.cpu.0": trainer.random}  # type: ignore[attr-defined]
    return found | {f"scale.{i}": t for i, t in enumerate(trainer.learner.scale_tensors())}


def different(one: Trainer, other: Trainer) -> list[str]:
    """Names of weights, statistics, averages, optimizers' and generators' states that differ."""
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_trains_bit_for_bit_as_the_plain_one(case: str, photos: Path) -> None:
    plain, captured = make(photos, **CASES[case]), make(photos, **CASES[case], graph=True)
    assert isinstance(captured._step, CapturedStep)
    wanted, found = train(plain), train(captured)
    assert [list(losses) for losses in found] == [list(losses) for losses in wanted]
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for name, loss in theirs.items():
            assert torch.equal(ours[name], loss), (step, name)
    assert different(plain, captured) == []


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_so_it_does_in_mixed_precision(amp: str, photos: Path) -> None:
    """Also where fp16 leaves out an update and lowers its scale."""
    plain, captured = (make(photos, amp=amp, graph=g) for g in (False, True))
    for trainer in (plain, captured):
        trainer.learner.scaler._init_scale = 2.0**25
        train(trainer)
    assert different(plain, captured) == []
    if amp == "fp16":
        assert 0 < captured.learner.scaler.get_scale() < 2.0**25


def test_compiled_networks_are_captured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def backend(module: Any, _: Any) -> Any:
        compiled.append(module)
        return module.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile(network, backend=backend))
    plain, captured = (make(photos, compile=True, graph=g) for g in (False, True))
    for trainer in (plain, captured):
        torch._dynamo.reset()
        compiled.clear()
        train(trainer)
        assert compiled
    assert different(plain, captured) == []


def test_numbers_of_python_would_become_constants(photos: Path) -> None:
    """The comparison finds what the step must not do: the stand-in replays numbers as recorded."""
    plain, captured = (make(photos, graph=graph) for graph in (False, True))
    for group in captured.learner.optimizers["model"].param_groups:
        group["lr"] = float(group["lr"])
    train(plain)
    train(captured)
    assert different(plain, captured)


def test_the_first_call_runs_the_self_tests_before_it_records(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    trainer = make(photos, graph=True)
    step = trainer._step
    assert isinstance(step, CapturedStep)
    monkeypatch.setattr(graph, "warm_up", lambda device: order.append(f"warm_up {device}"))
    inner, record = step._step, step._record
    monkeypatch.setattr(step, "_step", lambda **batch: order.append("run") or inner(**batch))
    monkeypatch.setattr(step, "_record", lambda f: order.append("record") or record(f))
    train(trainer)
    assert order == ["warm_up cpu", *["run"] * graph._WARM_UP, "record", "run"]


def test_a_batch_of_another_size_is_refused(photos: Path) -> None:
    trainer = make(photos, graph=True)
    trainer.prepare()
    batch, _ = next(trainer.batches())
    trainer.train_step(batch)
    small = {name: value[:1] for name, value in batch.items()}
    with pytest.raises(ValueError, match=r"image of shape \(4, 3, 32, 32\), got \(1, 3, 32, 32\)"):
        trainer.train_step(small)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_trains_with_a_graph_as_without(case: str, amp: str, photos: Path) -> None:
    """Within rounding: cuDNN may add in another order, and Adam turns that into steps."""
    found = []
    for captured in (False, True):
        trainer = make(photos, torch.device("cuda", 0), **CASES[case], amp=amp, graph=captured)
        if captured:
            assert isinstance(trainer._step, CapturedStep)
            trainer._step._record = graph.cuda_graph
        found.append(train(trainer))
    for step, (plain, replayed) in enumerate(zip(*found, strict=True)):
        for name, loss in plain.items():
            torch.testing.assert_close(
                replayed[name], loss, rtol=1e-3 if amp == "off" else 5e-2, atol=1e-3,
                msg=lambda text, s=step, n=name: f"{n} of step {s}: {text}",
            )  # fmt: skip


# --- runs -------------------------------------------------------------------------------------


def lines(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for timed in ("images_per_s", "time"):
            row.pop(timed, None)
    return rows


def test_a_captured_run_logs_validates_saves_and_resumes_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, "--data", str(photos), "--val-every", "3", "--ema", "0.9", "--mask", "region"]
    options += ["--lambda-adv", "0.01"]
    assert main([*options, "--steps", "7", "--out", str(tmp_path / "plain")]) == 0
    monkeypatch.setattr(run, "check_capture", lambda *_: None)
    monkeypatch.setattr(run, "Trainer", functools.partial(Trainer, record=record_on_cpu))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*options, "--graph", "--steps", "7", "--out", str(whole)]) == 0
    assert lines(whole) == lines(tmp_path / "plain")

    step = Trainer.train_step

    def stop_at_4(self: Trainer, batch: Any) -> Any:
        self.stop_requested |= self.step == 3
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", stop_at_4)
    main([*options, "--graph", "--steps", "7", "--out", str(parts)])
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(["--resume", str(parts)]) == 0
    assert lines(parts) == lines(whole)
    for file in ("model", "discriminator", "training"):
        saved = [
            load_file(tmp_path / name / "checkpoints" / "last" / f"{file}.safetensors")
            for name in ("plain", "whole", "parts")
        ]
        for name, value in saved[0].items():
            assert torch.equal(value, saved[1][name]), name
            assert torch.equal(value, saved[2][name]), name


def test_a_cpu_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*TINY, "--data", str(photos), "--graph", "--out", str(out)]) == 2
    assert (
        "--graph captures the step in a CUDA graph, this run is on cpu" in capsys.readouterr().err
    )
    assert not out.exists()


def test_a_captured_run_resumes_on_a_cpu_without_its_graph(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "check_capture", lambda *_: None)
        patch.setattr(run, "Trainer", functools.partial(Trainer, record=record_on_cpu))
        options = ["--steps", "1", "--graph", "--out", str(out)]
        assert main([*TINY, "--data", str(photos), *options]) == 0
    assert main(["--resume", str(out), "--steps", "2"]) == 2
    assert "or give --no-graph" in capsys.readouterr().err
    assert main(["--resume", str(out), "--steps", "2", "--no-graph"]) == 0


def test_several_processes_are_refused() -> None:
    cuda = torch.device("cuda", 0)
    check_capture(cuda, Processes())
    with pytest.raises(ValueError, match="of one process, this run has 2"):
        check_capture(cuda, Processes(1, 1, 2))
