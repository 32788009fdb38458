"""Plots of the benchmarks as SVG text, in the style of the model card's loss curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 20, 50, 45
#: minilm is blue, the plain code red.
LINE_COLOURS = ("#2a6fb0", "#c0392b")
CURVE_COLOURS = ("#2a6fb0", "#c0392b", "#2e8b57", "#8e5ea2")
BAR_COLOURS = ("#c0392b", "#7aa6d8", "#2a6fb0")

Point = tuple[float, float]


def log_plot(title: str, across: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Lines over logarithmic axes; `across` is the label of the horizontal axis."""
    # Only positive numbers have logarithms.
    shown = {name: [point for point in points if min(point) > 0] for name, points in series.items()}
    xs = sorted({x for points in shown.values() for x, _ in points}) or [1.0]
    marks = _round_numbers([y for points in shown.values() for _, y in points] or [1.0])

    def place(x: float, y: float) -> Point:
        return (
            LEFT + _share(x, xs[0], xs[-1]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - _share(y, marks[0], marks[-1]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for mark in marks:
        x, y = place(xs[0], mark)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(x - 6, y + 4, f"{mark:,g}", "end"))
    parts += [_text(place(x, marks[0])[0], HEIGHT - BOTTOM + 18, f"{x:,g}", "middle") for x in xs]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, across, "end"))
    for number, ((name, points), colour) in enumerate(zip(shown.items(), LINE_COLOURS, strict=False)):
        placed = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        x = LEFT + 100 * number
        parts.append(
            f'<line x1="{x}" y1="{TOP - 14}" x2="{x + 20}" y2="{TOP - 14}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(_text(x + 26, TOP - 10, name))
    return _picture(title, HEIGHT, parts)


def loss_curves(title: str, curves: Mapping[str, Mapping[int, float]]) -> str:
    """Losses by step on a logarithmic axis, in pairs of one colour: the second of a pair is dashed."""
    steps = max(step for curve in curves.values() for step in curve)
    marks = _round_numbers([loss for curve in curves.values() for loss in curve.values()])
    width, parts = WIDTH - LEFT - RIGHT - 190, []
    for mark in marks:
        y = _height(mark, marks)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + width}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{mark:g}", "end"))
    parts += [
        _text(LEFT + width * part / 4, HEIGHT - BOTTOM + 18, f"{steps * part // 4}", "middle") for part in range(5)
    ]
    parts.append(_text(LEFT + width, HEIGHT - 8, "step", "end"))
    for number, (name, curve) in enumerate(curves.items()):
        colour, dashes = CURVE_COLOURS[number // 2], ' stroke-dasharray="5 4"' if number % 2 else ""
        line = " ".join(f"{LEFT + width * step / steps:.1f},{_height(loss, marks):.1f}" for step, loss in curve.items())
        style = f'fill="none" stroke="{colour}" stroke-width="2"{dashes}'
        parts.append(f'<polyline points="{line}" {style}/>')
        x, y = LEFT + width + 16, TOP + 20 * number
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" {style}/>')
        parts.append(_text(x + 30, y + 4, name))
    return _picture(title, HEIGHT, parts)


def _height(value: float, marks: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - _share(value, marks[0], marks[-1]) * (HEIGHT - TOP - BOTTOM)


def bar_chart(title: str, bars: Mapping[str, float]) -> str:
    """A horizontal bar for each value, from 0, with the value next to it."""
    most = max(bars.values())
    name_width, value_width, thick = 120, 60, 34
    parts = []
    for number, ((name, value), colour) in enumerate(zip(bars.items(), BAR_COLOURS, strict=False)):
        y = TOP + number * (thick + 12)
        length = value / most * (WIDTH - LEFT - name_width - value_width)
        parts.append(_text(name_width - 10, y + thick / 2 + 4, name, "end"))
        parts.append(f'<rect x="{name_width}" y="{y}" width="{length:.1f}" height="{thick}" fill="{colour}"/>')
        parts.append(_text(name_width + length + 8, y + thick / 2 + 4, f"{value:,.1f}"))
    return _picture(title, TOP + len(bars) * (thick + 12) + 8, parts)


def _picture(title: str, height: int, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
            ' font-size="12" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{RIGHT}" y="18" font-size="14">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _share(value: float, low: float, high: float) -> float:
    """The position of `value` between `low` and `high` on a logarithmic axis, from 0 to 1."""
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _round_numbers(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last below the values to the first above them."""
    low, high = min(values), max(values)

    def numbers() -> Iterator[float]:
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2):
            yield from (factor * 10.0**power for factor in (1, 2, 5))

    wanted = list(numbers())
    first = max(number for number in wanted if number < low)
    last = min(number for number in wanted if number > high)
    return [number for number in wanted if first <= number <= last]
