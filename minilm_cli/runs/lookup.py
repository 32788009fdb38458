"""Finding a run, its checkpoints and its last losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minilm_cli.base.atomic import restore
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.models.weight_files import has_weights
from minilm_cli.runs import checkpoint
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder, check_folder
from minilm_cli.runs.run_state import RunState
from minilm_cli.settings.distill import CheckpointSettings

#: The folder of runs that have no name of their own.
RUNS = Path("runs")


def find_run(path: Path | None, runs: Path = RUNS) -> RunFolder:
    """The run in folder `path`, or the newest in `runs`; raises `MinilmError` if there is none."""
    if path is None:
        found = [folder for folder in runs.iterdir() if _is_run(folder)] if runs.is_dir() else []
        if not found:
            raise MinilmError(
                f"there is no run in {runs}/", hint="Start one with minilm distill, or name a run's folder."
            )
        path = max(found, key=lambda folder: (folder / "settings.json").stat().st_mtime_ns)
    restore(path)
    if not _is_run(path):
        raise MinilmError(
            "this is not a run: it has no settings.json" if path.exists() else "there is no such run", where=str(path)
        )
    run = RunFolder(path)
    run.environment()  # refuses a later layout
    return run


def find_model(path: Path) -> RunFolder | Path:
    """The run in a folder, or the folder itself if it has a model; raises `MinilmError` if it has neither."""
    has_model = (path / "config.json").is_file() and has_weights(path)
    if has_model and not _is_run(path):
        return path
    restore(path)
    if path.is_dir() and not _is_run(path):
        hint = "It is no model folder either: that has config.json and model.safetensors."
        raise MinilmError("this is not a run: it has no settings.json", where=str(path), hint=hint)
    return find_run(path)


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "settings.json").is_file()


def pick_checkpoint(run: RunFolder, wanted: str | int) -> Checkpoint:
    """The checkpoint `last`, `best` or of a step; raises `MinilmError` if there is none, `RunError` if damaged."""
    if run.checkpoints.is_dir():
        check_folder(run.checkpoints)
    last = checkpoint.latest(run.checkpoints) if wanted in ("last", "best") else None
    if wanted == "best" and last is not None:
        best = RunState.of(last).best_step
        if best is None:
            raise MinilmError("no checkpoint was evaluated, so none is the best", where=str(run.path))
        wanted = best
    elif last is not None:
        return last
    found = checkpoint.steps(run.checkpoints)
    if wanted not in found:
        there = ", ".join(map(str, found))
        raise MinilmError(
            f"there is no checkpoint of step {wanted}" if isinstance(wanted, int) else "there is no checkpoint yet",
            where=str(run.path),
            hint=f"There are checkpoints of the steps {there}." if found else "Continue with: minilm resume",
        )
    return checkpoint.load(checkpoint.path_of(run.checkpoints, int(wanted)))


def refuse_lost_checkpoints(run: RunFolder, settings: CheckpointSettings) -> None:
    """Raise `RunError` if a run without checkpoints has had one: starting over would throw its metrics away."""
    records = run.metrics()
    saved = [
        record["step"]
        for record in records
        if record["step"] >= settings.every
        or record.get("elapsed", 0) >= 60 * settings.minutes
        or ("eval_loss" in record and record["step"])
    ]
    # The first such step may have been interrupted while it was saved; after it there was a checkpoint.
    if run.is_finished() or (saved and records[-1]["step"] > saved[0]):
        raise RunError(
            "the run's checkpoints are missing",
            where=str(run.checkpoints),
            hint="Restore them; or start a new run, in another folder or with minilm distill --force.",
        )


def final_losses(records: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The last value of each loss in the metrics."""
    losses: dict[str, float] = {}
    for record in records:
        losses.update({name: value for name, value in record.items() if "loss" in name})
    return losses
