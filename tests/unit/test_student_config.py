from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertTokenizer,
    MPNetConfig,
    MPNetModel,
    PreTrainedConfig,
    RobertaConfig,
)

from minilm_cli.base.errors import MinilmError
from minilm_cli.models import student_config as student_configs
from minilm_cli.models.checks import try_out
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import saved_config, student_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import widths

from .model_configs import small

TEACHER = BertConfig(
    vocab_size=180,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=128,
    pad_token_id=3,
)


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT = BertConfig(vocab_size=180, max_position_embeddings=128)
ROBERTA = RobertaConfig(vocab_size=180, max_position_embeddings=130, type_vocab_size=1)


def tokenizer_of(tokens: list[str]) -> BertTokenizer:
    """One of 180 tokens that begin with these."""
    tokens = [*tokens, *(f"word{number}" for number in range(180 - len(tokens)))]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def write(folder: Path, **values: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def test_config_comes_from_a_file_or_its_folder(tmp_path: Path) -> None:
    file = write(tmp_path, model_type="bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
    for source in (file, str(tmp_path)):
        config = student_config(source, TEACHER)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 4)


def test_family_vocabulary_and_positions_default_to_the_teachers(tmp_path: Path) -> None:
    config = student_config(write(tmp_path, hidden_size=24, num_attention_heads=4), TEACHER)
    assert (config.model_type, config.vocab_size, config.pad_token_id) == ("bert", 180, 3)
    assert config.max_position_embeddings == 128
    source = write(tmp_path, hidden_size=24, num_attention_heads=4, max_position_embeddings=64)
    assert student_config(source, TEACHER).max_position_embeddings == 64


def test_token_types_have_the_family_default_if_the_teacher_has_none(tmp_path: Path) -> None:
    teacher = BertConfig(**TEACHER.to_dict() | {"type_vocab_size": 0})
    source = write(tmp_path, model_type="bert", hidden_size=24, num_attention_heads=4)
    assert student_config(source, teacher).type_vocab_size == 2


@pytest.mark.parametrize(
    ("family", "teacher", "positions"),
    [
        ("roberta", BERT, 129),  # padding 0: positions count from 1
        ("xlm-roberta", BERT, 129),
        ("bert", ROBERTA, 128),  # padding 1: positions count from 2
        ("distilbert", ROBERTA, 128),
        ("camembert", ROBERTA, 130),
        ("modernbert", ROBERTA, 128),
        ("bert", small("modernbert", max_position_embeddings=300), 300),
    ],
)
def test_a_student_reads_as_many_tokens_as_its_teacher(family: str, teacher: PreTrainedConfig, positions: int) -> None:
    assert student_config(f"{family}:l2-h48", teacher).max_position_embeddings == positions


def test_positions_of_a_config_json_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path, model_type="roberta", hidden_size=24, num_attention_heads=4, max_position_embeddings=64)
    assert student_config(source, BERT).max_position_embeddings == 64


def special_ids(config: PreTrainedConfig) -> dict[str, int | None]:
    names = ("pad", "bos", "eos", "cls", "sep", "mask")
    return {name: getattr(config, f"{name}_token_id") for name in names if hasattr(config, f"{name}_token_id")}


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("modernbert", {"pad": 0, "bos": None, "eos": None, "cls": 2, "sep": 3}),
        ("eurobert", {"pad": 0, "bos": None, "eos": None, "mask": 4}),
        ("roberta", {"pad": 0, "bos": None, "eos": None}),
        ("albert", {"pad": 0, "bos": None, "eos": None}),
    ],
)
def test_special_tokens_are_those_of_the_teachers_tokenizer(family: str, ids: dict[str, int | None]) -> None:
    assert special_ids(student_config(f"{family}:l2-h48", BERT, tokenizer_of(SPECIAL_TOKENS))) == ids


