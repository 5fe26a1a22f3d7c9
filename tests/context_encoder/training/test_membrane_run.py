"""A run of the network that corrects the membrane: its step, its average, and every command."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cekernels import remove_seam
from context_encoder import evaluate, features, neighbours, train, weights
from context_encoder.inpainting.hole_filler import HoleFiller
from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.models import MembraneUNet
from context_encoder.pretexts import Inpainting
from context_encoder.runs import RunError, load_model
from context_encoder.training.validation import validate
from context_encoder.transfer.__main__ import main as transfer
from tests.helpers.known_networks import box_mask, noise
from tests.helpers.small_runs import TINY, make_trainer, save_photos, save_untrained


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 12, folders="ab")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--data", str(photos), "--steps", "4", "--val-every", "2", "--out", str(out)]
    assert train.main([*TINY, *options]) == 0
    return out


def last(trainer_run: Path) -> dict[str, torch.Tensor]:
    return load_file(trainer_run / "checkpoints/last/model.safetensors")


# --- training ---------------------------------------------------------------------------------


def test_a_step_minimizes_the_logarithm_of_each_image_s_error(photos: Path) -> None:
    """A loop by hand: Adam on the mean log of squared errors in the holes, warmup, average."""
    options = {"lr": 1e-3, "lr_schedule": "constant", "warmup_steps": 1, "channels_last": False}
    trainer = make_trainer(photos, preset="membrane-unet", steps=3, ema=0.5, **options)
    pretext = trainer.pretext
    assert isinstance(pretext, Inpainting)
    model = copy.deepcopy(pretext.model)
    assert isinstance(model, MembraneUNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    average: dict[str, torch.Tensor] = {}
    trainer.prepare()
    model.train()
    for step, (batch, _) in enumerate(trainer.batches()):
        losses = trainer.train_step(batch)
        trainer.step += 1
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2)
        image = batch["image"].float() / 127.5 - 1
        mask = pretext.masks(batch["epoch"], batch["index"])[0]
        squared = (model(image, mask) - image).square()
        errors = [squared[i][:, mask[i, 0]].mean() for i in range(len(image))]
        loss = torch.stack([(error + 1e-4).log() for error in errors]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert losses["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        share = 1.0 if step == 0 else max(0.5, 9 / (10 + step))
        for name, value in model.state_dict().items():
            old = average.get(name, torch.zeros_like(value))
            average[name] = (
                old + share * (value - old) if value.is_floating_point() else value.clone()
            )
    assert trainer.average is not None
    for name, value in trainer.average.module.state_dict().items():
        torch.testing.assert_close(value, average[name], atol=2e-5, rtol=1e-3, msg=name)


def test_the_average_is_judged_and_saved_and_training_goes_on_without_it(
    photos: Path, run: Path
) -> None:
    trainer = make_trainer(photos, preset="membrane-unet", ema=0.9, warmup_steps=0)
    trainer.prepare()
    for batch, _ in trainer.batches():
        trainer.train_step(batch)
        trainer.step += 1
        if trainer.step == 4:
            break
    assert trainer.held_out is not None
    assert trainer.average is not None
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.validate()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, trained[name]), name
    cpu = torch.device("cpu")
    own = validate(trainer.pretext, trainer.held_out, cpu, 4).metrics["psnr"]
    trainer.model.load_state_dict(trainer.average.module.state_dict())
    averaged = validate(trainer.pretext, trainer.held_out, cpu, 4).metrics["psnr"]
    assert trainer.latest["psnr"] == averaged != own
    checkpoint = trainer._contents().model
    assert all(
        torch.equal(checkpoint[n], v) for n, v in trainer.average.module.state_dict().items()
    )

    # A run folder: the network is the average, the trained weights are kept to go on.
    training = load_file(run / "checkpoints/last/training.safetensors")
    saved = last(run)
    assert {name for name in training if name.startswith("trained.")} == {
        f"trained.{name}" for name in saved
    }
    assert any(not torch.equal(training[f"trained.{name}"], value) for name, value in saved.items())


def test_the_decay_of_the_average_cannot_change_on_resume(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--resume", str(run), "--steps", "8", "--ema", "0.5"]) == 2
    assert "--ema" in capsys.readouterr().err
    assert train.main(["--resume", str(run), "--steps", "8", "--no-skips"]) == 2
    assert "--skips" in capsys.readouterr().err


@pytest.mark.parametrize("pretext", ["autoencoder", "denoising", "relative-patch"])
def test_pretexts_without_holes_refuse_it(
    photos: Path, tmp_path: Path, pretext: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--model", "membrane-unet", "--pretext", pretext, "--loss", "l2", "--overlap", "7"]
    if pretext == "relative-patch":
        options = options[:4]
    elif pretext != "inpainting":
        options = options[:6]
    status = train.main([*TINY, *options, "--data", str(photos), "--out", str(out)])
    assert status == 2
    message = capsys.readouterr().err
    assert "needs the mask of a hole" in message
    assert "--model alexnet, alexnet-poolfree" in message
    assert not out.exists()


# --- filling ----------------------------------------------------------------------------------


def test_before_training_a_run_fills_pictures_of_any_size_with_their_membrane(
    tmp_path: Path,
) -> None:
    """At the picture's own resolution, in windows of several sizes; another implementation."""
    run = save_untrained(tmp_path / "run", 0, preset="membrane-unet")
    image = noise(150, 200, 3)
    mask = box_mask(150, 200, (10, 20, 14, 25), (40, 60, 110, 150), (120, 5, 122, 190))
    known = torch.from_numpy(np.where(mask[..., None], 0, image / np.float32(127.5) - 1))
    expected = remove_seam(known.permute(2, 0, 1)[None].float(), torch.from_numpy(mask)[None, None])
    wanted = (expected[0].permute(1, 2, 0).numpy() + 1) * 127.5
    for blend in (True, False):
        filled = np.asarray(Inpainter.from_run(run, blend=blend)(image, mask).image)
        assert np.array_equal(filled[~mask], image[~mask])
        assert np.abs(filled - wanted)[mask].max() < 0.6


