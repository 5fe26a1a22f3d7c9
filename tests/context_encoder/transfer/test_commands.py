"""The transfer commands end to end, on a synthetic VOCdevkit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from context_encoder.data import read_image
from context_encoder.report import main as report
from context_encoder.train import main as pretrain
from context_encoder.transfer.__main__ import main
from context_encoder.transfer.classify import ClassifyConfig
from context_encoder.transfer.detect import Detect, DetectConfig
from context_encoder.transfer.proposals import find_proposals
from context_encoder.transfer.segment import SegmentConfig
from context_encoder.transfer.training import Training
from context_encoder.transfer.voc import read_split
from tests.helpers.vocdevkit import CLASSES, make_devkit, texture

SMALL = (
    "--model small --image-size 32 --device cpu --fc-dim 64 --dropout 0 --classes".split()
    + list(CLASSES)
)
# Options with which each task learns within seconds.
TASKS = {
    "voc-classify": "--steps 100 --batch-size 8 --lr 0.02 --scale 2.4 4 --test-crops 4",
    "voc-segment": "--steps 100 --batch-size 2 --lr 0.05 --momentum 0.9 --fc6-kernel 3",
    "voc-detect": "--steps 200 --lr 0.02 --rois 16 --roi-size 4 --short-side 128 "
    "--max-proposals 600",
}
FIGURE = {"voc-classify": "ap_area", "voc-segment": "iou", "voc-detect": "ap_area"}


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_devkit(tmp_path_factory.mktemp("devkit"))


def command(name: str, devkit: Path, out: Path, *options: str) -> int:
    return main(
        [name, "--voc", str(devkit), *SMALL, *TASKS[name].split(), "--out", str(out), *options]
    )


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", TASKS)
def test_it_learns(name: str, devkit: Path, tmp_path: Path) -> None:
    assert command(name, devkit, tmp_path / "trained") == 0
    assert command(name, devkit, tmp_path / "not", "--steps", "1", "--lr", "1e-12") == 0
    trained, untrained = (
        results(tmp_path / run)["metrics"][FIGURE[name]] for run in ("trained", "not")
    )
    # Without training: about the share of images with the class; background alone; nothing.
    assert trained > untrained + 0.1
    assert trained > {"voc-classify": 0.75, "voc-segment": 0.35, "voc-detect": 0.3}[name]
    lines = [json.loads(line) for line in (tmp_path / "trained/metrics.jsonl").open()]
    assert lines[-1]["split"] == "test"
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0]
    assert "| **mean** |" in (tmp_path / "trained/results.md").read_text()
    page = tmp_path / "both.html"
    assert report([str(tmp_path / "trained"), str(tmp_path / "not"), "--out", str(page)]) == 0
    text = page.read_text()
    assert f"<h2>Results of {name}</h2>" in text
    assert f"{100 * trained:.2f} %" in text


@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_a_signal_stopped_goes_on_bit_identically(
    name: str, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "4", "--dropout", "0.5")
    assert command(name, devkit, tmp_path / "whole", *options) == 0
    step = Training.train_step

    def interrupted(self: Training, samples: list[Any]) -> Any:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", interrupted)
        assert command(name, devkit, tmp_path / "parts", *options) == 128 + signal.SIGTERM
    part = tmp_path / "parts"
    assert json.loads((part / "checkpoints/last/state.json").read_text())["step"] == 2
    assert not (part / "results.json").exists()
    assert main([name, "--resume", str(part)]) == 0
    whole, parts = (
        load_file(tmp_path / run / "checkpoints/last/model.safetensors")
        for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for key in whole:
        assert whole[key].equal(parts[key]), key
    assert results(tmp_path / "whole")["metrics"] == results(part)["metrics"]


def test_detection_learns_where_objects_are(devkit: Path) -> None:
    """The runs above are too short for the box loss to fall much; in this one it falls."""
    config = DetectConfig(
        classes=CLASSES, model="small", image_size=32, fc_dim=64, dropout=0, rois=16, roi_size=4,
        short_side=128,
    )  # fmt: skip
    items = read_split(devkit, "VOC2007", "trainval", "Main", CLASSES)[:2]
    proposals = find_proposals(items, None, devkit / "unused.npz", 600)
    torch.manual_seed(0)
    task = Detect(config, config.load(0), items, items, proposals)
    samples = [
        task.sample(read_image(item.image), item, np.random.default_rng(0)) for item in items
    ]
    optimizer = torch.optim.SGD([*task.model.train().parameters()], lr=0.02, momentum=0.9)
    task.encoder.eval()
    losses = []
    for _ in range(200):
        loss = task.losses(samples, torch.device("cpu"))
        losses.append(float(loss["loss_box"]))
        loss["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


def test_boxes_beyond_the_picture_are_cut(devkit: Path, tmp_path: Path) -> None:
    boxes = [[-40, -30, 500, 400], [200, 200, 250, 250], [0, 0, 1e6, 1e6]]
    names = [f"{side}{n:05d}" for side, count in ((0, 24), (1, 16)) for n in range(count)]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(dict.fromkeys(names, boxes)))
    options = ("--steps", "2", "--proposals", str(file))
    assert command("voc-detect", devkit, tmp_path / "run", *options) == 0


def test_annotations_are_of_the_pixels_as_stored(tmp_path: Path) -> None:
    kit = make_devkit(tmp_path / "kit", 4, 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    for file in (kit / "VOC2007/JPEGImages").iterdir():
        Image.open(file).crop((0, 0, 96, 80)).save(file, exif=turned)
    for file in (kit / "VOC2007/SegmentationClass").iterdir():
        Image.open(file).crop((0, 0, 96, 80)).save(file)
    assert command("voc-segment", kit, tmp_path / "run", "--steps", "2") == 0
    Image.new("RGB", (9, 9)).save(kit / "VOC2007/JPEGImages/100001.jpg")
    assert command("voc-segment", kit, tmp_path / "other", "--steps", "2") == 2
    assert not (tmp_path / "other").exists()


def test_biases_learn_twice_as_fast() -> None:
    """Biases as in the published recipes: weight decay in classification only."""
    for name, kind, decays in (
        ("voc-classify", ClassifyConfig, True),
        ("voc-segment", SegmentConfig, False),
        ("voc-detect", DetectConfig, False),
    ):
        config = kind()
        task = SimpleNamespace(model=nn.Linear(2, 2), items=[])
        training = Training(config, task, torch.device("cpu"), "")
        training.learner.set_learning_rates(0.25)
        others, biases = training.learner.optimizers["model"].param_groups
        assert (others["lr"], biases["lr"]) == (config.lr / 4, config.lr / 2), name
        assert others["weight_decay"] == config.weight_decay
        assert biases["weight_decay"] == (config.weight_decay if decays else 0)


def test_a_run_is_resumed_by_its_checkpoint_too(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert command("voc-classify", devkit, run, "--steps", "1", "--test-crops", "1") == 0
    last = run / "checkpoints/last"
    assert main(["voc-classify", "--resume", str(last), "--steps", "2"]) == 0
    assert results(run)["steps"] == 2
    assert not (last / "checkpoints").exists()
    shutil.copytree(last, tmp_path / "alone")
    assert main(["voc-classify", "--resume", str(tmp_path / "alone"), "--steps", "3"]) == 2
    assert "outside its run folder" in capsys.readouterr().err
    other = ("--out", str(tmp_path / "other"))
    assert main(["voc-classify", "--resume", str(run), "--steps", "3", *other]) == 2
    assert "--out would change it" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved(devkit: Path, tmp_path: Path) -> None:
    options = ("--steps", "40", "--save-every", "1", "--log-every", "40", "--lr", "1e30")
    assert command("voc-detect", devkit, tmp_path, *options) == 1
    last = tmp_path / "checkpoints/last/model.safetensors"
    assert not last.exists() or all(v.isfinite().all() for v in load_file(last).values())


def test_an_interrupted_judgement_has_an_exit_status(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Detect, "evaluate", interrupted)
        assert command("voc-detect", devkit, tmp_path / "run", "--steps", "1") == 130
    assert main(["voc-detect", "--resume", str(tmp_path / "run")]) == 0
    assert results(tmp_path / "run")["steps"] == 1


def test_only_what_is_tuned_changes(devkit: Path, tmp_path: Path) -> None:
    for tune in ("all", "fc6-8", "fc8", "linear"):
        for run, steps in (("start", "1"), ("end", "3")):
            rate = "1e-30" if run == "start" else "0.01"
            options = ("--tune", tune, "--steps", steps, "--lr", rate)
            assert command("voc-classify", devkit, tmp_path / tune / run, *options) == 0
        before, after = (
            load_file(tmp_path / tune / run / "checkpoints/last/model.safetensors")
            for run in ("start", "end")
        )
        changed = {key.rsplit(".", 1)[0] for key in before if not before[key].equal(after[key])}
        encoder = {key for key in changed if key.startswith("encoder")}
        assert bool(encoder) == (tune == "all")
        head = {"all": "678", "fc6-8": "678", "fc8": "8", "linear": "8"}[tune]
        assert changed - encoder == {f"head.fc{n}" for n in head}
        # The statistics of batch normalisation stay those of the pretraining.
        assert not any(before[k].equal(after[k]) is False for k in before if "running" in k)


def test_transfer_from_a_run_with_an_unreadable_picture(tmp_path: Path) -> None:
    pretraining = tmp_path / "pretrained"
    options = "--preset laptop --size 32 --batch-size 4 --steps 2 --val-samples 4"
    options += " --device cpu --workers 0"
    assert pretrain([*options.split(), "--out", str(pretraining)]) == 0
    kit = make_devkit(tmp_path / "kit", 8, 8)
    (kit / "VOC2007/JPEGImages/000003.jpg").write_bytes(b"nonsense")
    (kit / "VOC2007/JPEGImages/100003.jpg").write_bytes(b"")
    for name in TASKS:
        run = tmp_path / name
        options = ("--steps", "8", "--batch-size", "2", "--checkpoint", str(pretraining))
        assert command(name, kit, run, *options) == 0
        assert results(run)["unreadable"] == 2
        assert results(run)["network"] == str(pretraining)
        assert results(run)["test_images"] == 7
        skipped = json.loads((run / "unreadable.jsonl").read_text())
        assert skipped["file"].endswith("000003.jpg")


def test_what_is_wrong_is_told_before_training(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    common = ("--voc", str(devkit), "--out", str(tmp_path / "run"), *SMALL)
    assert "there is no command 'nonsense'" in refused("nonsense")
    assert "does not exist" in refused("voc-segment", *common[2:], "--voc", str(tmp_path / "no"))
    assert "split 'minival' is missing" in refused(
        "voc-classify", *common, "--test-split", "minival"
    )
    assert "8 images are in split" in refused(
        "voc-classify", *common, "--voc", str(make_devkit(tmp_path / "kit", 8, 8)),
        "--test-split", "trainval",
    )  # fmt: skip
    more = (*common[: -len(CLASSES)], *CLASSES, "zebra")
    assert "no object (but difficult ones) of class zebra" in refused("voc-detect", *more)
    assert "no pixel of class zebra" in refused("voc-segment", *more)
    file = tmp_path / "few.json"
    file.write_text('{"000000": [[0, 0, 9, 9]]}')
    assert "has no proposals for 39 of 40 images, the first: 000001" in refused(
        "voc-detect", *common, "--proposals", str(file)
    )
    assert "holds no checkpoint" in refused("voc-classify", *common, "--checkpoint", str(devkit))
    assert command("voc-classify", devkit, tmp_path / "a", "--steps", "1") == 0
    assert main(["voc-classify", "--resume", str(tmp_path / "a"), "--lr", "1"]) == 2
    assert "--lr would change it" in capsys.readouterr().err
    assert command("voc-classify", devkit, tmp_path / "a", "--steps", "1") == 2
    assert "already holds a run" in capsys.readouterr().err


# --- probe --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textures of three classes, one file of them damaged."""
    root = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                size = (32, 32) if i % 2 else (50, 40)
                picture = Image.fromarray(texture(label, rng)).resize(size)
                picture.save(root / part / name / f"{i}.png")
    (root / "train/dots/0.png").write_bytes(b"nonsense")
    return root


