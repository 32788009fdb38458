"""A checkpoint becomes a folder that others can load, verified before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minilm_cli.base.atomic import staged, sweep
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.export.card import write_card
from minilm_cli.export.formats import Format, Source
from minilm_cli.export.hf import HuggingFace
from minilm_cli.export.hub import check_repository, upload
from minilm_cli.export.verify import verify
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import pick_checkpoint
from minilm_cli.settings.export import ExportSettings

FORMATS: Mapping[str, Format] = {"hf": HuggingFace()}


@dataclass(frozen=True)
class ExportReport:
    """The outcome of `export`."""

    path: Path
    step: int
    largest_difference: float
    """Between the hidden states of the checkpoint and of the copy that was loaded back, as a share of the largest."""
    url: str | None = None
    """Where it was uploaded."""


def export(settings: ExportSettings) -> ExportReport:
    """Export a run's student, verified, with its tokenizer and model card.

    Raises `MinilmError` if the run, the checkpoint or the output is wrong, `RunError` if the copy does not compute
    what the checkpoint computes; then nothing is left behind.
    """
    run = RunFolder(settings.run)
    output = settings.output or run.path / "export" / settings.format
    refuse_existing(output, run.path, force=settings.force)
    _refuse_parts(output, run)
    if settings.push_to_hub:
        check_repository(settings.push_to_hub)
    elif settings.private:
        raise MinilmError("--private applies to a new Hub repository", hint="Add --push-to-hub.")
    if not run.tokenizer.is_dir():
        raise MinilmError("the run's tokenizer is missing", where=str(run.tokenizer))
    sweep(run.path)
    chosen, difference = _export(run, output, settings)
    url = upload(output, settings.push_to_hub, private=settings.private) if settings.push_to_hub else None
    return ExportReport(output, chosen.step, difference, url)


def write_verified(form: Format, source: Source, folder: Path) -> float:
    """Write an export with its model card into a new folder, and verify it.

    Returns the largest difference found; raises `RunError` if it is more than rounding.
    """
    form.write(source, folder)
    write_card(source, folder)
    return verify(form, source, folder)


def _export(run: RunFolder, output: Path, settings: ExportSettings) -> tuple[Checkpoint, float]:
    """Export the checkpoint that is wanted; another if a run that is training removes it meanwhile."""
    chosen = pick_checkpoint(run, settings.checkpoint)
    try:
        with staged(output, force=settings.force, folder=True) as built:
            return chosen, write_verified(FORMATS[settings.format], Source(run, chosen, settings.dtype), built)
    except RunError:
        if chosen.path.exists():
            raise
    return _export(run, output, settings)


def _refuse_parts(output: Path, run: RunFolder) -> None:
    """Raise `MinilmError` if the output would replace a part of the run that is not an export."""
    place, inside, exports = (Path(os.path.realpath(path)) for path in (output, run.path, run.path / "export"))
    if output.exists() and place.is_relative_to(inside) and not place.is_relative_to(exports):
        raise MinilmError("this is a part of the run", where=str(output), hint="Name another --output.")
