"""Line charts as SVG, small and without a library: they go into the page, the documentation and the README."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from msgspec import Struct

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 48
COLORS = ("#d1495b", "#30638e", "#edae49", "#2a9d8f", "#7b5ea7", "#8d99ae")
TICKS = 5

Point = tuple[float, float]


class Chart(Struct, frozen=True):
    """`series`: by name, points from left to right. `is_log`: the y axis; points at zero are left out then. `is_log_across`: the
    x axis. `name`: of the file."""

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Point]]
    is_log: bool = False
    is_log_across: bool = False


class _Axis(Struct, frozen=True):
    """From `low` to `high`, at the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        if self.is_log:
            return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.is_log:
            return [10.0**power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]
        step = _step(self.high - self.low)
        return [self.low + number * step for number in range(int((self.high - self.low) / step + 1e-9) + 1)]


def svg(chart: Chart) -> str:
    """The chart."""
    series = {name: [(x, y) for x, y in points if y > 0 or not chart.is_log] for name, points in chart.series.items()}
    points = [point for each in series.values() for point in each]
    across = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT, chart.is_log_across)
    up = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP + 18, chart.is_log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, chart.title, "start", 'font-size="14" font-weight="600"'),
        *_grid(across, up),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, chart.x, "middle"),
        f'<text x="16" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" transform="rotate(-90 16 {(TOP + HEIGHT - BOTTOM) / 2})">'
        f"{escape(chart.y)}</text>",
        *_lines(series, across, up),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 8, y + 4, _figure(tick), "end"))
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{HEIGHT - BOTTOM}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM + 5}" stroke="#6b7280"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 19, _figure(tick), "middle"))
    return parts


def _lines(series: Mapping[str, Sequence[Point]], across: _Axis, up: _Axis) -> list[str]:
    parts, x = [], float(LEFT)
    for number, (name, points) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        places = [(across.at(one), up.at(other)) for one, other in points]
        path = " ".join(f"{one:.1f},{other:.1f}" for one, other in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{one:.1f}" cy="{other:.1f}" r="3" fill="{color}"/>' for one, other in places]
        parts.append(f'<rect x="{x:.1f}" y="28" width="12" height="12" fill="{color}"/>')
        parts.append(_text(x + 16, 38, name, "start"))
        x += 30 + 6.6 * len(name)
    return parts


def _axis(values: Sequence[float], start: float, end: float, is_log: bool) -> _Axis:
    """One that has room for these values, and begins and ends with a tick."""
    if is_log:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return _Axis(10.0**low, 10.0 ** max(high, low + 1), start, end, True)
    step = _step(max(values) or 1.0)
    return _Axis(0.0, step * math.ceil(max(values) / step - 1e-9) or 1.0, start, end, False)


def _step(width: float) -> float:
    """Between two ticks: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width / TICKS))
    return next(power * times for times in (1, 2, 5, 10) if power * times * TICKS >= width - 1e-9)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#111827" {more}>{escape(text)}</text>'
