"""The section of a model card about scores: what `minilm evaluate` left in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minilm_cli.export.markdown import plain, table
from minilm_cli.export.source import Source
from minilm_cli.models.state import checksum
from minilm_cli.runs.evaluations import FILE, Evaluations


def scores_section(source: Source) -> str:
    """The scores of a run's student next to its teacher's; empty if these weights were not evaluated."""
    if source.run is None or not (results := Evaluations(source.run.path / FILE).results):
        return ""
    teacher = {_measured(each): each["mean"] for each in results if each["is_teacher"]}
    weights = checksum(source.model)
    rows = [
        (
            plain(f"{each['task']}, {each['protocol']}"),
            each["metric"],
            _percent(teacher.get(_measured(each))),
            _percent(each["mean"]) + (f" ± {100 * each['std']:.1f}" if len(each["scores"]) > 1 else ""),
            "" if each["retention"] is None else f"{each['retention']:.1f}%",
        )
        for each in results
        if each["weights"] == weights
    ]
    if not rows:
        return ""
    header = ("task", "metric", "teacher", "student", "kept")
    return f"## Scores\n\nMeasured by `minilm evaluate`, in percent:\n\n{table(rows, header)}"


def _measured(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What two models must share to be compared."""
    return tuple(result[name] for name in ("data", "protocol", "metric"))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
