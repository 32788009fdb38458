"""Messages of `minilm distill` for mistakes in a teacher, its tokenizer, and a student's configuration."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BartConfig, BertTokenizer, FNetConfig, FNetModel

from tests.tiny import VOCABULARY

from .conftest import Minilm
from .mistakes import (
    DISTILL,
    NOT_A_FILE,
    REMOVED,
    WRONG_CONTENT,
    Mistake,
    Preparation,
    all_of,
    check_mistake,
    edit,
    halve,
    link,
    mode,
    remove,
    write,
)

WEIGHTS, INDEX = "teacher/model.safetensors", "teacher/model.safetensors.index.json"


def vocabulary() -> int:
    """The size of the teacher's vocabulary."""
    return int(json.loads(Path("teacher/config.json").read_text(encoding="utf-8"))["vocab_size"])


def student_with_decoder() -> None:
    """Replace the student's config with that of a BART."""
    entries = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}
    BartConfig(vocab_size=vocabulary(), d_model=16, encoder_layers=1, decoder_layers=1, **entries).save_pretrained(".")


def teacher_without_attention() -> None:
    """Replace the teacher with an FNet."""
    config = FNetConfig(vocab_size=vocabulary(), hidden_size=24, num_hidden_layers=2, intermediate_size=24)
    FNetModel(config).save_pretrained("teacher")


def other_tokenizer() -> None:
    """Put a tokenizer next to the student's config, with a vocabulary of the same size."""
    BertTokenizer(vocab={token: n for n, token in enumerate(VOCABULARY)} | {"z": 5, "a": 30}).save_pretrained(".")


def without_weights(name: str, content: str) -> Preparation:
    """Replace the teacher's weights with another file."""
    return all_of(remove(WEIGHTS), write(name, content))


def wrong_entries(side: str, where: str, entries: dict[str, list[Any]]) -> list[Mistake]:
    """For each wrong value of each entry of a config.json, a mistake that names the entry."""
    config = {"student": "config.json", "teacher": "teacher/config.json"}[side]
    return [
        Mistake(f"{side} with {name} {value!r}", DISTILL, (where, name), edit(config, **{name: value}))
        for name, values in entries.items()
        for value in values
    ]


MISTAKES_IN_NAMES = [
    *(
        Mistake(
            f"teacher {name[:60]!r}",
            f"distill --teacher {name} --student-config config.json --steps 4 {options}",
            message,
        )
        for name, options, message in (
            ("./nowhere", "", ("./nowhere", "there is no such teacher folder")),
            ("nobody/nothing", "", ("nobody/nothing", "cannot be loaded", "HF_HUB_OFFLINE")),
            ("teacher", "--revision v2", ("teacher: ", "no revision v2", "Leave out --revision")),
            ("corpus.txt", "", ("corpus.txt",)),
            ("''", "", ("--teacher: ", "''")),
            (".", "", (".: ", "tokenizer")),
            ("tokens", "", ("tokens: ",)),
            ("/dev/null", "", ("/dev/null",)),
            ("x" * 5000, "", ("the teacher folder cannot be read", "name too long")),
            ("'a\nb'", "", ("the teacher cannot be loaded", "Hub")),
        )
    ),
    *(
        Mistake(f"student {name[:60]!r}", f"distill --teacher teacher --student-config {name} --steps 4", message)
        for name, message in (
            ("nowhere.json", ("nowhere.json", "no such student config", "preset such as l6-h384")),
            ("tokens", ("tokens/config.json", "no such student config")),
            ("''", ("--student-config: ", "''")),
            ("/dev/zero", ("/dev/zero: this student config", "JSON", "not a file")),
            (WEIGHTS, ("JSON",)),
            ("x" * 5000, ("this student config cannot be read", "name too long")),
            ("'a\nb'", ("a\nb: there is no such student config", "l6-h384")),
            ("l6h384", ("l6h384", "preset such as l6-h384")),
            ("l2-h50", ("l2-h50", "width of 50", "config.json")),
            ("brt:l2-h48", ("brt:l2-h48", "no family 'brt'", "Did you mean 'bert'")),
            ("vit:l2-h48", ("vit:l2-h48", "not a text encoder, but a vit model")),
            ("bert:l2", ("bert:l2", "no such student config", "bert:l6-h384")),
            ("l1000000-h384", ("l1000000-h384", "num_hidden_layers is 1000000, and must be at most 1000")),
            ("l2-h12000000", ("l2-h12000000", "the student would have")),
            (f"l{'9' * 200}-h384", ("there is no such student config", "l6-h384")),
        )
    ),
    *(
        Mistake(
            f"teacher that is {what}",
            "distill --teacher ./odd --student-config config.json",
            ("./odd", "no such teacher folder"),
            NOT_A_FILE[what]("odd"),
        )
        for what in ("a pipe", "a link to itself")
    ),
    Mistake(
        "student that is a link to itself",
        "distill --teacher teacher --student-config loop",
        ("loop: there is no such student config",),
        link("loop", "loop"),
    ),
]

