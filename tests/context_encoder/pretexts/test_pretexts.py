"""Pretexts: random draws, learning, resuming."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from context_encoder.config import TrainConfig
from context_encoder.inpainting.inpainter import Inpainter
from context_encoder.models import PatchNetwork
from context_encoder.models.patch import DIRECTIONS
from context_encoder.pretexts import PRETEXTS, find_pretext
from context_encoder.pretexts.reconstruction import corrupted_cells
from context_encoder.pretexts.relative_patch import PatchGrid, cut, draw_places, treat_colors
from context_encoder.runs import Photos, RunError, load_model, model_from_config
from context_encoder.train import main
from context_encoder.training.resolve import resolve
from context_encoder.training.trainer import Trainer
from tests.helpers import small_runs

RIVALS = ("autoencoder", "denoising", "relative-patch")


def keys(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Epochs and indices of many samples."""
    number = torch.arange(count)
    return number // 100, number % 100


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with a ramp in each direction, so that patches show their position."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:72, 0:72] / 71
    for i in range(8):
        picture = np.stack((x, y, (x + y) / 2), -1) * 220 + rng.uniform(0, 30, 3)
        Image.fromarray(picture.astype(np.uint8)).save(root / f"{i}.png")
    return root


def make_trainer(photos: Path, **values: object) -> Trainer:
    common = {
        "resize": 64, "batch_size": 16, "flip": False, "lr_schedule": "constant",
        "crop_scale": (1.0, 1.0),
    }  # fmt: skip
    return small_runs.make_trainer(photos, **(common | values))


# --- corruption -------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "cell"), [(0.25, 1), (0.1, 4), (0.6, 3)])
def test_cells_are_corrupted_at_the_rate_asked_for(amount: float, cell: int) -> None:
    hidden, white = corrupted_cells(5, *keys(200), 32, amount=amount, cell=cell)
    assert hidden.shape == white.shape == (200, 1, 32, 32)
    first = hidden[:, :, ::cell, ::cell].double()  # one pixel of each cell
    # Six standard deviations of a binomial share.
    assert abs(first.mean() - amount) < 6 * math.sqrt(amount * (1 - amount) / first.numel())
    chosen = white[:, :, ::cell, ::cell][first.bool()].double()
    assert abs(chosen.mean() - 0.5) < 6 * 0.5 / math.sqrt(chosen.numel())
    # A cell is corrupted as a whole; they are cut off where 3 does not divide 32.
    for values in (hidden, white):
        whole = values[:, :, ::cell, ::cell].repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        assert torch.equal(values, whole[:, :, :32, :32])
    # Neighbours are independent of each other.
    a, b = first[..., :-1] - amount, first[..., 1:] - amount
    assert abs((a * b).mean()) < 6 * amount * (1 - amount) / math.sqrt(a.numel())


def test_corruption_is_a_function_of_seed_epoch_and_index() -> None:
    epoch, index = keys(150)
    options = {"amount": 0.3, "cell": 2}
    hidden, white = corrupted_cells(1, epoch, index, 32, **options)  # type: ignore[arg-type]
    one, other = corrupted_cells(1, epoch[120:121], index[120:121], 32, **options)  # type: ignore[arg-type]
    assert torch.equal(hidden[120:121], one)
    assert torch.equal(white[120:121], other)
    assert len({h.numpy().tobytes() for h in hidden}) == 150
    assert not torch.equal(hidden, corrupted_cells(2, epoch, index, 32, **options)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", ["masking", "salt-pepper"])
def test_denoising_shows_corrupted_pixels_and_asks_for_the_clean_ones(
    photos: Path, noise: str
) -> None:
    trainer = make_trainer(photos, pretext="denoising", noise=noise, noise_amount=0.4)
    batch, _ = next(trainer.batches())
    seen: list[torch.Tensor] = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    prediction: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda _, __, out: prediction.append(out.detach().clone()))
    losses = trainer.train_step(batch)
    clean = batch["image"].double() / 127.5 - 1
    hidden, white = corrupted_cells(0, batch["epoch"], batch["index"], 32, amount=0.4, cell=1)
    color = torch.tensor(trainer.config.fill_color()).view(1, 3, 1, 1).double()
    if noise == "salt-pepper":
        color = torch.where(white, 1.0, -1.0).double()
    expected = torch.where(hidden, color, clean)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-6, rtol=0)
    error = (prediction[0].double() - clean).square().mean()
    assert losses["loss"].item() == pytest.approx(error.item(), rel=1e-5)


def test_the_autoencoder_s_loss_is_over_all_pixels(photos: Path) -> None:
    trainer = make_trainer(photos, pretext="autoencoder", loss="l1")
    batch, _ = next(trainer.batches())
    output: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda _, __, out: output.append(out.detach().clone()))
    losses = trainer.train_step(batch)
    clean = batch["image"].double() / 127.5 - 1
    error = (output[0].double() - clean).abs().mean()
    assert losses["loss"].item() == pytest.approx(error.item(), rel=1e-5)


# --- patches ----------------------------------------------------------------------------------


