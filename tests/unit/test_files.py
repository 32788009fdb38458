from __future__ import annotations

from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.files import read_settings_file

from .settings_helpers import load, write

FILES = {
    "settings.yaml": "optimizer:\n  lr: 0.001\n  betas: [0.8, 0.9]\nrelations:\n  weights: {qk: 2}\n",
    "settings.yml": "{optimizer: {lr: 1.0e-3, betas: [0.8, 0.9]}, relations: {weights: 'qk=2'}}",
    "settings.toml": "[optimizer]\nlr = 1e-3\nbetas = [0.8, 0.9]\n[relations.weights]\nqk = 2\n",
    "settings.JSON": '{"optimizer": {"lr": 1e-3, "betas": [0.8, 0.9]}, "relations": {"weights": {"qk": 2}}}',
}


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_settings_file_may_be_yaml_toml_or_json(tmp_path: Path, name: str, text: str) -> None:
    settings = load(file=write(tmp_path, text, name))
    assert settings.optimizer.lr == 1e-3
    assert settings.optimizer.betas == (0.8, 0.9)
    assert settings.relations.weights == {"qk": 2.0}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}"])
def test_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert load(file=write(tmp_path, text)) == load()


def test_empty_section_sets_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "training:\n  # steps: 10\noptimizer:\n  lr: 0.5\n")
    assert load(file=path).optimizer.lr == 0.5
    assert load(file=path, **{"training.steps": 7}).training.steps == 7


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("settings.yaml", "a: [", "cannot be parsed"),
        ("settings.yaml", "- a\n- b\n", "must be a mapping"),
        ("settings.yaml", "!!python/object/apply:os.getcwd []", "cannot be parsed"),
        ("settings.toml", "a = ", "cannot be parsed"),
        ("settings.json", "{", "cannot be parsed"),
        pytest.param("settings.json", "[" * 60_000, "cannot be parsed", id="nested too deeply"),
        pytest.param("settings.yaml", "[" * 60_000, "cannot be parsed", id="nested too deeply in YAML"),
        pytest.param("settings.yaml", "a: 1\n" * 20_000, "longer than 65,536 characters", id="too long"),
        pytest.param("settings.json", '{"a": ' + "9" * 5000 + "}", "cannot be parsed", id="too many digits"),
        ("settings.yaml", "a: !!int ''", "cannot be parsed"),
        ("settings.yaml", "a: !!timestamp x", "cannot be parsed"),
        pytest.param("settings.yaml", "a: 1" + ":59" * 400 + ".5", "cannot be parsed", id="beyond all floats"),
        ("settings.yaml", "a: &a {lr: 1}\noptimizer: {<<: *a}", "merge keys"),
        ("settings.yaml", "optimizer: {lr: 1, betas: [0, 0], lr: 2}", "lr is given twice"),
        ("settings.yaml", "seed: 1\nseed: 1", "seed is given twice"),
        ("settings.json", '{"optimizer": {"lr": 1, "eps": 1, "lr": 2}}', "lr is given twice"),
        ("settings.toml", "a = 1\na = 2", "cannot be parsed"),
        ("settings.ini", "a = 1", "ends in .yaml, .toml or .json"),
    ],
)
def test_invalid_file_is_refused_by_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(MinilmError, match=message) as caught:
        read_settings_file(path)
    assert caught.value.where == str(path)


def test_yaml_aliases_are_resolved(tmp_path: Path) -> None:
    assert load(file=write(tmp_path, "evaluation: {every: &n 70}\ncheckpoint: {every: *n}\n")).checkpoint.every == 70


@pytest.mark.parametrize(
    "text", ["&a {training: *a}", "training: &a {steps: *a}", "relations: {weights: &a {qq: *a}}", "? &a [*a]\n: 1\n"]
)
def test_recursive_value_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MinilmError):
        load(file=write(tmp_path, text), **{"training.batch_size": 3})


def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such settings file"):
        read_settings_file(tmp_path / "nothing.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(MinilmError, match="cannot be read"):
        read_settings_file(tmp_path / "folder.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(MinilmError, match="cannot be read"):
        read_settings_file(tmp_path / "bytes.yaml")
