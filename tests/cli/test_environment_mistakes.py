"""What `minilm` makes of an environment that talks nonsense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import DISTILL, Mistake, is_told

NEVER_HEARD_OF = Mistake(
    "nobody", "distill --teacher nobody/nothing --student-config config.json", ("nobody/nothing", "cannot be loaded")
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
def test_nonsense_in_the_environment_changes_no_message(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    is_told(NEVER_HEARD_OF, minilm)
    is_told(Mistake("layer", DISTILL + "--teacher-layer 9", ("--teacher-layer: there is no layer 9",)), minilm)


@pytest.mark.slow
def test_a_cache_of_models_that_is_a_file_is_named(tmp_path: Path, tiny_student_config: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = subprocess.run(
        [sys.executable, "-m", "minilm_cli", *NEVER_HEARD_OF.words.split()],
        cwd=tiny_student_config.parent,
        env={**os.environ, "HF_HOME": str(file), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    for words in ("nobody/nothing", "cannot be loaded", str(file), "HF_HOME"):
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr
