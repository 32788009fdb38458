"""Flags over a settings file over defaults, and `--set` for everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minilm_cli.settings.distill import DistillSettings
from minilm_cli.training import run
from minilm_cli.training.run import RunReport

from .conftest import Minilm

NAMES = ("distill", "--teacher", "t", "--student-config", "c")

SAME_SETTINGS = {
    "run.yaml": "teacher: {name: t}\nstudent:\n  config: c\noptimizer:\n  lr: 3.0e-4\ntraining: {steps: 20}\n",
    "run.yml": "teacher: {name: t}\nstudent: {config: c}\noptimizer: {lr: 3.0e-4}\ntraining: {steps: 20}\n",
    "run.toml": 'teacher.name = "t"\nstudent.config = "c"\noptimizer.lr = 3e-4\n[training]\nsteps = 20\n',
    "run.json": json.dumps(
        {"teacher": {"name": "t"}, "student": {"config": "c"}, "optimizer": {"lr": 3e-4}, "training": {"steps": 20}}
    ),
}


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[DistillSettings]:
    """The settings that `minilm distill` was called with, instead of a run; the current folder is empty."""
    seen: list[DistillSettings] = []

    def distill(settings: DistillSettings, *_: object, **__: object) -> RunReport:
        seen.append(settings)
        return RunReport(Path("runs/new"), 1, {"loss": 1.0})

    monkeypatch.setattr(run, "distill", distill)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize("name", SAME_SETTINGS)
def test_a_settings_file_of_any_kind_says_it_all(name: str, minilm: Minilm, distilled: list[DistillSettings]) -> None:
    Path(name).write_text(SAME_SETTINGS[name], encoding="utf-8")
    outcome = minilm("distill", "--config", name)
    assert outcome.status == 0, outcome.err
    settings = distilled[0]
    assert (settings.teacher.name, settings.student.config) == ("t", "c")
    assert (settings.optimizer.lr, settings.training.steps) == (3e-4, 20)
    assert settings.training.batch_size == 256


def test_a_flag_is_over_the_file_and_the_file_over_the_default(
    minilm: Minilm, distilled: list[DistillSettings]
) -> None:
    Path("run.yaml").write_text("optimizer: {lr: 1.0e-3, clip_norm: 2}\n", encoding="utf-8")
    assert minilm(*NAMES, "--config", "run.yaml", "--lr", "2e-3").status == 0
    optimizer = distilled[0].optimizer
    assert (optimizer.lr, optimizer.clip_norm, optimizer.weight_decay) == (2e-3, 2.0, 0.01)


def test_set_is_over_the_file(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    Path("run.yaml").write_text("optimizer: {lr: 1.0e-3}\n", encoding="utf-8")
    assert minilm(*NAMES, "--config", "run.yaml", "--set", "optimizer.lr=5e-3").status == 0
    assert distilled[0].optimizer.lr == 5e-3


def test_set_reaches_what_has_no_flag(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    words = ("optimizer.betas=[0.8, 0.9]", "optimizer.eps=1e-8", "checkpoint.minutes=5", "evaluation.limit=100")
    assert minilm(*NAMES, *(part for word in words for part in ("--set", word))).status == 0
    settings = distilled[0]
    assert settings.optimizer.betas == (0.8, 0.9)
    assert settings.optimizer.eps == 1e-8
    assert (settings.checkpoint.minutes, settings.evaluation.limit) == (5, 100)


def test_set_takes_a_mapping_of_relations(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    assert minilm(*NAMES, "--set", "relations.weights={qk: 2}").status == 0
    assert distilled[0].relations.weights == {"qk": 2.0}


def test_relations_of_a_flag_replace_those_of_the_file(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    Path("run.yaml").write_text("relations: {weights: {qq: 1, kk: 1}}\n", encoding="utf-8")
    assert minilm(*NAMES, "--config", "run.yaml", "--relations", "vv=1").status == 0
    assert distilled[0].relations.weights == {"vv": 1.0}


@pytest.mark.parametrize(
    ("in_file", "typed", "expected"),
    [("steps: 5", ("--epochs", "2"), (None, 2.0)), ("epochs: 2", ("--steps", "5"), (5, None))],
)
def test_the_length_on_the_command_line_replaces_the_file_s(
    in_file: str,
    typed: tuple[str, str],
    expected: tuple[object, object],
    minilm: Minilm,
    distilled: list[DistillSettings],
) -> None:
    Path("run.yaml").write_text(f"training: {{{in_file}}}\n", encoding="utf-8")
    assert minilm(*NAMES, "--config", "run.yaml", *typed).status == 0
    assert (distilled[0].training.steps, distilled[0].training.epochs) == expected


def test_an_empty_settings_file_changes_nothing(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    Path("run.yaml").write_text("# nothing\n", encoding="utf-8")
    minilm(*NAMES)
    assert minilm(*NAMES, "--config", "run.yaml").status == 0
    assert distilled[0] == distilled[1]


def test_the_settings_that_a_run_wrote_are_a_settings_file(
    minilm: Minilm, distilled: list[DistillSettings], finished_run: Path
) -> None:
    outcome = minilm("distill", "--config", finished_run / "settings.json", "--output", "elsewhere")
    assert outcome.status == 0, outcome.err
    assert distilled[0].training.steps == 4
    assert distilled[0].output == Path("elsewhere")


def test_a_flag_and_set_of_one_setting_are_refused(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    outcome = minilm(*NAMES, "--lr", "1e-3", "--set", "optimizer.lr=1e-3")
    assert outcome.status == 2
    assert "--lr: given both by its own option and by --set" in outcome.err
    assert distilled == []