def probe(out: Path, *options: str) -> int:
    return main(["probe", "--model", "small", "--device", "cpu", "--out", str(out), *options])


def test_probe_tells_classes_apart_and_keeps_features(folder: Path, tmp_path: Path) -> None:
    options = ("--data", str(folder), "--seeds", "0", "1", "--max-dims", "300")
    options += ("--image-size", "32", "--cache", str(tmp_path / "cache"))
    assert probe(tmp_path / "a", *options) == 0
    result = json.loads((tmp_path / "a/probe.json").read_text())
    assert (result["train_images"], result["test_images"], result["unreadable"]) == (35, 18, 1)
    assert list(result["layers"]) == ["pixels", "conv1", "conv2", "conv3", "channelwise_fc", "mix"]
    assert result["layers"]["conv2"]["accuracy"] > 0.9
    assert all(row["dims"] <= 300 for row in result["layers"].values())
    assert len(result["layers"]["mix"]["accuracies"]) == 2
    assert result["copies"] == 0
    assert result["chance"] == pytest.approx(1 / 3)
    assert "| conv1 |" in (tmp_path / "a/probe.md").read_text()
    # Results from the cache are equal to the last digit, and the damaged file is counted.
    cached = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(cached) == 2  # one for each seed's random weights
    assert probe(tmp_path / "b", *options) == 0
    again = json.loads((tmp_path / "b/probe.json").read_text())
    assert again["layers"] == result["layers"]
    assert again["unreadable"] == 1
    page = tmp_path / "both.html"
    assert report([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "<h2>Linear probes</h2>" in text
    assert f"{100 * result['layers']['conv2']['accuracy']:.2f} %" in text


def test_probe_splits_a_single_folder(folder: Path, tmp_path: Path) -> None:
    options = ("--data", str(folder / "train"), "--layers", "conv1", "--image-size", "32")
    assert probe(tmp_path, *options, "--test-fraction", "0.25") == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    assert (result["train_images"], result["test_images"]) == (26, 9)
    assert list(result["layers"]) == ["conv1"]


def test_probe_warns_of_copies_and_judges_chance_on_the_test_pictures(
    folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    for i in range(8):  # commonest in training: stripes; in the test: flame
        (data / f"train/flame/{i}.png").unlink()
        (data / f"train/dots/{i}.png").unlink()
        if i < 3:
            (data / f"test/stripes/{i}.png").unlink()
    shutil.copy(data / "train/dots/9.png", data / "test/dots/copy.png")
    options = ("--data", str(data), "--layers", "conv1", "--image-size", "32")
    assert probe(tmp_path / "out", *options) == 0
    result = json.loads((tmp_path / "out/probe.json").read_text())
    assert result["copies"] == 1
    assert result["chance"] == pytest.approx(3 / 16)
    assert "1 test images are copies" in (tmp_path / "out/probe.md").read_text()


def test_probe_refuses_what_does_not_fit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        assert probe(tmp_path / "out", *options) == 2
        return capsys.readouterr().err

    other = tmp_path / "other"
    for name in ("stripes", "spots"):
        (other / name).mkdir(parents=True)
    train = ("--train", str(folder / "train"))
    assert "only in the second: spots" in refused(*train, "--test", str(other))
    assert "no image in" in refused("--data", str(other))
    assert "0 sub-folders" in refused("--data", str(other / "spots"))
    assert "no layer fc9; this network has pixels, conv1" in refused(
        "--data", str(folder), "--layers", "fc9"
    )
