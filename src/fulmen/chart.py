"""Charts as inline SVG: lines over steps, and one stacked bar. Colours come from the style sheet of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "downsample", "line_chart", "nice_ticks", "smooth", "stacked_bar"]

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 250
_TOP, _RIGHT, _BOTTOM = 12, 16, 40
_CHARACTER = 6.6  # width of a digit of the axes' font
_BUCKETS = 300
_SMOOTH_FROM = 100
_LOG_RATIO = 300.0


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: What the legend calls it.
        x: Where the values were taken, ascending.
        y: The values; those that are not finite are marked at the bottom.
        color: Number of the line's colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0

    @property
    def finite(self) -> Points:
        """The points with a finite value."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(y)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    if not low < high:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def downsample(points: Points, buckets: int = _BUCKETS) -> Points:
    """At most two points per bucket, the lowest and the highest, so that no spike is lost.

    Args:
        points: Points with ascending x.
        buckets: Number of equal parts that the x-axis is cut into.

    Returns:
        Points in their order; the first and the last are among them.
    """
    if len(points) <= 2 * buckets:
        return points
    low, high = points[0][0], points[-1][0]
    scale = buckets / ((high - low) or 1.0)
    chosen: dict[int, list[int]] = {}
    for index, (x, y) in enumerate(points):
        ends = chosen.setdefault(min(int((x - low) * scale), buckets - 1), [index, index])
        if y < points[ends[0]][1]:
            ends[0] = index
        if y > points[ends[1]][1]:
            ends[1] = index
    kept = {0, len(points) - 1}.union(*chosen.values())
    return [points[index] for index in sorted(kept)]


def smooth(points: Points) -> Points:
    """The mean of two exponential moving averages, one from either end, so that the line does not lag behind."""
    keep = 1.0 - 1.0 / max(len(points) / 100, 1.0)
    forward = _moving_average([y for _, y in points], keep)
    backward = _moving_average([y for _, y in reversed(points)], keep)[::-1]
    return [(x, (a + b) / 2) for (x, _), a, b in zip(points, forward, backward, strict=True)]


def _moving_average(values: Sequence[float], keep: float) -> list[float]:
    average, weight = 0.0, 0.0
    averages = []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        averages.append(average / weight)
    return averages


def line_chart(series: Sequence[Series], title: str, x_label: str = "step") -> str:
    """Draw lines over a common x-axis.

    Args:
        series: The lines.
        title: What the chart shows, for those who hear the page.
        x_label: Name of the x-axis.

    Returns:
        An `<svg>` element. The y-axis is logarithmic if all values are positive and span several powers of ten.
    """
    finite = [point for line in series for point in line.finite]
    xs = [x for line in series for x in line.x]
    values = [y for _, y in finite]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
    y_axis = _log_axis(values) if logarithmic else _linear_axis(values)
    left = 14 + _CHARACTER * max(len(label) for _, label in y_axis.ticks)
    plane = _Plane(
        _Scale(*_span(xs), left, _WIDTH - _RIGHT), _Scale(y_axis.low, y_axis.high, _HEIGHT - _BOTTOM, _TOP), logarithmic
    )

    parts = [_y_grid(plane, y_axis), _x_grid(plane, xs, x_label + (" (values on a log scale)" if logarithmic else ""))]
    hover = []
    for line in series:
        markup, points = _line(plane, line)
        parts.append(markup)
        hover.append({"name": line.name, "color": line.color % 6, "points": points})
    data = escape(json.dumps(hover, separators=(",", ":")), quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}"'
        f' data-series="{data}">{"".join(parts)}</svg>'
    )


