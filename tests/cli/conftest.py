"""The command line in this process, and a folder in which it runs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer

from minilm_cli.base.progress import NoProgress
from minilm_cli.cli import app
from minilm_cli.settings.load import load_distill_settings


@dataclass(frozen=True)
class Outcome:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


Minilm = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Restore the logging and the signal handlers that a command sets for its process."""
    logger = logging.getLogger("minilm_cli")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide screen without colours, and no launcher, whatever the environment of pytest."""
    screen = ("MINILM_DEBUG", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    for name in (*screen, "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture(scope="session", autouse=True)
def cached_commands() -> Iterator[None]:
    """Cache the tree of commands: building it takes longer than most commands here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Minilm:
    """Runs `minilm WORDS...` as the console script does, but in this process."""

    def call(*words: str | os.PathLike[str]) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["minilm", *map(os.fspath, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path
) -> Path:
    """A run of four steps, with checkpoints of steps 2 and 4. Read-only: a test that changes it copies it."""
    from minilm_cli.training import run

    settings = load_distill_settings(
        flags={
            "teacher.name": str(tiny_teacher),
            "student.config": str(tiny_student_config),
            "data.path": tiny_store,
            "training.steps": 4,
            "training.batch_size": 4,
            "schedule.warmup_steps": 1,
            "evaluation.fraction": 0.05,
            "evaluation.every": 4,
            "checkpoint.every": 2,
            "output": tmp_path_factory.mktemp("finished") / "run",
        }
    )
    return run.distill(settings, NoProgress()).path


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_teacher: Path,
    tiny_student_config: Path,
    tiny_store: Path,
    tiny_corpus: Path,
) -> Path:
    """The current folder with copies of `corpus.txt`, `teacher/`, `tokens/` and the student's `config.json`."""
    folder, temporary = tmp_path / "workplace", tmp_path / "temporary"
    temporary.mkdir()
    shutil.copytree(tiny_teacher, folder / "teacher")
    shutil.copytree(tiny_store, folder / "tokens")
    shutil.copy(tiny_student_config, folder / "config.json")
    shutil.copy(tiny_corpus, folder / "corpus.txt")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return folder
