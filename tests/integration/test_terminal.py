"""A run at a terminal, and runs whose stderr fails; stdout is always the path alone."""

from __future__ import annotations

import os
import pty
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import AnyProcess

from .conftest import Commands

Start = Callable[[int], AnyProcess]


@pytest.fixture
def start(minilm: Commands, tiny_teacher: Path, tiny_store: Path) -> Start:
    """Starts a run of four steps in the folder `run`, with its stderr in a file descriptor."""
    words = ("--teacher", tiny_teacher, "--student-config", "l2-h24", "--data", tiny_store, "--steps", "4")

    def begin(stderr: int) -> AnyProcess:
        screen = {"TERM": "xterm-256color", "COLUMNS": "120"}
        return minilm.start("distill", *words, "--batch-size", "4", "--output", "run", stderr=stderr, **screen)

    return begin


def assert_finished(minilm: Commands, process: AnyProcess) -> None:
    """The run has finished, and stdout is its path alone."""
    done = minilm.end(process)
    assert (done.returncode, done.stdout) == (0, "run\n")
    assert (minilm.folder / "run" / "student" / "model.safetensors").is_file()


def test_progress_is_drawn_on_a_terminal_and_stdout_is_the_path_alone(minilm: Commands, start: Start) -> None:
    reading, writing = pty.openpty()
    process = start(writing)
    os.close(writing)
    drawn = b""
    while part := read(reading):
        drawn += part
    os.close(reading)
    assert_finished(minilm, process)
    text = drawn.decode("utf-8")
    assert "\x1b[" in text
    assert "Distilling" in text
    assert "Trained 4 steps" in text
    assert "\x1b" not in (minilm.folder / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_run_finishes_if_the_disk_of_stderr_is_full(minilm: Commands, start: Start) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(full.fileno())
    assert_finished(minilm, process)


def test_a_run_finishes_if_the_reader_of_stderr_has_gone(minilm: Commands, start: Start) -> None:
    reading, writing = os.pipe()
    process = start(writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        assert "Loading the teacher" in lines.readline()
    assert_finished(minilm, process)


def test_a_run_finishes_if_its_terminal_has_gone(minilm: Commands, start: Start) -> None:
    reading, writing = pty.openpty()
    process = start(writing)
    os.close(writing)
    assert read(reading)
    os.close(reading)
    assert_finished(minilm, process)


def read(terminal: int) -> bytes:
    """The next bytes written to a terminal; none if its other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
