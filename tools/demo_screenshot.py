"""The picture of the page in the documentation: ``python tools/demo_screenshot.py``.

Starts ``python -m context_encoder.demo``, fills a hole in one of the included photographs in
Chromium (driven by Playwright, from the extra "test") and writes ``docs/images/demo.jpg``.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "context_encoder/data/photos/lomiri_aitzgorri_by_aitzol_berasategi.jpg"
#: A lasso around the dark tree, in pixels of the photograph.
LASSO = [
    (574, 196), (590, 215), (598, 245), (612, 255), (612, 290), (596, 305), (580, 330), (560, 345),
    (560, 362), (500, 358), (496, 325), (522, 300), (542, 290), (540, 265), (556, 225),
]  # fmt: skip


def screenshot(url: str, chromium: str, photo: Path) -> bytes:
    """A PNG of the page after the fill."""
    width, height = Image.open(photo).size
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_default_timeout(300_000)
        page.goto(url)
        file = {"name": "meadow.jpg", "mimeType": "image/jpeg", "buffer": photo.read_bytes()}
        page.set_input_files("#file-input", file)
        page.wait_for_selector("#stage[data-state=open]")
        page.click("[data-tool=lasso]")
        stage = page.locator("#canvas").bounding_box()
        assert stage is not None
        scale = float(page.locator("#zoom-text").inner_text().removesuffix(" %")) / 100
        points = [
            (
                stage["x"] + stage["width"] / 2 + (x - width / 2) * scale,
                stage["y"] + stage["height"] / 2 + (y - height / 2) * scale,
            )
            for x, y in LASSO
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        page.mouse.up()
        page.click("#fill")
        page.wait_for_function(
            "() => document.querySelector('#fill span').textContent === 'Fill'"
            " && !document.getElementById('download').disabled"
        )
        page.mouse.move(5, 5)
        shot: bytes = page.screenshot()
        return shot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/demo.jpg")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    args = parser.parse_args()
    command = [sys.executable, "-m", "context_encoder.demo", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("the page is at ").strip()
        try:
            data = screenshot(url, args.chromium, PHOTO)
        finally:
            process.terminate()
    shot = Image.open(io.BytesIO(data)).convert("RGB")
    shot.save(args.out, quality=90, subsampling=0, optimize=True)
    print(f"saved {args.out}, {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
