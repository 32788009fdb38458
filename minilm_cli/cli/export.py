"""`minilm export`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from minilm_cli.cli.options import Json, Typed, options_of
from minilm_cli.cli.result import open_console, print_result
from minilm_cli.settings.export import ExportSettings

if TYPE_CHECKING:
    from minilm_cli.export.speed import Speed


@options_of(ExportSettings)
def export(typed: Typed, as_json: Json = False) -> None:
    """Export a student for those who use it, verified by loading it as they do."""
    from minilm_cli.runs.lookup import RUNS, find_run
    from minilm_cli.settings.validation import validate

    settings = validate(ExportSettings, {"model": RUNS, **typed})
    if "model" not in typed:
        settings = settings.model_copy(update={"model": find_run(None).path})
    from minilm_cli.export import exporting

    console = open_console()
    report = exporting.export(settings, console.progress)
    step = "" if report.step is None else f"step {report.step} as "
    for each in report.exports:
        console.say(
            f"Exported {step}{each.format}; loaded back, it computes what the model computes"
            f" (largest difference {each.verified.largest_difference:.1e})."
        )
        if kept := each.verified.kept:
            console.say(
                f"With 8-bit weights, embeddings have a cosine of {kept['cosine']:.3f} to those in fp32, and"
                f" {kept['lowest_cosine']:.3f} at worst; the nearest text stays among the ten nearest for"
                f" {kept['recall']:.1%}, and {kept['neighbours']:.1%} of the ten nearest stay."
            )
    if report.speeds:
        console.table("Size, and texts a second one at a time and 32 at a time, on this CPU", _rows(report.speeds))
    if report.url:
        console.say(f"Uploaded to {report.url}")
    exports = [
        {"format": each.format, "path": str(each.path), **exporting.figures(each.verified)} for each in report.exports
    ]
    worst = max(each.verified.largest_difference for each in report.exports)
    facts = {"step": report.step, "largest_difference": worst, "url": report.url, "exports": exports}
    speeds = {"speeds": [vars(each) for each in report.speeds]} if report.speeds else {}
    print_result(report.path, facts | speeds, as_json)


def _rows(speeds: Iterable[Speed]) -> list[tuple[str, str]]:
    return [(each.model, f"{each.megabytes:6.1f} MB  {each.single:7,.0f}  {each.batched:7,.0f}") for each in speeds]
