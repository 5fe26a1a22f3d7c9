"""Validation: what is compared, and what a summary is computed from."""

from __future__ import annotations

import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cekernels import remove_seam
from context_encoder.models import membrane
from context_encoder.pretexts import Inpainting, Samples
from context_encoder.training.validation import validate
from tests.helpers.small_runs import make_trainer, save_photos

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_photos(tmp_path, 4)
    return tmp_path


def psnr(fill: np.ndarray, original: np.ndarray, hole: np.ndarray) -> float:
    """Of float64 ``(H, W, 3)`` on [0, 1]."""
    error = np.square(fill.clip(0, 1) - original)[hole].mean()
    return -10 * np.log10(max(error, 1e-10))


def test_fills_without_a_network_are_those_of_other_implementations(photos: Path) -> None:
    trainer = make_trainer(photos, preset="membrane-unet", size=64)
    trainer.prepare()
    assert trainer.held_out is not None
    assert isinstance(trainer.pretext, Inpainting)
    index = torch.arange(len(trainer.held_out))
    image = trainer.held_out.float() / 127.5 - 1
    mask = trainer.pretext._validation_masks(torch.zeros_like(index), index)[0]
    with torch.no_grad():
        found, columns = trainer.pretext.validate(Samples(image, torch.zeros_like(index), index))
    assert [title for title, _ in columns] == ["original", "input", "filled"]
    exact = remove_seam(torch.where(mask, 0, image), mask)
    for i, hole in enumerate(mask[:, 0].numpy()):
        bytes_ = trainer.held_out[i].permute(1, 2, 0).contiguous().numpy()
        original = bytes_ / 255
        blank = np.where(hole[..., None], 0, bytes_).astype(np.uint8)
        telea = cv2.inpaint(blank, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA) / 255
        smooth = exact[i].permute(1, 2, 0).double().numpy() / 2 + 0.5
        assert found["psnr_telea"][i].item() == pytest.approx(psnr(telea, original, hole), abs=1e-3)
        expected = psnr(smooth, original, hole)
        assert found["psnr_membrane"][i].item() == pytest.approx(expected, abs=0.02)
        # Before the first step the network adds nothing to its own, approximate membrane.
        own = membrane(image[i : i + 1], mask[i : i + 1])[0].permute(1, 2, 0).double() / 2 + 0.5
        expected = psnr(own.numpy(), original, hole)
        assert found["psnr"][i].item() == pytest.approx(expected, abs=1e-3)


def test_flat_images_are_left_out_of_means_and_counted(photos: Path) -> None:
    trainer = make_trainer(photos, preset="membrane-unet")
    trainer.prepare()
    assert trainer.held_out is not None
    pictures = trainer.held_out[:3]
    flat = torch.full((3, 3, 32, 32), 77, dtype=torch.uint8)
    flat[1:, 2] = 5
    flat[2, :, ::2] += 1  # a contrast of half a level
    every = torch.cat((pictures, flat))
    pretext = trainer.pretext
    metrics = validate(pretext, every, CPU, 0).metrics
    assert (metrics["images"], metrics["excluded"]) == (3, 3)
    alone = validate(pretext, pictures, CPU, 0).metrics
    assert alone["excluded"] == 0
    for name in ("psnr", "psnr_membrane", "l1", "ssim", "psnr_median"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-4), name
    index = torch.arange(3)
    with torch.no_grad():
        pretext.model.eval()
        image = pictures.float() / 127.5 - 1
        values = pretext.validate(Samples(image, torch.zeros_like(index), index))[0]["psnr"]
    assert metrics["psnr_median"] == pytest.approx(statistics.median(values.tolist()), rel=1e-4)
    assert metrics["psnr"] == pytest.approx(statistics.mean(values.tolist()), rel=1e-4)
    text = "\n".join(pretext.summary(metrics))
    assert "3 images; 3 more are left out" in text
    assert "left out" not in "\n".join(pretext.summary(alone))


def test_nothing_but_flat_images_still_gives_figures(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (60, 60), (10 * i, 90, 7)).save(tmp_path / f"{i}.png")
    trainer = make_trainer(tmp_path, preset="membrane-unet")
    trainer.prepare()
    assert trainer.held_out is not None
    metrics = validate(trainer.pretext, trainer.held_out, CPU, 0).metrics
    assert metrics["excluded"] == 0
    assert metrics["psnr"] > 48


def test_a_summary_compares_with_the_membrane_and_opencv(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretext = make_trainer(photos, preset="membrane-unet").pretext
    metrics = {"psnr": 20.0, "psnr_median": 19.0, "l1": 0.1, "l2": 0.01, "ssim": 0.5}
    for name, value in (("membrane", 19.5), ("telea", 18.0), ("mean_fill", 12.0)):
        metrics |= {f"psnr_{name}": value, f"psnr_{name}_median": value - 1}
    metrics |= {"images": 9.0, "excluded": 0.0}
    lines = pretext.summary(metrics)
    assert any("membrane" in line and "19.50" in line and "+0.50" in line for line in lines)
    assert any("Telea" in line and "18.00" in line and "+2.00" in line for line in lines)
    for name in ("psnr_telea", "psnr_telea_median"):
        del metrics[name]
    assert any("OpenCV is not installed" in line for line in pretext.summary(metrics))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    index = torch.arange(2)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        found, _ = pretext.validate(Samples(image, torch.zeros_like(index), index))
    assert "psnr_membrane" in found
    assert "psnr_telea" not in found
