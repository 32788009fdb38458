"""What `minilm distill` says to every mistake in a teacher, its tokenizer, and a student's configuration."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model, T5Config, T5Model

from .conftest import Minilm
from .mistakes import (
    DISTILL,
    REMOVED,
    Mistake,
    Preparation,
    all_of,
    edit,
    folder,
    halve,
    is_told,
    link,
    mode,
    pipe,
    remove,
    write,
)


class Harmful:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harmed",)


def pickled_teacher() -> None:
    """A teacher whose weights are a pickle that runs code."""
    Path("teacher/model.safetensors").unlink()
    Path("teacher/pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))


def decoder_config() -> T5Config:
    """A config of two stacks, of the teacher's vocabulary."""
    vocabulary = json.loads(Path("teacher/config.json").read_text(encoding="utf-8"))["vocab_size"]
    return T5Config(vocab_size=vocabulary, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)


def teacher_with_decoder() -> None:
    """A teacher with two stacks."""
    T5Model(decoder_config()).save_pretrained("teacher")


def teacher_out_of_reach() -> None:
    """A teacher whose attention does not go through transformers' registry."""
    vocabulary = json.loads(Path("teacher/config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = DebertaV2Config(
        vocab_size=vocabulary, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    DebertaV2Model(config).save_pretrained("teacher")


def poisoned(name: str, value: float) -> Preparation:
    """A teacher of which one weight has this value."""

    def change() -> None:
        weights = load_file("teacher/model.safetensors")
        weights[name].view(-1)[0] = value
        save_file(weights, "teacher/model.safetensors", metadata={"format": "pt"})

    return change


def odd_entries(entries: dict[str, list[Any]], *, of: str, says: tuple[str, ...]) -> list[Mistake]:
    """For each entry of a config.json, and each odd value of it, the mistake to have it; its name is told."""
    file = {"student": "config.json", "teacher": "teacher/config.json"}[of]
    return [
        Mistake(f"{of} whose {name} is {value!r}", DISTILL, (*says, name), edit(file, **{name: value}))
        for name, values in entries.items()
        for value in values
    ]


MISTAKES_IN_MODELS = [
    Mistake(
        "teacher folder missing",
        "distill --teacher ./nowhere --student-config config.json",
        ("./nowhere", "there is no such"),
    ),
    Mistake(
        "teacher not to be had",
        "distill --teacher nobody/nothing --student-config config.json",
        ("nobody/nothing", "cannot be loaded", "HF_HUB_OFFLINE"),
    ),
    Mistake(
        "revision of a folder",
        DISTILL + "--revision v2",
        ("teacher: ", "no revision v2", "Leave out --revision"),
    ),
    Mistake("teacher that is a file", "distill --teacher corpus.txt --student-config config.json", ("corpus.txt",)),
    Mistake(
        "teacher without weights",
        DISTILL,
        ("teacher: the teacher cannot be loaded", "model.safetensors"),
        remove("teacher/model.safetensors"),
    ),
    Mistake("teacher without config", DISTILL, ("teacher", "config.json"), remove("teacher/config.json")),
    Mistake("teacher config not JSON", DISTILL, ("teacher", "cannot be loaded"), write("teacher/config.json", "{")),
    Mistake("teacher without tokenizer", DISTILL, ("teacher", "tokenizer"), remove("teacher/tokenizer.json")),
    Mistake(
        "teacher without tokenizer for id lists",
        DISTILL + "--data ids.jsonl.gz",
        ("teacher", "tokenizer"),
        all_of(write("ids.jsonl.gz", gzip.compress(b"[2, 5, 3]\n" * 2)), remove("teacher/tokenizer.json")),
    ),
    Mistake(
        "teacher cut short",
        DISTILL,
        ("teacher: the teacher cannot be loaded",),
        halve("teacher/model.safetensors"),
    ),
    Mistake(
        "teacher with more layers than weights",
        DISTILL,
        ("teacher", "weights do not fit its config.json", "layer.4"),
        edit("teacher/config.json", num_hidden_layers=5),
    ),
    Mistake(
        "teacher of other widths than its weights",
        DISTILL,
        ("teacher",),
        edit("teacher/config.json", intermediate_size=64),
    ),
    Mistake(
        "teacher of an unknown family",
        DISTILL,
        ("teacher", "cannot be loaded", "wort"),
        edit("teacher/config.json", model_type="wort"),
    ),
    Mistake(
        "teacher with code of its own",
        DISTILL,
        ("teacher", "--trust-remote-code"),
        edit(
            "teacher/config.json",
            model_type="own",
            auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
        ),
    ),
    Mistake("teacher with a harmful pickle", DISTILL, ("teacher", "cannot be loaded"), pickled_teacher),
    Mistake("teacher with a decoder", DISTILL, ("teacher", "decoder", "only encoders"), teacher_with_decoder),
    Mistake(
        "teacher out of reach", DISTILL, ("'deberta-v2'", "attention registry", "BERT, RoBERTa"), teacher_out_of_reach
    ),
    Mistake(
        "student config missing",
        "distill --teacher teacher --student-config nowhere.json",
        ("nowhere.json", "no such student config", "preset such as l6-h384"),
    ),
    Mistake(
        "preset of another spelling",
        "distill --teacher teacher --student-config l6h384",
        ("l6h384", "preset such as l6-h384"),
    ),
    Mistake(
        "preset without layers", "distill --teacher teacher --student-config l0-h48", ("l0-h48", "such as l6-h384")
    ),
    Mistake(
        "preset of an odd width",
        "distill --teacher teacher --student-config l2-h50",
        ("l2-h50", "width of 50", "config.json"),
    ),
    Mistake(
        "student folder without config",
        "distill --teacher teacher --student-config tokens",
        ("tokens/config.json", "no such student config"),
    ),
    Mistake("student config not JSON", DISTILL, ("config.json", "JSON"), write("config.json", "{")),
    Mistake("student config that is a list", DISTILL, ("config.json", "JSON object"), write("config.json", "[]")),
    Mistake(
        "student config with a misspelt entry",
        DISTILL,
        ("config.json", "'hiden_size'", "Did you mean 'hidden_size'?"),
        edit("config.json", hiden_size=24, hidden_size=REMOVED),
    ),
    Mistake(
        "student of another vocabulary",
        DISTILL,
        ("config.json", "vocab_size is 12345", "teacher's", "leave vocab_size out"),
        edit("config.json", vocab_size=12345),
    ),
    Mistake(
        "student with another padding",
        DISTILL,
        ("config.json", "pad_token_id is 3", "teacher's is 0"),
        edit("config.json", pad_token_id=3),
    ),
    Mistake(
        "student heads that do not divide",
        DISTILL,
        ("config.json", "5 attention heads do not divide", "24"),
        edit("config.json", num_attention_heads=5),
    ),
    Mistake(
        "student of an unknown family",
        DISTILL,
        ("config.json", "model_type", "'brt'"),
        edit("config.json", model_type="brt"),
    ),
    Mistake(
        "student width that is text",
        DISTILL,
        ("config.json", "hidden_size"),
        edit("config.json", hidden_size="24"),
    ),
    Mistake(
        "student without layers",
        DISTILL,
        ("config.json", "num_hidden_layers", "above 0"),
        edit("config.json", num_hidden_layers=0),
    ),
    Mistake(
        "student with an unknown activation",
        DISTILL,
        ("student", "wavy"),
        edit("config.json", hidden_act="wavy"),
    ),
    Mistake(
        "student with a decoder",
        DISTILL,
        ("config.json", "decoder"),
        lambda: decoder_config().save_pretrained("."),
    ),
]

MISTAKES_IN_CONFIGS = [
    *odd_entries(
        {
            "num_hidden_layers": [10**9, 10**30, -1, 2.0, "2", None, True, [2]],
            "hidden_size": [-1, 0, 24.0, None, True],
            "num_attention_heads": [0, -1, "4", 4.0, None],
            "intermediate_size": [-1, 0, None, "48", 48.0, True, [48]],
            "max_position_embeddings": [0, 1, "128", 128.0, True, [128]],
            "vocab_size": [0, -1, "180", 180.0, True],
            "type_vocab_size": [0, -1, 10**12, "2", True],
            "pad_token_id": [-1, 10**9, "0", True, [0]],
            "hidden_act": [None, 3, ["gelu"]],
            "hidden_dropout_prob": ["much", None, float("nan"), float("inf"), True],
            "layer_norm_eps": ["small", None, float("nan"), -1],
            "initializer_range": ["small", None, float("nan")],
            "num_labels": [10**9],
        },
        of="student",
        says=("config.json",),
    ),
    *odd_entries(
        {
            "num_hidden_layers": [10**9, 10**30, 0, -1, 2.0, "4", None],
            "hidden_size": [0, -1, 48.0, "48", None],
            "num_attention_heads": [0, -1, None],
            "intermediate_size": [0, -1, "96", None],
            "vocab_size": ["180", None],
            "pad_token_id": [-1, 10**9, "0", [0]],
            "hidden_act": [None, 3],
            "layer_norm_eps": ["small", float("nan")],
            "hidden_dropout_prob": ["much", float("nan")],
        },
        of="teacher",
        says=("teacher: ",),
    ),
    *(
        Mistake(
            f"student that is no text encoder but {family}",
            DISTILL,
            ("config.json",),
            edit("config.json", model_type=family),
        )
        for family in ("vit", "clip", "whisper", "nougat")
    ),
]

MISTAKES_IN_FILES = [
    Mistake("teacher without a name", "distill --teacher '' --student-config config.json", ("--teacher: ", "''")),
    Mistake("teacher that is here", "distill --teacher . --student-config config.json", (".: ", "tokenizer")),
    Mistake("teacher that is a run", "distill --teacher run --student-config config.json", ("run: ",), folder("run")),
    Mistake("teacher that is tokens", "distill --teacher tokens --student-config config.json", ("tokens: ",)),
    Mistake("teacher that is a device", "distill --teacher /dev/null --student-config config.json", ("/dev/null",)),
    Mistake(
        "teacher of a long name",
        f"distill --teacher {'x' * 5000} --student-config config.json",
        ("the teacher folder cannot be read", "name too long"),
    ),
    Mistake(
        "teacher of a name in two lines",
        "distill --teacher 'a\nb' --student-config config.json",
        ("the teacher cannot be loaded", "Hub"),
    ),
    Mistake(
        "teacher that is a link to itself",
        "distill --teacher ./loop --student-config config.json",
        ("./loop", "no such teacher folder"),
        link("loop", "loop"),
    ),
    Mistake(
        "teacher that is a pipe",
        "distill --teacher ./pipe --student-config config.json",
        ("./pipe", "no such teacher folder"),
        pipe("pipe"),
    ),
    *(
        Mistake(
            f"teacher whose {file} is {what}", DISTILL, ("teacher: ", "cannot be loaded"), prepare(f"teacher/{file}")
        )
        for file in ("config.json", "model.safetensors", "tokenizer.json")
        for what, prepare in (
            ("empty", lambda name: write(name, "")),
            ("zero bytes", lambda name: write(name, bytes(5000))),
            ("all bytes", lambda name: write(name, bytes(range(256)))),
            ("an empty object", lambda name: write(name, "{}")),
            ("null", lambda name: write(name, "null")),
            ("nested deeply", lambda name: write(name, "[" * 100_000)),
            ("text of another encoding", lambda name: write(name, '{"model_type": "bert"}'.encode("utf-16"))),
        )
    ),
    *(
        Mistake(f"teacher whose {file} is {what}", DISTILL, ("teacher: ", said), prepare(f"teacher/{file}"))
        for file, said in (
            ("config.json", "model_type"),
            ("model.safetensors", "no file named model.safetensors"),
            ("tokenizer.json", "there is no tokenizer here"),
        )
        for what, prepare in (
            ("a folder", folder),
            ("a pipe", pipe),
            ("a link to nothing", lambda name: link(name, "nowhere")),
            ("a link to itself", lambda name: link(name, Path(name).name)),
            ("a device", lambda name: link(name, "/dev/null")),
        )
        if (file, what) != ("tokenizer.json", "a device")
    ),
    Mistake(
        "teacher with an empty pickle",
        DISTILL,
        ("teacher: the teacher cannot be loaded",),
        all_of(remove("teacher/model.safetensors"), write("teacher/pytorch_model.bin", "")),
    ),
    Mistake(
        "teacher with text for a pickle",
        DISTILL,
        ("teacher: the teacher cannot be loaded",),
        all_of(remove("teacher/model.safetensors"), write("teacher/pytorch_model.bin", "hello")),
    ),
    Mistake(
        "teacher whose shard is missing",
        DISTILL,
        ("teacher: the teacher cannot be loaded", "part.safetensors"),
        all_of(
            remove("teacher/model.safetensors"),
            write("teacher/model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "part.safetensors"}}'),
        ),
    ),
    Mistake(
        "teacher whose list of shards is empty",
        DISTILL,
        ("teacher: the teacher cannot be loaded", "'weight_map' is missing"),
        all_of(remove("teacher/model.safetensors"), write("teacher/model.safetensors.index.json", "{}")),
    ),
    Mistake(
        "teacher that is a pointer to a large file",
        DISTILL,
        ("teacher: the teacher cannot be loaded", "header"),
        write("teacher/model.safetensors", "version https://git-lfs.github.com/spec/v1\nsize 123\n"),
    ),
    *(
        Mistake(f"tokenizer whose {file} is {what}", DISTILL, ("teacher: the tokenizer cannot be loaded",), prepare)
        for file, what, prepare in (
            ("config", "empty", write("teacher/tokenizer_config.json", "")),
            ("config", "a list", write("teacher/tokenizer_config.json", "[]")),
            ("class", "a number", edit("teacher/tokenizer_config.json", tokenizer_class=3)),
            ("padding", "a number", edit("teacher/tokenizer_config.json", pad_token=3)),
            ("map of special tokens", "a list", write("teacher/special_tokens_map.json", "[]")),
            ("added tokens", "empty", write("teacher/added_tokens.json", "")),
        )
    ),
    Mistake("student without a name", "distill --teacher teacher --student-config ''", ("--student-config: ", "''")),
    Mistake(
        "student that is a run", "distill --teacher teacher --student-config run", ("run/config.json",), folder("run")
    ),
    Mistake("student that is a device", "distill --teacher teacher --student-config /dev/null", ("/dev/null", "JSON")),
    Mistake("student of weights", "distill --teacher teacher --student-config teacher/model.safetensors", ("JSON",)),
    Mistake(
        "student of a long name",
        f"distill --teacher teacher --student-config {'x' * 5000}",
        ("this student config cannot be read", "name too long"),
    ),
    Mistake(
        "student of a name in two lines",
        "distill --teacher teacher --student-config 'a\nb'",
        ("a\nb: there is no such student config", "l6-h384"),
    ),
    Mistake(
        "student that is a link to itself",
        "distill --teacher teacher --student-config loop",
        ("loop: there is no such student config",),
        link("loop", "loop"),
    ),
    Mistake(
        "student config that is a link to nothing",
        DISTILL,
        ("config.json: there is no such student config",),
        link("config.json", "nowhere"),
    ),
    *(
        Mistake(f"student config that is {what}", DISTILL, ("config.json: ", "cannot be read as JSON"), prepare)
        for what, prepare in (
            ("empty", write("config.json", "")),
            ("zero bytes", write("config.json", bytes(100))),
            ("all bytes", write("config.json", bytes(range(256)))),
            ("nested deeply", write("config.json", "[" * 100_000)),
            ("marked with a byte order", write("config.json", b"\xef\xbb\xbf{}")),
            ("of a number of 5000 digits", write("config.json", f'{{"hidden_size": {"9" * 5000}}}')),
        )
    ),
]

MISTAKES_IN_SIZES = [
    Mistake(
        "student too wide for memory",
        DISTILL,
        ("config.json: the student would have", "parameters", "GiB, and this machine has", "Lower its layers"),
        edit("config.json", hidden_size=24 * 10**5),
    ),
    Mistake(
        "student of more positions than memory",
        DISTILL,
        ("config.json: the student would have", "GiB"),
        edit("config.json", max_position_embeddings=10**12),
    ),
    Mistake(
        "student of a feed-forward part wider than memory",
        DISTILL,
        ("config.json: the student would have", "GiB"),
        edit("config.json", intermediate_size=10**11),
    ),
    Mistake(
        "student wider than torch can count",
        DISTILL,
        ("config.json: the student (bert) cannot be built",),
        edit("config.json", hidden_size=4 * 10**30),
    ),
    *(
        Mistake(f"preset {name}", f"distill --teacher teacher --student-config {preset}", (preset, said))
        for name, preset, said in (
            ("of a million layers", "l1000000-h384", "num_hidden_layers is 1000000, and must be at most 1000"),
            ("of a width beyond memory", "l2-h12000000", "the student would have"),
            ("of a number in Arabic digits", "l1٣-h384", "no such student config"),
        )
    ),
    Mistake(
        "preset of 200 digits",
        f"distill --teacher teacher --student-config l{'9' * 200}-h384",
        ("there is no such student config", "l6-h384"),
    ),
]

MISTAKES_IN_WEIGHTS = [
    *(
        Mistake(
            f"teacher with a weight that is {value}",
            DISTILL,
            ("teacher: the teacher's weights are damaged", name, "not finite", "Download or copy the teacher again"),
            poisoned(name, value),
        )
        for name, value in (
            ("encoder.layer.1.attention.self.key.weight", float("nan")),
            ("encoder.layer.3.output.dense.bias", float("inf")),
            ("embeddings.word_embeddings.weight", float("-inf")),
        )
    ),
    Mistake(
        "teacher that computes no number",
        DISTILL,
        ("teacher: the teacher (bert) computes numbers that are not finite", "config.json"),
        edit("teacher/config.json", layer_norm_eps=-1.0),
    ),
    Mistake(
        "teacher whose weights have other shapes",
        DISTILL,
        ("teacher: ", "the shapes of its weights differ from its config.json"),
        edit("teacher/config.json", hidden_size=24),
    ),
    *(
        Mistake(f"{side} that cannot compute for its {name}", DISTILL, (f"the {side} (bert) cannot compute",), prepare)
        for side, file in (("teacher", "teacher/config.json"), ("student", "config.json"))
        for name, prepare in (
            ("chunks", edit(file, chunk_size_feed_forward=7)),
            ("outputs", edit(file, output_hidden_states="yes")),
        )
    ),
]

MISTAKES_IN_RIGHTS = [
    Mistake("teacher folder to be read by nobody", DISTILL, ("teacher folder cannot be read",), mode("teacher", 0)),
    Mistake("teacher folder not to be searched", DISTILL, ("teacher folder cannot be read",), mode("teacher", 0o600)),
    Mistake("teacher folder not to be listed", DISTILL, ("teacher folder cannot be read",), mode("teacher", 0o300)),
    *(
        Mistake(
            f"{file} to be read by nobody", DISTILL, ("teacher", f"{file} cannot be read"), mode(f"teacher/{file}", 0)
        )
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ),
    Mistake("student config to be read by nobody", DISTILL, ("config.json", "denied"), mode("config.json", 0)),
    Mistake(
        "student folder to be read by nobody",
        "distill --teacher teacher --student-config tokens",
        ("tokens/config.json", "denied"),
        mode("tokens", 0),
    ),
    Mistake(
        "student in a folder to be searched by nobody",
        "distill --teacher teacher --student-config tokens/config.json",
        ("tokens/config.json", "denied"),
        mode("tokens", 0),
    ),
]


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES_IN_MODELS, *MISTAKES_IN_CONFIGS, *MISTAKES_IN_FILES, *MISTAKES_IN_SIZES, *MISTAKES_IN_WEIGHTS],
    ids=str,
)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_told_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("workplace", "ordinary_user")
def test_what_may_not_be_read_is_told(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)
