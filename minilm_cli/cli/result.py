"""What commands print at their end: the result on stdout, the rest through the console on stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm_cli.cli.console import Console
    from minilm_cli.training.run import RunReport


def open_console() -> Console:
    """A console that also shows what the package logs."""
    from minilm_cli.cli.console import Console

    console = Console()
    console.listen()
    return console


def print_result(path: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    """Print the path that was produced; as JSON with the facts."""
    named = {name.replace(" ", "_"): value for name, value in facts.items()}
    print(json.dumps({"path": str(path), **named}) if as_json else path)


def print_run(console: Console, report: RunReport, as_json: bool) -> None:
    """Print how a run ended, what to do next, and its path."""
    if report.finished_before:
        console.say(f"{report.path} is finished: {report.step} steps. Extend it with --steps.")
    else:
        losses = {"loss": "loss {:.4f}", "eval_loss": "{:.4f} on held-out text"}
        known = [words.format(report.losses[name]) for name, words in losses.items() if name in report.losses]
        console.say(f"Trained {report.step} steps{': ' if known else ''}{', '.join(known)}.")
        console.say(f"The student is in {report.path / 'student'}. Export it with:\n    minilm export {report.path}")
    print_result(report.path, {"step": report.step, **report.losses}, as_json)
