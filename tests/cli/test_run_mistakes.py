"""What `minilm resume`, `minilm export` and `minilm demo` say to every mistake about a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import Mistake, is_told


def write(name: str, content: str) -> Callable[[], object]:
    """Preparation: a file with this text."""
    return lambda: Path(name).write_text(content, encoding="utf-8")


def setting(dotted: str, value: object) -> Callable[[], object]:
    """Preparation: a run whose settings have another value."""

    def change() -> None:
        path = Path("run/settings.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        section, _, name = dotted.rpartition(".")
        (values[section] if section else values)[name] = value
        path.write_text(json.dumps(values), encoding="utf-8")

    return change


def remove(*names: str) -> Callable[[], object]:
    """Preparation: files and folders that are not there."""

    def go() -> None:
        for name in names:
            if Path(name).is_dir():
                shutil.rmtree(name)
            else:
                Path(name).unlink()

    return go


def damage(*steps: int) -> Callable[[], object]:
    """Preparation: checkpoints whose weights are cut short."""

    def go() -> None:
        for step in steps:
            file = Path(f"run/checkpoints/step-{step:08}/student.safetensors")
            os.truncate(file, file.stat().st_size // 2)

    return go


def all_of(*preparations: Callable[[], object]) -> Callable[[], object]:
    """One preparation after the other."""

    def go() -> None:
        for prepare in preparations:
            prepare()

    return go


def other_tokens() -> None:
    """Preparation: a run that began with another token store."""
    plan = json.loads(Path("run/plan.json").read_text(encoding="utf-8"))
    plan["data"]["manifest_sha256"] = "0"
    write("run/plan.json", json.dumps(plan))()


MISTAKES_IN_RESUME = [
    Mistake(
        "resume on other tokens",
        "resume run --steps 9",
        ("token store", "not the one", "Put that one back"),
        other_tokens,
    ),
    Mistake("resume of no steps", "resume run --set training.steps=", ("training.steps", "number of steps")),
    Mistake(
        "resume with a sink that is not there", "resume run --set reporting.sinks=[wandb]", ("wandb", "pip install")
    ),
    Mistake("resume without runs", "resume", ("no run in runs/", "minilm distill")),
    Mistake("resume of nothing", "resume nowhere", ("nowhere", "no such run")),
    Mistake("resume of another folder", "resume tokens", ("tokens", "not a run", "settings.json")),
    Mistake("resume of a file", "resume corpus.txt", ("corpus.txt", "not a run")),
    Mistake("resume with settings not JSON", "resume run", ("settings.json", "JSON"), write("run/settings.json", "{")),
    Mistake(
        "resume with an unknown setting",
        "resume run",
        ("settings.json", "no setting training.pace"),
        setting("training.pace", 3),
    ),
    Mistake(
        "resume with settings of a wrong type",
        "resume run",
        ("settings.json", "optimizer.lr", "fast"),
        setting("optimizer.lr", "fast"),
    ),
    Mistake(
        "set of what may not change",
        "resume run --set training.seed=7",
        ("training.seed may not change", "These may", "checkpoint.keep"),
    ),
    Mistake(
        "set of what is learnt from",
        "resume run --set data.path=elsewhere",
        ("data.path may not change", "These may"),
    ),
    Mistake(
        "resume with set of a misspelt name",
        "resume run --set checkpoint.kep=7",
        ("no setting checkpoint.kep", "Did you mean checkpoint.keep?"),
    ),
    Mistake("resume with set to nonsense", "resume run --set checkpoint.keep=0", ("checkpoint.keep", "greater than 0")),
    Mistake("resume with set without value", "resume run --set checkpoint.keep", ("--set", "KEY=VALUE")),
    Mistake(
        "resume with steps and set",
        "resume run --steps 6 --set training.steps=8",
        ("training.steps", "once"),
    ),
    Mistake("resume to fewer steps", "resume run --steps 3", ("run", "4 steps already", "shortened to 3")),
    Mistake("resume to no steps", "resume run --steps 0", ("training.steps", "greater than 0")),
    Mistake(
        "resume with every checkpoint damaged",
        "resume run",
        ("none of the checkpoints is sound", "step-00000002", "step-00000004", "checksum"),
        damage(2, 4),
        status=1,
    ),
    Mistake(
        "resume without the teacher",
        "resume run --steps 6",
        ("nowhere/teacher", "no such teacher folder"),
        setting("teacher.name", "/nowhere/teacher"),
    ),
    Mistake(
        "resume without the tokens",
        "resume run --steps 6",
        ("/nowhere/tokens", "no such token store"),
        setting("data.path", "/nowhere/tokens"),
    ),
    Mistake(
        "resume without the student's config",
        "resume run --steps 6",
        ("student-config.json",),
        remove("run/student-config.json"),
    ),
    Mistake("resume without the tokenizer", "resume run --steps 6", ("tokenizer",), remove("run/tokenizer")),
]

MISTAKES_IN_EXPORT = [
    Mistake("private and no repository", "export run --private", ("--private", "--push-to-hub")),
    Mistake("export without runs", "export", ("no run in runs/", "minilm distill")),
    Mistake("export of nothing", "export nowhere", ("nowhere", "no such run")),
    Mistake("export of another folder", "export tokens", ("tokens", "not a run", "settings.json")),
    Mistake(
        "export of an unknown checkpoint",
        "export run --checkpoint 3",
        ("run", "no checkpoint of step 3", "steps 2, 4"),
    ),
    Mistake("export of a checkpoint by a wrong word", "export run --checkpoint newest", ("checkpoint", "last", "best")),
    Mistake("export of an earlier checkpoint than the first", "export run --checkpoint -1", ("checkpoint", "-1")),
    Mistake(
        "export without checkpoints",
        "export run",
        ("run", "no checkpoint yet", "minilm resume"),
        remove("run/checkpoints"),
    ),
    Mistake(
        "export of a damaged checkpoint",
        "export run --checkpoint 4",
        ("step-00000004", "student.safetensors", "checksum"),
        damage(4),
        status=1,
    ),
    Mistake("export in an unknown type", "export run --dtype int4", ("dtype", "float32", "bfloat16", "int4")),
    Mistake("export in an unknown format", "export run --format gguf", ("format", "'hf'", "gguf")),
    Mistake("export over something", "export run -o tokens", ("tokens", "exists already", "--force", "--output")),
    Mistake("export with settings not JSON", "export run", ("settings.json", "JSON"), write("run/settings.json", "{")),
    Mistake("export without a plan", "export run", ("plan.json",), remove("run/plan.json")),
    Mistake(
        "export without the student's config",
        "export run",
        ("student-config.json",),
        remove("run/student-config.json"),
    ),
    Mistake("export without the tokenizer", "export run", ("tokenizer",), remove("run/tokenizer")),
    Mistake("export to a wrong repository name", "export run --push-to-hub 'a b/c'", ("a b/c", "--push-to-hub")),
]


@pytest.mark.parametrize("mistake", [*MISTAKES_IN_RESUME, *MISTAKES_IN_EXPORT], ids=str)
def test_a_mistake_is_told_and_leaves_nothing_behind(
    mistake: Mistake, minilm: Minilm, workplace: Path, finished_run: Path
) -> None:
    shutil.copytree(finished_run, workplace / "run")
    is_told(mistake, minilm)


@pytest.mark.usefixtures("workplace")
def test_the_demo_refuses_an_output_that_exists(minilm: Minilm) -> None:
    is_told(Mistake("demo", "demo -o tokens", ("tokens", "exists already", "--force")), minilm)


def test_a_damaged_newest_checkpoint_is_passed_over_by_an_export(
    minilm: Minilm, workplace: Path, finished_run: Path
) -> None:
    shutil.copytree(finished_run, workplace / "run")
    damage(4)()
    outcome = minilm("export", "run")
    assert outcome.status == 0
    assert "Warning: Passing over a damaged checkpoint" in outcome.err
    assert "step-00000004" in outcome.err
    assert "Exported step 2" in outcome.err
