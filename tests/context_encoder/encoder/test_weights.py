"""Export and import of encoder weights: names, shapes, folding, foreign files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.signal import correlate
from torch import nn

from context_encoder.encoder.backbone import load_backbone
from context_encoder.encoder.weights import (
    WeightsError,
    export_encoder,
    import_encoder,
    load_encoder,
    read_weights,
    take_own_pictures,
)
from context_encoder.models import build_model
from context_encoder.weights import main
from tests.helpers.small_runs import save_untrained


def alexnet(norm: str, seed: int = 0, model: str = "alexnet") -> nn.Sequential:
    torch.manual_seed(seed)
    network = build_model(model, image_size=99, norm=norm)
    if norm == "batch":
        network.train()
        network.encoder(torch.randn(4, 3, 99, 99))  # statistics that are not 0 and 1
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return network.encoder.eval()


class Foreign(nn.Module):
    """An AlexNet with Caffe's channels and groups under torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 11, 4), relu(), pool()),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu(), pool()),
            *(nn.Conv2d(256, 384, 3, padding=1), relu()),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu(), pool()),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256 * 2 * 2, 10))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_torchvision_names_load_into_another_class_and_give_the_same_maps(norm: str) -> None:
    encoder, other = alexnet(norm), Foreign()
    tensors = export_encoder(encoder, "torchvision")
    places = (0, 3, 6, 8, 10)
    assert list(tensors) == [f"features.{n}.{kind}" for n in places for kind in ("weight", "bias")]
    missing, unexpected = other.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.startswith("classifier.") for name in missing)
    x = torch.randn(2, 3, 99, 99)
    with torch.no_grad():
        torch.testing.assert_close(other.features(x), encoder(x), atol=1e-4, rtol=1e-4)


def test_caffe_names_and_shapes() -> None:
    """The blobs of bvlc_alexnet."""
    tensors = export_encoder(alexnet("lrn"), "caffe")
    assert {name: tuple(t.shape) for name, t in tensors.items() if name.endswith("weight")} == {
        "conv1.weight": (96, 3, 11, 11),
        "conv2.weight": (256, 48, 5, 5),
        "conv3.weight": (384, 256, 3, 3),
        "conv4.weight": (384, 192, 3, 3),
        "conv5.weight": (256, 192, 3, 3),
    }
    assert tensors["conv4.bias"].shape == (384,)


@pytest.mark.parametrize("names", ["native", "torchvision", "caffe"])
def test_what_goes_out_comes_in(names: str) -> None:
    source, target = alexnet("lrn", 0), alexnet("lrn", 1)
    tensors = export_encoder(source, names)  # type: ignore[arg-type]
    report = import_encoder(target, {f"module.{name}": t for name, t in tensors.items()})
    assert report.complete
    assert (len(report.loaded), report.left_over) == (10, ())
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


@pytest.mark.parametrize(
    ("model", "size"), [("small", 32), ("dcgan-whole", 128), ("alexnet-poolfree", 99)]
)
def test_other_networks_have_native_names_only(model: str, size: int) -> None:
    source = build_model(model, image_size=size).encoder
    target = build_model(model, image_size=size).encoder
    assert import_encoder(target, export_encoder(source)).complete
    for name, value in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, target.state_dict()[name]), name
    for names in ("torchvision", "caffe"):
        with pytest.raises(WeightsError, match="use `names` native"):
            export_encoder(source, names)  # type: ignore[arg-type]


def test_a_partial_file_is_refused_unless_asked_for(tmp_path: Path) -> None:
    """torchvision's AlexNet: some layers with other shapes, and a classifier."""
    others = {
        "features.0.weight": torch.ones(64, 3, 11, 11),
        "features.0.bias": torch.ones(64),
        "features.6.weight": torch.ones(384, 256, 3, 3),
        "classifier.6.weight": torch.ones(10, 4096),
    }
    path = tmp_path / "alexnet.pth"
    torch.save({"state_dict": OrderedDict(others), "epoch": 3}, path)
    with pytest.raises(WeightsError, match="do not fill the encoder") as refused:
        load_encoder(path, image_size=99)
    text = str(refused.value)
    assert "features.0.weight is (64, 3, 11, 11), needed (96, 3, 11, 11)" in text
    assert "classifier.6.weight" in text
    assert "conv2.conv.weight" in text
    backbone, report = load_encoder(path, image_size=99, partial=True)
    assert report.loaded == ("conv3.conv.weight",)
    assert len(report.misshaped) == 2
    assert report.left_over == ("classifier.6.weight",)
    assert len(report.missing) == 10 - 3
    assert bool((backbone.encoder.state_dict()["conv3.conv.weight"] == 1).all())
    # An error also if no weight fits.
    save_file({"conv9.weight": torch.ones(3)}, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="do not fill"):
        load_encoder(tmp_path / "none.safetensors", image_size=99, partial=True)


