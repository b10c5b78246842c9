"""Draw charts as SVG text for a page: labelled curves, and bars with intervals.

Colours are CSS classes of the page (`main`, `second`, `third`, `quiet`), for light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from byol.base.errors import printable

_WIDTH, _HEIGHT = 340, 190  # units of the view box; about 1 px each on a wide screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 30
_LABEL_WIDTH, _VALUE_WIDTH, _LABEL_GAP = 104, 46, 13
_MOST_POINTS = 400  # per curve; more than it has pixels
_BAR_WIDTH, _BAR_HEIGHT = 240, 18


@dataclass(frozen=True)
class Series:
    """One curve. `spread` is half the height of the error bar at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "main"
    spread: Sequence[float] | None = None
    has_dots: bool = False


def draw_lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    show: Callable[[float], str] = lambda value: f"{value:.3g}",
    x_ticks: Sequence[float] | None = None,
    log_x: bool = False,
) -> str:
    """Draw curves with a common axis, each labelled at its end with its name and last value.

    `title` is for screen readers. The axis spans the values; `show` formats them.
    """
    frame = _Frame.around(series, log_x=log_x, has_names=len(series) > 1)
    ticks_x = _ticks(frame.x_low, frame.x_high, most=5) if x_ticks is None else x_ticks
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title)}">']
    for value in _ticks(frame.y_low, frame.y_high, most=5):
        y = frame.down(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_text(show(value))}</text>')
    for value in ticks_x:
        x = frame.across(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 15}" text-anchor="middle">{value:,g}</text>')
    middle = (_LEFT + frame.right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 2}" text-anchor="middle">{_text(x_label)}</text>')
    parts += [_draw_curve(one, frame) for one in series]
    parts += _label_ends(series, frame, show=show)
    return "".join([*parts, "</svg>"])


def draw_bar(value: float, low: float, high: float, *, kind: str, title: str) -> str:
    """Draw a bar from 0 to `value` on a scale of 0..1, with its interval as an error bar."""
    middle, ends = _BAR_HEIGHT / 2, [_BAR_WIDTH * share for share in (value, low, high)]
    quarters = "".join(
        f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="0" y2="{_BAR_HEIGHT}"/>'
        for x in (0, *(_BAR_WIDTH * part / 4 for part in (1, 2, 3)), _BAR_WIDTH)
    )
    box = f"-1 0 {_BAR_WIDTH + 2} {_BAR_HEIGHT}"
    value_end, low_end, high_end = ends
    return (
        f'<svg class="bar" viewBox="{box}" role="img" aria-label="{_text(title)}">'
        f'{quarters}<rect class="fill {kind}" x="0" y="4" width="{value_end:.1f}" '
        f'height="{_BAR_HEIGHT - 8}"/>'
        f'<path class="whisker" d="M{low_end:.1f} {middle}H{high_end:.1f}'
        f'M{low_end:.1f} 5v8M{high_end:.1f} 5v8"/>'
        "</svg>"
    )


# ---- Axes


@dataclass(frozen=True)
class _Frame:
    """Converts values to coordinates in the chart."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float
    log_x: bool

    @classmethod
    def around(cls, series: Sequence[Series], *, log_x: bool, has_names: bool) -> "_Frame":
        xs = [x for one in series for x in one.x]
        ys = [
            y + sign * spread
            for one in series
            for y, spread in zip(one.y, one.spread or [0.0] * len(one.y), strict=True)
            for sign in (-1.0, 1.0)
        ]
        margin = 0.06 * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 1.0
        y_low = max(0.0, min(ys) - margin) if min(ys) >= 0.0 else min(ys) - margin
        right = float(_WIDTH - _RIGHT - (_LABEL_WIDTH if has_names else _VALUE_WIDTH))
        x_low, x_high = float(min(xs)), float(max(xs))
        if x_low == x_high:
            x_high += 1.0
        return cls(x_low, x_high, y_low, max(ys) + margin, right, log_x)

    def across(self, value: float) -> float:
        low, high = self.x_low, self.x_high
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return _LEFT + (self.right - _LEFT) * (value - low) / (high - low)

    def down(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1.0 - min(1.0, max(0.0, share)))


def _ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten) in low .. high, at most `most` + 1."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


# ---- Curves


def _draw_curve(one: Series, frame: _Frame) -> str:
    step = -(-len(one.x) // _MOST_POINTS)
    kept = sorted({*range(0, len(one.x), step), len(one.x) - 1})
    places = [(frame.across(one.x[at]), frame.down(one.y[at])) for at in kept]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {one.kind}" points="{points}"/>']
    if one.has_dots or len(places) == 1:
        parts += [f'<circle class="fill {one.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]
    for at, spread in enumerate(one.spread or ()):
        x = frame.across(one.x[at])
        top, bottom = frame.down(one.y[at] + spread), frame.down(one.y[at] - spread)
        parts.append(
            f'<line class="line {one.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        )
    return "".join(parts)


def _label_ends(series: Sequence[Series], frame: _Frame, *, show: Callable[[float], str]) -> list[str]:
    """Draw names beside the ends of the curves, moved apart so that they do not overlap."""
    wanted = sorted((frame.down(one.y[-1]), at) for at, one in enumerate(series))
    places, lowest = list[tuple[float, int]](), -math.inf
    for y, at in wanted:
        lowest = max(y, lowest + _LABEL_GAP)
        places.append((lowest, at))
    excess = max(0.0, places[-1][0] - (_HEIGHT - _BOTTOM))
    labels = []
    for y, at in places:
        one = series[at]
        words = show(one.y[-1]) if len(series) == 1 else f"{one.name} {show(one.y[-1])}"
        labels.append(
            f'<text class="end {one.kind}" x="{frame.across(one.x[-1]) + 6:.1f}" y="{y - excess + 3.5:.1f}">'
            f"{_text(words)}</text>"
        )
    return labels


def _text(text: str) -> str:
    return escape(printable(text))
