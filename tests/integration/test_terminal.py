"""What a person at a terminal sees, and what a script that reads stdout still gets."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PATIENCE


@pytest.fixture
def words(tmp_path: Path, tiny_teacher: Path, tiny_store: Path) -> list[str]:
    """A run of four steps, into the folder `run`."""
    models = ["--teacher", str(tiny_teacher), "--student-config", "l2-h24", "--data", str(tiny_store)]
    return ["distill", *models, "--steps", "4", "--batch-size", "4", "--output", str(tmp_path / "run")]


def start(words: list[str], stderr: int) -> subprocess.Popen[str]:
    """Start `minilm WORDS...`; its stderr goes to a file descriptor that is a terminal, or `subprocess.PIPE`."""
    return subprocess.Popen(
        [sys.executable, "-m", "minilm_cli", *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )


def test_progress_is_drawn_on_a_terminal_and_stdout_is_the_path_alone(tmp_path: Path, words: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = start(words, stderr=theirs)
    os.close(theirs)
    try:
        drawn = b""
        while part := read(ours):
            drawn += part
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    seen = drawn.decode("utf-8")
    assert (process.returncode, out) == (0, f"{tmp_path}/run\n"), seen
    assert "\x1b[" in seen
    assert "Distilling" in seen
    assert "Trained 4 steps" in seen
    assert "\x1b" not in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_run_ends_well_though_the_disk_that_stderr_goes_to_is_full(tmp_path: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(words, stderr=full.fileno())
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"{tmp_path}/run\n")
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_a_run_ends_well_though_who_read_its_stderr_has_left(tmp_path: Path, words: list[str]) -> None:
    process = start(words, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert "Loading the teacher" in process.stderr.readline()
        process.stderr.close()
        process.stderr = None
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, f"{tmp_path}/run\n")
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_a_run_ends_well_though_its_terminal_has_hung_up(tmp_path: Path, words: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = start(words, stderr=theirs)
    os.close(theirs)
    try:
        seen = read(ours)
        os.close(ours)
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert seen
    assert (process.returncode, out) == (0, f"{tmp_path}/run\n")
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def read(terminal: int) -> bytes:
    """What was written to a terminal since; nothing once its other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
