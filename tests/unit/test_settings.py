from __future__ import annotations

import json
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.settings.distill import DEFAULT_STEPS, DistillSettings
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.settings.validation import validate

from .settings_helpers import REQUIRED, load, values_of, write


def test_defaults_of_distill() -> None:
    assert values_of(load()) == {
        "teacher.name": "bert-base-uncased",
        "teacher.revision": None,
        "teacher.layer": "auto",
        "teacher.trust_remote_code": False,
        "student.config": "l6-h384",
        "student.layer": -1,
        "student.max_mb": None,
        "student.max_params": None,
        "student.keep_vocab": "auto",
        "student.keep_count": 1,
        "student.init": "random",
        "data.path": Path("tokens"),
        "data.max_length": None,
        "relations.weights": {"qq": 1.0, "kk": 1.0, "vv": 1.0},
        "relations.heads": "auto",
        "relations.rotary": "after",
        "training.steps": None,
        "training.epochs": None,
        "training.batch_size": 256,
        "training.micro_batch_tokens": "auto",
        "training.precision": "auto",
        "training.device": "auto",
        "training.compile": False,
        "training.deterministic": True,
        "training.seed": 42,
        "optimizer.lr": 6e-4,
        "optimizer.weight_decay": 0.01,
        "optimizer.betas": (0.9, 0.999),
        "optimizer.eps": 1e-6,
        "optimizer.clip_norm": 1.0,
        "schedule.kind": "linear",
        "schedule.warmup_steps": "auto",
        "evaluation.fraction": 0.01,
        "evaluation.limit": 10_000,
        "evaluation.every": 1000,
        "evaluation.task": None,
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
        "teacher": None,
        "revision": None,
        "trust_remote_code": False,
        "output": Path("tokens"),
        "max_length": 512,
        "overflow": "split",
        "pack": False,
        "join_rows": False,
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
    settings = ExportSettings(model=Path("runs/a"))
    assert (settings.formats, settings.checkpoint, settings.dtype) == (("hf",), "last", "float32")
    assert (settings.pooling, settings.quantize, settings.accept_loss) == (None, None, False)
    assert (settings.output, settings.push_to_hub, settings.private, settings.force) == (None, None, True, False)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().training.seed = 3


def test_json_round_trip() -> None:
    settings = load("relations.weights=qk=2,vv=0.5", "reporting.sinks=[tensorboard]", output="a/b")
    restored = validate(DistillSettings, json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert restored == settings


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
    "teacher.layer": [0, "last", 1.5, "true", "[]", "6,auto", "[6, 0]", "6,0", "[6, true]", "6,,12", "[[6]]", "{a: 1}"],
    "teacher.name": ["''"],
    "student.layer": [0, "auto", "3,auto", "[]", "[1.5, 3]", None],
    "student.init": [""],
    "student.max_mb": [0, -1, "50MB"],
    "student.max_params": [0, -1, 1.5, "20Q", "M"],
    "student.keep_vocab": [0, -1, 1.5, "''"],
    "student.keep_count": [0, 1.5],
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


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("optimizer.lr", "fast", "must be a number (given: 'fast')"),
        ("training.steps", "many", "must be a whole number (given: 'many')"),
        ("training.steps", 1.5, "must be a whole number (given: 1.5)"),
        ("training.compile", "maybe", "must be true or false (given: 'maybe')"),
        ("relations.heads", "many", "must be 'auto' or a whole number (given: 'many')"),
        ("teacher.layer", "many", "must be 'auto' or a whole number or a list (given: 'many')"),
        ("teacher.layer", [], "must have at least one layer"),
    ],
)
def test_wrong_value_is_refused_with_what_it_must_be(name: str, value: object, reason: str) -> None:
    with pytest.raises(MinilmError) as caught:
        load(**{name: value})
    assert (caught.value.where, caught.value.message) == (name, reason)


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


@pytest.mark.parametrize(("given", "count"), [("20M", 20_000_000), ("1.5k", 1500), (".1B", 10**8), (7, 7), ("70", 70)])
def test_a_number_of_parameters_may_have_a_suffix(given: str | int, count: int) -> None:
    settings = load_distill_settings(flags={"teacher.name": "t", "student.max_params": given})
    assert settings.student.budget == (count, "student.max_params")


def test_a_size_in_megabytes_is_a_number_of_parameters() -> None:
    settings = load_distill_settings(flags={"teacher.name": "t", "student.max_mb": 50})
    assert settings.student.budget == (12_500_000, "student.max_mb")


@pytest.mark.parametrize("other", ["student.max_mb=5", "student.max_params=5"])
def test_a_configuration_and_a_size_together_are_refused(other: str) -> None:
    with pytest.raises(MinilmError, match="give one of config, max_mb and max_params"):
        load_distill_settings(assignments=["teacher.name=t", "student.config=l6-h384", other])


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


@pytest.mark.parametrize("name", ["teacher.layer", "student.layer"])
@pytest.mark.parametrize(
    ("text", "layers"),
    [("6,12", (6, 12)), ("[6, 12]", (6, 12)), ("[-3, -1]", (-3, -1)), ("[6]", 6), ("6, 12", (6, 12))],
)
def test_several_layers_are_a_list_or_text_with_commas(
    tmp_path: Path, name: str, text: str, layers: int | tuple[int, ...]
) -> None:
    section, _, key = name.partition(".")
    as_list = text if text.startswith("[") else f'"{text}"'
    files = [
        write(tmp_path, f"{section}: {{{key}: {as_list}}}\n"),
        write(tmp_path, f"[{section}]\n{key} = {as_list}\n", "settings.toml"),
        write(tmp_path, f'{{"{section}": {{"{key}": {as_list}}}}}', "settings.json"),
    ]
    for settings in (load(f"{name}={text}"), *(load(file=file) for file in files)):
        assert values_of(settings)[name] == layers
        assert DistillSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_wrong_values_of_other_commands_are_refused() -> None:
    with pytest.raises(MinilmError, match="overflow: "):
        validate(TokenizeSettings, {"inputs": ["a.txt"], "overflow": "spill"})
    with pytest.raises(MinilmError, match="there is no setting max_lenght") as caught:
        validate(TokenizeSettings, {"inputs": ["a.txt"], "max_lenght": 3})
    assert caught.value.hint == "Did you mean max_length?"
    with pytest.raises(MinilmError, match=r"^checkpoint: "):
        validate(ExportSettings, {"model": "a", "checkpoint": "newest"})
    with pytest.raises(MinilmError, match=r"^model: must be Unicode text"):
        validate(ExportSettings, {"model": Path("\udcff")})


@pytest.mark.parametrize(("name", "accepted"), [("\udcff.txt", True), ("\ud800.txt", False), ("a\0", False)])
def test_input_may_have_any_valid_file_name(name: str, accepted: bool) -> None:
    if accepted:
        assert validate(TokenizeSettings, {"inputs": [name]}).inputs == (name,)
    else:
        with pytest.raises(MinilmError, match=r"^inputs: must "):
            validate(TokenizeSettings, {"inputs": [name]})
