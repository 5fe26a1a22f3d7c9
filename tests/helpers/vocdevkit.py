"""A small VOCdevkit of textured silhouettes on photographs, made from packaged data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from context_encoder.data import embedded_photos, list_images
from context_encoder.masks import silhouettes
from context_encoder.masks.region import UNIT

CLASSES = ("stripes", "dots", "flame")
_SIDE = 96


def texture(label: int, rng: np.random.Generator) -> np.ndarray:
    """The texture of a class, ``(S, S, 3)``: colour and pattern, with some noise."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    if label == 0:
        bright = (columns + rng.integers(8)) % 8 < 4
        colours = ((20, 40, 230), (240, 240, 40))
    elif label == 1:
        bright = (columns % 8 - 4) ** 2 + (rows % 8 - 4) ** 2 < 7
        colours = ((10, 190, 60), (250, 250, 250))
    else:
        bright = (rows + rng.integers(8)) % 8 < 4
        colours = ((240, 30, 30), (90, 0, 60))
    pixels = np.where(bright[..., None], colours[1], colours[0])
    return np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def make_devkit(root: Path, train: int = 24, test: int = 16, seed: int = 0) -> Path:
    """VOC2007 and VOC2012 (one folder, linked) with ``trainval``, ``test``, ``train``, ``val``.

    The two splits share no silhouette and no photograph. About one object in eight is marked
    difficult.
    """
    rng = np.random.default_rng(seed)
    base = root / "VOC2007"
    for (
        name
    ) in "Annotations JPEGImages SegmentationClass ImageSets/Main ImageSets/Segmentation".split():
        (base / name).mkdir(parents=True)
    photos = list_images(embedded_photos())
    shapes = silhouettes().numpy().astype(np.float64) / UNIT
    for split, other, count, side in (("trainval", "train", train, 0), ("test", "val", test, 1)):
        names = []
        for number in range(count):
            name = f"{side}{number:05d}"
            names.append(name)
            photo = photos[side::2][rng.integers(len(photos[side::2]))]
            _write_image(base, name, photo, shapes[side::2], number, rng)
        for kind, label in (("Main", split), ("Segmentation", other)):
            (base / "ImageSets" / kind / f"{label}.txt").write_text("\n".join(names) + "\n")
    (root / "VOC2012").symlink_to(base, target_is_directory=True)
    return root


def _write_image(
    base: Path, name: str, photo: Path, shapes: np.ndarray, number: int, rng: np.random.Generator
) -> None:
    with Image.open(photo) as opened:
        image = opened.convert("RGB").resize((_SIDE, _SIDE))
    segmentation = Image.new("P", (_SIDE, _SIDE))
    segmentation.putpalette([c for i in range(256) for c in (i, 37 * i % 256, 91 * i % 256)])
    objects = ""
    for place in range(1 + number % 2):
        label = (number + place) % len(CLASSES)
        size = rng.uniform(30, 42)
        points = shapes[rng.integers(len(shapes))] * size
        points -= points.min(0)
        points *= np.minimum(1, 60 / points.max(0)).min()
        # Places two objects in opposite halves.
        room = np.array([_SIDE, _SIDE]) - points.max(0) - 2
        at = rng.uniform(0, 1, 2) * room
        if number % 2:
            at[0] = 0 if place == 0 else room[0]
        points = points + at + 1
        mask = Image.new("1", (_SIDE, _SIDE))
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points], fill=1)
        image.paste(Image.fromarray(texture(label, rng)), mask=mask)
        segmentation.paste(label + 1, mask=mask)
        x1, y1, x2, y2 = mask.getbbox()
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True))
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in box.items())
        difficult = int(place == 1 and number % 4 == 3)
        objects += (
            f"<object><name>{CLASSES[label]}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    pixels = np.array(segmentation)
    pixels[:2] = np.where(pixels[:2] == 0, 255, pixels[:2])  # a strip of void pixels
    labels = Image.fromarray(pixels, "P")
    labels.putpalette(segmentation.getpalette())
    labels.save(base / "SegmentationClass" / f"{name}.png")
    image.save(base / "JPEGImages" / f"{name}.jpg", quality=95)
    (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
