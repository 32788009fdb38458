"""What a person at a terminal sees, and what a script that reads stdout still gets."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from .conftest import PATIENCE


def test_progress_is_drawn_on_a_terminal_and_stdout_is_the_path_alone(
    tmp_path: Path, tiny_teacher: Path, tiny_store: Path
) -> None:
    words = ["distill", "--teacher", str(tiny_teacher), "--student-config", "l2-h24", "--data", str(tiny_store)]
    words += ["--steps", "4", "--batch-size", "4", "--output", str(tmp_path / "run")]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minilm_cli", *words],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )
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


def read(terminal: int) -> bytes:
    """What was written to a terminal since; nothing once its other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
