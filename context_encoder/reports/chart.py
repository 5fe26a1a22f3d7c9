"""Line charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Series", "line_chart"]

# Okabe and Ito 2008: distinguishable with every kind of colour vision; then again, dashed.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("none", "6 3", "2 3")
_WIDTH, _PLOT, _LEFT, _RIGHT, _TOP = 576, 260, 56, 16, 34
_ROW = 18
# Average width of a character of the legend, and what stands before its text.
_CHARACTER, _KEY = 6.6, 34

_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """A curve: its name and its points, of which those that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> Markup | None:
    """A chart of some curves; None if they have no points.

    Args:
        title, x_label, y_label: texts.
        series: the curves, in the order of the legend.
    """
    curves = [(entry.name, entry.finite) for entry in series if entry.finite]
    if not curves:
        return None
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    (x_from, x_to), (y_from, y_to) = (min(xs), max(xs)), (min(ys), max(ys))

    def across(x: float) -> float:
        return _LEFT + (x - x_from) / ((x_to - x_from) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (y_to - y) / ((y_to - y_from) or 1) * _PLOT

    parts = [
        Markup('<text class="title" x="{}" y="16">{}</text>').format(_LEFT, title),
        *_axes(x_ticks, y_ticks, across, down),
        Markup('<text x="{:.0f}" y="{}" text-anchor="end">{}</text>').format(
            _WIDTH - _RIGHT, _TOP + _PLOT + 34, x_label
        ),
        Markup('<text x="{}" y="29" text-anchor="start">{}</text>').format(4, y_label),
    ]
    row, left, legend = 0, float(_LEFT), []
    for number, (name, points) in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
        parts.append(_curve(name, points, color, dash, across, down))
        width = _KEY + _CHARACTER * len(name) + 12
        if left + width > _WIDTH and left > _LEFT:
            row, left = row + 1, float(_LEFT)
        legend.append(_entry(number, name, color, dash, left, _TOP + _PLOT + 56 + _ROW * row))
        left += width
    height = _TOP + _PLOT + 56 + _ROW * row + 12
    inside = Markup("").join([*parts, *legend])
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, title, inside
    )


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], across: _Scale, down: _Scale
) -> list[Markup]:
    bottom, right = _TOP + _PLOT, _WIDTH - _RIGHT
    parts = []
    for y, text in ((tick, f"{tick:.10g}") for tick in y_ticks):
        parts.append(
            Markup(
                '<path d="M{} {:.1f}H{}" stroke="#e3e6eb"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, down(y), right, _LEFT - 6, down(y) + 4, text)
        )
    for x, text in ((tick, f"{tick:.10g}") for tick in x_ticks):
        parts.append(
            Markup(
                '<path d="M{:.1f} {}v5" stroke="#9aa3b0"/>'
                '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
            ).format(across(x), bottom, across(x), bottom + 18, text)
        )
    parts.append(Markup('<path d="M{} {}H{}" stroke="#9aa3b0"/>').format(_LEFT, bottom, right))
    return parts


def _curve(
    name: str,
    points: Sequence[tuple[float, float]],
    color: str,
    dash: str,
    across: _Scale,
    down: _Scale,
) -> Markup:
    line = " L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in points)
    dots = Markup()
    if len(points) <= 60:
        dots = Markup("").join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"><title>{}</title></circle>')
            .format(across(x), down(y), color, f"{name}: {x:g}, {y:.4g}")
            for x, y in points
        )  # fmt: skip
    return Markup(
        '<g class="series"><path d="M{}" fill="none" stroke="{}" stroke-width="1.8" '
        'stroke-dasharray="{}"><title>{}</title></path>{}</g>'
    ).format(line, color, dash, name, dots)


def _entry(number: int, name: str, color: str, dash: str, left: float, top: float) -> Markup:
    return Markup(
        '<g class="entry" data-series="{}" tabindex="0" role="button"><path d="M{:.1f} {}h22" '
        'stroke="{}" stroke-width="3" stroke-dasharray="{}"/><text x="{:.1f}" y="{}">{}</text></g>'
    ).format(number, left, top - 4, color, dash, left + 28, top, escape(name))


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers in a range, at least one: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if span / step <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]
