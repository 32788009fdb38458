"""Messages of `minilm` where environment variables have wrong values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import DISTILL, Mistake, check_mistake

UNKNOWN_TEACHER = Mistake(
    "unknown teacher",
    "distill --teacher nobody/nothing --student-config config.json",
    ("nobody/nothing", "cannot be loaded"),
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", ""),
        ("HOME", "/nowhere"),
        ("XDG_CACHE_HOME", "corpus.txt"),
        ("TMPDIR", "/nowhere"),
        ("TERM", "nonsense"),
        ("LINES", "none"),
        ("NO_COLOR", "perhaps"),
        ("TTY_COMPATIBLE", "perhaps"),
        ("MINILM_DEBUG", "perhaps"),
        ("HF_TOKEN", "two\nlines"),
        ("OMP_NUM_THREADS", "many"),
        ("CUDA_VISIBLE_DEVICES", "all"),
        ("TRANSFORMERS_VERBOSITY", "loud"),
        ("WORLD_SIZE", ""),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_wrong_values_of_variables_change_no_message(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    check_mistake(UNKNOWN_TEACHER, minilm)
    check_mistake(Mistake("layer", DISTILL + "--teacher-layer 9", ("--teacher-layer: there is no layer 9",)), minilm)


@pytest.mark.slow
def test_a_file_in_place_of_the_model_cache_is_reported(tmp_path: Path, tiny_student_config: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        [sys.executable, "-m", "minilm_cli", *UNKNOWN_TEACHER.words.split()],
        cwd=tiny_student_config.parent,
        env={**os.environ, "HF_HOME": str(file), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    for words in ("nobody/nothing", "cannot be loaded", str(file), "HF_HOME"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    monkeypatch.setattr(os, "environ", unset | given)
    assert minilm("--version").status == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),
    ],
)
def test_memory_of_gpus_is_not_left_in_pieces_unless_the_user_says_otherwise(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    unset = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    monkeypatch.setattr(os, "environ", unset | given)
    assert minilm("--version").status == 0
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
