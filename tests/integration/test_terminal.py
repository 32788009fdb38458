"""What a person at a terminal sees, and what a script that reads stdout still gets."""

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
    """Starts a run of four steps, in the folder `run`, with its stderr going to a descriptor."""
    words = ("--teacher", tiny_teacher, "--student-config", "l2-h24", "--data", tiny_store, "--steps", "4")

    def begin(stderr: int) -> AnyProcess:
        screen = {"TERM": "xterm-256color", "COLUMNS": "120"}
        return minilm.start("distill", *words, "--batch-size", "4", "--output", "run", stderr=stderr, **screen)

    return begin


def ends_well(minilm: Commands, process: AnyProcess) -> None:
    """The run is done, and stdout is its path alone."""
    done = minilm.end(process)
    assert (done.returncode, done.stdout) == (0, "run\n")
    assert (minilm.folder / "run" / "student" / "model.safetensors").is_file()


def test_progress_is_drawn_on_a_terminal_and_stdout_is_the_path_alone(minilm: Commands, start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start(theirs)
    os.close(theirs)
    drawn = b""
    while part := read(ours):
        drawn += part
    os.close(ours)
    ends_well(minilm, process)
    seen = drawn.decode("utf-8")
    assert "\x1b[" in seen
    assert "Distilling" in seen
    assert "Trained 4 steps" in seen
    assert "\x1b" not in (minilm.folder / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_run_ends_well_though_the_disk_that_stderr_goes_to_is_full(minilm: Commands, start: Start) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(full.fileno())
    ends_well(minilm, process)


def test_a_run_ends_well_though_who_read_its_stderr_has_left(minilm: Commands, start: Start) -> None:
    ours, theirs = os.pipe()
    process = start(theirs)
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as said:
        assert "Loading the teacher" in said.readline()
    ends_well(minilm, process)


def test_a_run_ends_well_though_its_terminal_has_hung_up(minilm: Commands, start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start(theirs)
    os.close(theirs)
    assert read(ours)
    os.close(ours)
    ends_well(minilm, process)


def read(terminal: int) -> bytes:
    """What was written to a terminal since; nothing once its other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
