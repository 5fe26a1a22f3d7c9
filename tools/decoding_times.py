"""Times of docs/data.md: milliseconds of one core per training sample, by where images are kept.

    python tools/decoding_times.py [--out docs/results/decoding.json]

The sources take turns; the result is the median of five epochs after a first one, which fills the
memory and the cache. Photographs of 12 megapixels are packaged ones, enlarged.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from context_encoder.data import (
    DecodedCache,
    PhotoFolder,
    embedded_photos,
    find_images,
    list_images,
    read_image,
)

SIZES = ((64, 128), (227, 256), (128, 350))
EPOCHS, LARGE = 6, 12


def enlarged(folder: Path) -> Path:
    folder.mkdir()
    for number, path in enumerate(list(list_images(embedded_photos()))[:LARGE]):
        photo = read_image(path).resize((4000, 3000), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number}.jpg", quality=90)
    return folder


def measure(root: Path, size: int, resize: int, work: Path) -> dict[str, float]:
    """Milliseconds per sample by source, and kilobytes per image in shards and in the cache."""
    shards, cache = work / "shards", work / "cache"
    pack = [sys.executable, "-m", "context_encoder.pack", str(root), str(shards)]
    pack += ["--resize", str(resize), "--encode", "jpeg"]
    subprocess.run(pack, check=True, capture_output=True)
    files, packed = list(list_images(root)), list(find_images(shards))

    def data(paths: list[Any], **options: Any) -> PhotoFolder:
        return PhotoFolder(
            paths, root=root, size=size, resize=resize, crop_scale=(0.4, 1.0), flip=True, seed=0,
            train=True, **{"cache_bytes": 0} | options,
        )  # fmt: skip

    sources = {
        "files": data(files),
        "shards": data(packed),
        "decoded cache": data(files, decoded=DecodedCache(cache, 10**11)),
        "memory": data(files, cache_bytes=10**10),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for epoch in range(EPOCHS):
        for name, source in sources.items():
            began = time.process_time()
            for index in range(len(source)):
                source[epoch, index]
            seconds[name].append((time.process_time() - began) / len(source))
    found = {name: round(1e3 * statistics.median(s[1:]), 2) for name, s in seconds.items()}
    for name, folder, kind in (("shards", shards, "*.tar"), ("cache", cache, "*.pixels")):
        total = sum(file.stat().st_size for file in folder.glob(kind))
        found[f"KB per image, {name}"] = round(total / len(files) / 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        large = enlarged(Path(work, "large"))
        for name, root in (("packaged", embedded_photos()), ("12 megapixels", large)):
            for size, resize in SIZES:
                row = f"{size}, {resize}, {name}"
                folder = Path(work, row)
                folder.mkdir()
                rows[row] = measure(root, size, resize, folder)
                print(row, rows[row], flush=True)
    if options.out:
        content = {"machine": f"{platform.machine()}, one core", "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
