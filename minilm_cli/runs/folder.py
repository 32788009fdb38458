"""The files of a run.

settings.json         the settings, all of them, with every `auto` resolved
environment.json      versions and hardware
plan.json             what was trained on what: shapes, parameters, sequences, steps
changes.json          settings that were changed when the run was resumed, if any were
student-config.json   the student's configuration
tokenizer/            the teacher's tokenizer
student-tokenizer/    that of the student, if it keeps only some of the teacher's tokens
sentence-head/        how the teacher makes sentence embeddings, if its files say so
tokens/               the token store, where the data was a file of token-id lists; of the second: tokens-2/
metrics.jsonl         a line a logged step
log.txt               the messages
checkpoints/          what a run resumes from
student/              the trained student
lock                  held by the process that trains; its process and machine
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from minilm_cli.base.atomic import sweep
from minilm_cli.base.errors import MinilmError, refuse_newer, remedy
from minilm_cli.base.jsonio import read_json, write_json
from minilm_cli.base.locks import LOCK, Held, Lock
from minilm_cli.runs.plan import Plan, changed
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import flatten
from minilm_cli.settings.validation import validate

logger = logging.getLogger(__name__)

#: Version of this layout, in environment.json.
FORMAT_VERSION = 1


class Change(BaseModel):
    """A setting that was changed when a run was resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    step: int
    """The last step that was done with the old value."""
    setting: str
    was: float | int | str | None
    became: float | int | str | None


class _Changes(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    changes: list[Change]


class RunFolder:
    """Where each file of a run is, and how it is read and written."""

    def __init__(self, path: Path) -> None:
        """`path` of the folder; nothing is read or made yet."""
        self.path = path
        self.settings_file = path / "settings.json"
        self.environment_file = path / "environment.json"
        self.plan_file = path / "plan.json"
        self.changes_file = path / "changes.json"
        self.student_config_file = path / "student-config.json"
        self.tokenizer = path / "tokenizer"
        self.trimmed_tokenizer = path / "student-tokenizer"
        self.sentence_head = path / "sentence-head"
        self.tokens = path / "tokens"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.student = path / "student"
        self.lock_file = path / LOCK

    @property
    def student_tokenizer(self) -> Path:
        """The folder of the student's tokenizer, which is the teacher's if it was not trimmed.

        Raises `MinilmError` if it is missing.
        """
        folder = self.tokenizer if self.plan().vocabulary is None else self.trimmed_tokenizer
        if not folder.is_dir():
            raise changed("the run's tokenizer is missing", folder)
        return folder

    def rank_log_file(self, rank: int) -> Path:
        """The messages of another process than the first."""
        return self.path / f"log-rank-{rank:05}.txt"

    def not_finite_file(self, step: int) -> Path:
        """What is kept of a step that was not finite."""
        return self.path / f"not-finite-step-{step:08}.safetensors"

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        return f"minilm resume {shlex.quote(str(self.path))}"

    @property
    def resume_hint(self) -> str:
        """The same as the hint of an error."""
        return f"Continue with:\n    {self.resume_command}"

    # --- Reading -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `MinilmError` if a file that resuming needs is not readable, or not a file; changes nothing."""
        self.environment()
        self.settings()
        self.plan()
        self.changes()
        for file in (self.metrics_file, self.log_file, self.lock_file):
            _check_file(file, "r+b")
        check_folder(self.checkpoints)

    def environment(self) -> dict[str, Any]:
        """Versions and hardware at the start, empty if there are none; raises `MinilmError` for a later layout."""
        if not self.environment_file.exists():
            return {}
        values = _read(self.environment_file, kind="environment")
        if not isinstance(values, dict):
            raise MinilmError("this is not the environment of a run", where=str(self.environment_file))
        refuse_newer("run", values, FORMAT_VERSION, where=str(self.path), writer="minilm")
        return values

    def settings(self) -> DistillSettings:
        """The run's settings; raises `MinilmError` if they cannot be read."""
        return validate(DistillSettings, _read(self.settings_file, kind="run"), where=str(self.settings_file))

    def plan(self) -> Plan:
        """What is trained on what; raises `MinilmError` if it cannot be read."""
        return validate(Plan, _read(self.plan_file, kind="plan"), where=str(self.plan_file))

    def changes(self) -> list[Change]:
        """Settings that were changed on the way, in order; raises `MinilmError` if they cannot be read."""
        if not self.changes_file.exists():
            return []
        return validate(_Changes, _read(self.changes_file, kind="changes"), where=str(self.changes_file)).changes

    def metrics(self) -> list[dict[str, float]]:
        """The records of `metrics.jsonl`; a line that is not one, such as one cut short, is left out.

        Raises `MinilmError` if the file cannot be read.
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

    # --- Writing -------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Keep others from training this run, and remove what a killed process left in it.

        Raises `MinilmError` if another process works on it, or nothing can be written.
        """
        try:
            lock = Lock(self.lock_file, patience=0.2)
        except Held as held:
            raise MinilmError(
                f"{held} is at work on this run", where=str(self.path), hint="Wait for it to end, or stop it."
            ) from None
        except OSError as error:
            message = f"nothing can be written here: {error.strerror}"
            raise MinilmError(message, where=str(self.path), hint=remedy(error)) from None
        with lock:
            if not lock.holds:
                logger.warning("%s is on a file system without locks: let only one process train it.", self.path)
            sweep(self.path.parent)
            for folder in (self.path, self.checkpoints):
                sweep(folder, own=True)
            yield lock

    def write_settings(self, settings: DistillSettings) -> None:
        """Replace the run's settings."""
        write_json(self.settings_file, settings.model_dump(mode="json"))

    def write_plan(self, plan: Plan) -> None:
        """Replace the run's plan."""
        write_json(self.plan_file, plan.model_dump())

    def write_changes(self, step: int, before: DistillSettings, now: DistillSettings) -> None:
        """Add the settings of training and optimiser that differ; `step` was the last done before."""
        was, became = (flatten(settings.model_dump(mode="json")) for settings in (before, now))
        new = [
            Change(step=step, setting=name, was=was[name], became=became[name])
            for name in became
            if name.startswith(("training.", "optimizer.")) and was[name] != became[name]
        ]
        if new:
            write_json(self.changes_file, _Changes(changes=[*self.changes(), *new]).model_dump())


def _read(file: Path, *, kind: str) -> Any:
    try:
        return read_json(file, kind=kind)
    except MinilmError as error:
        error.hint = error.hint or "Restore the file as the run wrote it, or start a new run."
        raise


def _check_file(path: Path, mode: str) -> bool:
    """Whether the file exists; raises `MinilmError` if it is not a file, or cannot be opened in this mode."""
    if not os.path.lexists(path):
        return False
    if not path.is_file():  # a pipe may never end
        raise MinilmError(
            "this is not a file", where=str(path), hint="Move it away, or restore the file that the run wrote."
        )
    try:
        path.open(mode).close()
    except OSError as error:
        message = f"this file cannot be opened: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    return True


def check_folder(path: Path) -> None:
    """Raise `MinilmError` if the path exists but is not a folder, or cannot be listed."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise MinilmError(
            "this is not a folder", where=str(path), hint="Restore the folder that the run wrote, or start a new run."
        )
    try:
        next(path.iterdir(), path).lstat()
    except OSError as error:
        message = f"this folder cannot be read: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
