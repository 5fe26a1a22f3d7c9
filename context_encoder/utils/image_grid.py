"""Image sheets: originals, network inputs and outputs in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from context_encoder.utils.files import make_folder, write_file

_MARGIN = 4
_LINE = 14
_MIN_SIDE = 128


def save_sheet(
    path: Path,
    columns: Sequence[tuple[str, Tensor]],
    *,
    panels: int = 1,
    max_columns: int | None = None,
    title: str = "",
    rows: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    min_side: int = _MIN_SIDE,
) -> None:
    """Write a PNG with one row per sample and one titled column per kind of image.

    Args:
        path: the file to write.
        columns: title and images ``(B, 3, H, W)`` on [0, 1], the same B, H and W in each.
            Lines of a title are separated by newlines.
        panels: lay the rows out in this many blocks side by side.
        max_columns: continue a row with more columns than this on the next line, the columns'
            titles above each image; None for no limit.
        title: lines above everything.
        rows: labels to the left of the B rows, with newlines where they have several lines.
        captions: a line under each image: B texts for every column.
        min_side: smaller images are enlarged to at least this longer side, by a whole factor.
    """
    count, _, height, width = columns[0][1].shape
    # Small images are enlarged by whole pixels, so that a viewer does not blur them.
    zoom = max(1, -(-min_side // max(height, width)))
    text = _Text()
    per_line = min(len(columns), max_columns or len(columns))
    lines = -(-len(columns) // per_line)
    titles_h = _LINE * max(name.count("\n") + 1 for name, _ in columns)
    cell_h = height * zoom + _MARGIN + (_LINE if captions else 0) + (titles_h if lines > 1 else 0)
    cell_w = max(width * zoom, *(text.width(name) for name, _ in columns)) + _MARGIN
    if captions:
        cell_w = max(cell_w, *(text.width(c) + _MARGIN for column in captions for c in column))
    label_w = max((text.width(row) + _MARGIN for row in rows), default=0)
    top = _LINE * len(title.splitlines()) + titles_h
    row_h = cell_h * lines
    per_panel = -(-count // panels)
    panel_w = label_w + cell_w * per_line + _MARGIN
    sheet_w = max(panel_w * panels, text.width(title)) + _MARGIN
    sheet = Image.new("RGB", (sheet_w, top + row_h * per_panel + _MARGIN), "white")
    text.draw = ImageDraw.Draw(sheet)
    text(_MARGIN, 1, title)
    for panel in range(panels):
        first, left = panel * per_panel, _MARGIN + panel * panel_w
        for r, row in enumerate(rows[first : first + per_panel]):
            text(left, top + _MARGIN + r * row_h, row)
        for c, (name, pictures) in enumerate(columns):
            line, place = divmod(c, per_line)
            x = left + label_w + place * cell_w
            for r, array in enumerate(_to_bytes(pictures[first : first + per_panel])):
                y = top + _MARGIN + r * row_h + line * cell_h
                if lines > 1 or r == 0:
                    # The last line of every title is directly above its image.
                    text(x, y - _MARGIN - _LINE * (name.count("\n") + 1) + 1, name)
                picture = Image.fromarray(array).resize(
                    (width * zoom, height * zoom), Image.Resampling.NEAREST
                )
                sheet.paste(picture, (x, y))
                if captions:
                    text(x, y + height * zoom, captions[c][first + r])
    make_folder(path.parent)
    write_file(path, lambda new: sheet.save(new, format="PNG"))


def shorten(name: str, most: int = 20) -> str:
    """The end of a file name, for a caption."""
    return name if len(name) <= most else "..." + name[3 - most :]


def _to_bytes(pictures: Tensor) -> np.ndarray:
    """uint8 ``(B, H, W, 3)``."""
    array = (pictures.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    return array.permute(0, 2, 3, 1).numpy()


class _Text:
    """Lines of text in Pillow's default font, and their width."""

    def __init__(self) -> None:
        self._font = ImageFont.load_default()
        self.draw: ImageDraw.ImageDraw | None = None

    def width(self, text: str) -> int:
        return max((int(self._font.getlength(line)) + 1 for line in text.splitlines()), default=0)

    def __call__(self, x: int, y: int, text: str) -> None:
        assert self.draw is not None
        for number, line in enumerate(text.splitlines()):
            self.draw.text((x, y + number * _LINE), line, fill="black", font=self._font)