MISTAKES_IN_TEACHERS = [
    *(
        Mistake(f"teacher with {file} {what}", DISTILL, ("teacher: ", "cannot be loaded"), damage(f"teacher/{file}"))
        for file in ("config.json", "model.safetensors", "tokenizer.json")
        for what, damage in (
            *WRONG_CONTENT.items(),
            ("an empty object", lambda name: write(name, "{}")),
            ("in UTF-16", lambda name: write(name, '{"model_type": "bert"}'.encode("utf-16"))),
        )
    ),
    *(
        Mistake(f"teacher with {file} that is {what}", DISTILL, ("teacher: ", said), damage(f"teacher/{file}"))
        for file, said in (
            ("config.json", "model_type"),
            ("model.safetensors", "no file named model.safetensors"),
            ("tokenizer.json", "there is no tokenizer here"),
        )
        for what, damage in NOT_A_FILE.items()
        if (file, what) != ("tokenizer.json", "a device")
    ),
    *(
        Mistake(f"teacher with {what}", DISTILL, ("teacher: the teacher cannot be loaded", *message), prepare)
        for what, message, prepare in (
            ("no weights", ("model.safetensors",), remove(WEIGHTS)),
            ("weights cut short", ("model.safetensors is damaged",), halve(WEIGHTS)),
            ("an empty pickle", ("pytorch_model.bin is damaged",), without_weights("teacher/pytorch_model.bin", "")),
            ("text for a pickle", ("more than tensors",), without_weights("teacher/pytorch_model.bin", "hello")),
            (
                "a shard missing",
                ("part.safetensors is missing", "copy this file too"),
                without_weights(INDEX, '{"metadata": {}, "weight_map": {"a": "part.safetensors"}}'),
            ),
            (
                "a Git LFS pointer for weights",
                ("model.safetensors is a Git LFS pointer", "git lfs pull"),
                write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\nsize 123\n"),
            ),
            ("an unknown family", ("wort",), edit("teacher/config.json", model_type="wort")),
        )
    ),
    *(
        Mistake(f"tokenizer with {what}", DISTILL, ("teacher: the tokenizer cannot be loaded",), prepare)
        for what, prepare in (
            ("an empty config", write("teacher/tokenizer_config.json", "")),
            ("a list as config", write("teacher/tokenizer_config.json", "[]")),
            ("a number as class", edit("teacher/tokenizer_config.json", tokenizer_class=3)),
            ("a number as padding token", edit("teacher/tokenizer_config.json", pad_token=3)),
            ("a list as map of special tokens", write("teacher/special_tokens_map.json", "[]")),
            ("empty added tokens", write("teacher/added_tokens.json", "")),
        )
    ),
    Mistake(
        "teacher with an empty index of shards",
        DISTILL,
        ("teacher/model.safetensors.index.json: ", "no weight_map"),
        without_weights(INDEX, "{}"),
    ),
    Mistake("teacher without config", DISTILL, ("teacher", "config.json"), remove("teacher/config.json")),
    Mistake(
        "teacher without tokenizer for id lists",
        DISTILL + "--data ids.jsonl.gz",
        ("teacher", "tokenizer"),
        all_of(write("ids.jsonl.gz", gzip.compress(b"[2, 5, 3]\n" * 2)), remove("teacher/tokenizer.json")),
    ),
    Mistake(
        "teacher without attention",
        DISTILL,
        ("the teacher: it is a fnet model", "BERT, RoBERTa"),
        teacher_without_attention,
    ),
    *wrong_entries(
        "teacher",
        "teacher: ",
        {
            "num_hidden_layers": [10**30, -1, 2.0, "4", None],
            "hidden_size": [-1, 48.0, "48", None],
            "num_attention_heads": [0, None],
            "intermediate_size": [-1, "96", None],
            "vocab_size": ["180", None],
            "pad_token_id": ["0", [0]],
            "hidden_act": [None, 3],
            "hidden_dropout_prob": ["much", float("nan")],
            "num_labels": [10**9],
        },
    ),
]

