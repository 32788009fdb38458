from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DEFAULT_STEPS, DistillSettings
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.files import read_settings_file
from minilm_cli.settings.flags import docstrings, options, section_of, setting_names
from minilm_cli.settings.load import change_mid_run, flatten, load_distill_settings, parse_assignments
from minilm_cli.settings.resume import ResumeSettings
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.settings.validation import validate

REQUIRED = {"teacher.name": "bert-base-uncased", "student.config": "l6-h384"}


def load(*assignments: str, file: Path | None = None, **flags: Any) -> DistillSettings:
    return load_distill_settings(file, assignments, REQUIRED | flags)


def write(folder: Path, text: str, name: str = "settings.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def values_of(model: BaseModel) -> dict[str, Any]:
    return flatten(model.model_dump())


def test_defaults_of_distill() -> None:
    assert values_of(load()) == {
        "teacher.name": "bert-base-uncased",
        "teacher.revision": None,
        "teacher.layer": "auto",
        "teacher.trust_remote_code": False,
        "student.config": "l6-h384",
        "student.layer": -1,
        "student.init": "random",
        "data.path": Path("tokens"),
        "data.max_length": None,
        "relations.weights": {"qq": 1.0, "kk": 1.0, "vv": 1.0},
        "relations.heads": "auto",
        "training.steps": None,
        "training.epochs": None,
        "training.batch_size": 256,
        "training.micro_batch_tokens": "auto",
        "training.precision": "auto",
        "training.device": "auto",
        "training.compile": False,
        "training.seed": 42,
        "optimizer.lr": 6e-4,
        "optimizer.weight_decay": 0.01,
        "optimizer.betas": (0.9, 0.999),
        "optimizer.eps": 1e-6,
        "optimizer.clip_norm": 1.0,
        "schedule.kind": "linear",
        "schedule.warmup_steps": 4000,
        "evaluation.fraction": 0.01,
        "evaluation.limit": 10_000,
        "evaluation.every": 1000,
        "checkpoint.every": 1000,
        "checkpoint.minutes": 15,
        "checkpoint.keep": 3,
        "reporting.log_every": 10,
        "reporting.sinks": (),
        "reporting.log_ranks": False,
        "output": None,
    }
    assert DEFAULT_STEPS == 400_000


def test_defaults_of_tokenize() -> None:
    settings = TokenizeSettings(inputs=("corpus.txt",))
    assert settings.workers >= 1
    assert values_of(settings) | {"workers": 1} == {
        "inputs": ("corpus.txt",),
        "tokenizer": "bert-base-uncased",
        "revision": None,
        "trust_remote_code": False,
        "output": Path("tokens"),
        "max_length": 512,
        "overflow": "split",
        "pack": False,
        "split_sentences": False,
        "language": "en",
        "text_field": None,
        "errors": "strict",
        "workers": 1,
        "batch_size": 1000,
        "continued": False,
        "force": False,
    }


def test_defaults_of_export() -> None:
    settings = ExportSettings(run=Path("runs/a"))
    assert (settings.format, settings.checkpoint, settings.dtype) == ("hf", "last", "float32")
    assert (settings.output, settings.push_to_hub, settings.private, settings.force) == (None, None, False, False)


@pytest.mark.parametrize("model", [DistillSettings, TokenizeSettings, ResumeSettings, ExportSettings])
def test_every_setting_is_documented(model: type[BaseModel]) -> None:
    def undocumented(model: type[BaseModel]) -> list[str]:
        sections = [section for field in model.model_fields.values() if (section := section_of(field))]
        missing = [f"{model.__name__}.{name}" for name in model.model_fields if name not in docstrings(model)]
        return missing + [name for section in sections for name in undocumented(section)]

    assert undocumented(model) == []


def test_option_is_described_by_its_field() -> None:
    by_name = {option.name: option for option in options(DistillSettings)}
    batch_size, device = by_name["--batch-size"], by_name["--device"]
    assert (batch_size.path, batch_size.metavar, batch_size.default) == ("training.batch_size", "N", "256")
    assert batch_size.help == "Sequences in an optimiser step, over all processes."
    assert (device.metavar, device.default, device.panel) == ("auto|DEVICE", "auto", "Training")
    assert by_name["--schedule"].metavar == "linear|cosine|constant"
    assert by_name["--teacher-layer"].metavar == "auto|N"
    assert by_name["--relations"].default == "qq=1,kk=1,vv=1"
    assert by_name["--compile"].default == "no-compile"
    assert [option.name for option in by_name.values() if option.required] == ["--teacher", "--student-config"]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().training.seed = 3


def test_json_round_trip() -> None:
    settings = load("relations.weights=qk=2,vv=0.5", "reporting.sinks=[tensorboard]", output="a/b")
    restored = validate(DistillSettings, json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert restored == settings


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


@pytest.mark.parametrize("written_as", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4"])
def test_numbers_may_have_an_exponent(tmp_path: Path, written_as: str) -> None:
    assert load(file=write(tmp_path, f"optimizer:\n  lr: {written_as}\n")).optimizer.lr == 1e-4
    assert load(f"optimizer.lr={written_as}").optimizer.lr == 1e-4


def test_file_may_name_teacher_and_student(tmp_path: Path) -> None:
    path = write(tmp_path, "teacher: {name: a}\nstudent: {config: b}\n")
    settings = load_distill_settings(path)
    assert (settings.teacher.name, settings.student.config) == ("a", "b")


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


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 0.1, eps: 0.2, clip_norm: 0.3}\n")
    optimizer = load("optimizer.eps=0.5", file=path, **{"optimizer.lr": 0.4}).optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.clip_norm, optimizer.weight_decay) == (0.4, 0.5, 0.3, 0.01)


def test_option_of_none_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 0.1}\n")
    assert load(file=path, **{"optimizer.lr": None}).optimizer.lr == 0.1