def stacked_bar(shares: Sequence[tuple[str, float]], title: str) -> str:
    """Draw one bar cut into parts.

    Args:
        shares: Name and size of each part; sizes are not negative and at least one is positive.
        title: What the bar shows, for those who hear the page.

    Returns:
        An `<svg>` element whose parts have the colours 0, 1, ... in order.
    """
    total = sum(size for _, size in shares)
    parts, x = [], 0.0
    for index, (name, size) in enumerate(shares):
        width = 1000 * size / total
        label = f"<title>{escape(name)}: {size / total:.1%}</title>"
        parts.append(f'<rect class="fill{index % 8}" x="{x:.2f}" width="{width:.2f}" height="30">{label}</rect>')
        x += width
    return (
        f'<svg class="bar" viewBox="0 0 1000 30" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )


# -------------------------------------------------------------------------------------------------- scales and axes


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


@dataclass(frozen=True)
class _Plane:
    x: _Scale
    y: _Scale
    logarithmic: bool

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return round(self.x(x), 1), round(self.y(math.log10(y) if self.logarithmic else y), 1)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[tuple[float, str]]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value, apart from each other even when there is one value, or none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low, high


def _linear_axis(values: Sequence[float]) -> _Axis:
    low, high = _span(values)
    room = (high - low) * 0.05
    # Losses, accuracies and the like do not go below zero; neither does their axis.
    low = 0.0 if 0 <= low < room else low - room
    high += room
    ticks = nice_ticks(low, high)
    return _Axis(low, high, list(zip(ticks, _labels(ticks), strict=True)))


def _log_axis(values: Sequence[float]) -> _Axis:
    low, high = math.log10(min(values)), math.log10(max(values))
    room = (high - low) * 0.05
    low, high = low - room, high + room
    powers = list(range(math.ceil(low), math.floor(high) + 1))
    every = max(1, math.ceil(len(powers) / 6))
    return _Axis(low, high, [(power, f"{10.0**power:g}") for power in powers[::every]])


def _labels(ticks: Sequence[float]) -> list[str]:
    """The shortest labels that tell the ticks apart."""
    largest = max(abs(tick) for tick in ticks)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest or 1.0
    if largest >= 1e7 or 0 < largest < 1e-3:
        digits = max(0, math.floor(math.log10(largest)) - math.floor(math.log10(abs(step) or 1.0)))
        return ["0" if tick == 0 else _short_exponent(f"{tick:.{min(digits, 6)}e}") for tick in ticks]
    decimals = max(0, -math.floor(math.log10(abs(step) or 1.0) + 1e-9))
    return [f"{tick + 0.0:.{decimals}f}" for tick in ticks]


def _short_exponent(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}"


def _count_label(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _y_grid(plane: _Plane, axis: _Axis) -> str:
    left, right = plane.x.start, plane.x.stop
    parts = []
    for value, label in axis.ticks:
        y = plane.y(value)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(parts)


def _x_grid(plane: _Plane, xs: Sequence[float], label: str) -> str:
    bottom = plane.y.start
    ticks = [tick for tick in nice_ticks(plane.x.low, plane.x.high, 6) if float(tick).is_integer()]
    if len(set(xs)) == 1:
        ticks = [xs[0]]
    parts = [f'<line class="axis" x1="{plane.x.start:.1f}" y1="{bottom}" x2="{plane.x.stop}" y2="{bottom}"/>']
    for tick in ticks:
        x = plane.x(tick)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_count_label(tick)}</text>'
        )
    middle = (plane.x.start + plane.x.stop) / 2
    parts.append(f'<text class="label" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


# -------------------------------------------------------------------------------------------------- lines


def _line(plane: _Plane, series: Series) -> tuple[str, list[list[float]]]:
    """The markup of a line, and its points for the hover: [x on the page, y on the page, x, y]."""
    color = series.color % 6
    finite = series.finite
    shown = downsample(finite)
    many = len(finite) >= _SMOOTH_FROM
    parts = [f'<g class="line{color}">']
    for run in _runs(series):
        raw = downsample(run)
        if len(raw) == 1:
            x, y = plane.place(raw[0])
            parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>')
            continue
        if many:
            parts.append(f'<path class="raw" d="{_path(plane, raw)}"/>')
            parts.append(f'<path class="main" d="{_path(plane, downsample(smooth(run)))}"/>')
            continue
        parts.append(f'<path class="main" d="{_path(plane, raw)}"/>')
        if len(finite) <= 30:
            dots = (plane.place(point) for point in raw)
            parts += [f'<circle class="dot" cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots]
    parts.append("</g>")
    parts.append(_marks_of_missing(plane, series))
    return "".join(parts), [[*plane.place(point), point[0], float(f"{point[1]:.5g}")] for point in shown]


def _runs(series: Series) -> list[Points]:
    """The line cut where values are not finite."""
    runs: list[Points] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(plane: _Plane, points: Points) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in map(plane.place, points))


def _marks_of_missing(plane: _Plane, series: Series) -> str:
    missing = [(x, 0.0) for x, y in zip(series.x, series.y, strict=True) if not math.isfinite(y)]
    bottom = plane.y.start
    marks = []
    for x, _ in downsample(missing):
        at = plane.x(x)
        marks.append(
            f'<path class="missing" d="M{at:.1f} {bottom}l-4 -7h8z">'
            f"<title>{escape(series.name)} is not finite at {x:g}</title></path>"
        )
    return "".join(marks)