MISTAKES_IN_STUDENTS = [
    *(
        Mistake(f"student config {what}", DISTILL, ("config.json: ", "cannot be read as JSON"), damage("config.json"))
        for what, damage in (
            *((what, damage) for what, damage in WRONG_CONTENT.items() if what != "null"),
            ("with a byte order mark", lambda name: write(name, b"\xef\xbb\xbf{}")),
            ("with 5000 digits", lambda name: write(name, f'{{"hidden_size": {"9" * 5000}}}')),
            ("that is a pipe", NOT_A_FILE["a pipe"]),
        )
    ),
    Mistake("student config that is a list", DISTILL, ("config.json", "JSON object"), write("config.json", "[]")),
    Mistake(
        "student config that is a broken link",
        DISTILL,
        ("config.json: there is no such student config",),
        link("config.json", "nowhere"),
    ),
    *(
        Mistake(f"student with {what}", DISTILL, ("config.json", *message), edit("config.json", **entries))
        for what, message, entries in (
            ("another vocabulary", ("vocab_size is 12345", "teacher's", "leave vocab_size out"), {"vocab_size": 12345}),
            ("another padding", ("pad_token_id is 3", "teacher's is 0"), {"pad_token_id": 3}),
            ("wrong heads", ("5 attention heads do not divide", "24"), {"num_attention_heads": 5}),
            (
                "a misspelt entry",
                ("'hiden_size'", "Did you mean 'hidden_size'?"),
                {"hiden_size": 24, "hidden_size": REMOVED},
            ),
            ("an unknown family", ("model_type", "'brt'"), {"model_type": "brt"}),
            (
                "too much width",
                ("parameters", "GiB, and this machine has", "Lower its layers"),
                {"hidden_size": 24 * 10**5},
            ),
            (
                "nested labels",
                ("num_labels is", "at most"),
                {"model_type": "clip", "text_config": {"num_labels": 10**9}},
            ),
        )
    ),
    Mistake(
        "student with another tokenizer",
        DISTILL,
        (".: the student's tokenizer has another vocabulary", "token 5 is 'z', and 'a' in the teacher's", "copy"),
        other_tokenizer,
    ),
    Mistake("student with an unknown activation", DISTILL, ("student", "wavy"), edit("config.json", hidden_act="wavy")),
    Mistake("student with a decoder", DISTILL, ("config.json", "decoder"), student_with_decoder),
    *wrong_entries(
        "student",
        "config.json",
        {
            "num_hidden_layers": [10**30, 0, -1, 2.0, "2", None, True, [2]],
            "hidden_size": [-1, 0, 24.0, "24", None, True],
            "num_attention_heads": [0, -1, "4", 4.0, None],
            "intermediate_size": [-1, 0, None, "48", 48.0, True, [48]],
            "max_position_embeddings": [0, 1, "128", 128.0, True, [128]],
            "vocab_size": [0, -1, "180", 180.0, True],
            "type_vocab_size": [0, -1, "2", True],
            "pad_token_id": [-1, 10**9, "0", True, [0]],
            "hidden_act": [None, 3, ["gelu"]],
            "hidden_dropout_prob": ["much", None, float("nan"), float("inf"), True],
            "layer_norm_eps": ["small", None, float("nan"), -1],
            "initializer_range": ["small", None, float("nan")],
            "num_labels": [10**9],
        },
    ),
    *(
        Mistake(f"student of the family {family}", DISTILL, ("config.json",), edit("config.json", model_type=family))
        for family in ("vit", "clip", "whisper", "nougat")
    ),
    *(
        Mistake(
            f"{side} with wrong {name}", DISTILL, (f"the {side} (bert) cannot compute",), edit(file, **{name: value})
        )
        for side, file in (("teacher", "teacher/config.json"), ("student", "config.json"))
        for name, value in (("chunk_size_feed_forward", 7), ("output_hidden_states", "yes"))
    ),
]

MISSING_PERMISSIONS = [
    *(
        Mistake(f"teacher folder with the mode {bits:o}", DISTILL, ("folder cannot be read",), mode("teacher", bits))
        for bits in (0, 0o600, 0o300)
    ),
    *(
        Mistake(f"{file} unreadable", DISTILL, ("teacher", f"{file} cannot be read"), mode(f"teacher/{file}", 0))
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ),
    Mistake("student config unreadable", DISTILL, ("config.json", "denied"), mode("config.json", 0)),
    *(
        Mistake(
            f"student config {name}, unsearchable",
            f"distill --teacher teacher --student-config {name}",
            ("tokens/config.json", "denied"),
            mode("tokens", 0),
        )
        for name in ("tokens", "tokens/config.json")
    ),
]


@pytest.mark.parametrize("mistake", [*MISTAKES_IN_NAMES, *MISTAKES_IN_TEACHERS, *MISTAKES_IN_STUDENTS], ids=str)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_reported_and_changes_no_file(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISSING_PERMISSIONS, ids=str)
@pytest.mark.usefixtures("workplace", "ordinary_user")
def test_a_missing_permission_is_reported(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)
