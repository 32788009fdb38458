"""Commands as processes, and small runs in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minilm_cli import run
from minilm_cli.metrics import NoProgress
from minilm_cli.settings import load_distill_settings

#: Only a guard against hanging.
PATIENCE = 300

Settings = Callable[..., Any]


class Commands:
    """Runs `minilm` in a folder; whatever still runs at the end is ended."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the current one of every command."""
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *words: str | os.PathLike[str], launcher: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start `minilm WORDS...`, as a launcher would if one is given, and go on at once."""
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "TMPDIR": str(self.folder),
            **environment,
        }
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "minilm_cli", *map(os.fspath, words)],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for a process."""
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(
        self, *words: str | os.PathLike[str], launcher: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `minilm WORDS...` to its end."""
        return self.end(self.start(*words, launcher=launcher, **environment))

    def close(self) -> None:
        """End what still runs."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


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


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Go on as soon as `condition` holds; the process must still run then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


#: What a clock says in a line of metrics.
CLOCKED = {"elapsed", "sequences_per_second", "tokens_per_second", "waiting_fraction"}


def lasting_metrics(folder: Path) -> str:
    """The bytes of `metrics.jsonl` but for what a clock says."""
    return "\n".join(json.dumps({k: v for k, v in record.items() if k not in CLOCKED}) for record in metrics(folder))


def lasting_files(folder: Path, step: int) -> dict[str, bytes]:
    """The bytes that a run ends with: its student, and the tensors of its last checkpoint."""
    names = (
        "student/model.safetensors",
        f"checkpoints/step-{step:08}/student.safetensors",
        f"checkpoints/step-{step:08}/optimizer.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names}
