"""A curve as an SVG, both axes logarithmic: for times that grow with a count. Pure; no library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50  # room around the plot
COLOURS = ("#1f6feb", "#2da44e", "#cf222e", "#8250df", "#bf8700")


@dataclass(frozen=True, slots=True)
class Line:
    """`carried`: from this count on the points were not measured; drawn dashed. 0 = all were."""

    name: str
    points: Sequence[tuple[float, float]]
    carried: float = 0


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float  # decades
    high: float
    start: float  # pixels
    end: float

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [10.0**decade for decade in range(round(self.low), round(self.high) + 1)]


def svg(title: str, across: str, up: str, lines: Sequence[Line]) -> str:
    """Raises ValueError where there is nothing to draw, or a value that is not above zero."""
    points = [point for line in lines for point in line.points]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError("a logarithmic chart needs points above zero")
    horizontal = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    vertical = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#24292f">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, TOP - 16, title, size=14),
        *_grid(horizontal, vertical),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, anchor="middle"),
        _text(12, TOP - 2, up),
    ]
    for number, line in enumerate(lines):
        parts += _drawn(line, COLOURS[number % len(COLOURS)], horizontal, vertical)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    """Whole decades around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return _Axis(low, max(high, low + 1), start, end)


def _grid(horizontal: _Axis, vertical: _Axis) -> Iterator[str]:
    stroke = 'stroke="#d0d7de" stroke-width="1"'
    for tick in horizontal.ticks:
        x = horizontal.at(tick)
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" {stroke}/>'
        yield _text(x, HEIGHT - BOTTOM + 18, f"{tick:,g}", anchor="middle")
    for tick in vertical.ticks:
        y = vertical.at(tick)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" {stroke}/>'
        yield _text(LEFT - 8, y + 4, f"{tick:,g}", anchor="end")


def _drawn(line: Line, colour: str, horizontal: _Axis, vertical: _Axis) -> Iterator[str]:
    places = [(x, horizontal.at(x), vertical.at(y)) for x, y in line.points]
    for (_, x1, y1), (count, x2, y2) in pairwise(places):
        dashes = ' stroke-dasharray="6 4"' if line.carried and count >= line.carried else ""
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        yield f'<line {ends} stroke="{colour}" stroke-width="2"{dashes}/>'
    for count, x, y in places:
        fill = "#ffffff" if line.carried and count >= line.carried else colour
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
    _, x, y = places[-1]
    yield _text(x + 10, y + 4, line.name, colour=colour)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#24292f") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(text)}</text>'
