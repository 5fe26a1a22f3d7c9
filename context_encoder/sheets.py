"""Picture sheets: what was given, what the network saw, what it made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

_MARGIN = 4
_HEADER = 14
_MIN_SIDE = 128


def save_sheet(path: Path, columns: Sequence[tuple[str, Tensor]], *, panels: int = 1) -> None:
    """Write a PNG with one row an image and one titled column a kind of picture.

    Args:
        path: the file to write.
        columns: title and pictures ``(B, 3, H, W)`` on [0, 1], the same B, H and W in each.
        panels: lay the rows out in this many blocks side by side.
    """
    rows, _, height, width = columns[0][1].shape
    # Small pictures are enlarged by whole pixels, so that a viewer does not blur them.
    zoom = max(1, -(-_MIN_SIDE // max(height, width)))
    cell_h, cell_w = height * zoom + _MARGIN, width * zoom + _MARGIN
    per_panel = -(-rows // panels)
    panel_w = cell_w * len(columns) + _MARGIN
    sheet = Image.new(
        "RGB", (panel_w * panels + _MARGIN, _HEADER + cell_h * per_panel + _MARGIN), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for c, (title, pictures) in enumerate(columns):
        arrays = (pictures.detach().float().cpu().clamp(0, 1) * 255).round().byte()
        arrays_np: np.ndarray = arrays.permute(0, 2, 3, 1).numpy()
        for panel in range(panels):
            left = _MARGIN + panel * panel_w + c * cell_w
            draw.text((left, 1), title, fill="black")
            for r, array in enumerate(arrays_np[panel * per_panel : (panel + 1) * per_panel]):
                picture = Image.fromarray(array).resize(
                    (width * zoom, height * zoom), Image.Resampling.NEAREST
                )
                sheet.paste(picture, (left, _HEADER + _MARGIN + r * cell_h))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