def test_setting_given_by_option_and_by_set_is_refused() -> None:
    with pytest.raises(MinilmError, match=r"optimizer\.lr: given both by its own option and by --set"):
        load("optimizer.lr=1", **{"optimizer.lr": 1.0})


def test_setting_given_twice_by_set_is_refused() -> None:
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
    ("text", "path", "paths", "weights"),
    [
        ("tokens", Path("tokens"), ("tokens",), None),
        ("a:0.5", Path("a:0.5"), ("a:0.5",), None),
        ("[a]", Path("a"), ("a",), None),
        ("{a: 3}", Path("a"), ("a",), None),
        ("[b, a]", (Path("b"), Path("a")), ("b", "a"), None),
        ("[b:0.7, a:.3]", {Path("b"): 0.7, Path("a"): 0.3}, ("b", "a"), (0.7, 0.3)),
        ("{b: 0.7, a.jsonl.gz: 3e-1}", {Path("b"): 0.7, Path("a.jsonl.gz"): 0.3}, ("b", "a.jsonl.gz"), (0.7, 0.3)),
    ],
)
def test_data_is_one_token_store_or_several(
    tmp_path: Path, text: str, path: object, paths: tuple[str, ...], weights: object
) -> None:
    for settings in (load(f"data.path={text}"), load(file=write(tmp_path, f"data: {{path: {text}}}\n"))):
        assert settings.data.path == path
        assert settings.data.paths == tuple(map(Path, paths))
        assert settings.data.weights == weights
        assert DistillSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


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
    ("value", "message"),
    [
        ("3", "must be a path, a list of paths, or a mapping"),
        ("[]", "must be a path"),
        ("{}", "must be a path"),
        ("[a, 3]", "must be a path"),
        ("{3: 1}", "must be a path"),
        ("[a, ./a]", "a is given twice"),
        ("{a: 1, ./a: 2}", "a is given twice"),
        ("{a: 1, b: -1}", "the weight of b must be a finite number greater than 0, not -1"),
        ("{a: 1, b: true}", "the weight of b must be a finite number greater than 0, not True"),
        ("{a: 1, b: }", "the weight of b must be a finite number greater than 0, not None"),
        ("{a: .inf, b: 1}", "the weight of a must be a finite number greater than 0, not inf"),
        ("{a: much, b: 1}", "the weight of a must be a finite number greater than 0, not 'much'"),
        (f"{{a: 1, b: 1{'0' * 400}}}", "the weight of b must be a finite number greater than 0, not 0x"),
        ("{a: 1, b: 9999.1}", "the weight of a, 1, is less than 1 in 10,000 of the sequences"),
        ('["a\\0", b]', "no null character"),
        ('["a\\ud800", b]', "must be Unicode text"),
        ('["a\\ud800", "a\\ud800"]', "a? is given twice"),
        ('{"a\\ud800": x}', "the weight of a? must be a finite number"),
    ],
)
def test_invalid_stores_and_weights_are_refused(value: str, message: str) -> None:
    with pytest.raises(MinilmError, match=r"^data\.path: ") as caught:
        load(f"data.path={value}")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_smallest_share_is_one_in_ten_thousand() -> None:
    assert load("data.path={a: 0.0001, b: 0.9999}").data.weights == (0.0001, 0.9999)


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