def test_patches_lie_where_the_label_says() -> None:
    """Against the geometry written out: steps of patch + gap, within the jitter, inside."""
    grid, size = PatchGrid(patch=16, gap=6, jitter=3), 50
    label, places = draw_places(grid, size, 7, *keys(4000))
    assert places.min() >= 0
    assert (places + grid.patch).max() <= size
    steps = torch.tensor(DIRECTIONS)[label] * 22
    off = places[:, 1] - places[:, 0] - steps
    assert off.abs().max() == 6  # both moved by up to 3, in opposite directions
    assert {tuple(d) for d in DIRECTIONS} == {
        (a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)
    }
    # The second never touches the first: the smallest gap is 6 - 2 * 3.
    apart = (places[:, 1] - places[:, 0]).abs().amax(1)
    assert apart.min() == 16
    share = torch.bincount(label, minlength=8) / 4000
    assert (share - 1 / 8).abs().max() < 6 * math.sqrt(1 / 8 * 7 / 8 / 4000)
    # To the right, the first one's row is free and its column is not.
    right = places[label == 4, 0]
    assert (right[:, 0].min(), right[:, 0].max()) == (0, size - 16)
    assert (right[:, 1].min(), right[:, 1].max()) == (0, size - 16 - 22)


def test_without_freedom_there_is_one_place() -> None:
    """Smallest crop, no jitter: corners for diagonal pairs, one free direction for the others."""
    grid = PatchGrid(patch=8, gap=2, jitter=0)
    assert grid.crop == 18
    wanted = torch.arange(8)
    _, places = draw_places(grid, 18, 0, *keys(8), wanted)
    first, second = places[:, 0].tolist(), places[:, 1].tolist()
    assert (first[0], second[0]) == ([10, 10], [0, 0])
    assert (first[2], second[2]) == ([10, 0], [0, 10])
    assert (first[7], second[7]) == ([0, 0], [10, 10])
    assert first[1][0] == 10
    assert second[1] == [0, first[1][1]]
    assert first[4][1] == 0
    assert second[4] == [first[4][0], 10]


def test_cutting_is_slicing() -> None:
    image = torch.arange(2 * 3 * 20 * 20.0).view(2, 3, 20, 20)
    places = torch.tensor([[[0, 3], [12, 12]], [[5, 1], [7, 9]]])
    patches = cut(image, places, 8)
    for b in range(2):
        for k in range(2):
            top, left = places[b, k]
            assert torch.equal(patches[b, k], image[b, :, top : top + 8, left : left + 8])


def test_dropped_colors_are_noise_of_a_hundredth() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(60, 2, 3, 24, 24, generator=generator) * 0.3 + 0.2
    treated = treat_colors(patches, "drop", 3, *keys(60))
    kept = (treated == patches).all(-1).all(-1)
    assert torch.equal(kept.sum(2), torch.ones(60, 2, dtype=torch.int64))
    counts = kept.sum((0, 1)) / 120
    assert (counts - 1 / 3).abs().max() < 6 * math.sqrt(2 / 9 / 120)
    noise = treated[~kept].view(60, 2, 2, -1)
    deviation = patches[kept].view(60, 2, -1).std(2)
    ratio = noise.flatten(2).std(2) / deviation
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01), atol=0.0015, rtol=0)
    scaled = (noise / noise.std()).flatten().double()
    assert abs(scaled.mean()) < 6 / math.sqrt(len(scaled))
    # Within one deviation lie 68.3 % of a Gaussian, 57.7 % of a uniform distribution.
    per_patch = noise.flatten(2) / deviation[:, :, None] * 100
    assert (per_patch.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.01)


