"""Image files and data sets with known pixels."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from context_encoder.data import (
    PhotoFolder,
    list_images,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def broken_files(where: Path) -> dict[Path, str]:
    """Unreadable files, each with text that its reason must contain."""
    image = Image.fromarray(noise(64, 64))
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    tiff = bytearray(encoded(image, "TIFF", compression="tiff_lzw"))
    tiff[200:4000] = b"\xff" * 3800  # libtiff itself reports this on standard error
    contents = {
        "empty.jpg": (b"", "the file is empty"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "begins with b'<!DOCTYPE html>"),
        "text.png": (b"a", "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "start.jpg": (jpeg[:20], r"\w"),
        "noise.jpg": (jpeg[:2] + noise(10, 10).tobytes(), r"\w"),
        "damaged.tif": (bytes(tiff), "pixels cannot be decoded"),
        "bomb.png": (png_header(40000, 40000), "exceeds the limit of 300"),
        "no_pixels.png": (png_header(100, 100), "pixels cannot be decoded"),
    }
    where.mkdir(exist_ok=True)
    for name, (content, _) in contents.items():
        (where / name).write_bytes(content)
    reasons = {where / name: reason for name, (_, reason) in contents.items()}
    (where / "dangling.jpg").symlink_to(where / "nowhere.jpg")
    reasons[where / "dangling.jpg"] = "No such file"
    os.mkfifo(where / "pipe.jpg")
    reasons[where / "pipe.jpg"] = "not a regular file"
    return reasons


def photos(root: Path, **changes: Any) -> PhotoFolder:
    options: dict[str, Any] = {
        "size": 16,
        "resize": 32,
        "crop_scale": (0.5, 1.0),
        "flip": True,
        "seed": 3,
        "train": True,
    }
    return PhotoFolder(list_images(root), root=root, **(options | changes))
