from __future__ import annotations

from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.flags import setting_names
from minilm_cli.settings.load import change_mid_run, load_distill_settings, parse_assignments

from .settings_helpers import REQUIRED, load, values_of, write


@pytest.mark.parametrize("written_as", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4"])
def test_numbers_may_have_an_exponent(tmp_path: Path, written_as: str) -> None:
    assert load(file=write(tmp_path, f"optimizer:\n  lr: {written_as}\n")).optimizer.lr == 1e-4
    assert load(f"optimizer.lr={written_as}").optimizer.lr == 1e-4


def test_file_may_name_teacher_and_student(tmp_path: Path) -> None:
    path = write(tmp_path, "teacher: {name: a}\nstudent: {config: b}\n")
    settings = load_distill_settings(path)
    assert (settings.teacher.name, settings.student.config) == ("a", "b")


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 0.1, eps: 0.2, clip_norm: 0.3}\n")
    optimizer = load("optimizer.eps=0.5", file=path, **{"optimizer.lr": 0.4}).optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.clip_norm, optimizer.weight_decay) == (0.4, 0.5, 0.3, 0.01)


def test_option_of_none_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 0.1}\n")
    assert load(file=path, **{"optimizer.lr": None}).optimizer.lr == 0.1


def test_setting_given_twice_is_refused() -> None:
    with pytest.raises(MinilmError, match=r"optimizer\.lr: given both by its own option and by --set"):
        load("optimizer.lr=1", **{"optimizer.lr": 1.0})
    with pytest.raises(MinilmError, match=r"--set gives optimizer\.lr twice"):
        load("optimizer.lr=1", "optimizer.lr=1")


@pytest.mark.parametrize("text", ["!!bool x", "2001-99-99", "9" * 5000, "[" * 5000, "a: b: c"])
def test_value_that_is_not_yaml_is_text(text: str) -> None:
    assert parse_assignments([f"data.path={text}"]) == {"data.path": text}


@pytest.mark.parametrize("assignment", ["optimizer.lr", "=3", "", "optimizer.lr 3"])
def test_invalid_assignment_is_refused_with_an_example(assignment: str) -> None:
    with pytest.raises(MinilmError, match="--set needs KEY=VALUE") as caught:
        load(assignment)
    assert "optimizer.weight_decay=0.1" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ("a=b", "a=b"), ("[1, 2]", [1, 2]), ("", None), ("{", "{"), ("null", None)],
)
def test_values_of_set_are_read_as_yaml(text: str, value: object) -> None:
    assert parse_assignments([f"a.b={text}"]) == {"a.b": value}


def test_a_size_replaces_the_configuration_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("teacher: {name: a}\nstudent: {config: b}\n", encoding="utf-8")
    student = load_distill_settings(file, flags={"student.max_mb": 5}).student
    assert (student.config, student.max_mb) == (None, 5)


