"""Nearest neighbours of a hole's context, against brute force and scikit-image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from skimage.feature import hog

from context_encoder.config import TrainConfig
from context_encoder.data import Crops, load_crops
from context_encoder.data.crops import same_contents
from context_encoder.evaluation.descriptors import EncoderFeatures, Hog, RawPixels
from context_encoder.evaluation.nearest_neighbours import Neighbours, same_photographs
from context_encoder.models import build_model
from context_encoder.neighbours import main
from context_encoder.runs import LoadedModel
from context_encoder.train import main as train
from tests.helpers.small_runs import TINY, save_photos

SIZE = 32


def crops_of(paths: list[Path], samples: int | None = None) -> Crops:
    return load_crops(
        paths, paths[0].parent, size=SIZE, resize=48, crop_scale=(0.5, 1.0), samples=samples
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_photos(tmp_path_factory.mktemp("photos") / "all", 10, seed=0, coarse=(7, 9))


@pytest.fixture(scope="module")
def candidates(photos: list[Path]) -> Crops:
    return crops_of(photos, samples=20)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    folder = tmp_path_factory.mktemp("queries") / "all"
    return crops_of(save_photos(folder, 3, seed=1, coarse=(7, 9)))


@pytest.fixture(scope="module")
def network() -> LoadedModel:
    torch.manual_seed(0)
    config = TrainConfig(size=SIZE)
    return LoadedModel(build_model("small", image_size=SIZE).eval(), config, 1, Path("run"))


def masks(count: int = 3) -> torch.Tensor:
    mask = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.bool)
    for i in range(count):
        mask[i, :, 8 + i : 20, 10 : 24 - i] = True
    return mask


def descriptor(name: str, candidates: Crops, network: LoadedModel):
    if name == "encoder":
        return EncoderFeatures(candidates, network)
    return {"hog": Hog, "pixels": RawPixels}[name](candidates)


NAMES = ("encoder", "hog", "pixels")


def test_pixel_distances_by_brute_force(candidates: Crops, queries: Crops) -> None:
    mask, image = masks(), queries.floats(slice(None))
    got = RawPixels(candidates).distances(image, mask)
    for i in range(3):
        kept = ~mask[i].expand(3, -1, -1)
        a = image[i][kept].double().numpy()[None]
        b = torch.stack([c[kept] for c in candidates.floats(slice(None))]).double().numpy()
        expected = cdist(a, b, "sqeuclidean")[0] / a.size
        np.testing.assert_allclose(got[i].numpy(), expected, rtol=1e-4)


def test_hog_without_a_hole_is_that_of_scikit_image(candidates: Crops, queries: Crops) -> None:
    def describe(crops: Crops) -> np.ndarray:
        return np.stack(
            [
                hog(picture.permute(1, 2, 0).numpy(), 9, (2, 2), (2, 2), "L2-Hys", channel_axis=-1)
                for picture in crops.images
            ]
        )

    nothing = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    got = Hog(candidates).distances(queries.floats(slice(None)), nothing)
    expected = cdist(describe(queries), describe(candidates))
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-3)


def test_encoder_distances_are_cosines_of_the_masked_pictures(
    candidates: Crops, queries: Crops, network: LoadedModel
) -> None:
    mask, image = masks(), queries.floats(slice(None))
    fill = torch.tensor(network.config.fill_color()).view(1, 3, 1, 1)
    for layer in (None, "conv1", "mix"):
        got = EncoderFeatures(candidates, network, layer).distances(image, mask)
        for i in range(3):
            pictures = torch.cat((image[i : i + 1], candidates.floats(slice(None))))
            with torch.no_grad():
                features = network.model.features(torch.where(mask[i], fill, pictures))
            rows = features[layer or "conv3"].flatten(1).double().numpy()
            expected = cdist(rows[:1], rows[1:], "cosine")[0]
            np.testing.assert_allclose(got[i].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_hole_changes_nothing(
    name: str, candidates: Crops, queries: Crops, network: LoadedModel
) -> None:
    mask = masks()[1:2]
    image = queries.floats(slice(0, 1))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    other = torch.where(mask, noise, image)
    changed = Crops(
        torch.where(mask, 255 - candidates.images.flip(0), candidates.images),
        candidates.paths,
        candidates.names,
        candidates.numbers,
        (),
        (),
    )
    expected = descriptor(name, candidates, network).distances(image, mask)
    torch.testing.assert_close(
        descriptor(name, candidates, network).distances(other, mask), expected
    )
    torch.testing.assert_close(descriptor(name, changed, network).distances(image, mask), expected)
    # The surroundings do change it.
    outside = descriptor(name, candidates, network).distances(
        torch.where(mask, image, image.flip(-1)), mask
    )
    assert not torch.allclose(outside, expected, rtol=1e-2)


def test_hog_takes_raw_pixels_where_every_block_sees_the_hole(
    candidates: Crops, queries: Crops
) -> None:
    lattice = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
    lattice[..., ::3, ::3] = True
    image = queries.floats(slice(0, 1))
    torch.testing.assert_close(
        Hog(candidates).distances(image, lattice), RawPixels(candidates).distances(image, lattice)
    )


@pytest.mark.parametrize("name", NAMES)
def test_search_is_exact_and_gives_each_photograph_once(
    name: str, candidates: Crops, queries: Crops, network: LoadedModel
) -> None:
    mask, image = masks(), queries.floats(slice(None))
    made = descriptor(name, candidates, network)
    numbers, found = Neighbours(candidates, made)(image, mask, queries.paths, k=4)
    distances = made.distances(image, mask).numpy()
    for i in range(3):
        best = {}  # by brute force: the nearest crop of each file
        for j, path in enumerate(candidates.paths):
            if path not in best or distances[i, j] < distances[i, best[path]]:
                best[path] = j
        expected = sorted(best.values(), key=lambda j: distances[i, j])[:4]
        assert numbers[i].tolist() == expected
        np.testing.assert_allclose(found[i].numpy(), distances[i, expected])


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_never_finds_itself_even_under_another_name(
    name: str, photos: list[Path], tmp_path: Path, network: LoadedModel
) -> None:
    copied = tmp_path / "copies"
    copied.mkdir()
    for path in photos[:4]:
        (copied / f"copy-{path.name}").write_bytes(path.read_bytes())
    own = crops_of(photos[:1])
    copies = crops_of(sorted(copied.iterdir()), samples=8)
    search = Neighbours(copies, descriptor(name, copies, network))
    mask = masks(1)
    numbers, distances = search(own.floats(slice(None)), mask, own.paths, k=3)
    assert "copy-0.png" not in {copies.names[n] for n in numbers[0].tolist()}
    assert distances.min() > 1e-3
    assert same_photographs(own, copies) == 2  # both crops of the copy
    with pytest.raises(ValueError, match=r"3 of the photographs .* 4 are needed.*`candidates`"):
        search(own.floats(slice(None)), mask, own.paths, k=4)


def test_a_picture_finds_the_same_pixels_in_another_file(
    photos: list[Path], tmp_path: Path, network: LoadedModel
) -> None:
    with Image.open(photos[3]) as image:
        image.save(tmp_path / "again.bmp")
    crops = crops_of([tmp_path / "again.bmp"])
    everything = crops_of(photos)
    for name in NAMES:
        search = Neighbours(everything, descriptor(name, everything, network))
        numbers, distances = search(crops.floats(slice(None)), masks(1), crops.paths)
        assert everything.names[numbers[0, 0]] == "3.png"
        assert distances[0, 0] < 1e-5


def test_layers_and_sizes_that_do_not_fit_are_refused(
    candidates: Crops, network: LoadedModel
) -> None:
    with pytest.raises(ValueError, match=r"no layer 'conv9'; it has conv1, conv2, conv3, chann"):
        EncoderFeatures(candidates, network, "conv9")
    model = build_model("small", image_size=48)
    with pytest.raises(ValueError, match="takes images of 48 pixels, these have 32"):
        EncoderFeatures(candidates, LoadedModel(model, network.config, 1, Path("run")))


def test_same_contents(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(photos[2].read_bytes())
    same_length = bytearray(photos[5].read_bytes())
    same_length[-1] ^= 1
    (tmp_path / "changed").write_bytes(bytes(same_length))
    others = [tmp_path / "copy", tmp_path / "changed", tmp_path / "missing"]
    assert same_contents(photos, others) == [photos[2]]


@pytest.fixture(scope="module")
def run(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--preset", "laptop", "--steps", "4", "--data", str(photos[0].parent)]
    assert train([*TINY, *options, "--out", str(path)]) == 0
    return path


def test_the_command_draws_a_sheet(
    run: Path, queries: Crops, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    folder = queries.paths[0].parent
    options = f"--checkpoint {run} --k 2 --queries 2 --mask block --layer conv2 --device cpu"
    assert main([*options.split(), "--data", str(folder), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width > 7 * 128
        assert sheet.height > 2 * 128
    record = json.loads(out.with_suffix(".json").read_text())
    assert (record["layer"], record["mask"], record["step"]) == ("conv2", "block", 4)
    assert [row["photograph"] for row in record["queries"]] == ["0.png", "1.png"]
    for row in record["queries"]:
        for name in ("encoder", "HOG", "raw pixels"):
            a, b = row[name]
            assert a["distance"] <= b["distance"]
            assert a["photograph"] != b["photograph"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint nowhere", "checkpoint nowhere does not exist"),
        ("--checkpoint RUN --data nowhere", "image folder nowhere does not exist"),
        ("--checkpoint RUN --out sheet.jpg", "must end in .png"),
        ("--checkpoint RUN --mask voc", "choose one of blob, block, central, region"),
        ("--checkpoint RUN --layer up1", "has no layer 'up1'"),
        ("--checkpoint RUN --device abacus", "must be auto, cpu"),
        ("--checkpoint RUN --k 99", "99 are needed"),
    ],
)
def test_bad_options_are_told(
    run: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", *options.replace("RUN", str(run)).split()]) == 2
    assert message in capsys.readouterr().err