def test_projection_takes_out_green_against_magenta() -> None:
    patches = torch.rand(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    treated = treat_colors(patches, "projection", 0, *keys(4)).double()
    a = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - torch.outer(a, a) / 6  # Doersch et al., B
    expected = torch.einsum("ij,bkjhw->bkihw", matrix, patches.double())
    torch.testing.assert_close(treated, expected, atol=1e-6, rtol=0)
    assert treat_colors(patches, "none", 0, *keys(4)) is patches


@pytest.mark.parametrize(
    ("model", "size", "wanted"),
    [
        ("small", 64, (32, 16, 2, 84)),
        ("small", 32, (16, 8, 1, 42)),
        ("alexnet", 227, (99, 49, 7, 261)),
        ("dcgan-whole", 128, (64, 32, 5, 170)),
    ],
)
def test_sizes_of_patches_follow_the_network(
    photos: Path, model: str, size: int, wanted: tuple[int, ...]
) -> None:
    config = TrainConfig(pretext="relative-patch", model=model, size=size, data=photos, resize=400)  # type: ignore[arg-type]
    config = resolve(config, Photos.from_config(config))
    found = (config.patch_size, config.patch_gap, config.patch_jitter)
    assert (*found, find_pretext(config.pretext).crop_size(config)) == wanted


def test_one_seed_starts_all_encoders_alike(photos: Path) -> None:
    weights = []
    for pretext in PRETEXTS:
        trainer = make_trainer(photos, pretext=pretext, seed=3)
        weights.append(trainer.model.encoder.state_dict())
    for name, value in weights[0].items():
        assert all(torch.equal(value, other[name]) for other in weights[1:]), name


def test_swapped_patches_are_told_apart() -> None:
    """Late fusion keeps the order of the patches; both use the same encoder."""
    config = TrainConfig(
        pretext="relative-patch", size=32, patch_size=16, patch_gap=8, patch_jitter=1
    )
    torch.manual_seed(0)
    network = model_from_config(config).eval()
    assert isinstance(network, PatchNetwork)
    patches = torch.rand(2, 2, 3, 16, 16)
    scores = network(patches)
    assert scores.shape == (2, 8)
    assert not torch.allclose(scores, network(patches.flip(1)))
    each = [network.head["each"](network.encoder(patches[:, k])) for k in range(2)]
    expected = network.head["both"](torch.cat(each, 1))
    torch.testing.assert_close(scores, expected)
    with pytest.raises(ValueError, match="PatchNetwork takes"):
        network(patches[..., :15])


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pretext", ["autoencoder", "denoising"])
def test_reconstruction_learns(photos: Path, pretext: str) -> None:
    trainer = make_trainer(photos, pretext=pretext, steps=60, lr=1e-2)
    trainer.model.train()
    losses = [trainer.train_step(batch)["loss"].item() for batch, _ in trainer.batches()]
    assert np.mean(losses[-5:]) < 0.15 * np.mean(losses[:3])


def test_relative_patch_learns(photos: Path) -> None:
    trainer = make_trainer(photos, pretext="relative-patch", steps=120, lr=3e-3, patch_color="none")
    trainer.model.train()
    right = [trainer.train_step(batch)["accuracy"].item() for batch, _ in trainer.batches()]
    assert np.mean(right[-20:]) > 0.6  # chance is 0.125


@pytest.mark.parametrize("pretext", RIVALS)
def test_runs_resume_and_load(tmp_path: Path, photos: Path, pretext: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny = "--size 32 --batch-size 4 --workers 0 --device cpu --val-samples 3".split()
    every = [
        *tiny, "--data", str(photos), "--lr-schedule", "constant", "--val-every", "2",
        "--log-every", "1", "--pretext", pretext,
    ]  # fmt: skip
    assert main([*every, "--steps", "4", "--out", str(whole)]) == 0
    assert main([*every, "--steps", "2", "--out", str(parts)]) == 0
    assert main(["--resume", str(parts), "--steps", "4"]) == 0
    for file in ("model.safetensors", "training.safetensors"):
        one, other = (load_file(run / "checkpoints/last" / file) for run in (whole, parts))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert (whole / "samples/step_0000004.png").exists()

    loaded = load_model(whole, which="last")
    assert loaded.config.pretext == pretext
    assert loaded.model.image_size == 32
    features = loaded.model.features(torch.zeros(1, 3, 32, 32))
    assert list(features)[:3] == ["conv1", "conv2", "conv3"]
    with pytest.raises(RunError, match=f"the pretext {pretext}, not to fill holes"):
        Inpainter.from_run(whole)


def test_an_empty_mask_is_named_and_not_blamed_on_the_network(photos: Path) -> None:
    trainer = make_trainer(photos)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    trainer.pretext._validation_masks = lambda epoch, index: (  # type: ignore[attr-defined]
        (index != 1).view(-1, 1, 1, 1) & mask,
        (index != 1) * mask.sum(),
    )
    trainer.prepare()
    with pytest.raises(ValueError, match="empty mask for the held-out sample 1; a mask needs"):
        trainer.validate()


def test_validation_asks_for_each_of_the_eight_places(photos: Path) -> None:
    """A network that always answers "right" is correct for one pair in eight."""
    trainer = make_trainer(photos, pretext="relative-patch")
    last = trainer.model.head["both"][-1]  # type: ignore[index, operator, union-attr]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.eye(8)[4] * 9)
    logged: dict[str, float] = {}
    trainer.record = lambda split, values: logged.update(values)  # type: ignore[method-assign]
    trainer.prepare()
    trainer.validate()
    assert logged["accuracy"] == 1 / 8
    expected = (7 * (9 + math.log(1 + 7 * math.exp(-9))) + math.log(1 + 7 * math.exp(-9))) / 8
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_step_of_each_reads_nothing_back_from_the_device(photos: Path) -> None:
    calls: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    for pretext in RIVALS:
        trainer = make_trainer(photos, pretext=pretext)
        batch, _ = next(trainer.batches())
        with Watch():
            trainer.train_step(batch)
    assert calls
    assert not {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"} & set(calls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pretext", "relative-patch", "--patch-size", "33"], "nearest: 32 or 40"),
        (["--pretext", "relative-patch", "--batch-size", "1"], "--batch-size"),
        (["--pretext", "relative-patch", "--resize", "64"], "84"),
        (["--pretext", "autoencoder", "--model", "dcgan-center"], "dcgan-whole"),
        (["--pretext", "denoising", "--noise-cell", "40"], "--noise-cell"),
        (["--pretext", "denoising", "--noise-amount", "1"], "--noise-amount must be below 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--device", "cpu"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
