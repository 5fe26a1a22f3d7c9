"""The training command end to end, on synthetic images."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from context_encoder.config import TrainConfig
from context_encoder.models import build_model
from context_encoder.runs import (
    Photos,
    RunError,
    RunFolder,
    find_checkpoint,
    load_model,
    read_config,
)
from context_encoder.train import main
from context_encoder.training import NonFiniteError, Trainer
from context_encoder.utils.device import Processes, choose_device
from tests.helpers.small_runs import TINY, make_trainer, save_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve smooth images in nested folders."""
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 12, folders="abc")
    return root


def lines(run: Path, split: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def train(run: Path, photos: Path, *options: str) -> int:
    return main([*TINY, "--data", str(photos), "--out", str(run), *options])


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / which / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


def test_a_run_leaves_everything(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    assert train(run, photos, "--steps", "6", "--val-every", "3") == 0

    config = read_config(run)
    assert (config.size, config.steps, config.data) == (32, 6, photos)
    val = lines(run, "val")
    assert [row["step"] for row in val] == [3, 6]
    wanted = {"l1", "l2", "psnr", "ssim", "psnr_mean_fill", "psnr_context_mean_fill"}
    wanted |= {"psnr_membrane", "psnr_telea", "psnr_median", "psnr_membrane_median", "excluded"}
    assert all(wanted <= row.keys() for row in val)
    # Images and holes are fixed, so the metrics of fills without a network cannot change.
    for name in ("psnr_context_mean_fill", "psnr_membrane", "psnr_telea", "excluded"):
        assert val[0][name] == val[1][name]
    assert [row["step"] for row in lines(run, "train")] == [2, 4, 6]

    for step in (3, 6):
        with Image.open(run / "samples" / f"step_{step:07d}.png") as sheet:
            assert sheet.width > 3 * 128
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("val/psnr")] == [3, 6]
    best = json.loads((run / "checkpoints/best/state.json").read_text())["step"]
    assert best == max(val, key=lambda row: row["psnr"])["step"]
    assert not [p for p in run.rglob("*") if p.suffix in {".pt", ".pth", ".pkl", ".ckpt"}]

    loaded = load_model(run, which="last")
    assert not loaded.model.training
    assert loaded.step == 6
    fresh = build_model("membrane-unet", image_size=32)
    assert loaded.model.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "laptop"),
        ("--preset", "laptop", "--lambda-adv", "0.001", "--overlap", "2"),
        ("--warmup-steps", "0"),
        ("--lambda-adv", "0.1", "--amp", "bf16"),
    ],
    ids=["small", "adversarial", "membrane", "membrane-adversarial"],
)
def test_resuming_gives_the_run_that_was_never_stopped(
    tmp_path: Path, photos: Path, options: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = ("--lr-schedule", "constant", "--val-every", "2", *options)
    assert train(whole, photos, "--steps", "4", *every) == 0
    assert train(parts, photos, "--steps", "2", *every) == 0
    assert main(["--resume", str(parts), "--steps", "4"]) == 0
    assert_same_weights(whole, parts)
    for split in ("train", "val"):
        for a, b in zip(lines(whole, split), lines(parts, split), strict=True):
            a.pop("images_per_s", None)
            b.pop("images_per_s", None)
            assert a == b


def test_dropout_resumes_too(tmp_path: Path, photos: Path) -> None:
    """The generators' state is saved: with dropout, the second half continues its draws."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = "--model alexnet --size 99 --batch-size 2 --val-samples 2 --val-every 1".split()
    assert train(whole, photos, "--steps", "2", *every) == 0
    assert train(parts, photos, "--steps", "1", *every) == 0
    assert main(["--resume", str(parts), "--steps", "2"]) == 0
    assert_same_weights(whole, parts)


def test_number_of_workers_changes_nothing(tmp_path: Path, photos: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert train(a, photos, "--steps", "3") == 0
    assert train(b, photos, "--steps", "3", "--workers", "2") == 0
    assert_same_weights(a, b)


def torchrun(script: list[str]) -> None:
    """Run a module or file in two processes, on a free port, one thread each."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, *launch, *script], check=True, env=env)


def test_two_processes_train_together(tmp_path: Path, photos: Path) -> None:
    """Without batch norm, two processes with half a batch each equal one with the whole batch."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for source in photos.rglob("*.png"):
        (folder / source.name).write_bytes(source.read_bytes())
        (folder / f"{source.stem}-bad.jpg").write_bytes(b"")
    rest = [
        *TINY, "--model", "alexnet", "--size", "99", "--dropout", "0", "--steps", "2",
        "--val-samples", "2", "--data", str(folder),
    ]  # fmt: skip
    single, double = tmp_path / "single", tmp_path / "double"
    assert main([*rest, "--out", str(single)]) == 0
    torchrun(["-m", "context_encoder.train", *rest, "--out", str(double)])
    for name, value in weights(single).items():
        # With Adam, rounding differences of tiny gradients become differences of a whole step.
        torch.testing.assert_close(weights(double)[name], value, atol=5e-5, rtol=1e-3, msg=name)
    for a, b in zip(lines(single, "train"), lines(double, "train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    # Each process reads other files; the run folder names all unreadable ones.
    named = [
        {json.loads(line)["file"] for line in (run / "unreadable.jsonl").read_text().splitlines()}
        for run in (single, double)
    ]
    assert named[0] == named[1]
    assert len(named[0]) > 2


_GRADIENTS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from context_encoder.config import TrainConfig
from context_encoder.runs import Photos
from context_encoder.training import resolve
from context_encoder.utils.device import Processes
from context_encoder.training import Trainer

processes = Processes.from_environment()
if processes.world_size > 1:
    dist.init_process_group("gloo")
gradients = {}
for options in ({}, {"normalize": "all"}, {"pretext": "denoising"}):
    config = TrainConfig(
        model="alexnet", size=99, batch_size=4, workers=0, data=Path(sys.argv[1]), **options
    )
    photos = Photos.from_config(config)
    trainer = Trainer(resolve(config, photos), photos, torch.device("cpu"), processes)
    batch, _ = next(trainer.batches())
    trainer.learner.update_weights = lambda name: None  # would clear the gradients
    trainer.train_step(batch)
    for name, parameter in trainer.model.named_parameters():
        gradients["/".join((*options.values(), name))] = parameter.grad.contiguous()
if processes.first:
    save_file(gradients, sys.argv[2])
if processes.world_size > 1:
    dist.destroy_process_group()
"""


_TOGETHER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from context_encoder.config import TrainConfig
from context_encoder.runs import Photos
from context_encoder.training import resolve
from context_encoder.utils.device import Processes
from context_encoder.training import NonFiniteError, Trainer

processes = Processes.from_environment()
dist.init_process_group("gloo")
config = TrainConfig(
    size=32, batch_size=4, workers=0, val_samples=2, steps=4, val_every=2, data=Path(sys.argv[1])
)
photos = Photos.from_config(config)
trainer = Trainer(resolve(config, photos), photos, torch.device("cpu"), processes)
trainer.pretext.validate = lambda samples: ({"psnr": torch.full((2,), torch.nan)}, [])
try:
    trainer.fit(None)
except NonFiniteError as error:
    Path(sys.argv[2], str(processes.rank)).write_text(f"{trainer.step} {error}")
dist.destroy_process_group()
"""


def test_two_processes_stop_together_where_validation_fails(tmp_path: Path, photos: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    torchrun([str(script), str(photos), str(tmp_path)])
    for rank in "01":
        assert "2 the output for held-out images is not finite" in (tmp_path / rank).read_text()


def test_two_processes_have_the_gradients_of_one(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the loss is divided by the area of masks that differ between processes."""
    script = tmp_path / "gradients.py"
    script.write_text(_GRADIENTS)
    outs = [str(tmp_path / f"{count}.safetensors") for count in (1, 2)]
    monkeypatch.setattr(sys, "argv", [str(script), str(photos), outs[0]])
    runpy.run_path(str(script))
    torchrun([str(script), str(photos), outs[1]])
    one, two = map(load_file, outs)
    assert len(one) > 50
    for name, value in one.items():
        assert value.abs().max() > 0, name
        error = (two[name] - value).abs().max() / value.abs().max()
        assert error < 1e-4, name


_ADVERSARIAL = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from context_encoder.config import TrainConfig
from context_encoder.runs import Photos
from context_encoder.training import Trainer, resolve
from context_encoder.utils.device import Processes

processes = Processes.from_environment()
dist.init_process_group("gloo")
weights = {}
for preset in ("laptop", "membrane-unet"):
    config = TrainConfig(
        preset=preset, size=32, batch_size=4, workers=0, steps=2, lambda_adv=0.5, val_samples=2,
        data=Path(sys.argv[1]),
    )
    photos = Photos.from_config(config)
    trainer = Trainer(resolve(config, photos), photos, torch.device("cpu"), processes)
    trainer.prepare()
    for step, (batch, _) in enumerate(trainer.batches()):
        trainer.train_step(batch)
        for name, part in trainer.pretext.parts().items():
            for key, value in part.module.named_parameters():
                value = value.detach().clone(memory_format=torch.contiguous_format)
                weights[f"{preset}/{step}/{name}/{key}"] = value
save_file(weights, Path(sys.argv[2], f"{processes.rank}.safetensors"))
dist.destroy_process_group()
"""


def test_two_processes_keep_the_same_model_and_discriminator(tmp_path: Path, photos: Path) -> None:
    """Their images differ, so without shared gradients their weights would differ."""
    script = tmp_path / "adversarial.py"
    script.write_text(_ADVERSARIAL)
    torchrun([str(script), str(photos), str(tmp_path)])
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert any("discriminator" in name for name in one)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
        # The corrections start at 0: what a residual block adds is trained from the third step on.
        if "/0/" in name and not ("membrane" in name and "refine" in name):
            assert not torch.equal(value, one[name.replace("/0/", "/1/")]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, photos: Path, workers: int) -> None:
    """Signal to the whole process group with data workers, as from torchrun, Slurm and timeout."""
    run = tmp_path / "run"
    script = [
        sys.executable, "-m", "context_encoder.train", *TINY, "--workers", str(workers),
        "--data", str(photos), "--steps", "100000", "--out", str(run),
    ]  # fmt: skip
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while process.stderr.readline() and not (run / "metrics.jsonl").exists():
        pass
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert f"--resume {run}" in errors
    assert "SIGTERM" in (run / "log.txt").read_text()
    step = json.loads((run / "checkpoints/last/state.json").read_text())["step"]
    assert 0 < step < 100_000
    assert main(["--resume", str(run), "--steps", str(step + 1)]) == 0


def test_a_run_that_was_moved_goes_on_where_it_lies(tmp_path: Path, photos: Path) -> None:
    assert train(tmp_path / "a", photos, "--steps", "1") == 0
    (tmp_path / "a").rename(tmp_path / "b")
    with (tmp_path / "b/metrics.jsonl").open("a") as file:
        file.write('{"split": "tra')  # an incomplete line
    assert main(["--resume", str(tmp_path / "b"), "--steps", "2"]) == 0
    assert not (tmp_path / "a").exists()
    assert [row["step"] for row in lines(tmp_path / "b", "val")] == [1, 2]
    again = ["--config", str(tmp_path / "b/config.json"), "--out", str(tmp_path / "c")]
    assert main([*again, "--steps", "1"]) == 0


def test_held_out_folder_inside_the_data_is_not_trained_on(tmp_path: Path, photos: Path) -> None:
    files = Photos.from_config(TrainConfig(data=photos, val_data=photos / "a"))
    assert len(files.train) == 8
    assert len(files.val) == 4
    assert not set(files.train) & set(files.val)


def started(run: Path, trainer: Trainer) -> RunFolder:
    folder = RunFolder(run)
    folder.start(trainer.config)
    return folder


def test_a_loss_that_is_not_finite_stops_and_keeps_the_good_checkpoint(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(photos, steps=8, val_every=2, log_every=2)
    real = trainer.train_step

    def spoilt(batch: dict[str, object]) -> dict[str, torch.Tensor]:
        losses = real(batch)
        if trainer.step >= 4:
            losses["loss"] = losses["loss"] * float("nan")
        return losses

    monkeypatch.setattr(trainer, "train_step", spoilt)
    with pytest.raises(NonFiniteError, match=r"loss is nan .* step 6"):
        trainer.fit(started(tmp_path, trainer))
    assert json.loads((tmp_path / "checkpoints/last/state.json").read_text())["step"] == 4


def test_the_run_s_log_says_why_it_stopped_and_is_closed(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.train_step

    def spoilt(self: Trainer, batch: dict[str, object]) -> dict[str, torch.Tensor]:
        losses = real(self, batch)
        return losses | {"loss": losses["loss"] * float("nan")}

    monkeypatch.setattr(Trainer, "train_step", spoilt)
    assert train(tmp_path / "a", photos, "--steps", "4") == 1
    text = (tmp_path / "a/log.txt").read_text()
    assert "stopped: loss is nan" in text
    monkeypatch.undo()
    # A second run in the same process writes to its own log only.
    assert train(tmp_path / "b", photos, "--steps", "1") == 0
    assert (tmp_path / "a/log.txt").read_text() == text
    assert (tmp_path / "b/log.txt").read_text().count("done: 1 steps") == 1


def test_other_processes_end_with_the_same_status_and_without_a_traceback(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: Trainer, run: object) -> None:
        assert run is None
        raise NonFiniteError("loss is nan")

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr(Processes, "from_environment", lambda: Processes(rank=1))
    assert train(tmp_path / "a", photos, "--steps", "1") == 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, photos: Path) -> None:
    trainer = make_trainer(photos, steps=1)
    with torch.no_grad():
        next(iter(trainer.model.parameters())).fill_(float("inf"))
    trainer.run = started(tmp_path, trainer)
    with pytest.raises(NonFiniteError):
        trainer.save()
    assert not (tmp_path / "checkpoints").exists()


def test_a_step_reads_nothing_back_from_the_device(tmp_path: Path, photos: Path) -> None:
    """No op of a step returns a number to the host, which would have to wait for a GPU."""
    trainer = make_trainer(photos, steps=1, lambda_adv=0.001, overlap=2)
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    batch, _ = next(trainer.batches())
    with Watch():
        trainer.train_step(batch)
    assert calls
    assert not {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"} & set(calls)


def test_unreadable_files_are_skipped_and_named_once(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for source in photos.rglob("*.png"):
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not a picture</html>")
    run = tmp_path / "run"
    assert train(run, folder, "--steps", "8") == 0
    rows = [json.loads(line) for line in (run / "unreadable.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == ["empty.jpg", "page.jpg"]
    assert all(row["reason"] for row in rows)
    assert caplog.text.count("skipped empty.jpg") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{missing}"], "missing"),
        (["--data", "{file}"], "at least 2 images are needed"),
        (["--data", "{empty}"], "image"),
        (["--size", "20"], "size"),
        (["--model", "alexnet", "--size", "40"], "size"),
        (["--model", "dcgan-center", "--size", "128", "--mask", "region"], "central"),
        (["--mask", "folder", "--mask-folder", "{empty}"], "empty"),
        (["--mask", "voc", "--voc-root", "{missing}"], "VOC"),
        (["--device", "cuda"], "cuda"),
        (["--device", "nonsense"], "nonsense"),
        (["--resize", "10"], "resize"),
        (["--steps", "0"], "error: --steps must be at least 1, got 0"),
        (["--dropout", "0.5"], "error: --dropout would do nothing"),
        (["--pretext", "autoencoder", "--mask", "region"], "error: --mask would do nothing"),
        (["--crop-scale", "0.1", "7"], "crop-scale"),
        (["--resume", "{missing}"], "missing"),
        (["--config", "{missing}"], "missing"),
    ],
)
def test_wrong_use_is_one_clear_line(
    tmp_path: Path,
    photos: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "missing": tmp_path / "missing",
        "file": tmp_path / "file",
        "empty": tmp_path / "empty",
    }
    names["file"].write_text("x")
    names["empty"].mkdir()
    options = [option.format(**names) for option in options]
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = [*TINY, "--data", str(photos), "--steps", "1", "--out", str(tmp_path / "run")]
    if "--resume" in options:
        arguments = []
    try:
        status = main([*arguments, *options])
    except SystemExit as stop:  # tyro reports errors by SystemExit
        status = int(stop.code or 0)
    assert status == 2
    captured = capsys.readouterr()
    assert message.lower() in (captured.err + captured.out).lower()
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_written_over(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    assert train(run, photos, "--steps", "1") == 0
    before = weights(run)
    assert train(run, photos, "--steps", "1") == 2
    assert all(torch.equal(value, weights(run)[name]) for name, value in before.items())


def test_resume_refuses_what_would_change_the_run(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, photos, "--steps", "1") == 0
    assert main(["--resume", str(run), "--steps", "2", "--mask", "block"]) == 2
    assert "--mask" in capsys.readouterr().err
    assert main(["--resume", str(run)]) == 2
    assert "--steps" in capsys.readouterr().err
    other = tmp_path / "other"
    (other / "d").mkdir(parents=True)
    for i, source in enumerate(sorted(photos.rglob("*.png"))[:5]):
        (other / "d" / f"{i}.png").write_bytes(source.read_bytes())
    assert main(["--resume", str(run), "--steps", "2", "--data", str(other)]) == 2
    assert "photographs have changed" in capsys.readouterr().err


def test_damaged_checkpoints_give_an_error_that_names_them(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    assert train(run, photos, "--steps", "1") == 0
    model = run / "checkpoints/best/model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        load_model(run)
    with pytest.raises(RunError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(RunError, match="no checkpoint"):
        load_model(photos)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    assert train(run, photos, "--steps", "1") == 0
    (run / "checkpoints/last").rename(run / "checkpoints/.last.old")
    assert find_checkpoint(run, "last").name == ".last.old"


def test_mixed_precision_runs(tmp_path: Path, photos: Path) -> None:
    assert train(tmp_path / "run", photos, "--steps", "2", "--amp", "bf16") == 0
    for value in weights(tmp_path / "run").values():
        assert value.dtype in (torch.float32, torch.int64)


def test_choose_device() -> None:
    assert choose_device("cpu", Processes()).type == "cpu"
    with pytest.raises(ValueError, match="`device` must be auto"):
        choose_device("warp", Processes())


def test_a_run_stopped_before_its_first_step_can_be_resumed(tmp_path: Path, photos: Path) -> None:
    trainer = make_trainer(photos, steps=3)
    trainer.stop_requested = True
    assert trainer.fit(started(tmp_path, trainer)).interrupted
    assert main(["--resume", str(tmp_path)]) == 0
    assert lines(tmp_path, "val")[-1]["step"] == 3


def test_held_out_files_that_cannot_be_read_are_not_replaced(tmp_path: Path, photos: Path) -> None:
    """Each held-out image is evaluated once, not again in place of an unreadable one."""
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for i, source in enumerate(sorted(photos.rglob("*.png"))[:3]):
        (held_out / f"{i}.png").write_bytes(source.read_bytes())
    (held_out / "1.png").write_bytes(b"no picture")
    trainer = make_trainer(photos, steps=1, val_data=held_out)
    trainer.prepare()
    assert trainer.held_out is not None
    assert len(trainer.held_out) < 4  # of 2 crops of 3 files
    assert trainer.unreadable == {"1.png"}