def test_corrections_reach_the_picture_and_the_texture_s_guide(run: Path, tmp_path: Path) -> None:
    untrained = save_untrained(tmp_path / "run", 0, preset="membrane-unet")
    image, mask = noise(90, 120, 3), box_mask(90, 120, (30, 40, 60, 80))
    inpainter = Inpainter.from_run(run)
    inpainter.model.heads["head2"].bias.data.fill_(0.5)  # type: ignore[union-attr,operator,index]
    corrected = np.asarray(inpainter(image, mask).image).astype(int)
    membrane = np.asarray(Inpainter.from_run(untrained)(image, mask).image).astype(int)
    assert np.abs(corrected - membrane)[40:50, 55:65].mean() > 0.5
    assert np.array_equal(corrected[~mask], membrane[~mask])
    assert np.array_equal(np.asarray(HoleFiller(inpainter)(image, mask).image)[~mask], image[~mask])


def test_a_prediction_that_is_not_finite_is_refused(run: Path) -> None:
    inpainter = Inpainter.from_run(run)
    inpainter.model.heads["head2"].bias.data.fill_(torch.nan)  # type: ignore[union-attr,operator,index]
    with pytest.raises(ValueError, match="not finite"):
        inpainter(noise(40, 40, 3), box_mask(40, 40, (1, 1, 20, 20)))


@pytest.mark.parametrize(
    ("preset", "options"),
    [("membrane-unet", {"start": "mean"}), ("membrane-unet", {"mask": "central"})],
    ids=["mean", "central"],
)
def test_other_starts_and_fixed_holes_fill_too(
    tmp_path: Path, preset: str, options: dict[str, str]
) -> None:
    run = save_untrained(tmp_path / "run", 0, preset=preset, **options)
    image, mask = noise(60, 80, 3), box_mask(60, 80, (10, 20, 22, 35))
    filled = np.asarray(Inpainter.from_run(run)(image, mask).image)
    assert np.array_equal(filled[~mask], image[~mask])
    assert (filled[mask] != image[mask]).any()


# --- the other commands -----------------------------------------------------------------------


def test_evaluation_and_neighbours_take_it(run: Path, photos: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", str(run), "--device", "cpu"]
    out = tmp_path / "evaluation"
    options = ["--samples", "3", "--masks", "central", "--candidate-crops", "6", "--out", str(out)]
    methods = ["--baselines", "membrane", "nn-features"]
    assert evaluate.main([*common, "--data", str(photos), *options, *methods]) == 0
    sheet = tmp_path / "neighbours.png"
    assert (
        neighbours.main(
            [*common, "--queries", "2", "--k", "2", "--candidate-crops", "6", "--out", str(sheet)]
        )
        == 0
    )
    with Image.open(sheet) as image:
        assert image.width > 200
    found = json.loads(sheet.with_suffix(".json").read_text())["queries"][0]["encoder"]
    assert [n["distance"] for n in found] == sorted(n["distance"] for n in found)


def test_features_weights_and_transfers_refuse_it(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = ["--data", str(photos)]
    named = ["--model", "membrane-unet"]
    calls = [
        (features.main, ["--checkpoint", str(run), *data, "--out", f"{out}.npz"]),
        (features.main, ["--random", *named, *data, "--out", f"{out}.npz"]),
        (weights.main, ["export", str(run), "--out", f"{out}.safetensors"]),
        (transfer, ["probe", "--checkpoint", str(run), *data, "--out", str(out)]),
        (transfer, ["probe", *named, *data, "--out", str(out)]),
        (neighbours.main, ["--checkpoint", str(run), "--layer", "conv1", "--out", f"{out}.png"]),
    ]
    for command, arguments in calls:
        assert command(arguments) == 2, arguments
        message = capsys.readouterr().err
        assert "gives no features: its encoder needs the mask" in message, arguments
        assert "alexnet" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(RunError, match="gives no features"):
        load_model(run).backbone()
