"""`minilm export`."""

from __future__ import annotations

from minilm_cli.cli.options import Json, Typed, options_of
from minilm_cli.cli.result import open_console, print_result
from minilm_cli.settings.export import ExportSettings


@options_of(ExportSettings)
def export(typed: Typed, as_json: Json = False) -> None:
    """Export a run's student, and verify the export by loading it."""
    from minilm_cli.runs.lookup import RUNS, find_run
    from minilm_cli.settings.validation import validate

    settings = validate(ExportSettings, {"run": RUNS, **typed})
    found = find_run(settings.run if "run" in typed else None)
    from minilm_cli.export import exporting

    console = open_console()
    report = exporting.export(settings.model_copy(update={"run": found.path}))
    console.say(
        f"Exported step {report.step}; loaded back, it computes what the checkpoint computes"
        f" (largest difference {report.largest_difference:.1e})."
    )
    if report.url:
        console.say(f"Uploaded to {report.url}")
    facts = {"step": report.step, "largest_difference": report.largest_difference, "url": report.url}
    print_result(report.path, facts, as_json)
