"""Exported files, run without the package's own code, against the networks and their users."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from context_encoder.data import find_images, load_crops
from context_encoder.data.folder import embedded_photos
from context_encoder.encoder import encode_batch, load_backbone
from context_encoder.encoder.backbone import last_of_encoder
from context_encoder.export import main
from context_encoder.exporting import ExportError, export, export_network
from context_encoder.exporting.networks import EncoderNetwork, FillingNetwork, LowPrecision
from context_encoder.inpainting import Inpainter
from context_encoder.inpainting.membrane_network import included_network, predict_holes
from context_encoder.models import MODELS, build_model
from context_encoder.runs import RunError
from tests.helpers.small_models import QUICK
from tests.helpers.small_runs import save_untrained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def photographs(count: int, size: int) -> np.ndarray:
    """float32 ``(N, 3, S, S)``, RGB in [0, 1]."""
    files = find_images(embedded_photos())
    crops = load_crops(files, files.root, size=size, resize=256, crop_scale=(0.5, 1), samples=count)
    return crops.images.numpy().astype(np.float32) / np.float32(255)


def holes(count: int, size: int) -> np.ndarray:
    mask = np.zeros((count, 1, size, size), np.float32)
    for i in range(count):
        mask[i, 0, 10 + i : 30 + i, 20 : 30 + 2 * i] = 1
    return mask


def in_onnxruntime(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("runs") / "first", 0)


def test_the_included_network_fills_as_in_python(included: Path) -> None:
    """Against the exact membrane; by 8-bit weights and multigrid it may differ by few levels."""
    for batch in (1, 5):
        image, mask = photographs(batch, 64), holes(batch, 64)
        (filled,) = in_onnxruntime(included, image=image, mask=mask)
        hole = mask.repeat(3, 1) > 0.5
        np.testing.assert_array_equal(filled[~hole], image[~hole])
        for i in range(batch):
            given = (image[i] * 255).transpose(1, 2, 0)
            expected = predict_holes(given, mask[i, 0] > 0.5).transpose(2, 0, 1)
            difference = (filled[i] * 255 - expected)[hole[i]]
            assert np.sqrt(np.square(difference).mean()) < 2.5
        # What the hole held makes no difference.
        (again,) = in_onnxruntime(included, image=np.where(hole, 0.7, image).astype("f"), mask=mask)
        np.testing.assert_array_equal(again, filled)


def test_the_file_says_what_goes_in_and_out(included: Path) -> None:
    import onnx

    model = onnx.load(included)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["task"] == "filling"
    assert facts["image_size"] == "64"
    assert "RGB in [0, 1]" in facts["image"]
    assert "1 where the image is missing" in facts["mask"]
    assert "int8" in facts["precision"]
    assert [entry.name for entry in model.graph.input] == ["image", "mask"]
    assert [entry.name for entry in model.graph.output] == ["filled"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert included.stat().st_size < 2.2e6  # 1.3 million weights


@pytest.mark.parametrize(("size", "network"), [(64, "membrane-unet"), (160, "membrane-unet"),
                                               (64, "small"), (128, "dcgan-center")])  # fmt: skip
def test_what_is_exported_is_one_window_of_the_inpainter(size: int, network: str) -> None:
    options = {"bottleneck_units": 50} if network == "dcgan-center" else {}
    torch.manual_seed(0)
    model = included_network() if network == "membrane-unet" else build_model(network, **options)
    color = (0.1, -0.2, 0.3)
    module = FillingNetwork(model.eval(), fill_color=color, size=size).eval()
    image, mask = photographs(2, size), np.zeros((2, 1, size, size), np.float32)
    top, left = size * 3 // 8, size * 3 // 8
    mask[0, 0, top : top + size // 5, left : left + size // 4] = 1
    mask[1, 0, top : top + size // 4, left : left + size // 6] = 1
    with torch.no_grad():
        filled = module(torch.from_numpy(image), torch.from_numpy(mask)).numpy()
    inpainter = Inpainter(model, fill_color=color)
    for i in range(2):
        given = image[i].transpose(1, 2, 0) * 2 - 1
        if size > model.image_size:  # the inpainter would choose a smaller window
            from context_encoder.inpainting.correction import corrected_membrane
            from context_encoder.inpainting.windows import Window

            missing = mask[i, 0] > 0.5
            whole = Window(0, 0, size, (0, 0, size, size), missing, float(missing.mean()))
            expected = corrected_membrane(included_network(), given, missing, [whole])
        else:
            expected = inpainter.predict(given, mask[i, 0] > 0.5)
        expected = np.clip((expected.transpose(2, 0, 1) + 1) / 2, 0, 1)
        # The multigrid membrane: 0.7 levels at 64 pixels, 1.1 at 256 (root mean square).
        hole = np.broadcast_to(mask[i] > 0.5, expected.shape)
        error = np.sqrt(np.square((filled[i] - expected)[hole]).mean())
        assert error < 3 / 255
        np.testing.assert_array_equal(filled[i][~hole], image[i][~hole])


def test_features_as_the_package_computes_them(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    file = tmp_path / "features.onnx"
    layers = ["conv2", "channelwise_fc"]
    arguments = [str(run), "--to", "onnx", "--out", str(file), "--precision", "fp16"]
    assert main([*arguments, "--layers", ",".join(layers)]) == 0
    image = photographs(4, 32)
    found = in_onnxruntime(file, image=image)
    images = torch.from_numpy((image * 255).round().astype(np.uint8))
    expected = encode_batch(load_backbone(run), images, layers)
    for name, value in zip(layers, found, strict=True):
        error = np.square(value - expected[name].numpy()).mean()
        assert error < 1e-5 * np.square(expected[name].numpy()).mean()
    assert file.stat().st_size < 1e6


def test_an_encoder_for_images_of_any_size(run: Path, tmp_path: Path) -> None:
    """Loaded without this package, by a file of torch.export."""
    exported = export_network(run, to="pt2", part="encoder", out=tmp_path / "encoder.pt2")
    x = photographs(3, 160)[..., :131]
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, json, torch, numpy as np\n"
        "extra = {'metadata.json': ''}\n"
        "program = torch.export.load(sys.argv[1], extra_files=extra).module()\n"
        "y = program(torch.from_numpy(np.load(sys.argv[2])))[0]\n"
        "np.save(sys.argv[3], y.detach().numpy())\n"
        "print(json.loads(extra['metadata.json'])['layers'], 'cekernels' in sys.modules)\n"
    )
    files = [str(exported.path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    said = subprocess.run(
        [sys.executable, "-c", script, *files], check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == ["conv3", "False"]
    encoder = load_backbone(run).encoder
    with torch.no_grad():
        expected = encoder(torch.from_numpy(x) * 2 - 1).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-4)


#: Set for all combinations, which take some minutes.
EVERY = "CONTEXT_ENCODER_EVERY_EXPORT"
CASES = [
    case
    for case in itertools.product(
        MODELS, get_args(export.Part), get_args(export.Format), get_args(export.Precision)
    )
    if case[1] == "filling" or MODELS[case[0]].gives_features
]
#: One encoder of each kind that no other test exports; the included network is exported above.
USUAL = [
    ("alexnet-poolfree", "encoder", "onnx", "int8"),
    ("dcgan-whole", "encoder", "pt2", "fp16"),
]


@pytest.mark.parametrize(
    ("name", "part", "to", "precision"), CASES if os.environ.get(EVERY) else USUAL
)
def test_every_network_in_every_format(
    name: str, part: str, to: Any, precision: str, tmp_path: Path
) -> None:
    """What a file computes is what the network does with the weights that the file has."""
    torch.manual_seed(0)
    network: Any = build_model(name, **QUICK.get(name, {})).eval()
    module: Any
    if part == "filling":
        module = FillingNetwork(network, fill_color=(0.1, -0.2, 0.3)).eval()
    else:
        module = EncoderNetwork(network, [last_of_encoder(network)]).eval()
    program = module if precision == "float32" else LowPrecision(module, precision).eval()
    file = tmp_path / f"network.{to}"
    if to == "onnx":
        pytest.importorskip("onnxscript")
    export._save(module, program, to, file, {"kind": "test"})
    given = export._example(module, 3)
    with torch.no_grad():
        expected = module(*given)
        if to == "pt2":
            found = torch.export.load(file).module()(*given)
        else:
            arrays = dict(zip(("image", "mask"), (x.numpy() for x in given), strict=False))
            found = torch.from_numpy(in_onnxruntime(file, **arrays)[0])
    found, expected = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
    error = torch.square(found - expected).mean().sqrt() / torch.square(expected).mean().sqrt()
    assert error < {"float32": 1e-5, "fp16": 2e-3, "int8": 5e-2}[precision]
    if precision != "float32":
        assert error > 0
        whole = sum(p.numel() * p.element_size() for p in module.parameters())
        smaller = {"fp16": 0.5, "int8": 0.25}[precision]
        program_size = 3_500_000 if part == "filling" else 700_000
        # The program, with the solver of the membrane, biases and scales come on top.
        assert file.stat().st_size < smaller * whole + program_size


def test_the_encoder_of_a_run_that_does_not_fill_holes(tmp_path: Path) -> None:
    """Its encoder is what is exported if no part is named, in its own size and for others."""
    sizes = {"patch_size": 16, "patch_gap": 8, "patch_jitter": 1}
    patches = save_untrained(tmp_path / "patches", 0, pretext="relative-patch", **sizes)
    exported = export_network(patches, to="onnx", out=tmp_path / "encoder.onnx")
    assert exported.part == "encoder"
    assert "pretext relative-patch" in exported.metadata["weights"]
    backbone = load_backbone(patches)
    for side in (backbone.image_size, 75):
        image = photographs(2, 80)[..., :side, :side]
        (found,) = in_onnxruntime(exported.path, image=image)
        with torch.no_grad():
            expected = backbone.encoder(torch.from_numpy(image) * 2 - 1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(RunError, match="relative-patch, not to fill holes"):
        export_network(patches, to="onnx", part="filling", out=tmp_path / "x.onnx")


def with_outliers(run: Path) -> Path:
    """A run with a large weight per output channel, beside which 8 bits round the others to 0."""
    from context_encoder.runs import Checkpoint, RunFolder, find_checkpoint, read_config
    from context_encoder.runs.checkpoint import read_model

    folder = find_checkpoint(run)
    config, (weights, step) = read_config(folder), read_model(folder)
    weight = weights["encoder.conv2.conv.weight"]
    weight.uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(0))
    weight[:, 0, 0, 0] = 127
    other = run.with_name("outliers")
    checkpoint = Checkpoint(weights, None, {"empty": torch.zeros(1)}, {"step": step})
    RunFolder(other).save("best", checkpoint, config)
    return other


def test_fewer_bits_are_refused_where_they_cost_too_much(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.pt2"
    arguments = [str(with_outliers(run)), "--to", "pt2", "--out", str(out)]
    assert main([*arguments, "--part", "encoder", "--precision", "int8"]) == 1
    said = capsys.readouterr().err
    assert "--precision int8: the features conv3 of 64 crops differ by" in said
    assert "nothing was written" in said
    assert not out.exists()


def test_the_cost_of_a_fill_is_that_of_its_psnr(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FillingNetwork(included_network(), fill_color=(0, 0, 0)).eval()

    class Worse(torch.nn.Module):
        """All errors grow by a half."""

        def __init__(self) -> None:
            super().__init__()
            self.original = iter(torch.from_numpy(photographs(64, 64)).split(8))

        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            filled: torch.Tensor = module(image, mask)
            return image + 1.01 * (filled - image)

    # 20 log10(1.01) = 0.086 dB, for every image; 20 log10(1.012) is more than the limit.
    assert export._check_loss(module, Worse(), "fp16") == pytest.approx(0.0864, abs=2e-4)
    monkeypatch.setattr(export, "_MOST_LOSS", 0.08)
    with pytest.raises(ExportError, match=r"64 crops have \d+\.\d\d dB instead of \d+\.\d\d dB"):
        export._check_loss(module, Worse(), "fp16")


def test_a_file_that_does_something_else_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = export._save

    def save_another(module: Any, program: torch.nn.Module, *others: Any) -> None:
        save(module, Shifted(program), *others)

    class Shifted(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(x + 1e-2 for x in self.inner(image))

    monkeypatch.setattr(export, "_save", save_another)
    out = tmp_path / "x.pt2"
    with pytest.raises(ExportError, match=r"differ from the network's by 0\.0"):
        export_network(run, to="pt2", part="encoder", out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--to"),
        (["--to", "onnx", "--out", "x.pt2"], "must end in .onnx"),
        (["--to", "onnx", "--part", "encoder"], "gives no features; name the run of another"),
        (["--to", "onnx", "--size", "32"], "--size must be 64 or more, got 32"),
        (["RUN", "--to", "onnx", "--size", "64"], "--size must be 32, the size that"),
        (["RUN", "--to", "pt2", "--layers", "conv9"], "--layers must be among conv1, conv2, conv3"),
        (["RUN", "--to", "pt2", "--part", "filling", "--layers", "conv1"], "--part encoder"),
        (["RUN", "--to", "pt2", "--part", "encoder", "--size", "32"], "needs --part filling"),
        (["nowhere", "--to", "onnx"], "nowhere"),
        (["--to", "onnx", "--out", "FILE"], "already there; replace it with --overwrite"),
    ],
)
def test_errors_name_the_option(
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxscript")
    file = tmp_path / "there.onnx"
    file.write_text("kept")
    named = {"RUN": str(run), "FILE": str(file)}
    assert main([named.get(word, word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert file.read_text() == "kept"


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--to", "onnx"]) == 2
    assert "pip install 'context-encoder[export]'" in capsys.readouterr().err


def test_metadata_of_a_central_network_name_the_hole(tmp_path: Path) -> None:
    model = build_model("dcgan-center", bottleneck_units=50)
    module = FillingNetwork(model, fill_color=(0, 0, 0))
    facts = export._metadata(module, {"network": "dcgan-center"}, "float32")
    assert "(32, 32, 64, 64)" in facts["hole"]
    assert json.loads(json.dumps(facts)) == facts
