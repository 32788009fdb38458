"""Where a run keeps what, how it is found again, and that only one process works on it. Ignores what is done with it.

settings.json         the settings, all of them, with every `auto` resolved
environment.json      versions and hardware
plan.json             what was trained on what: shapes, parameters, sequences, steps
changes.json          settings that were changed when the run was resumed, if any were
student-config.json   the student's configuration
tokenizer/            the teacher's tokenizer
tokens/               the token store, where the data was a file of token-id lists; of the second: tokens-2/
metrics.jsonl         a line a logged step
log.txt               what was said
checkpoints/          what to go on from
student/              the trained student
lock                  held by the process that trains, and who that is
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minilm_cli.base.atomic import LOCK, restore, sweep
from minilm_cli.base.errors import MinilmError, RunError, refuse_newer, remedy
from minilm_cli.base.jsonio import first_wrong, read_json, write_json
from minilm_cli.base.locks import Held, Lock
from minilm_cli.runs import checkpoint
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.plan import Plan
from minilm_cli.settings.distill import CheckpointSettings, DistillSettings
from minilm_cli.settings.load import flatten
from minilm_cli.settings.validation import validate

logger = logging.getLogger(__name__)


RUNS = Path("runs")


#: Version of this layout, in environment.json.
FORMAT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Best(_Part):
    """The best evaluation so far."""

    step: int
    eval_loss: float


class Since(_Part):
    """What was done since the last line of metrics."""

    sequences: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class BackedOff(_Part):
    """A budget of tokens that memory was too small for, and what it came down to."""

    wanted: int
    became: int


class Notes(_Part):
    """What a checkpoint keeps of a run beside weights and moments."""

    evaluated: int | None = None
    """Step of the last evaluation."""
    best: Best | None = None
    elapsed: float = 0.0
    """Seconds of training until the last line of metrics."""
    since: Since = Since()
    since_seconds: float = 0.0
    backed_off: BackedOff | None = None
    first_loss: float | None = None
    """Mean loss of the first steps, for `health.Watch`."""
    unwritten: list[str] = Field(default_factory=list)
    """Lines of metrics that could not be written."""

    @classmethod
    def of(cls, chosen: Checkpoint) -> Notes:
        """Those of a checkpoint; raises `RunError` if they are not what a run writes."""
        try:
            return cls.model_validate(chosen.notes)
        except ValidationError as error:
            message = f"its notes are not those of a run: {first_wrong(error)}"
            raise RunError(message, where=str(chosen.path)) from None


class Change(_Part):
    """A setting that was changed when a run was resumed."""

    step: int
    """The last step that was done with the old value."""
    setting: str
    was: float | int | str | None
    became: float | int | str | None


class _Changes(_Part):
    changes: list[Change]


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
    def changes_file(self) -> Path:
        """Settings that were changed on the way."""
        return self.path / "changes.json"

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
        """The token store made from a file of token-id lists; of several, the first's."""
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

    @property
    def lock_file(self) -> Path:
        """Held by the process that trains."""
        return self.path / LOCK

    def evidence_file(self, step: int) -> Path:
        """What is left of a step that was not finite."""
        return self.path / f"not-finite-step-{step:08}.safetensors"

    def how_to_resume(self) -> str:
        """The command that goes on with it."""
        return f"minilm resume {shlex.quote(str(self.path))}"

    def how_to_go_on(self) -> str:
        """The same as a hint."""
        return f"Go on with:\n    {self.how_to_resume()}"

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Keep others from training this run, and clear away what a killed process left of it.

        Raises `MinilmError` if another process is at work on it, or nothing can be written.
        """
        try:
            lock = Lock(self.lock_file, patience=0.2)
        except Held as held:
            raise MinilmError(
                f"{held} is at work on this run",
                where=str(self.path),
                hint="Wait for it to end, or end it.",
            ) from None
        except OSError as error:
            message = f"nothing can be written here: {error.strerror}"
            raise MinilmError(message, where=str(self.path), hint=remedy(error)) from None
        with lock:
            if not lock.holds:
                logger.warning("%s is on a file system without locks: let one process alone train it.", self.path)
            sweep(self.path.parent)
            for folder in (self.path, self.checkpoints):
                sweep(folder, own=True)
            yield lock

    def check(self) -> None:
        """Raise `MinilmError` if the run cannot be gone on with for what stands in a file's place; changes nothing."""
        self.environment()
        self.settings()
        self.plan()
        self.changes()
        for file in (self.metrics_file, self.log_file, self.lock_file):
            _check_file(file, "r+b")
        _check_folder(self.checkpoints)

    def environment(self) -> dict[str, Any]:
        """Versions and hardware at the beginning, empty if there are none; raises `MinilmError` for a later layout."""
        if not self.environment_file.exists():
            return {}
        values = _read(self.environment_file, kind="environment")
        if not isinstance(values, dict):
            raise MinilmError("this is no environment of a run", where=str(self.environment_file))
        refuse_newer("run", values, FORMAT_VERSION, where=str(self.path), writer="minilm")
        return values

    def settings(self) -> DistillSettings:
        """The run's settings; raises `MinilmError` if they cannot be read."""
        return validate(DistillSettings, _read(self.settings_file, kind="run"), where=str(self.settings_file))

    def write_settings(self, settings: DistillSettings) -> None:
        """Replace the run's settings."""
        write_json(self.settings_file, settings.model_dump(mode="json"))

    def changes(self) -> list[Change]:
        """What was changed on the way, in order; raises `MinilmError` if it cannot be read."""
        if not self.changes_file.exists():
            return []
        return validate(_Changes, _read(self.changes_file, kind="changes"), where=str(self.changes_file)).changes

    def write_changes(self, step: int, before: DistillSettings, now: DistillSettings) -> None:
        """Add what differs of that which decides what is learnt; `step` was the last that was done before."""
        was, became = (flatten(settings.model_dump(mode="json")) for settings in (before, now))
        new = [
            Change(step=step, setting=name, was=was[name], became=became[name])
            for name in became
            if name.startswith(("training.", "optimizer.")) and was[name] != became[name]
        ]
        if new:
            write_json(self.changes_file, _Changes(changes=[*self.changes(), *new]).model_dump())

    def plan(self) -> Plan:
        """What is trained on what; raises `MinilmError` if it cannot be read."""
        return validate(Plan, _read(self.plan_file, kind="plan"), where=str(self.plan_file))

    def metrics(self) -> list[dict[str, float]]:
        """The records written so far; a line that is none, such as one cut short, is left out.

        Raises `MinilmError` if they cannot be read.
        """
        records = []
        if _check_file(self.metrics_file, "rb"):
            for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, RecursionError, OverflowError, TypeError, AttributeError):
                    record = json.loads(line)
                    if all(isfinite(value) for value in record.values()) and type(record.get("step")) is int:
                        records.append(record)
        return records

    def is_finished(self) -> bool:
        """Whether the student is there, which is written at the end."""
        return all((self.student / name).is_file() for name in ("config.json", "model.safetensors"))

    def refuse_lost_checkpoints(self, settings: CheckpointSettings) -> None:
        """Raise `RunError` if a run that has no checkpoint has had one: to begin anew would throw its metrics away."""
        records = self.metrics()
        saved = [
            record["step"]
            for record in records
            if record["step"] >= settings.every
            or record.get("elapsed", 0) >= 60 * settings.minutes
            or ("eval_loss" in record and record["step"])
        ]
        # One of the first such step may have been under way; behind it there was one.
        if self.is_finished() or (saved and records[-1]["step"] > saved[0]):
            raise RunError(
                "the run's checkpoints are gone",
                where=str(self.checkpoints),
                hint="Put them back; or start a new run, in another folder or with minilm distill --force.",
            )

    def pick_checkpoint(self, wanted: str | int) -> Checkpoint:
        """The checkpoint `last`, `best` or of a step; raises `MinilmError` if there is none, `RunError` if damaged."""
        if self.checkpoints.is_dir():
            _check_folder(self.checkpoints)
        last = checkpoint.latest(self.checkpoints) if wanted in ("last", "best") else None
        if wanted == "best" and last is not None:
            best = Notes.of(last).best
            if best is None:
                raise MinilmError("no checkpoint was evaluated, so none is the best", where=str(self.path))
            wanted = best.step
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