def test_special_tokens_that_the_teachers_config_names_are_taken_if_its_tokenizer_has_them(tmp_path: Path) -> None:
    source = write(tmp_path, model_type="albert", hidden_size=24, num_attention_heads=4)
    # As ModernBERT's: its configuration calls [CLS] the first token, its tokenizer has no first token.
    named = BertConfig(vocab_size=180, bos_token_id=2, eos_token_id=3)
    assert special_ids(student_config(source, named, tokenizer_of(SPECIAL_TOKENS))) == {"pad": 0, "bos": 2, "eos": 3}
    # No more than a default: the padding and a word.
    default = BertConfig(vocab_size=180, bos_token_id=0, eos_token_id=7)
    found = special_ids(student_config(source, default, tokenizer_of(SPECIAL_TOKENS)))
    assert found == {"pad": 0, "bos": None, "eos": None}


def test_the_padding_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    teacher, tokenizer = BertConfig(vocab_size=180), tokenizer_of(["[CLS]", "[PAD]", "[UNK]", "[SEP]", "[MASK]"])
    valid = {"model_type": "roberta", "hidden_size": 24, "num_attention_heads": 4}
    assert student_config(write(tmp_path, **valid), teacher, tokenizer).pad_token_id == 1
    for padding in (0, 1):  # the teacher's own, and its tokenizer's
        source = write(tmp_path, **valid, pad_token_id=padding)
        assert student_config(source, teacher, tokenizer).pad_token_id == padding
    with pytest.raises(MinilmError, match="pad_token_id is 2, and the teacher's is 1"):
        student_config(write(tmp_path, **valid, pad_token_id=2), teacher, tokenizer)


@pytest.mark.parametrize("types", [1, 4])
def test_the_number_of_token_types_may_differ_from_the_teachers(tmp_path: Path, types: int) -> None:
    source = write(tmp_path, model_type="bert", hidden_size=24, num_attention_heads=4, type_vocab_size=types)
    assert student_config(source, TEACHER).type_vocab_size == types


def test_a_real_token_that_the_student_takes_for_padding_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = MPNetConfig(vocab_size=180, hidden_size=24, num_attention_heads=4, pad_token_id=0)
    tokenizer = tokenizer_of(SPECIAL_TOKENS)
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        student_configs._warn_of_padding(config, MPNetModel(config), tokenizer)
        config.pad_token_id = 1
        student_configs._warn_of_padding(config, MPNetModel(config), tokenizer)
    assert caplog.messages == [
        "mpnet models take token 1 for padding, so the teacher's token '[UNK]' gets no embedding of its own."
    ]


@pytest.mark.parametrize(("wrong", "meant"), [("hiden_size", "hidden_size"), ("num_hidden_layer", "num_hidden_layers")])
def test_misspelt_entry_is_refused_with_a_suggestion(tmp_path: Path, wrong: str, meant: str) -> None:
    source = write(tmp_path, model_type="bert", num_attention_heads=4, **{wrong: 24})
    with pytest.raises(MinilmError, match=f"there is no entry '{wrong}' in the family bert") as caught:
        student_config(source, TEACHER)
    assert caught.value.hint == f"Did you mean '{meant}'?"
    assert caught.value.where == source


@pytest.mark.parametrize(
    ("family", "wrong", "meant"),
    [
        ("bert", "num_layers", "num_hidden_layers"),
        ("bert", "n_heads", "num_attention_heads"),
        ("bert", "dim", "hidden_size"),
        ("bert", "ffn_dim", "intermediate_size"),
        ("bert", "dropout", "hidden_dropout_prob"),
        ("bert", "n_positions", "max_position_embeddings"),
        ("distilbert", "intermediate_size", "hidden_dim"),
    ],
)
def test_another_familys_word_is_refused_with_the_right_one(
    tmp_path: Path, family: str, wrong: str, meant: str
) -> None:
    source = write(tmp_path, model_type=family, **{wrong: 24})
    with pytest.raises(MinilmError, match=f"there is no entry '{wrong}' in the family {family}") as caught:
        student_config(source, TEACHER)
    assert caught.value.hint == f"Did you mean '{meant}'?"


def test_a_family_may_be_configured_in_the_words_of_transformers(tmp_path: Path) -> None:
    source = write(tmp_path, model_type="distilbert", hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
    config = student_config(source, TEACHER)
    assert (config.dim, config.n_layers, config.n_heads) == (24, 2, 4)


def test_unknown_entries_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ignored = {"embedding_size": 24, "my_own_note": "x", "num_layers": 7}
    source = write(tmp_path, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, **ignored)
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        assert student_config(source, TEACHER).num_hidden_layers == 2
    assert caplog.messages == [f"{source}: bert models have no embedding_size, my_own_note, num_layers: ignored."]


def test_entries_of_a_usual_config_json_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    usual = {
        "architectures": ["BertForMaskedLM"], "transformers_version": "4.6.0", "gradient_checkpointing": False,
        "position_embedding_type": "absolute", "use_cache": True, "torch_dtype": "float32", "_name_or_path": "x",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        student_config(write(tmp_path, hidden_size=24, num_attention_heads=4, **usual), TEACHER)
        assert caplog.messages == []
        relative = usual | {"position_embedding_type": "relative_key"}
        student_config(write(tmp_path, hidden_size=24, num_attention_heads=4, **relative), TEACHER)
        assert "bert models have no position_embedding_type" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 181}, "vocab_size is 181, and the teacher's is 180"),
        ({"pad_token_id": 0}, "pad_token_id is 0, and the teacher's is 3"),
        ({"type_vocab_size": 0}, "type_vocab_size must be a whole number above 0, not 0"),
        ({"type_vocab_size": 10**12}, "the student would have .* parameters: .* GiB"),
        (
            {"cls_token_id": 181, "model_type": "modernbert"},
            "cls_token_id is 181, and the teacher's vocabulary has 180",
        ),
        ({"num_attention_heads": 5}, "5 attention heads do not divide a hidden size of 24"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"hidden_size": 24.0}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": [1]}, "num_hidden_layers"),
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
def test_wrong_entry_is_refused_by_name(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    valid = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    source = write(tmp_path, **valid | values)
    with pytest.raises(MinilmError, match=message) as caught:
        student_config(source, TEACHER)
    assert caught.value.where == source


def test_size_is_checked_before_weights_are_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}
    monkeypatch.setattr(student_configs.os, "sysconf", small_machine.__getitem__)
    source = write(tmp_path, model_type="bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
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
        ('{"model_type": "bert", "hidden_size": "24"}', "not valid for bert: .*hidden_size"),
        ('{"model_type": "bert", "num_hidden_layers": 1000000000}', "must be at most 1000"),
        ('{"model_type": "bert", "layer_norm_eps": NaN}', "layer_norm_eps must be a finite number"),
    ],
)
def test_saved_config_is_checked_when_it_is_read(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "student-config.json"
    path.write_text(content)
    with pytest.raises(MinilmError, match=message) as caught:
        saved_config(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("text", ["", "[1]", "null", "\ufeff{}"])
def test_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MinilmError) as caught:
        student_config(str(path), TEACHER)
    assert caught.value.where == str(path)


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such student config") as caught:
        student_config(str(tmp_path), TEACHER)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    "source", ["l6", "6-384", "l0-h384", "l6-h0", "l6-h384x", "L6-H384", "l1٣-h384", "l9999999999-h384"]
)
def test_unknown_preset_is_refused_with_an_example(source: str) -> None:
    with pytest.raises(MinilmError, match="there is no such student config") as caught:
        student_config(source, TEACHER)
    assert "l6-h384" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("l3-h384", (3, 384, 12, 768)), ("l6-h768", (6, 768, 12, 1536)), ("l2-h128", (2, 128, 2, 256))],
)
def test_preset_gives_layers_and_width(preset: str, shape: tuple[int, ...]) -> None:
    config = student_config(preset, TEACHER)
    actual = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert actual == shape
    assert (config.vocab_size, config.pad_token_id, config.max_position_embeddings) == (180, 3, 128)


@pytest.mark.parametrize("family", ["nomic_bert", "eurobert", "gemma3_text"])
def test_preset_keeps_heads_as_wide_as_the_student(family: str) -> None:
    teacher = small(family, hidden_size=768, num_attention_heads=12, head_dim=64, intermediate_size=1152)
    teacher.use_bidirectional_attention = True
    if family == "gemma3_text":
        teacher.query_pre_attn_scalar = 64
    config = student_config("l2-h384", teacher)
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (12, 32, 576)
    assert getattr(config, "num_key_value_heads", 12) == 12
    assert getattr(config, "query_pre_attn_scalar", 32) == 32
    tap = Tap(build_student(config, seed=0), [2])
    assert widths(tap) == [{"q": 384, "k": 384, "v": 384}]


def test_preset_scales_an_embedding_as_wide_as_the_hidden_size() -> None:
    wide, narrow = (small("electra", hidden_size=48, embedding_size=size) for size in (48, 16))
    assert student_config("l2-h24", wide).embedding_size == 24
    assert student_config("l2-h24", narrow).embedding_size == 16


@pytest.mark.parametrize(
    ("family", "feed_forward"),
    [("bert", "intermediate_size"), ("distilbert", "hidden_dim"), ("modernbert", "intermediate_size")],
)
@pytest.mark.parametrize("teacher_family", ["roberta", "distilbert"])
def test_preset_of_another_family_has_the_teachers_proportions(
    teacher_family: str, family: str, feed_forward: str
) -> None:
    widths = {"hidden_size": 48, "num_attention_heads": 4}
    theirs = {"hidden_dim": 120} if teacher_family == "distilbert" else {"intermediate_size": 120}
    dropout = {"attention_dropout": 0.3} if teacher_family == "distilbert" else {"hidden_dropout_prob": 0.3}
    config = student_config(f"{family}:l3-h96", small(teacher_family, **widths, **theirs, **dropout))
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (family, 3, 96)
    assert (config.num_attention_heads, getattr(config, feed_forward)) == (12, 240)
    assert config.vocab_size == 60
    if teacher_family != family:  # all else is the family's
        default = AutoConfig.for_model(family)
        for name in ("hidden_dropout_prob", "attention_dropout", "initializer_range"):
            assert getattr(config, name, None) == getattr(default, name, None)


@pytest.mark.parametrize(
    ("preset", "entries"),
    [
        ("deberta-v2:l2-h24", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256}),
        ("gemma3_text:l2-h24", {"use_bidirectional_attention": True, "num_hidden_layers": 2, "head_dim": 2}),
    ],
)
def test_preset_of_another_family_is_like_its_published_models(preset: str, entries: dict[str, object]) -> None:
    config = student_config(preset, small("bert"))
    assert {name: getattr(config, name) for name in entries} == entries
    try_out(build_student(config, seed=0), "student", preset)


def test_preset_with_the_teachers_own_family_is_the_one_without() -> None:
    teacher = small("bert", hidden_size=48, hidden_dropout_prob=0.3)
    assert student_config("bert:l2-h24", teacher).to_dict() == student_config("l2-h24", teacher).to_dict()


@pytest.mark.parametrize(
    ("preset", "message", "hint"),
    [
        ("brt:l6-h384", "there is no family 'brt'", "Did you mean 'bert'"),
        ("BERT:l6-h384", "there is no family 'BERT'", "Did you mean 'bert'"),
        ("nomic-bert:l6-h384", "there is no family 'nomic-bert'", "Did you mean 'nomic_bert'?"),
        ("xyz:l6-h384", "there is no family 'xyz'", "such as bert, roberta or modernbert"),
        ("vit:l6-h384", "this is not a text encoder, but a vit model", ""),
        ("clip:l6-h384", "this is not a text encoder, but a clip model", ""),
        ("gpt2:l6-h384", r"the student \(gpt2\) is a causal language model", ""),
        ("bert:l6-h50", "a width of 50 divides neither", "Write a config.json"),
        ("bert:", "there is no such student config", "bert:l6-h384"),
    ],
)
def test_preset_of_a_family_that_cannot_be_is_refused(preset: str, message: str, hint: str) -> None:
    with pytest.raises(MinilmError, match=message) as caught:
        student_config(preset, BERT)
    assert preset in (caught.value.where or "")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("width", [7, 100, 130, 200])
def test_preset_width_without_fitting_heads_is_refused(width: int) -> None:
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
def test_preset_builds_a_student_of_the_teachers_family(family: str) -> None:
    config = student_config("l2-h48", small(family, num_hidden_layers=3))
    student = build_student(config, seed=0)
    assert config.model_type == family
    assert config.num_hidden_layers == 2
    assert student(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape == (1, 3, 48)
