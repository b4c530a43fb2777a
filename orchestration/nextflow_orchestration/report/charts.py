"""Charts as inline SVG: a histogram and lines. By hand, because two shapes do not justify a plotting library.

Colours and type come from the page's style sheet (classes, no attributes), so that both follow light and dark. Every label
is escaped here; the result is marked as safe for the template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from nextflow_orchestration.report.model import Curve
from nextflow_orchestration.words.numbers import short

WIDTH, HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 40
BUCKETS = 240
"""Points at most of a curve: a line of 520 pixels shows no more."""


def ticks(low: float, high: float, wanted: int = 7) -> list[float]:
    """Round positions that lie in [low, high], about `wanted` of them (steps of 1, 2 or 5 times a power of ten)."""
    if not high - low > max(abs(low), abs(high), 1e-200) * 1e-12:
        return [low]
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that can be divided by: one too narrow for floating point is given some width."""
    room = max(abs(low), abs(high)) * 1e-6 or 0.5
    return (low, high) if high - low > room * 1e-3 else (low - room, high + room)


def powers(low: float, high: float) -> list[float]:
    """Positions 10^low … 10^high for a logarithmic axis, as exponents: 1, 2 and 5 a decade, or decades where those crowd."""
    for steps in ((1, 2, 5), (1,)):
        found = [n + math.log10(m) for n in range(math.floor(low), math.ceil(high) + 1) for m in steps]
        found = [exponent for exponent in found if low <= exponent <= high]
        if len(found) <= 9:
            break
    return found[:: -(-len(found) // 9) or 1]


class _Frame:
    """Maps data to the plot area, and draws the grid and the axis labels. `log`: y is given as its logarithm to base 10."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], log: bool = False) -> None:
        self.x0, self.x1 = _widened(*x)
        self.y0, self.y1 = _widened(*y)
        self.log = log

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - _TOP - _BOTTOM)

    def grid(self, x_label: str, y_label: str, whole_x: bool = False) -> list[str]:
        out = []
        for tick in powers(self.y0, self.y1) if self.log else ticks(self.y0, self.y1):
            y, label = self.y(tick), short(float(f"{10**tick:.3g}") if self.log else tick)
            out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{escape(label)}</text>')
        for tick in ticks(self.x0, self.x1, 6):
            if whole_x and tick != round(tick):
                continue
            label, x = escape(short(tick)), self.x(tick)
            side, x = ("end", WIDTH - 2) if x + 3.2 * len(label) > WIDTH - 2 else ("mid", x)
            out.append(f'<text class="tick {side}" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 15}">{label}</text>')
        base = HEIGHT - _BOTTOM
        out.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
        out.append(f'<text class="label mid" x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
        out.append(f'<text class="label" x="2" y="{_TOP - 4}">{escape(y_label)}</text>')
        return out


def _svg(parts: list[str], title: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(head + f"<title>{escape(title)}</title>" + "".join(parts) + "</svg>")


def histogram(counts: Sequence[int], top: float, title: str, x_label: str, y_label: str = "packs") -> Markup:
    """Bars over 0 … `top`, which is drawn as a line: a limit. Nothing counted: an empty string."""
    if not any(counts):
        return Markup("")
    bins = len(counts)
    frame = _Frame((0, top), (0, max(counts) * 1.08))
    parts = frame.grid(x_label, y_label)
    for i, count in enumerate(counts):
        if count:
            left, right = frame.x(i * top / bins), frame.x((i + 1) * top / bins)
            span = f"{short(i * top / bins)} to {short((i + 1) * top / bins)}: {count} {y_label}"
            width = max(0.5, right - left - 1.6)
            parts.append(
                f'<rect class="bar" x="{left + 0.8:.1f}" y="{frame.y(count):.1f}" width="{width:.1f}" '
                f'height="{frame.y(0) - frame.y(count):.1f}" rx="1.5"><title>{escape(span)}</title></rect>'
            )
    x = frame.x(top)
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    return _svg(parts, title)


def lines(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    y_label: str,
    ramp: bool = False,
    zero: bool = False,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Curves over a common axis. `ramp` colours them as an ordered family (scales), else as categories.

    Points that are not finite are left out; `zero` makes the y axis begin at 0; `log` makes it logarithmic, and then what is
    not above 0 is left out too. `marks`: places on the x axis and what was there. No points: an empty string.
    """
    kept = [_usable(curve, log) for curve in curves]
    kept = [curve for curve in kept if curve.points]
    if not kept:
        return Markup("")
    xs = [x for curve in kept for x, _ in curve.points]
    ys = [y for curve in kept for _, y in curve.points] + [y for curve in kept for _, *both in curve.spread for y in both]
    low, high = (0.0 if zero else min(ys)), max(ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    frame = _Frame((min(xs), max(xs)), (low if zero else low - margin, high + margin), log)
    parts = frame.grid(x_label, y_label, whole_x=True)
    for place, what in marks:
        if min(xs) <= place <= max(xs):
            at = f"{frame.x(place):.1f}"
            line = f'<line class="mark" x1="{at}" x2="{at}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
            parts.append(f"{line}<title>{escape(what)}</title></line>")
    for i, curve in enumerate(kept):
        style = shade(i, len(kept), ramp)
        if curve.spread:
            edge = [(x, high) for x, _, high in curve.spread] + [(x, low) for x, low, _ in reversed(curve.spread)]
            parts.append(f'<polygon class="band {style}" points="{_path(frame, edge)}"/>')
        path = _path(frame, curve.points)
        parts.append(f'<polyline class="line {style}" points="{path}"><title>{escape(curve.name)}</title></polyline>')
        if len(curve.points) == 1:
            ((x, y),) = curve.points
            parts.append(f'<circle class="dot {style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>')
    return _svg(parts, title)


def _path(frame: _Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)


def _usable(curve: Curve, log: bool) -> Curve:
    """The curve without what cannot be drawn, and as logarithms where `log`."""

    def drawn(*values: float) -> bool:
        return all(math.isfinite(value) for value in values) and (not log or min(values) > 0)

    def y(value: float) -> float:
        return math.log10(value) if log else value

    points = tuple((x, y(value)) for x, value in curve.points if math.isfinite(x) and drawn(value))
    spread = tuple((x, y(low), y(high)) for x, low, high in curve.spread if drawn(low, high))
    return Curve(curve.name, points, spread)


def shade(index: int, count: int, ramp: bool) -> str:
    """The style class of the `index`-th of `count` curves: one of ten ordered colours, or one of six categories."""
    if not ramp:
        return f"line{index % 6}"
    return f"ramp{round(index * 9 / (count - 1)) if count > 1 else 5}"


def thinned(name: str, points: Sequence[tuple[float, float]], spread: bool = False) -> Curve:
    """A curve of at most BUCKETS points, means of equally many in order, each at its last point's place.

    `spread`: with the lowest and the highest of each, so that no single leap is lost.
    """
    finite = [point for point in points if math.isfinite(point[1])]
    size = -(-len(finite) // BUCKETS) or 1
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    mean = tuple((group[-1][0], sum(y for _, y in group) / len(group)) for group in groups)
    if not spread or size == 1:
        return Curve(name, mean)
    return Curve(name, mean, tuple((g[-1][0], min(y for _, y in g), max(y for _, y in g)) for g in groups))