def _read(file: Path, *, kind: str) -> Any:
    try:
        return read_json(file, kind=kind)
    except MinilmError as error:
        error.hint = error.hint or "Put the file back as the run wrote it, or start a new run."
        raise


def _check_file(path: Path, mode: str) -> bool:
    """Whether there is this file; raises `MinilmError` for what is none, or cannot be opened in this mode."""
    if not os.path.lexists(path):
        return False
    if not path.is_file():  # a pipe may never end
        raise MinilmError(
            "this is not a file", where=str(path), hint="Move it away, or put the file back that the run wrote."
        )
    try:
        path.open(mode).close()
    except OSError as error:
        message = f"this file cannot be opened: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    return True


def _check_folder(path: Path) -> None:
    """Raise `MinilmError` for what is there and no folder, or cannot be looked into."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise MinilmError(
            "this is not a folder", where=str(path), hint="Put the folder back that the run wrote, or start a new run."
        )
    try:
        next(path.iterdir(), path).lstat()
    except OSError as error:
        message = f"this folder cannot be read: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None


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
    run.environment()  # of a layout that is known
    return run


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "settings.json").is_file()


def final_losses(records: list[dict[str, float]]) -> Mapping[str, float]:
    """The last value of each loss in the metrics."""
    losses: dict[str, float] = {}
    for record in records:
        losses.update({name: value for name, value in record.items() if "loss" in name})
    return losses
