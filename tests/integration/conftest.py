"""Commands as processes, and small runs in this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.base.progress import NoProgress
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.training import run
from tests.runs import CLOCKED, PATIENCE, AnyProcess, Commands, lasting_files, lasting_metrics, metrics

__all__ = [
    "CLOCKED",
    "PATIENCE",
    "Commands",
    "Settings",
    "is_the_same",
    "lasting_files",
    "lasting_metrics",
    "metrics",
    "wait_until",
]

Settings = Callable[..., Any]


@pytest.fixture
def minilm(tmp_path: Path) -> Iterator[Commands]:
    """Runs commands in an empty folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    commands = Commands(folder)
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def small_settings(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> Settings:
    """Settings of a run of a few steps on the tiny models; dotted paths override them."""

    def make(output: Path, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "teacher.name": str(tiny_teacher),
            "student.config": str(tiny_student_config),
            "data.path": tiny_store,
            "training.steps": 6,
            "training.batch_size": 6,
            "schedule.warmup_steps": 1,
            "evaluation.fraction": 0.05,
            "evaluation.every": 3,
            "checkpoint.every": 2,
            "reporting.log_every": 2,
            "output": output,
        }
        return load_distill_settings(flags=values | {name.replace("__", "."): value for name, value in changes.items()})

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_settings: Settings) -> Path:
    """A run of six steps. For reading: a test that changes it copies it."""
    return run.distill(small_settings(tmp_path_factory.mktemp("finished") / "run"), NoProgress()).path


class At(NoProgress):
    """Progress that does something when certain steps are shown."""

    def __init__(self, **steps: Callable[[], object]) -> None:
        """`step_3=disk.fill` and the like."""
        self.steps = {int(name.removeprefix("step_")): action for name, action in steps.items()}

    def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
        """Do it, once."""
        if action := self.steps.pop(int(done), None):
            action()


def wait_until(condition: Callable[[], object], process: AnyProcess | None = None) -> None:
    """Go on as soon as `condition` holds; the process, if one is given, must still run then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process and process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_the_same(folder: Path, other: Path) -> None:
    """Both runs ended with the same weights, moments and metrics."""
    assert lasting_metrics(folder) == lasting_metrics(other)
    last = max(int(path.name.removeprefix("step-")) for path in (other / "checkpoints").iterdir())
    ours, theirs = lasting_files(folder, last), lasting_files(other, last)
    assert [name for name in ours if ours[name] != theirs[name]] == []
