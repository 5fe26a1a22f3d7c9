"""Copies of training photographs are found by bytes and by their look."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, list_images
from context_encoder.evaluation import leaks
from context_encoder.evaluation.leaks import SIMILAR, find_copies, perceptual_hash
from context_encoder.runs import Photos

PHOTOS = list_images(embedded_photos())


def cropped(left: float, top: float, right: float, bottom: float) -> Callable[..., Image.Image]:
    """A copy without these fractions of the width and height."""

    def edit(image: Image.Image) -> Image.Image:
        w, h = image.size
        box = (left * w, top * h, (1 - right) * w, (1 - bottom) * h)
        return image.crop(tuple(map(round, box)))

    return edit


EDITS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "png": ("png", lambda image: image),
    "jpeg": ("jpg", lambda image: image),
    "half": ("webp", lambda image: image.resize((image.width // 2, image.height // 2))),
    "larger": ("jpg", lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2))),
    "square": ("png", lambda image: image.resize((128, 128))),
    "brighter": ("jpg", lambda image: ImageEnhance.Brightness(image).enhance(1.15)),
    "border": ("png", cropped(0.02, 0.02, 0.02, 0.02)),
    "left": ("jpg", cropped(0.05, 0, 0, 0)),
    "corner": ("jpg", cropped(0, 0.05, 0.05, 0)),
    "frame": ("jpg", cropped(0.025, 0.03, 0.03, 0.025)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_found_with_their_original(edit: str, tmp_path: Path) -> None:
    suffix, change = EDITS[edit]
    expected = {}
    for path in PHOTOS[:: len(PHOTOS) // 6]:
        with Image.open(path) as image:
            copy = tmp_path / f"copy-{path.stem}.{suffix}"
            options = {"quality": 50} if suffix == "jpg" else {}
            change(image.convert("RGB")).save(copy, **options)
        expected[copy] = path
    found = find_copies(expected, PHOTOS, most=1000)
    assert found.same == ()
    assert {copy: original for copy, original, _ in found.similar} == expected
    assert found.compared == found.trained_on == len(PHOTOS)


def test_different_photographs_are_no_copies() -> None:
    """Every photograph that ships against all others, those of one photographer too."""
    for i, path in enumerate(PHOTOS):
        others = PHOTOS[:i] + PHOTOS[i + 1 :]
        assert find_copies([path], others, most=1000).similar == (), path.name
    photos = Photos.from_config(TrainConfig())
    found = find_copies(photos.val, photos.train, most=1000)
    assert (found.same, found.similar) == ((), ())


def test_the_hash_is_that_of_a_cosine_transform() -> None:
    """pHash by its definition: which of the 16 x 16 lowest frequencies exceed their median."""
    from scipy.fft import dctn

    with Image.open(PHOTOS[0]) as image:
        grey = image.convert("L")
        small = np.asarray(grey.resize((64, 64), Image.Resampling.LANCZOS), float)
        lowest = dctn(small, type=2)[:16, :16]
        bits = np.unpackbits(perceptual_hash(grey)).reshape(16, 16)
    assert (bits == (lowest > np.median(lowest))).all()


def test_same_bytes_are_told_apart_from_the_same_look(tmp_path: Path) -> None:
    (tmp_path / "same.jpg").write_bytes(PHOTOS[3].read_bytes())
    with Image.open(PHOTOS[4]) as image:
        image.convert("RGB").save(tmp_path / "other.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    paths = sorted(tmp_path.iterdir())
    found = find_copies(paths, PHOTOS, most=1000)
    assert found.same == (tmp_path / "same.jpg",)
    ((copy, original, bits),) = found.similar
    assert (copy, original) == (tmp_path / "other.png", PHOTOS[4])
    assert bits <= 4 < SIMILAR
    # White and black have the same hash, and are no copies of each other.
    for color in ("white", "black"):
        Image.new("RGB", (90, 70), color).save(tmp_path / f"{color}.png")
    white, black = tmp_path / "white.png", tmp_path / "black.png"
    assert find_copies([white], [black], most=10).similar == ()
    # A limit compares an even selection.
    few = find_copies(paths, PHOTOS, most=10)
    assert (few.compared, few.trained_on) == (10, len(PHOTOS))
    assert find_copies(paths, PHOTOS, most=0).similar == ()


def test_without_the_library_only_bytes_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    with Image.open(PHOTOS[4]) as image:
        image.convert("RGB").save(data, "PNG")
    (tmp_path / "copy.png").write_bytes(data.getvalue())
    (tmp_path / "same.jpg").write_bytes(PHOTOS[3].read_bytes())
    monkeypatch.setattr(leaks, "hash_available", lambda: False)
    found = find_copies(tmp_path.iterdir(), PHOTOS, most=1000)
    assert (len(found.same), found.similar, found.compared) == (1, (), 0)