def test_caffes_pictures_give_the_same_maps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Compared with SciPy in float64, on Caffe's inputs."""
    tensors = export_encoder(alexnet("lrn"), "caffe")
    tensors["conv1.weight"] /= 127.5
    tensors["conv1.bias"] += torch.randn(96)
    path, out = tmp_path / "caffe.pth", tmp_path / "own.safetensors"
    torch.save(tensors, path)
    command = ["--image-size", "99", "--out", str(out)]
    assert main(["import", str(path), "--input", "caffe", *command]) == 0

    values = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    blue_first = values[:, :, ::-1].astype(np.float64) - [104, 117, 123]
    kernels = tensors["conv1.weight"].double().numpy()
    expected = [
        sum(correlate(blue_first[:, :, c], kernel[c], mode="valid") for c in range(3))[::4, ::4]
        for kernel in kernels
    ]
    backbone, _ = load_encoder(out)
    assert not caplog.records
    with torch.no_grad():
        got = backbone.encoder.conv1.conv(  # type: ignore[union-attr]
            torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1
        )
    want = torch.from_numpy(np.array(expected)) + tensors["conv1.bias"].double().view(-1, 1, 1)
    torch.testing.assert_close(got[0].double(), want, atol=1e-4, rtol=1e-5)

    # The first layer is converted if the file says so; other layers are unchanged.
    assert torch.equal(load_file(out)["conv2.conv.weight"], tensors["conv2.weight"])
    assert main(["import", str(out), "--input", "caffe", *command, "--overwrite"]) == 2
    assert "leave out --input" in capsys.readouterr().err
    load_encoder(path, image_size=99)
    assert "do not say which images" in caplog.text


def test_caffes_pictures_where_no_weights_could_give_the_same_maps(tmp_path: Path) -> None:
    for encoder, what in (
        (build_model("small", image_size=32).encoder, r"padding=\(1, 1\)"),
        (alexnet("batch"), "bias=False"),
    ):
        with pytest.raises(WeightsError, match=f"`pictures` caffe is for .*{what}"):
            take_own_pictures(encoder)
    save_file({"conv2.bias": torch.ones(256)}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="rewrites conv1"):
        load_encoder(tmp_path / "part.safetensors", image_size=99, pictures="caffe", partial=True)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run",))


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": torch.ones(1), "x": Harmful()}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_weights(tmp_path / "code.pth")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "page.pth").write_bytes(b"<html>not found</html>")
    (tmp_path / "noise.bin").write_bytes(b"\x80\x02t.")  # pickle that reads from an empty stack
    for name, message in (
        ("cut.safetensors", "cannot be read"),
        ("cut.pth", "cannot be read: damaged, .*expected a dictionary of tensors"),
        ("noise.bin", "cannot be read: damaged, .*expected a dictionary of tensors"),
        ("page.pth", "no file of torch.save begins with b'<html>no'; expected a dictionary"),
        ("empty.pt", "begins with b''"),
        ("list.pt", "hold a list"),
        ("no.pth", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / name)
    (tmp_path / "weights.h5").touch()
    with pytest.raises(WeightsError, match="must end in"):
        read_weights(tmp_path / "weights.h5")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_untrained(tmp_path / "run", seed=4, pretext="autoencoder")


def test_the_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "out" / "encoder.safetensors", tmp_path / "again.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["model"], metadata["image_size"], metadata["pretext"]) == (
        "small",
        "32",
        "autoencoder",
    )
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(again), "--names", "caffe"]) == 2
    assert "--names native" in capsys.readouterr().err
    assert main(["import", str(out), "--model", "small", "--out", str(again)]) == 0
    first, second = load_file(out), load_file(again)
    assert first.keys() == second.keys()
    assert all(
        torch.equal(v, second[k]) for k, v in first.items() if not k.endswith("batches_tracked")
    )
    x = str(tmp_path / "x.safetensors")
    assert main(["import", str(out), "--model", "alexnet", "--out", x]) == 2
    assert "--model small" in capsys.readouterr().err
    assert main(["import", str(out), "--out", x]) == 0  # the file says which network it is for
    with safe_open(x, framework="pt") as file:
        assert file.metadata()["model"] == "small"
    assert main(["import", str(out), "--model", "small", "--out", str(tmp_path / "x.pth")]) == 2

    backbone = load_backbone(weights=out, model="small")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_backbone(run).features(x)
        got = backbone.features(x)
    # Only the layers of the encoder, whose weights are in the file, are returned.
    assert list(got) == ["conv1", "conv2", "conv3"]
    assert all(torch.equal(got[name], expected[name]) for name in got)