WRONG_VALUES = {
    "optimizer.lr": [0, -1e-4, "fast", ".nan", ".inf", "true", None],
    "optimizer.weight_decay": [-0.1],
    "optimizer.eps": [0],
    "optimizer.clip_norm": [0],
    "optimizer.betas": ["[0.9]", "[0.9, 1.0]", 0.9],
    "schedule.kind": ["wavy"],
    "schedule.warmup_steps": [-1, 1.5],
    "training.steps": [0, -3, "1.5"],
    "training.epochs": [0],
    "training.batch_size": [0, "many", 2**70, "true"],
    "training.micro_batch_tokens": [0, "automatic"],
    "training.precision": ["fp16"],
    "training.compile": ["perhaps"],
    "training.seed": [-1, 2**70, "true"],
    "teacher.layer": [0, "last", 1.5],
    "teacher.name": ["''"],
    "student.layer": [0, "auto"],
    "student.init": ["zeros"],
    "student.config": ["[]"],
    "data.max_length": [1, 2**40],
    "relations.heads": [0, "few"],
    "relations.weights": ["qx=1", "q=1", "qq=0", "qq=-1", "qq=a", "qq=1,qq=2", "{}", "''", "[qq]"],
    "evaluation.fraction": [1, -0.1],
    "evaluation.every": [0],
    "evaluation.limit": [0],
    "checkpoint.every": [0],
    "checkpoint.minutes": [0],
    "checkpoint.keep": [0, "true"],
    "reporting.log_every": [0],
    "reporting.sinks": ["[printer]", "tensorboard"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_VALUES.items() for value in values]
)
def test_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    others = {required: given for required, given in REQUIRED.items() if required != name}
    with pytest.raises(MinilmError) as caught:
        load_distill_settings(None, [f"{name}={'null' if value is None else value}"], others)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "pydantic" not in message
    assert "literal[" not in message


@pytest.mark.parametrize("name", ["data.path", "output", "teacher.name", "student.config", "training.device"])
@pytest.mark.parametrize("value", ["a\0b", "\udcff"], ids=["null", "not Unicode"])
def test_invalid_path_or_name_is_refused(name: str, value: str) -> None:
    as_given = Path(value) if name in ("data.path", "output") else value
    with pytest.raises(MinilmError, match=f"^{name}: ") as caught:
        load(**{name: as_given})
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("value", ["0x" + "f" * 50_000, "x" * 50_000, "9" * 4000])
def test_long_wrong_value_is_shortened(value: str) -> None:
    with pytest.raises(MinilmError, match=r"training\.batch_size: .*given: .*…") as caught:
        load(f"training.batch_size={value}")
    assert len(str(caught.value)) < 500


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


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(MinilmError, match=r"training\.epochs: give either steps or epochs, not both"):
        load("training.steps=1", "training.epochs=1")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("qq", {"qq": 1.0}),
        ("qq=2, kv=0.5", {"qq": 2.0, "kv": 0.5}),
        ("qk=1e-1,vq", {"qk": 0.1, "vq": 1.0}),
        ("{vv: 3}", {"vv": 3.0}),
    ],
)
def test_relations_are_pairs_with_weights(text: str, weights: dict[str, float]) -> None:
    assert load(f"relations.weights={text}").relations.weights == weights


@pytest.mark.parametrize("layer", [1, -1, 12, "auto", "3"])
def test_layers_count_from_1_or_from_the_last(layer: int | str) -> None:
    assert str(load(**{"teacher.layer": layer}).teacher.layer) == str(layer)


def test_wrong_values_of_other_commands_are_refused() -> None:
    with pytest.raises(MinilmError, match="overflow: "):
        validate(TokenizeSettings, {"inputs": ["a.txt"], "overflow": "spill"})
    with pytest.raises(MinilmError, match="there is no setting max_lenght") as caught:
        validate(TokenizeSettings, {"inputs": ["a.txt"], "max_lenght": 3})
    assert caught.value.hint == "Did you mean max_length?"
    with pytest.raises(MinilmError, match=r"^checkpoint: "):
        validate(ExportSettings, {"run": "a", "checkpoint": "newest"})
    with pytest.raises(MinilmError, match=r"^run: must be Unicode text"):
        validate(ExportSettings, {"run": Path("\udcff")})


@pytest.mark.parametrize(("name", "accepted"), [("\udcff.txt", True), ("\ud800.txt", False), ("a\0", False)])
def test_input_may_have_any_valid_file_name(name: str, accepted: bool) -> None:
    if accepted:
        assert validate(TokenizeSettings, {"inputs": [name]}).inputs == (name,)
    else:
        with pytest.raises(MinilmError, match=r"^inputs: must "):
            validate(TokenizeSettings, {"inputs": [name]})


NEW_VALUES = {
    "training.steps": 7,
    "training.micro_batch_tokens": 99,
    "training.compile": True,
    "training.device": "cuda",
    "training.precision": "fp32",
    "optimizer.lr": 7e-5,
    "optimizer.clip_norm": 7.5,
    "evaluation.every": 7,
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


def test_setting_names_are_the_flattened_settings() -> None:
    assert setting_names(DistillSettings) == list(values_of(load()))
