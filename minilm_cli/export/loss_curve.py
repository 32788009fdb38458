"""The loss curve of a run as an SVG picture."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 80, 30, 30, 45

#: Ticks on an axis.
_FEWEST, _MOST = 3, 8

Points = Mapping[str, Sequence[tuple[float, float]]]
"""The steps and losses of each line, by its name."""

#: Name, key in the records and colour of each line.
LINES = (("training", "loss", "#7aa6d8"), ("held out", "eval_loss", "#c0392b"))


def points_of(records: Sequence[Mapping[str, float]]) -> Points:
    """The steps and losses of each line, by its name."""
    return {
        name: [(record["step"], record[key]) for record in records if record.get(key, 0) > sys.float_info.min]
        for name, key, _ in LINES
    }


def loss_curve(records: Sequence[Mapping[str, float]], title: str) -> str:
    """The training and held-out loss over the steps, with a logarithmic loss axis."""
    lines = points_of(records)
    axes = Axes.around(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP - 12}" font-size="14">{escape(title)}</text>',
        *axes.drawn(),
    ]
    for number, (name, _, colour) in enumerate(LINES):
        places = [axes.place(*point) for point in lines[name]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if name == "held out":
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x = WIDTH - RIGHT - 90 * (2 - number)
        parts.append(
            f'<line x1="{x}" y1="{TOP - 16}" x2="{x + 20}" y2="{TOP - 16}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{x + 26}" y="{TOP - 12}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class Axes:
    """Steps from 0 to `last` across, losses from `low` to `high` up, logarithmic."""

    last: float
    low: float
    high: float

    @classmethod
    def around(cls, lines: Points) -> Axes:
        """Axes with room for these lines."""
        points = [point for line in lines.values() for point in line] or [(0, 1.0)]
        return cls(
            last=max(1, *(step for step, _ in points)),
            low=min(loss for _, loss in points) * 0.95,
            high=min(max(loss for _, loss in points) * 1.05, sys.float_info.max),
        )

    def loss_ticks(self) -> list[float]:
        """Round losses within."""
        return logarithmic_ticks(self.low, self.high)

    def step_ticks(self) -> list[int]:
        """Round steps within."""
        return [int(step) for step in ticks(0, self.last) if step == int(step)]

    def place(self, step: float, loss: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across = step / self.last
        up = (math.log(loss) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> Iterator[str]:
        """Lines or marks at round losses and steps, with their values, and the names of the axes."""
        for loss in self.loss_ticks():
            x, y = self.place(0, loss)
            yield f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.12g}</text>'
        for step in self.step_ticks():
            x, y = self.place(step, self.low)
            yield f'<path d="M{x:.1f} {y:.1f}v4" stroke="#999"/>'
            yield f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{step:,}</text>'
        middle = (TOP + HEIGHT - BOTTOM) / 2
        yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">optimiser step</text>'
        yield f'<text transform="rotate(-90 18 {middle})" x="18" y="{middle}" text-anchor="middle">loss (nats)</text>'


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`: 1, 2 and 5 times powers of ten, or fewer of a wide range.

    Multiples of one round step if the range has less than three of these.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [loss for power in exponents for digit in digits if low <= (loss := _decimal(digit, power)) <= high]
        if len(found) < _FEWEST:
            return ticks(low, high)
        if len(found) <= _MOST:
            return found
    return found[:: math.ceil(len(found) / _MOST)]


def ticks(low: float, high: float) -> list[float]:
    """The multiples from `low` to `high` of a step that is 1, 2 or 5 times a power of ten."""
    least = (high - low) / _MOST
    below = math.floor(math.log10(least))
    candidates = [(digit, exponent) for exponent in (below, below + 1) for digit in (1, 2, 5)]
    digit, exponent = next(step for step in candidates if _decimal(*step) >= least)
    step = _decimal(digit, exponent)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [_decimal(number * digit, exponent) for number in numbers]


def _decimal(digits: int, exponent: int) -> float:
    """Exactly rounded, unlike a product with a power of ten."""
    return float(f"{digits}e{exponent}")
