"""Completion, as a shell asks for it: through environment variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minilm_cli.cli import completion
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.flags import setting_names

from .conftest import Minilm
from .test_processes import python

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(minilm: Minilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash offers after the beginning of a command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_MINILM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        outcome = minilm()
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("minilm d", ["distill", "demo"]),
        ("minilm distill --teacher-l", ["--teacher-layer"]),
        ("minilm distill --init ", ["random", "teacher"]),
        ("minilm distill --schedule co", ["cosine", "constant"]),
        ("minilm distill --schedule=co", ["cosine", "constant"]),
        ("minilm distill --precision ", ["auto", "bf16", "fp32"]),
        ("minilm distill --relation-heads ", ["auto"]),
        ("minilm distill --report-to wandb --report-to t", ["tensorboard"]),
        ("minilm tokenize a.txt --overflow ", ["split", "truncate", "drop"]),
        ("minilm export --dtype fl", ["float32", "float16"]),
        ("minilm export --format ", ["hf", "sentence-transformers", "onnx"]),
        ("minilm export --checkpoint ", ["last", "best"]),
        ("minilm distill --data ", []),
        ("minilm distill --lr ", []),
        ("minilm tokenize ", []),
        ("minilm resume ", []),
    ],
)
def test_values_of_an_option_are_offered(line: str, offered: list[str], complete: Complete) -> None:
    assert complete(line) == offered


def test_names_of_settings_are_offered(complete: Complete) -> None:
    every = sorted(f"{name}=" for name in setting_names(DistillSettings))
    assert complete("minilm distill --set ") == every
    assert complete("minilm distill --set optimizer.") == [name for name in every if name.startswith("optimizer.")]
    assert complete("minilm resume --set ") == sorted(f"{name}=" for name in CHANGEABLE_MID_RUN)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("schedule.kind=c", ["schedule.kind=cosine", "schedule.kind=constant"]),
        ("training.compile=", ["training.compile=true", "training.compile=false"]),
        ("optimizer.lr=", []),
        ("nothing=", []),
    ],
)
def test_values_of_a_setting_are_offered(typed: str, offered: list[str]) -> None:
    assert completion.assignments(typed) == offered


def test_only_values_that_may_change_are_offered_to_resume() -> None:
    assert completion.changes("training.precision=b") == ["training.precision=bf16"]
    assert completion.changes("schedule.kind=") == []


def test_presets_and_configurations_are_offered(complete: Complete) -> None:
    assert complete("minilm distill --student-config ") == list(completion.PRESETS)
    for file in ("config.json", "data.json", "small/config.json", "other/tokenizer.json"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    assert complete("minilm distill --student-config ") == [*completion.PRESETS, "config.json", "small"]
    assert complete("minilm distill --student-config l6") == ["l6-h384", "l6-h768"]
    assert complete("minilm distill --student-config small/") == []  # the shell offers its files


def test_offered_presets_exist() -> None:
    from minilm_cli.models.presets import Preset

    assert all(Preset.parse(preset) for preset in completion.PRESETS)


@pytest.mark.parametrize("command", ["resume", "export"])
def test_runs_are_offered(command: str, complete: Complete) -> None:
    for folder in ("b", "a", ".hidden", "none"):
        Path("runs", folder).mkdir(parents=True)
        if folder != "none":
            Path("runs", folder, "settings.json").touch()
    assert complete(f"minilm {command} ") == ["runs/a", "runs/b"]
    assert complete(f"minilm {command} runs/b") == ["runs/b"]


def test_completion_imports_nothing_heavy() -> None:
    code = """
import os, sys
os.environ |= {"_MINILM_COMPLETE": "complete_bash", "COMP_WORDS": "minilm distill --init ", "COMP_CWORD": "3"}
from minilm_cli.cli.app import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "numpy", "yaml", "rich"} & sys.modules.keys()
    print(sorted(heavy), file=sys.stderr)
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["random", "teacher"], "[]\n")
