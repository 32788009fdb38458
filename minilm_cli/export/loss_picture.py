"""The loss curve of a run as a PNG picture, for pages that show no SVG; drawn by matplotlib if it is installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minilm_cli.export.loss_curve import LINES, Axes, points_of

if TYPE_CHECKING:
    import matplotlib.axes

_INCHES, _DOTS_PER_INCH = (7.2, 3.6), 150


def write_picture(records: Sequence[Mapping[str, float]], title: str, file: Path) -> bool:
    """Draw what `loss_curve` draws; returns whether matplotlib was there to do it."""
    # Its messages are about its font cache and about characters that its font lacks.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        return False
    with style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(_INCHES, _DOTS_PER_INCH, layout="constrained")
        _draw(figure.subplots(), records, title)
        figure.savefig(file, format="png", metadata={"Software": None})
    return True


def _draw(axes: matplotlib.axes.Axes, records: Sequence[Mapping[str, float]], title: str) -> None:
    lines = points_of(records)
    frame = Axes.around(lines)
    for name, _, colour in LINES:
        steps, losses = [step for step, _ in lines[name]], [loss for _, loss in lines[name]]
        marker = "o" if name == "held out" else ""
        axes.plot(steps, losses, marker, ls="-", lw=1.5, ms=4, color=colour, label=name, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(frame.low, frame.high)
    axes.set_xlim(0, frame.last)
    axes.set_yticks(frame.loss_ticks(), [f"{loss:.12g}" for loss in frame.loss_ticks()])
    axes.set_yticks([], minor=True)
    axes.set_xticks(frame.step_ticks(), [f"{step:,}" for step in frame.step_ticks()])
    axes.grid(axis="y", color="#ddd")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
    axes.set_xlabel("optimiser step", loc="right")
    axes.set_ylabel("loss (nats)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False, ncols=2)
