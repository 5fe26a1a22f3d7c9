"""Features of images: networks, values, command."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import context_encoder.encoder.extract as module
from context_encoder.data import list_images
from context_encoder.encoder.backbone import load_backbone
from context_encoder.encoder.extract import average_to_grid, encode_batch, extract_features
from context_encoder.features import main
from context_encoder.runs.lock import Lock
from tests.helpers.crashes import in_fork
from tests.helpers.small_runs import save_untrained

LAYERS = ["conv1", "conv3", "channelwise_fc"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of the network's size, two of them unreadable."""
    root = tmp_path_factory.mktemp("photos")
    (root / "sub").mkdir()
    rng = np.random.default_rng(1)
    for i in range(5):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("sub" if i % 2 else "") / f"{i}.png")
    (root / "1bad.png").write_bytes(b"no picture")
    (root / "sub" / "2bad.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("runs") / "run", seed=2)


def pixels(root: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(root / name)).transpose(2, 0, 1).copy())[None]


READABLE = ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]


def test_values_are_those_of_the_network_row_by_row(photos: Path, run: Path) -> None:
    model = load_backbone(run)
    features = extract_features(
        model, list_images(photos), LAYERS, root=photos, batch_size=3, progress=False
    )
    assert features.files == READABLE
    assert [name for name, _ in features.unreadable] == ["1bad.png", "sub/2bad.jpg"]
    assert all(reason for _, reason in features.unreadable)
    for row, name in enumerate(features.files):
        x = pixels(photos, name).float() / 127.5 - 1
        with torch.no_grad():
            conv1 = model.encoder.conv1(x)  # type: ignore[operator]
            conv3 = model.encoder(x)
            fc = model.bottleneck.channelwise_fc(conv3)  # type: ignore[union-attr, operator]
        for layer, value in zip(LAYERS, (conv1, conv3, fc), strict=True):
            torch.testing.assert_close(features.values[layer][row : row + 1], value)


def test_grid_average_is_adaptive_pooling() -> None:
    value = torch.rand(2, 3, 13, 10)
    for side in (1, 3, 7, 10):
        expected = torch.nn.functional.adaptive_avg_pool2d(value, side)
        torch.testing.assert_close(average_to_grid(value, side), expected)


