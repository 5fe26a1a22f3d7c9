"""Draw docs/images/removals.jpg: things removed from included photographs by ``inpaint``.

    python tools/removals.py

The photographs and the outlines were chosen by hand.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from context_encoder import HoleFiller
from context_encoder.data.folder import embedded_photos

ROOT = Path(__file__).resolve().parent.parent
WIDTH, GAP = 320, 4
MARK = (255, 0, 128)

Outline = list[tuple[int, int]]
#: Outlines in pixels of the photographs.
REMOVALS: dict[str, Outline] = {
    "kde_cocktail": [
        (278, 55), (303, 55), (279, 178), (305, 182), (306, 240), (318, 275), (315, 330),
        (262, 375), (268, 405), (310, 435), (305, 460), (200, 462), (190, 450), (30, 440),
        (30, 418), (190, 420), (234, 400), (238, 375), (192, 330), (185, 285), (203, 230),
        (196, 182), (253, 178),
    ],
    "lomiri_aitzgorri": [
        (575, 190), (590, 215), (612, 250), (610, 300), (615, 355), (522, 352), (525, 310),
        (535, 260), (556, 215),
    ],
}  # fmt: skip


def main() -> None:
    rows = []
    fill = HoleFiller()
    for name, outline in REMOVALS.items():
        (path,) = embedded_photos().glob(f"{name}*.jpg")
        image = Image.open(path).convert("RGB")
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        marked = Image.composite(Image.new("RGB", image.size, MARK), image, mask)
        marked = Image.blend(image, marked, 0.6)
        rows.append([image, marked, fill(image, mask).image])
    heights = [round(row[0].height * WIDTH / row[0].width) for row in rows]
    size = (3 * WIDTH + 2 * GAP, sum(heights) + GAP * (len(rows) - 1))
    sheet, y = Image.new("RGB", size, "white"), 0
    for row, height in zip(rows, heights, strict=True):
        for column, part in enumerate(row):
            small = part.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (WIDTH + GAP), y))
        y += height + GAP
    sheet.save(ROOT / "docs/images/removals.jpg", quality=90)


if __name__ == "__main__":
    main()
