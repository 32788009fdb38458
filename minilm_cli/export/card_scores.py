"""The section of a model card about scores: what `minilm evaluate` left in the run."""

from __future__ import annotations

from minilm_cli.export.markdown import plain, table
from minilm_cli.export.source import Source
from minilm_cli.models.state import checksum
from minilm_cli.runs.evaluations import FILE, Evaluations, Result


def scores_section(source: Source) -> str:
    """The scores of a run's student next to its teacher's; empty if these weights were not evaluated."""
    if source.run is None or not (results := Evaluations(source.run.path / FILE).results):
        return ""
    weights, teacher = checksum(source.model), source.run.settings().teacher.name
    rows = [_row(result, teacher) for result in results if result.weights == weights]
    if not rows:
        return ""
    header = ("task", "metric", "teacher", "student", "kept")
    return f"## Scores\n\nMeasured by `minilm evaluate` with PyTorch, in percent:\n\n{table(rows, header)}"


def _row(result: Result, teacher: str) -> tuple[str, ...]:
    seeds = len(result.scores)
    score = f"{100 * result.mean:.1f}" + (f" ± {100 * result.std:.1f} ({seeds} seeds)" if seeds > 1 else "")
    compared = "" if result.teacher_mean is None else f"{100 * result.teacher_mean:.1f}"
    if result.teacher not in (None, teacher):
        compared += f" ({plain(str(result.teacher))})"
    return (
        plain(f"{result.task}, {result.protocol}, {result.split}"),
        result.metric,
        compared,
        score,
        "" if result.retention is None else f"{result.retention:.1f}%",
    )
