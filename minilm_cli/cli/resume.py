"""`minilm resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from minilm_cli.cli import completion
from minilm_cli.cli.options import Json, Typed, options_of
from minilm_cli.cli.result import open_console, print_run
from minilm_cli.settings.resume import ResumeSettings


@options_of(ResumeSettings)
def resume(
    typed: Typed,
    context: typer.Context,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting that may change mid-run; may be repeated.",
            autocompletion=completion.changes,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Resume a run as if it had never stopped."""
    from minilm_cli.runs.lookup import find_run
    from minilm_cli.settings.load import combine
    from minilm_cli.settings.validation import validate

    settings = validate(ResumeSettings, typed)
    changes = combine({"training.steps": settings.steps}, assignments or ())
    found = find_run(settings.run)
    from minilm_cli.evaluate.during_training import judge_for
    from minilm_cli.training import run

    console = open_console()
    report = run.resume(found, console.progress, changes, world=context.obj, judge_for=judge_for)
    print_run(console, report, as_json)
