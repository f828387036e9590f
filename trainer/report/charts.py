"""Line charts as SVG text whose colours come from the page, so that they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
Reach = Sequence[tuple[float, float, float]]
"""x, and the interval of y there."""

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 40


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    percent: bool = False,
    dots: bool = False,
    reach: Mapping[str, Reach] | None = None,
) -> str:
    """Draw a chart.

    Args:
        series: Name → points, in the order of x.
        x_label: Under the x axis.
        y_label: Beside the y axis.
        percent: Whether y is a share, to be shown in per cent.
        dots: Whether to mark each point.
        reach: Name → intervals, to be drawn as bars.

    Returns:
        A `figure` with an `svg` in it; text uses `currentColor`, lines the classes `line0`, `line1`, …

    Example:
        >>> line_chart({"a": [(0, 0), (1, 2)]}, "step", "loss").startswith("<figure")
        True
    """
    points = [point for line in series.values() for point in line if all(map(math.isfinite, point))]
    if not points:
        return ""
    bars = reach or {}
    x_low, x_high = _limits([x for x, _ in points])
    ends = [end for bar in bars.values() for _, *interval in bar for end in interval]
    y_low, y_high = _limits([0.0, *(y for _, y in points), *ends])
    y_step = _step(y_low, y_high)
    y_low, y_high = y_step * math.floor(y_low / y_step + 1e-9), y_step * math.ceil(y_high / y_step - 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    said = escape(f"{y_label} against {x_label}: {', '.join(series)}")
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">']
    for tick in _ticks(y_low, y_high):
        x, y = place(x_low, tick)
        label = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(f'<line class="rule" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{label}</text>')
    for tick in _ticks(x_low, x_high):
        x, y = place(tick, y_low)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{tick:g}</text>')
    for k, (name, line) in enumerate(series.items()):
        places = [place(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline class="line line{k}" points="{path}"/>')
        for at, low, high in bars.get(name, ()):
            (x, bottom), (_, top) = place(at, low), place(at, high)
            parts.append(f'<path class="bar line{k}" d="M{x - 4} {bottom}h8m-4 0V{top}m-4 0h8"/>')
        if dots:
            parts += [f'<circle class="dot line{k}" cx="{x}" cy="{y}" r="4"/>' for x, y in places]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text></svg>')
    names = "".join(f'<span class="key"><i class="line{k}"></i>{escape(n)}</span>' for k, n in enumerate(series))
    return f"<figure><figcaption>{escape(y_label)} {names}</figcaption>{''.join(parts)}</figure>"


def smoothed(points: Points, decay: float = 0.9) -> list[tuple[float, float]]:
    """A running mean of y, corrected for its start.

    Example:
        >>> smoothed([(0, 1.0), (1, 1.0)])
        [(0, 1.0), (1, 1.0)]
    """
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = decay * mean + (1 - decay) * y, decay * weight + 1 - decay
        out.append((x, round(mean / weight, 9)))
    return out


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1)


def _step(low: float, high: float) -> float:
    """A round number, of which about five lie between two limits."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two limits."""
    step = _step(low, high)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
