"""The console script and the module as separate processes: imports, streams and exit statuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import minilm_cli
from tests.runs import Commands

PACKAGE = Path(minilm_cli.__file__).parent


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python; the timeout only turns a hang into a failure."""
    env: Mapping[str, str] = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=env, timeout=300, encoding="utf-8"
    )


def imported_by(code: str) -> set[str]:
    """The modules that are loaded after `code` has run in a new process."""
    done = python("-c", f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["distill", "--help"], ["tokenize", "--help"]])
def test_help_imports_no_large_library(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["minilm", *{words!r}]
from minilm_cli.cli.app import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0"""
    loaded = imported_by(code)
    assert "minilm_cli.cli.app" in loaded
    assert loaded & {"torch", "transformers", "tokenizers", "safetensors", "numpy", "yaml", "rich.console"} == set()


MODULES = ["cli.app", "settings.load", "tokens.store", "runs.sinks", "corpus.tokenize", "base.atomic", "runs.folder"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_imported_without_torch_and_transformers(module: str) -> None:
    if module == "runs.folder":
        # It imports torch, for checkpoints.
        assert "transformers" not in imported_by(f"import minilm_cli.{module}")
    else:
        assert imported_by(f"import minilm_cli.{module}") & {"torch", "transformers"} == set()


def test_the_module_runs_the_command_line() -> None:
    done = python("-m", "minilm_cli", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"minilm {minilm_cli.__version__}\n", "")


def test_the_console_script_is_installed() -> None:
    script = shutil.which("minilm", path=str(Path(sys.executable).parent))
    assert script is not None
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"minilm {minilm_cli.__version__}\n")


def test_no_command_prints_the_help_and_exits_with_2() -> None:
    done = python("-m", "minilm_cli")
    assert done.returncode == 2
    for command in ("tokenize", "distill", "resume", "export", "evaluate", "demo"):
        assert command in done.stdout + done.stderr


@pytest.mark.slow
def test_a_mistake_of_the_user_exits_with_2(tmp_path: Path) -> None:
    done = python("-m", "minilm_cli", "export", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {tmp_path}/nowhere: there is no such run\n"


def test_minilm_debug_prints_the_traceback(tmp_path: Path) -> None:
    done = Commands(tmp_path)("export", "nowhere", MINILM_DEBUG="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback (most recent call last)" in done.stderr
    assert "minilm_cli.base.errors.MinilmError" in done.stderr


def test_an_unexpected_exception_prints_its_traceback(tmp_path: Path) -> None:
    code = f"""
import sys
from minilm_cli.cli import app
from minilm_cli.runs import lookup
def broken(path):
    raise ZeroDivisionError("a bug")
lookup.restore = broken
sys.argv = ["minilm", "export", {str(tmp_path)!r}]
app.main()"""
    done = Commands(tmp_path)(program=("-c", code))
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


@pytest.mark.slow
def test_ctrl_c_exits_with_130_anywhere(tmp_path: Path) -> None:
    # In an `exec` (as in the import of a dataclass) under `-m`, Python itself would die of the signal.
    code = """
import sys
from minilm_cli.cli import app
from minilm_cli.runs import lookup
def interrupted(path):
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT); print('not reached')")
lookup.find_run = interrupted
sys.argv = ["minilm", "export", "run"]
app.main()"""
    (tmp_path / "interrupted.py").write_text(code, encoding="utf-8")
    done = python("-m", "interrupted", PYTHONPATH=f"{tmp_path}:{PACKAGE.parent}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_shell_completion_is_available() -> None:
    # The shell is named, because there may be none to detect.
    done = python("-m", "minilm_cli", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert "minilm" in done.stdout


def test_the_import_contracts_hold() -> None:
    root = PACKAGE.parent
    assert "[[tool.importlinter.contracts]]" in (root / "pyproject.toml").read_text(encoding="utf-8")
    code = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout
