from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models import student_config as student_configs
from minilm_cli.models.families import family_of
from minilm_cli.models.initialise import init_from_teacher
from minilm_cli.models.layers import evenly_spaced, resolve_layer
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import saved_config, student_config
from minilm_cli.models.teacher import load_teacher
from minilm_cli.training.objective import relation_heads

TEACHER = BertConfig(
    vocab_size=180,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=128,
    pad_token_id=3,
)


def small(family: str, **overrides: Any) -> PreTrainedConfig:
    known = AutoConfig.for_model(family)
    values = {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "mask_token_id": 3,
        "embedding_size": 12,
        "num_key_value_heads": 4,
    }
    return AutoConfig.for_model(family, **{name: v for name, v in values.items() if hasattr(known, name)} | overrides)


def written(folder: Path, **values: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


# --- Layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "layers", "number"), [(1, 12, 1), (12, 12, 12), (-1, 12, 12), (-12, 12, 1), (-3, 24, 22), (1, 1, 1)]
)
def test_a_layer_may_count_from_the_last(layer: int, layers: int, number: int) -> None:
    assert resolve_layer(layer, layers, setting="teacher.layer") == number


@pytest.mark.parametrize(("layer", "layers"), [(13, 12), (-13, 12), (0, 12), (2, 1)])
def test_a_layer_that_is_not_there_is_refused(layer: int, layers: int) -> None:
    with pytest.raises(MinilmError, match=f"student.layer: there is no layer {layer} in a model of {layers}"):
        resolve_layer(layer, layers, setting="student.layer")


@pytest.mark.parametrize(
    ("family", "layers", "layer"),
    [
        ("bert", 12, 12),
        ("bert", 24, 21),
        ("bert", 6, 6),
        ("roberta", 12, 12),
        ("roberta", 24, 19),
        ("xlm-roberta", 12, 12),
        ("xlm-roberta", 24, 19),
        ("electra", 24, 24),
    ],
)
def test_auto_takes_the_papers_layer(family: str, layers: int, layer: int, tmp_path: Path) -> None:
    config = small(family, num_hidden_layers=layers, hidden_size=4, intermediate_size=4, num_attention_heads=1)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model, found = load_teacher(str(tmp_path), layer="auto")
    stack = family_of(model.config).layer_stack(model, layer)
    assert found == layer
    assert stack is not None
    assert len(stack[1]) == layer


@pytest.mark.parametrize(("layers", "of", "chosen"), [(3, 6, [2, 4, 6]), (6, 6, [1, 2, 3, 4, 5, 6]), (1, 12, [12])])
def test_layers_are_evenly_spaced(layers: int, of: int, chosen: list[int]) -> None:
    assert evenly_spaced(layers, of) == chosen


@given(st.integers(1, 48), st.integers(1, 48))
def test_evenly_spaced_layers_rise_to_the_last(layers: int, of: int) -> None:
    chosen = evenly_spaced(layers, of)
    assert len(chosen) == layers
    assert chosen == sorted(chosen)
    assert chosen[0] >= 1
    assert chosen[-1] == of
    assert layers > of or len(set(chosen)) == layers


# --- The teacher -------------------------------------------------------------------------------------------------


def test_a_teacher_is_loaded_in_fp32_for_evaluation_and_without_gradients(make_teacher: Callable[..., Path]) -> None:
    folder = make_teacher(num_hidden_layers=1)
    BertModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    teacher, layer = load_teacher(str(folder), layer="auto")
    assert layer == 1
    assert not teacher.training
    for parameter in teacher.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def test_the_layers_above_the_tap_and_the_pooler_are_dropped_and_the_rest_kept(tiny_teacher: Path) -> None:
    teacher, layer = load_teacher(str(tiny_teacher), layer=-2)
    saved = load_file(tiny_teacher / "model.safetensors")
    kept = teacher.state_dict()
    assert layer == 3
    assert {name for name in saved if not name.startswith(("encoder.layer.3.", "pooler."))} == set(kept)
    for name, tensor in kept.items():
        assert torch.equal(tensor, saved[name])


@pytest.mark.parametrize("layer", [5, -5])
def test_a_teacher_layer_that_is_not_there_is_refused(tiny_teacher: Path, layer: int) -> None:
    with pytest.raises(MinilmError, match=f"teacher.layer: there is no layer {layer} in a model of 4"):
        load_teacher(str(tiny_teacher), layer=layer)


def test_a_teacher_that_lacks_weights_is_refused_by_their_name(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.1.attention.self.key.weight" in name)
    save_file({n: tensor for n, tensor in weights.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(MinilmError, match=r"encoder\.layer\.1\.attention\.self\.key\.weight is missing"):
        load_teacher(str(folder), layer="auto")


def test_a_teacher_without_pooler_weights_is_taken(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors")
    assert load_teacher(str(folder), layer="auto")[1] == 4


def test_a_teacher_whose_weights_have_another_shape_than_its_config_says_is_refused(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(MinilmError) as caught:
        load_teacher(str(folder), layer="auto")
    assert caught.value.where == str(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_teacher_folder_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(MinilmError, match="there is no such teacher folder"):
        load_teacher(name, layer="auto")


def test_a_name_that_the_hub_cannot_be_asked_about_is_refused_with_a_hint() -> None:
    with pytest.raises(MinilmError, match="Check the name and the connection to the Hub") as caught:
        load_teacher("no-such-organisation/no-such-model", layer="auto")
    assert caught.value.where == "no-such-organisation/no-such-model"


def test_an_empty_folder_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the teacher cannot be loaded"):
        load_teacher(str(tmp_path), layer="auto")


def test_a_cut_off_weights_file_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MinilmError, match="the teacher cannot be loaded"):
        load_teacher(str(folder), layer="auto")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["encoder.layer.3.attention.self.key.weight", "embeddings.LayerNorm.bias"])
def test_a_teacher_with_a_weight_that_is_no_number_is_refused(
    tiny_teacher: Path, tmp_path: Path, name: str, value: float
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MinilmError, match=f"weights are damaged: {name} has values that are not finite"):
        load_teacher(str(folder), layer="auto")


def test_large_weights_are_no_damage(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5:7] = 3e38  # their sum is not finite
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_teacher(str(folder), layer="auto")[1] == 4


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and must be at most 1000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0 in the teacher's config.json"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1 in the teacher's config.json"),
        ({"hidden_size": 0}, "hidden_size is 0 in the teacher's config.json"),
        ({"intermediate_size": 0}, "intermediate_size is 0 in the teacher's config.json"),
        ({"pad_token_id": -1}, "pad_token_id is -1 in the teacher's config.json"),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000 in the teacher's config.json"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a finite number, not nan"),
        ({"layer_norm_eps": -1.0}, r"the teacher \(bert\) computes numbers that are not finite"),
        ({"layer_norm_eps": "small"}, "the teacher cannot be loaded: .*layer_norm_eps"),
        ({"chunk_size_feed_forward": 7}, r"the teacher \(bert\) cannot compute: .*chunk size 7"),
        ({"hidden_size": 24}, "the shapes of its weights differ from its config.json"),
    ],
)
def test_a_teacher_of_an_odd_config_is_refused(
    tiny_teacher: Path, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(MinilmError, match=message) as caught:
        load_teacher(str(folder), layer="auto")
    assert caught.value.where == str(folder)


def pickled(teacher: Path, folder: Path, content: object) -> Path:
    """A copy of `teacher` that has its weights as a pickle only."""
    shutil.copytree(teacher, folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def test_a_teacher_that_is_a_pickle_of_tensors_loads(tiny_teacher: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_teacher / "model.safetensors")
    teacher, _ = load_teacher(str(pickled(tiny_teacher, tmp_path / "teacher", weights)), layer="auto")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, weights[name])


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.trace, "w")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tiny_teacher: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Malice(trace))).close()
    assert trace.exists()
    trace.unlink()
    weights = dict(load_file(tiny_teacher / "model.safetensors"), malice=Malice(trace))
    folder = pickled(tiny_teacher, tmp_path / "teacher", weights)
    with pytest.raises(MinilmError) as caught:
        load_teacher(str(folder), layer="auto")
    assert caught.value.where == str(folder)
    assert not trace.exists()


def test_code_that_comes_with_a_teacher_is_not_run(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    trace = tmp_path / "trace"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(MinilmError, match="--trust-remote-code"):
        load_teacher(str(folder), layer="auto")
    assert not trace.exists()


def test_a_teacher_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bart", vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        encoder_attention_heads=1, decoder_attention_heads=1, max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(MinilmError, match="the teacher has a decoder"):
        load_teacher(str(tmp_path), layer="auto")


# --- The student's configuration ---------------------------------------------------------------------------------


def test_a_config_comes_from_a_file_or_the_folder_that_has_it(tmp_path: Path) -> None:
    file = written(tmp_path, model_type="bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
    for source in (file, str(tmp_path)):
        config = student_config(source, TEACHER)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 4)


def test_what_must_fit_the_tokens_is_taken_from_the_teacher(tmp_path: Path) -> None:
    config = student_config(written(tmp_path, model_type="bert", hidden_size=24, num_attention_heads=4), TEACHER)
    assert (config.vocab_size, config.pad_token_id, config.max_position_embeddings) == (180, 3, 128)


def test_what_the_file_says_of_positions_stands(tmp_path: Path) -> None:
    source = written(tmp_path, hidden_size=24, num_attention_heads=4, max_position_embeddings=64)
    assert student_config(source, TEACHER).max_position_embeddings == 64


def test_a_config_without_a_family_is_of_the_teachers(tmp_path: Path) -> None:
    source = written(tmp_path, hidden_size=24, num_attention_heads=4, num_hidden_layers=2)
    assert student_config(source, TEACHER).model_type == "bert"


@pytest.mark.parametrize("key", ["architectures", "_name_or_path", "transformers_version", "my_own_note"])
def test_entries_that_mean_nothing_to_the_family_do_no_harm(tmp_path: Path, key: str) -> None:
    value = ["BertModel"] if key == "architectures" else "x"
    student_config(written(tmp_path, hidden_size=24, num_attention_heads=4, **{key: value}), TEACHER)


@pytest.mark.parametrize(("wrong", "meant"), [("hiden_size", "hidden_size"), ("num_hidden_layer", "num_hidden_layers")])
def test_a_misspelt_entry_is_refused_with_what_was_meant(tmp_path: Path, wrong: str, meant: str) -> None:
    source = written(tmp_path, model_type="bert", num_attention_heads=4, **{wrong: 24})
    with pytest.raises(MinilmError, match=f"there is no entry '{wrong}'") as caught:
        student_config(source, TEACHER)
    assert caught.value.hint == f"Did you mean '{meant}'?"
    assert caught.value.where == source


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 181}, "vocab_size is 181, and the teacher's is 180"),
        ({"pad_token_id": 0}, "pad_token_id is 0, and the teacher's is 3"),
        ({"type_vocab_size": 1}, "type_vocab_size is 1, and the teacher's is 2"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide a hidden size of 24"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"hidden_size": 24.0}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -24}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": [1]}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"model_type": "brt"}, "there is no family 'brt'"),
        ({"model_type": 3}, "there is no family 3"),
        ({"model_type": ["bert"]}, "there is no family"),
        ({"model_type": "vit"}, "this is not a text encoder, but a vit model"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 10*, and must be at most 1000"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, and must be at most 100000"),
        ({"model_type": "distilbert", "n_layers": 10**9}, "n_layers is 1000000000"),
        ({"hidden_size": 24 * 10**5}, "the student would have .* parameters: .* GiB, and this machine has"),
        ({"max_position_embeddings": 10**12}, "the student would have .* parameters: .* GiB"),
        ({"hidden_size": 4 * 10**30}, r"the student \(bert\) cannot be built"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1, which leaves the student no room"),
        ({"model_type": "roberta", "max_position_embeddings": 5}, "max_position_embeddings is 5, which leaves"),
        ({"intermediate_size": 0}, "intermediate_size must be a whole number above 0, not 0"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps must be a finite number, not inf"),
        ({"quantization_config": 3}, "this student config is not valid for bert"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    sound = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    source = written(tmp_path, **sound | values)
    with pytest.raises(MinilmError, match=message) as caught:
        student_config(source, TEACHER)
    assert caught.value.where == source


def test_a_family_without_token_types_passes_none_on(tmp_path: Path) -> None:
    teacher = BertConfig(**TEACHER.to_dict() | {"type_vocab_size": 0})
    source = written(tmp_path, model_type="bert", hidden_size=24, num_attention_heads=4)
    assert student_config(source, teacher).type_vocab_size == 2


def test_a_size_is_told_before_there_are_any_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}
    monkeypatch.setattr(student_configs.os, "sysconf", small_machine.__getitem__)
    source = written(tmp_path, model_type="bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
    before = torch.get_rng_state()
    with pytest.raises(MinilmError, match="the student would have 314,184 parameters") as caught:
        student_config(source, TEACHER)
    assert torch.equal(before, torch.get_rng_state())
    assert caught.value.hint == "Lower its layers, its widths or its positions."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "a student config is a JSON object"),
        ("{}", "there is no family None"),
        ('{"model_type": "brt"}', "there is no family 'brt'"),
        ('{"model_type": "bert", "hidden_size": "24"}', "not valid for bert: .*hidden_size"),
        ('{"model_type": "bert", "num_hidden_layers": 1000000000}', "must be at most 1000"),
        ('{"model_type": "bert", "layer_norm_eps": NaN}', "layer_norm_eps must be a finite number"),
    ],
)
def test_a_config_that_a_run_kept_is_checked_when_it_is_read_again(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "student-config.json"
    path.write_text(content)
    with pytest.raises(MinilmError, match=message) as caught:
        saved_config(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"bert"', "null", "3", "\ufeff{}"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MinilmError) as caught:
        student_config(str(path), TEACHER)
    assert caught.value.where == str(path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such student config") as caught:
        student_config(str(tmp_path), TEACHER)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    "source", ["l6", "6-384", "l0-h384", "l6-h0", "l6-h384x", "L6-H384", "l1٣-h384", "l9999999999-h384"]
)
def test_what_is_neither_a_preset_nor_a_file_is_refused_with_an_example(source: str) -> None:
    with pytest.raises(MinilmError, match="there is no such student config") as caught:
        student_config(source, TEACHER)
    assert "l6-h384" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("l3-h384", (3, 384, 12, 1536)), ("l6-h768", (6, 768, 12, 3072)), ("l2-h128", (2, 128, 2, 512))],
)
def test_a_preset_says_layers_and_width(preset: str, shape: tuple[int, ...]) -> None:
    config = student_config(preset, TEACHER)
    found = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert found == shape
    assert (config.vocab_size, config.pad_token_id, config.max_position_embeddings) == (180, 3, 128)


@pytest.mark.parametrize("width", [7, 100, 130, 200])
def test_a_preset_whose_width_has_no_sensible_heads_is_refused(width: int) -> None:
    with pytest.raises(MinilmError, match=f"a width of {width} divides neither into 12 heads nor into heads 64 wide"):
        student_config(f"l2-h{width}", TEACHER)


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        "roberta",
        "xlm-roberta",
        "electra",
        "distilbert",
        "albert",
        "modernbert",
        "nomic_bert",
        "eurobert",
        "esm",
    ],
)
def test_a_preset_builds_a_student_of_the_teachers_family(family: str) -> None:
    teacher = small(family, num_hidden_layers=3)
    config = student_config("l2-h48", teacher)
    student = build_student(config, seed=0)
    ids = torch.tensor([[5, 6, 7]])
    assert config.model_type == family
    assert config.num_hidden_layers == 2
    assert student(input_ids=ids).last_hidden_state.shape == (1, 3, 48)


# --- The student -------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_a_students_weights_and_the_global_randomness_is_left_alone() -> None:
    config = small("bert")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = build_student(config, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    same, other = build_student(config, seed=1).state_dict(), build_student(config, seed=2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(one[name], other[name])


def test_a_student_is_fp32_whatever_its_config_says() -> None:
    student = build_student(small("bert", dtype="bfloat16"), seed=0)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_student_that_its_family_cannot_build_is_refused() -> None:
    config = small("bert")
    config.hidden_act = "no-such-activation"
    with pytest.raises(MinilmError, match=r"the student \(bert\) cannot be built"):
        build_student(config, seed=0)


def pair(student: PreTrainedConfig, teacher: PreTrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    return build_student(student, seed=1), build_student(teacher, seed=2)


def test_a_student_starts_as_every_second_layer_of_its_teacher() -> None:
    student, teacher = pair(small("bert", num_hidden_layers=3), small("bert", num_hidden_layers=6))
    init_from_teacher(student, 3, teacher, 6)
    ours, theirs = student.state_dict(), teacher.state_dict()
    for number, source in enumerate((1, 3, 5)):  # layers 2, 4 and 6, counted from 1
        names = [name for name in ours if name.startswith(f"encoder.layer.{number}.")]
        assert names
        for name in names:
            assert torch.equal(ours[name], theirs[name.replace(f"layer.{number}.", f"layer.{source}.")])
    for name in (name for name in ours if name.startswith("embeddings.")):
        assert torch.equal(ours[name], theirs[name])


def test_only_the_layers_up_to_the_trained_one_start_from_the_teacher() -> None:
    student, teacher = pair(small("bert", num_hidden_layers=3), small("bert", num_hidden_layers=4))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    init_from_teacher(student, 2, teacher, 4)
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(ours[name.format(0)], theirs[name.format(1)])
    assert torch.equal(ours[name.format(1)], theirs[name.format(3)])
    assert torch.equal(ours[name.format(2)], before[name.format(2)])


def test_a_student_starts_from_a_teacher_whose_upper_layers_were_dropped(tiny_teacher: Path) -> None:
    teacher, layer = load_teacher(str(tiny_teacher), layer=2)
    config = AutoConfig.from_pretrained(tiny_teacher)
    config.num_hidden_layers = 2
    student = build_student(config, seed=0)
    init_from_teacher(student, 2, teacher, layer)
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert theirs
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_student_that_is_the_teacher_again_computes_the_same() -> None:
    for family in ("roberta", "distilbert", "albert", "modernbert"):
        student, teacher = pair(small(family), small(family))
        init_from_teacher(student, 2, teacher, 2)
        ids = torch.tensor([[5, 6, 7, 8]])
        ours, theirs = (model.eval()(input_ids=ids).last_hidden_state for model in (student, teacher))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (small("bert", hidden_size=12), r"is \(60, 12\) in the student and \(60, 24\) in the teacher"),
        (small("bert", intermediate_size=16), "intermediate"),
        (small("roberta"), "the student is of the family 'roberta' and the teacher of 'bert'"),
    ],
)
def test_a_student_of_other_widths_or_family_cannot_start_from_the_teacher(
    student: PreTrainedConfig, message: str
) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        init_from_teacher(*interleave(pair(student, small("bert"))))
    assert "--init random" in (caught.value.hint or "")


def interleave(models: tuple[PreTrainedModel, PreTrainedModel]) -> tuple[PreTrainedModel, int, PreTrainedModel, int]:
    return models[0], 2, models[1], 2


# --- Relation heads and positions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "heads"),
    [
        ({768}, {384}, 48),
        ({768}, {768}, 48),
        ({1024}, {384}, 64),
        ({1024}, {1024}, 64),
        ({48}, {24}, 24),
        ({768}, {312}, 24),
        ({768}, {100}, 4),
        ({7}, {5}, 1),
        ({768, 256}, {384, 128}, 64),
        ({80}, {40}, 40),
    ],
)
def test_auto_takes_the_papers_heads_or_the_nearest_divisor(teacher: set[int], student: set[int], heads: int) -> None:
    assert relation_heads("auto", teacher, student) == heads


@pytest.mark.parametrize("heads", [1, 2, 12, 48, 384])
def test_heads_that_divide_both_widths_are_taken(heads: int) -> None:
    assert relation_heads(heads, {768}, {384}) == heads


@pytest.mark.parametrize(
    ("heads", "teacher", "student", "message", "near"),
    [
        (50, {768}, {384}, "relations.heads: 50 does not divide the teacher's width of 768", 48),
        (256, {768}, {384}, "relations.heads: 256 does not divide the student's width of 384", 192),
        (1000, {768}, {384}, "relations.heads: 1000 does not divide the teacher's width of 768", 384),
        (64, {1024, 512}, {96}, "relations.heads: 64 does not divide the student's width of 96", 32),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_the_nearest_that_do(
    heads: int, teacher: set[int], student: set[int], message: str, near: int
) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        relation_heads(heads, teacher, student)
    assert caught.value.hint == f"The nearest number that divides teacher and student is {near}."


@pytest.mark.parametrize(
    ("family", "longest"),
    [
        ("bert", 40),
        ("distilbert", 40),
        ("albert", 40),
        ("electra", 40),
        ("roberta", 38),
        ("xlm-roberta", 38),
        ("camembert", 38),
        ("modernbert", None),
        ("eurobert", None),
        ("nomic_bert", None),
    ],
)
def test_the_longest_input_is_what_the_table_of_positions_holds(family: str, longest: int | None) -> None:
    model = build_student(small(family), seed=0)
    assert family_of(model.config).longest_input(model) == longest
    if longest is not None:
        assert model(input_ids=torch.full((1, longest), 5)).last_hidden_state.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))
