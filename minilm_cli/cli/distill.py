"""`minilm distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minilm_cli.cli import completion
from minilm_cli.cli.options import Force, Json, Typed, options_of
from minilm_cli.cli.result import open_console, print_run
from minilm_cli.settings.distill import DistillSettings


@options_of(DistillSettings)
def distill(
    typed: Typed,
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file (.yaml, .toml, .json); options override it.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting by its dotted path; may be repeated.",
            autocompletion=completion.assignments,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, measure a few steps, print the plan, write nothing.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print more: each tensor that is not trained, what is saved and when."),
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Distil a teacher into a student, in a run folder."""
    from minilm_cli.settings.load import load_distill_settings

    settings = load_distill_settings(config, assignments or (), typed)
    from minilm_cli.evaluate.during_training import judge_for
    from minilm_cli.runs import plan_text
    from minilm_cli.training import run

    console = open_console(verbose=verbose)
    if not dry_run:
        report = run.distill(settings, console.progress, force=force, world=context.obj, judge_for=judge_for)
        print_run(console, report, as_json)
        return
    plan = run.dry_run(settings, force=force, judge_for=judge_for)
    for section, rows in plan_text.tables(plan, verbose=verbose).items():
        console.table(section.capitalize(), rows)
    if as_json:
        print(plan.model_dump_json())
