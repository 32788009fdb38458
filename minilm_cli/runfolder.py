"""Where a run keeps what, and how it is found again. Ignores what is done with it.

settings.json         the settings, all of them, with every `auto` resolved
environment.json      versions and hardware
plan.json             what was trained on what: shapes, parameters, sequences, steps
student-config.json   the student's configuration
tokenizer/            the teacher's tokenizer
tokens/               the token store, where the data was a file of token-id lists
metrics.jsonl         a line a logged step
log.txt               what was said
checkpoints/          what to go on from
student/              the trained student
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minilm_cli import checkpoint
from minilm_cli.checkpoint import Checkpoint
from minilm_cli.errors import MinilmError
from minilm_cli.files import read_json, write_json
from minilm_cli.plan import Plan
from minilm_cli.settings import DistillSettings, validate

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / "settings.json"

    @property
    def environment_file(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def plan_file(self) -> Path:
        """What is trained on what."""
        return self.path / "plan.json"

    @property
    def student_config_file(self) -> Path:
        """The student's configuration."""
        return self.path / "student-config.json"

    @property
    def tokenizer(self) -> Path:
        """The teacher's tokenizer."""
        return self.path / "tokenizer"

    @property
    def tokens(self) -> Path:
        """The token store made from a file of token-id lists."""
        return self.path / "tokens"

    @property
    def metrics_file(self) -> Path:
        """A line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        """What was said."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """The trained student."""
        return self.path / "student"

    def settings(self) -> DistillSettings:
        """The run's settings; raises `MinilmError` if they cannot be read."""
        return validate(DistillSettings, read_json(self.settings_file, kind="run"), where=str(self.settings_file))

    def write_settings(self, settings: DistillSettings) -> None:
        """Replace the run's settings."""
        write_json(self.settings_file, settings.model_dump(mode="json"))

    def plan(self) -> Plan:
        """What is trained on what; raises `MinilmError` if it cannot be read."""
        return validate(Plan, read_json(self.plan_file, kind="plan"), where=str(self.plan_file))

    def metrics(self) -> list[dict[str, float]]:
        """The records written so far; a line cut short is left out."""
        records = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    records.append(json.loads(line))
        return records

    def pick_checkpoint(self, wanted: str | int) -> Checkpoint:
        """The checkpoint `last`, `best` or of a step; raises `MinilmError` if there is none, `RunError` if damaged."""
        last = checkpoint.latest(self.checkpoints) if wanted in ("last", "best") else None
        if wanted == "best" and last is not None:
            if not last.notes.get("best"):
                raise MinilmError("no checkpoint was evaluated, so none is the best", where=str(self.path))
            wanted = int(last.notes["best"]["step"])
        elif last is not None:
            return last
        found = checkpoint.steps(self.checkpoints)
        if wanted not in found:
            there = ", ".join(map(str, found))
            raise MinilmError(
                f"there is no checkpoint of step {wanted}" if isinstance(wanted, int) else "there is no checkpoint yet",
                where=str(self.path),
                hint=f"There are checkpoints of the steps {there}." if found else "Go on with: minilm resume",
            )
        return checkpoint.load(checkpoint.path_of(self.checkpoints, int(wanted)))


def find_run(path: Path | None, runs: Path = RUNS) -> RunFolder:
    """The run in folder `path`, or the newest in `runs`; raises `MinilmError` if there is none."""
    if path is None:
        found = [folder for folder in runs.iterdir() if _is_run(folder)] if runs.is_dir() else []
        if not found:
            raise MinilmError(
                f"there is no run in {runs}/", hint="Start one with minilm distill, or name a run's folder."
            )
        path = max(found, key=lambda folder: (folder / "settings.json").stat().st_mtime_ns)
    if not _is_run(path):
        raise MinilmError(
            "this is not a run: it has no settings.json" if path.exists() else "there is no such run", where=str(path)
        )
    return RunFolder(path)


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "settings.json").is_file()


def final_losses(records: list[dict[str, float]]) -> Mapping[str, float]:
    """The last value of each loss in the metrics."""
    losses: dict[str, float] = {}
    for record in records:
        losses.update({name: value for name, value in record.items() if "loss" in name})
    return losses
