"""Line charts as inline SVG, coloured by the page's style sheet so that they follow dark mode."""

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from types import MappingProxyType

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 36
_NUM_TICKS = 4

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points],
    *,
    label: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    doubling: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Return an SVG element with one line per series, in the colours ``--series-0``, ``-1``, ...

    Args:
        series: by name, (x, y) points in order; with ``log`` points with y <= 0 are left out.
        label: what the chart shows, for those who cannot see it.
        x_label: below the axis.
        y_label: beside the axis.
        log: whether y is on a logarithmic scale.
        y_range: the least and largest y; ``None``: what the points need.
        doubling: whether x is a few numbers that double: each has a tick, and each point a dot.
        marks: by series, the x of a point with a ring around it.

    Raises:
        ValueError: there is no point.
    """
    shown = {
        name: [
            (math.log2(x) if doubling else x, math.log10(y) if log else y)
            for x, y in points
            if y > 0 or not log
        ]
        for name, points in series.items()
    }
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    if not xs:
        raise ValueError("there is nothing to draw")
    low, high = y_range or (min(ys), max(ys))
    x_axis = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)
    head = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
    )
    parts = [head, *_y_ticks(y_axis, log=log), *_x_ticks(x_axis, {*xs} if doubling else None)]
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="axis" transform="translate(12 {(_HEIGHT - _BOTTOM + _TOP) / 2:.0f}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for number, (name, points) in enumerate(shown.items()):
        if points:
            places = [(f"{x_axis.place(x):.1f}", f"{y_axis.place(y):.1f}") for x, y in points]
            path = " ".join(f"{x},{y}" for x, y in places)
            at = None if name not in marks else math.log2(marks[name]) if doubling else marks[name]
            rings = [
                f'<circle class="ring" cx="{x}" cy="{y}" r="7"/>'
                for (x, y), (value, _) in zip(places, points, strict=True)
                if value == at
            ]
            dots = [
                f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>'
                for x, y in (places if doubling else places[-1:])
            ]
            parts.append(
                f'<g style="--line-colour: var(--series-{number})"><title>{escape(name)}</title>'
                f'<polyline class="line" points="{path}"/>{"".join(dots + rings)}</g>'
            )
    return "".join(parts) + "</svg>"


class _Axis:
    """Maps values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        spare = 0.5 if high == low else 0.0
        self.low, self.high = low - spare, high + spare
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """Return where a value lies."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about four round values on the axis."""
        rough = (self.high - self.low) / _NUM_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def log_ticks(self) -> list[float]:
        """Return the logarithms of the round values on an axis of logarithms."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks: list[float] = []
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            logs = [power + math.log10(factor) for power in powers for factor in factors]
            ticks = [value for value in logs if self.low <= value <= self.high]
            if len(ticks) >= _NUM_TICKS - 1:
                break
        return ticks


def _y_ticks(axis: _Axis, *, log: bool) -> list[str]:
    return [
        f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{axis.place(value):.1f}" '
        f'y2="{axis.place(value):.1f}"/><text class="tick" x="{_LEFT - 6}" '
        f'y="{axis.place(value) + 4:.1f}" text-anchor="end">'
        f"{10**value if log else value:.3g}</text>"
        for value in (axis.log_ticks() if log else axis.ticks())
    ]


def _x_ticks(axis: _Axis, logs: Collection[float] | None) -> list[str]:
    """Return round numbers below the axis, or those whose logarithms to base 2 are given."""
    ticks = axis.ticks() if logs is None else sorted(logs)
    return [
        f'<text class="tick" x="{axis.place(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
        f'text-anchor="middle">{value if logs is None else 2**value:g}</text>'
        for value in ticks
    ]