@pytest.mark.parametrize(("given", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_steps_or_epochs_replace_those_of_the_file(tmp_path: Path, given: str, other: str) -> None:
    path = write(tmp_path, f"training: {{{other}: 5}}\n")
    for training in (load(file=path, **{f"training.{given}": 3}), load(f"training.{given}=3", file=path)):
        assert getattr(training.training, given) == 3
        assert getattr(training.training, other) is None


@pytest.mark.parametrize("missing", REQUIRED)
def test_missing_required_setting_is_named(missing: str) -> None:
    flag = {"teacher.name": "--teacher", "student.config": "--student-config"}[missing]
    with pytest.raises(MinilmError, match=f"{flag} is missing") as caught:
        load_distill_settings(flags={name: value for name, value in REQUIRED.items() if name != missing})
    assert missing in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["a"], Path("a")),
        (["a:2"], Path("a")),
        (["a", "b:c"], (Path("a"), Path("b:c"))),
        (["a:7", "b:3"], {Path("a"): 7.0, Path("b"): 3.0}),
        (["a:b:.5", "c/d:1e-3"], {Path("a:b"): 0.5, Path("c/d"): 0.001}),
        (["there:1", "a"], (Path("there:1"), Path("a"))),
        (["there:1:1", "a:1"], {Path("there:1"): 1.0, Path("a"): 1.0}),
        ([":1"], Path(":1")),
    ],
)
def test_text_after_the_last_colon_is_a_weight_unless_such_a_path_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], path: object
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there:1").mkdir()
    assert load(**{"data.path": words}).data.path == path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optimizer.wieght_decay", "optimizer.weight_decay"),
        ("optimiser.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("training.warmup_steps", "schedule.warmup_steps"),
        ("teacher.nam", "teacher.name"),
    ],
)
def test_unknown_setting_is_refused_with_a_suggestion(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(MinilmError, match=f"there is no setting {name.partition('.')[0]}") as caught:
        load(f"{name}=1")
    assert caught.value.hint == f"Did you mean {meant}?"
    section, _, last = name.rpartition(".")
    path = write(tmp_path, f"{section}:\n  {last}: 1\n" if section else f"{last}: 1\n")
    with pytest.raises(MinilmError) as caught:
        load(file=path)
    assert caught.value.hint == f"Did you mean {meant}?"
    assert caught.value.where == str(path)


def test_unknown_setting_without_a_similar_one_is_refused() -> None:
    with pytest.raises(MinilmError, match="there is no setting zzzzz") as caught:
        load("zzzzz.qqqqq=1")
    assert "Settings" in (caught.value.hint or "")
    with pytest.raises(MinilmError, match=r"optimizer\.lr"):
        load("optimizer.lr.more=1", **{"optimizer.lr": 1.0})


def test_wrong_value_is_reported_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: fast}\n")
    with pytest.raises(MinilmError, match=r"optimizer\.lr: .*given: 'fast'") as caught:
        load(file=path)
    assert caught.value.where == str(path)
    with pytest.raises(MinilmError) as caught:
        load("training.seed=-1", file=write(tmp_path, "optimizer: {lr: 1}"))
    assert caught.value.where == "training.seed"


@pytest.mark.parametrize("value", ["3", "[1]", "text"])
def test_value_in_place_of_a_section_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(MinilmError, match="optimizer"):
        load(file=write(tmp_path, f"optimizer: {value}\n"))


NEW_VALUES = {
    "training.steps": 7,
    "training.micro_batch_tokens": 99,
    "training.compile": True,
    "training.device": "cuda",
    "training.precision": "fp32",
    "training.deterministic": False,
    "optimizer.lr": 7e-5,
    "optimizer.clip_norm": 7.5,
    "evaluation.every": 7,
    "evaluation.task": "stsb",
    "checkpoint.every": 7,
    "checkpoint.minutes": 7.5,
    "checkpoint.keep": 7,
    "reporting.log_every": 7,
    "reporting.sinks": ("tensorboard",),
}


@pytest.mark.parametrize("name", sorted(CHANGEABLE_MID_RUN))
def test_change_affects_only_its_setting(name: str) -> None:
    before = load()
    after = change_mid_run(before, {name: NEW_VALUES[name]})
    assert values_of(after) == values_of(before) | {name: NEW_VALUES[name]}


@pytest.mark.parametrize("name", sorted(set(setting_names(DistillSettings)) - CHANGEABLE_MID_RUN))
def test_other_settings_cannot_change_when_resuming(name: str) -> None:
    with pytest.raises(MinilmError, match=f"{name}: cannot change when a run is resumed") as caught:
        change_mid_run(load(), {name: 1})
    assert "training.steps" in (caught.value.hint or "")


def test_invalid_change_is_refused_by_name() -> None:
    with pytest.raises(MinilmError, match=r"checkpoint\.keep: "):
        change_mid_run(load(), {"checkpoint.keep": 0})
    with pytest.raises(MinilmError, match=r"there is no setting training.step") as caught:
        change_mid_run(load(), {"training.step": 1})
    assert caught.value.hint == "Did you mean training.steps?"