def test_pooling_averages_cells(run: Path) -> None:
    model = load_backbone(run)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = encode_batch(model, images, ["conv1", "conv3"])
    pooled = encode_batch(model, images, ["conv1", "conv3"], pool=4)
    assert whole["conv1"].shape == (2, 32, 16, 16)
    expected = whole["conv1"].double().view(2, 32, 4, 4, 4, 4).mean((3, 5)).float()
    torch.testing.assert_close(pooled["conv1"], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(pooled["conv3"], whole["conv3"])  # 4 x 4 already


def test_a_hole_is_hidden_and_its_surroundings_are_not(run: Path) -> None:
    model = load_backbone(run)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    hidden = encode_batch(model, images, ["conv1"], mask=mask)["conv1"]
    other = images.clone()
    other[..., 8:24, 8:24] = 0
    assert torch.equal(encode_batch(model, other, ["conv1"], mask=mask)["conv1"], hidden)
    filled = images.clone()
    filled[..., 8:24, 8:24] = torch.tensor([123, 117, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    by_hand = encode_batch(model, filled, ["conv1"])["conv1"]
    torch.testing.assert_close(by_hand, hidden, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(encode_batch(model, images, ["conv1"])["conv1"], hidden)


def test_big_pictures_are_scaled_and_cropped_in_the_middle(tmp_path: Path, run: Path) -> None:
    """An image of twice the height and four times the width: its middle square is used."""
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = (200, 40, 90)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    square = torch.tensor([200, 40, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    model = load_backbone(run)
    got = extract_features(model, [tmp_path / "wide.png"], ["conv1"], progress=False)
    wanted = encode_batch(model, square, ["conv1"])["conv1"]
    torch.testing.assert_close(got.values["conv1"][..., 2:-2], wanted[..., 2:-2])


def test_networks(run: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (load_backbone(model="small", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weight = "encoder.conv1.conv.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    assert not one.training
    assert load_backbone(model="small", image_size=48).image_size == 48
    with pytest.raises(ValueError, match="image_size 64 was asked for"):
        load_backbone(run, image_size=64)
    with pytest.raises(ValueError, match="both given"):
        load_backbone(run, weights=run)


def test_wrong_calls(run: Path) -> None:
    model = load_backbone(run)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TypeError, match="uint8"):
        encode_batch(model, images.float(), ["conv1"])
    with pytest.raises(ValueError, match="pool5; its layers: conv1, conv2, conv3, channelwise_fc"):
        encode_batch(model, images, ["pool5"])
    with pytest.raises(ValueError, match="pool must be"):
        encode_batch(model, images, ["conv1"], 0)
    with pytest.raises(ValueError, match="no image files"):
        extract_features(model, [], ["conv1"])


def command(photos: Path, out: Path, *options: object) -> int:
    fixed = ["--data", photos, "--out", out, "--device", "cpu", "--batch-size", "2"]
    return main([str(word) for word in (*fixed, *options)])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_command_writes_a_file_and_the_names(
    photos: Path, run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"features{suffix}"
    options = ("--checkpoint", run, "--layers", "conv1,channelwise_fc", "--pool", 2)
    assert command(photos, out, *options) == 0
    assert "skipped 2" in capsys.readouterr().err
    about = json.loads((tmp_path / f"features{suffix}.json").read_text())
    assert about["files"] == READABLE
    assert [entry["file"] for entry in about["unreadable"]] == ["1bad.png", "sub/2bad.jpg"]
    if suffix == ".npz":
        with np.load(out) as file:
            values = {name: torch.from_numpy(file[name]) for name in file}
    else:
        values = load_file(out)
    assert list(about["shapes"].items()) == [(n, list(v.shape)) for n, v in sorted(
        values.items(), key=lambda item: about["layers"].index(item[0])
    )]  # fmt: skip
    model = load_backbone(run)
    for row, name in enumerate(READABLE):
        expected = encode_batch(model, pixels(photos, name), ["conv1", "channelwise_fc"], 2)
        for layer, value in expected.items():
            torch.testing.assert_close(values[layer][row : row + 1], value, msg=layer)
    assert command(photos, out, *options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert command(photos, out, *options, "--overwrite") == 0


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_command_goes_on(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, whole = tmp_path / "features.npz", tmp_path / "whole.npz"
    options = ("--checkpoint", run, "--dtype", "float16", "--mask", "region")
    assert command(photos, whole, *options) == 0

    real, calls = module.encode_batch, []

    def interrupted(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        calls.append(args)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode_batch", interrupted)
    assert command(photos, out, *options) == 130
    assert not out.exists()
    with (tmp_path / "features.npz.partial/files.jsonl").open("a") as file:
        file.write('{"file": "cut o')
    monkeypatch.setattr(module, "encode_batch", real)
    # Parts of another network are not reused.
    assert command(photos, out, "--random", "--model", "small", "--image-size", "32") == 2
    assert "features.npz.partial" in capsys.readouterr().err
    assert command(photos, out, *options) == 0
    with np.load(whole) as a, np.load(out) as b:
        assert list(a) == list(b) == ["conv3"]
        assert a["conv3"].dtype == np.float16
        assert np.array_equal(a["conv3"], b["conv3"])
    first, second = (json.loads(Path(f"{p}.json").read_text()) for p in (whole, out))
    assert first == second
    assert not (tmp_path / "features.npz.partial").exists()


def stopped(photos: Path, run: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command leaves which was stopped after four of seven files."""
    real, calls = module.encode_batch, []

    def interrupted(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_batch", interrupted)
        assert command(photos, out, "--checkpoint", run, "--layers", "conv1,conv3") == 130
    return out.with_name(f"{out.name}.partial")


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "conv3.rows").unlink(),
        lambda folder: os.truncate(folder / "conv3.rows", 100),
        lambda folder: _flip(folder / "conv1.rows"),
        lambda folder: (folder / "conv1.rows").write_bytes(bytes(1 << 20)),  # after a power cut
        lambda folder: (folder / "files.jsonl").unlink(),
        lambda folder: (folder / "files.jsonl").write_bytes(b"\xff\xfe\n[]\n{}\n"),
        lambda folder: (folder / "files.jsonl").write_text("[" * 100_000 + "\n"),
        lambda folder: (folder / "settings.json").unlink(),
    ],
)
def test_what_is_damaged_is_computed_again(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    out, whole = tmp_path / "features.npz", tmp_path / "whole.npz"
    assert command(photos, whole, "--checkpoint", run, "--layers", "conv1,conv3") == 0
    damage(stopped(photos, run, out, monkeypatch))
    assert command(photos, out, "--checkpoint", run, "--layers", "conv1,conv3") == 0
    with np.load(whole) as a, np.load(out) as b:
        assert list(a) == list(b)
        assert all(np.array_equal(a[layer], b[layer]) for layer in a)
    assert json.loads(Path(f"{whole}.json").read_text()) == json.loads(
        Path(f"{out}.json").read_text()
    )


def test_only_one_command_writes_a_file_and_only_of_the_same_images(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    folder = stopped(copy, run, tmp_path / "features.npz", monkeypatch)
    options = ("--checkpoint", run, "--layers", "conv1,conv3")
    held = in_fork(lambda: _held(folder, copy, tmp_path / "features.npz", *options))
    assert held == 2
    shutil.copy(copy / "0.png", copy / "2.png")
    capsys.readouterr()
    assert command(copy, tmp_path / "features.npz", *options) == 2
    assert "other images" in capsys.readouterr().err
    (folder / "settings.json").write_text('{"lay')
    assert command(copy, tmp_path / "features.npz", *options) == 2
    assert "settings.json is damaged; remove" in capsys.readouterr().err


def _held(folder: Path, photos: Path, out: Path, *options: object) -> int:
    """The status of the command while another process holds the lock."""
    ready, done = os.pipe(), os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = Lock(folder, "command")
        os.write(ready[1], b"1")
        os.read(done[0], 1)
        lock.release()
        os._exit(0)
    os.read(ready[0], 1)
    status = command(photos, out, *options)
    os.write(done[1], b"1")
    os.waitpid(holder, 0)
    return status


def test_a_full_disk_is_one_line(
    photos: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return command(photos, tmp_path / "features.npz", "--checkpoint", run, "--layers", "conv1")

    assert in_fork(limited) == 1
    assert "stopped: cannot write" in (said := capfd.readouterr().err)
    assert "conv1.rows" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--checkpoint, --weights or --random"),
        (["--random", "--checkpoint", "{run}"], "--checkpoint, --weights or --random"),
        (["--checkpoint", "{run}", "--model", "small"], "would do nothing"),
        (["--checkpoint", "{run}", "--layers", "pool5"], "has conv1, conv2, conv3"),
        (["--checkpoint", "{run}", "--pool", "0"], "--pool must be at least 1"),
        (["--checkpoint", "{run}/nowhere"], "does not exist"),
        (["--checkpoint", "{run}", "--out", "features.h5"], ".safetensors"),
        (["--checkpoint", "{run}", "--data", "{run}"], "no image"),
    ],
)
def test_wrong_use_is_one_clear_line(
    photos: Path, run: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [option.format(run=run) for option in options]
    assert command(photos, tmp_path / "x.npz", *filled) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_a_folder_without_readable_pictures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    assert command(tmp_path / "photos", tmp_path / "x.npz", "--checkpoint", run) == 1
    assert "none of the 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
