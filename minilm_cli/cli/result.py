"""What commands print at their end: the result on stdout, the rest through the console on stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm_cli.cli.console import Console
    from minilm_cli.training.run import RunReport


def open_console(*, verbose: bool = False) -> Console:
    """A console that also shows what the package logs; if `verbose`, messages of level DEBUG too."""
    from minilm_cli.cli.console import Console

    console = Console()
    console.listen(verbose=verbose)
    return console


def print_result(path: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    """Print the path that was produced; as JSON with the facts."""
    named = {name.replace(" ", "_"): value for name, value in facts.items()}
    print(json.dumps({"path": str(path), **named}) if as_json else path)


def print_run(console: Console, report: RunReport, as_json: bool) -> None:
    """Print how a run ended, what to do next, and its path."""
    held_out = report.held_out
    if report.finished_before:
        console.say(f"{report.path} is finished: {report.step} steps. Extend it with --steps.")
    else:
        console.table(f"Trained {report.step:,} steps", _outcome(report))
        if held_out is not None and held_out.warning:
            console.warn(held_out.warning)
        console.say(f"The student is in {report.path / 'student'}. Export it with:\n    minilm export {report.path}")
        if held_out is not None and held_out.best_before:
            console.say(f"{held_out.best_before} Export that with:\n    minilm export {report.path} --checkpoint best")
    print_result(report.path, _facts(report), as_json)


def _outcome(report: RunReport) -> list[tuple[str, str]]:
    """What a person wants to know of a run that is done."""
    from minilm_cli.cli.console import duration
    from minilm_cli.runs.plan_text import megabytes

    teacher, student, losses, held_out = report.plan.teacher, report.plan.student, report.losses, report.held_out
    rows = [("time", duration(report.seconds)), ("seen", f"{report.sequences:,} sequences, {report.tokens:,} tokens")]
    if "mean_loss" in losses:
        rows.append(("training loss", f"{losses['mean_loss']:.4f} on average over the last logged steps"))
    if held_out is not None:
        rows.append(("held-out loss", f"{held_out.first:.4f} → {held_out.last:.4f}"))
    size = f"{student.parameters:,} parameters, {megabytes(student.parameters)}"
    theirs = teacher.total_parameters
    rows.append(("student", size if theirs is None else f"{size}; the teacher: {theirs:,}, {megabytes(theirs)}"))
    return rows


def _facts(report: RunReport) -> dict[str, Any]:
    """The same for a program."""
    facts: dict[str, Any] = {"step": report.step, **report.losses}
    if (held_out := report.held_out) is not None:
        facts |= {"first_eval_loss": held_out.first, "improved": held_out.improved}
        facts |= {"best_eval_loss": held_out.best, "best_step": held_out.best_step}
    return facts | {"seconds": round(report.seconds, 3), "sequences": report.sequences, "tokens": report.tokens}
