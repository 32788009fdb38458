"""Commands as processes, and small runs in this process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.base.progress import NoProgress
from minilm_cli.settings.load import load_distill_settings
from tests.runs import TIME_METRICS, TIMEOUT, AnyProcess, Commands, metrics, metrics_without_times, result_files

__all__ = [
    "TIMEOUT",
    "TIME_METRICS",
    "Commands",
    "Settings",
    "assert_same_result",
    "metrics",
    "metrics_without_times",
    "result_files",
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
    """Settings of a run of a few steps on the tiny models; dotted paths, with `__` for dots, override them."""

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
    """A run of six steps. Read-only: a test that changes it copies it."""
    from minilm_cli.training import run

    return run.distill(small_settings(tmp_path_factory.mktemp("finished") / "run"), NoProgress()).path


@pytest.fixture
def copied_run(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of the finished run, which the test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify exports in this process, which saves starting another; one that fails raises its error itself."""
    verify_here(monkeypatch)


def verify_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `same_process` does, for fixtures that are made once."""
    from minilm_cli.export import consumers

    monkeypatch.setattr(consumers, "run_task_elsewhere", consumers.run_task)


class Crash(Exception):
    """An unexpected error of a run."""


def crash(*_: object) -> None:
    raise Crash


class CallAt(NoProgress):
    """Progress that calls functions when it comes to their steps; step 0 is before the first."""

    def __init__(self, **steps: Callable[[], object]) -> None:
        """`step_3=disk.fill` and the like."""
        self.steps = {int(name.removeprefix("step_")): action for name, action in steps.items()}

    def update(self, done: float, shown: object = None, *, left: float | None = None) -> None:  # noqa: ARG002
        if action := self.steps.pop(int(done), None):
            action()


def crash_at(step: int) -> CallAt:
    """Progress that ends the run without a chance to save."""
    return CallAt(**{f"step_{step}": crash})


def wait_until(condition: Callable[[], object], process: AnyProcess | None = None) -> None:
    """Wait until `condition` holds; until then the process must run, if one is given."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None, process and process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_done_a_step(folder: Path) -> Callable[[], bool]:
    """Whether the run in `folder` has done a step."""
    return lambda: (folder / "metrics.jsonl").exists() and bool((folder / "metrics.jsonl").read_text(encoding="utf-8"))


def assert_same_result(folder: Path, other: Path) -> None:
    """Both runs ended with the same weights, moments and metrics."""
    assert metrics_without_times(folder) == metrics_without_times(other)
    last = max(int(path.name.removeprefix("step-")) for path in (other / "checkpoints").iterdir())
    ours, theirs = result_files(folder, last), result_files(other, last)
    assert [name for name in ours if ours[name] != theirs[name]] == []
