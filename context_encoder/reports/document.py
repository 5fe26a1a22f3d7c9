"""A report: title, facts and sections, rendered as one HTML file without external parts."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from context_encoder.utils.version import __version__

__all__ = ["Cell", "Document", "Picture", "Section", "Table"]

_PAGE = Path(__file__).parent / "page"
# The longest side that WebP can have.
_WEBP_SIDE = 16383


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by, if any."""

    text: str
    value: float | None = None
    #: Shown in bold: the best of its column, or a setting that differs.
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on a heading. The first column is text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An image of a report."""

    name: str
    #: ``data:`` URL.
    source: str
    width: int
    height: int

    @classmethod
    def read(cls, path: Path, name: str) -> Picture:
        """A file as part of the report, without loss.

        Raises:
            OSError: it cannot be read as an image.
        """
        data, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if max(image.size) <= _WEBP_SIDE and image.mode in ("L", "RGB", "RGBA"):
                smaller = io.BytesIO()
                image.save(smaller, "WEBP", lossless=True, quality=30, method=2)
                if len(smaller.getvalue()) < len(data) or image.format != "PNG":
                    data, kind = smaller.getvalue(), "webp"
            width, height = image.size
        text = base64.b64encode(data).decode()
        return cls(name, f"data:image/{kind};base64,{text}", width, height)


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    facts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    #: SVG, from :func:`context_encoder.reports.chart.line_chart`.
    charts: Sequence[Markup] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    facts: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The file. All text is escaped; the page can load nothing, by its own policy."""
        return _template().render(
            document=self,
            version=__version__,
            style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
            script=Markup((_PAGE / "report.js").read_text(encoding="utf-8")),
        )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((_PAGE / "report.html").read_text(encoding="utf-8"))
