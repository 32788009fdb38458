"""The loss curve of a run as an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 20, 30, 45

#: Name, key in the records and colour of each line.
_LINES = (("training", "loss", "#7aa6d8"), ("held out", "eval_loss", "#c0392b"))


def loss_curve(records: Sequence[Mapping[str, float]], title: str) -> str:
    """The training and held-out loss over the steps, with a logarithmic loss axis."""
    lines = {
        name: [(record["step"], record[key]) for record in records if record.get(key, 0) > 0] for name, key, _ in _LINES
    }
    points = [point for line in lines.values() for point in line] or [(0, 1.0)]
    axes = _Axes(
        last=max(1, *(step for step, _ in points)),
        low=min(loss for _, loss in points) * 0.95,
        high=max(loss for _, loss in points) * 1.05,
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP - 12}" font-size="14">{escape(title)}</text>',
        *axes.drawn(),
    ]
    for number, (name, _, colour) in enumerate(_LINES):
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
class _Axes:
    """Steps from 0 to `last` across, losses from `low` to `high` up, logarithmic."""

    last: float
    low: float
    high: float

    def place(self, step: float, loss: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across = step / self.last
        up = (math.log(loss) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> Iterator[str]:
        """Five losses, evenly spaced on the logarithmic axis, and five steps, with their names."""
        for number in range(5):
            loss = self.low * (self.high / self.low) ** (number / 4)
            x, y = self.place(0, loss)
            yield f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>'
        for quarter in range(5):
            step = round(self.last * quarter / 4)
            x, y = self.place(step, self.low)
            yield f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{step:,}</text>'
        yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">optimiser step</text>'
