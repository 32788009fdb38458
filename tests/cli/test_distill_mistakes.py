"""What `minilm distill` says to every mistake: in its options, its settings, its models and its tokens."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import DebertaV2Config, DebertaV2Model, T5Config, T5Model

from .conftest import Minilm
from .mistakes import Mistake, is_told

DISTILL = "distill --teacher teacher --student-config config.json --steps 4 --batch-size 4 "


def write(name: str, content: str) -> Callable[[], object]:
    """Preparation: a file with this text."""
    return lambda: Path(name).write_text(content, encoding="utf-8")


def edit(name: str, **entries: object) -> Callable[[], object]:
    """Preparation: a JSON file with other entries; `None` removes one."""

    def change() -> None:
        path = Path(name)
        values = json.loads(path.read_text(encoding="utf-8")) | entries
        kept = {key: value for key, value in values.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return change


def remove(name: str) -> Callable[[], object]:
    """Preparation: a file or folder that is not there."""
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def flip(name: str) -> Callable[[], object]:
    """Preparation: a file whose last byte is wrong."""

    def damage() -> None:
        content = bytearray(Path(name).read_bytes())
        content[-1] ^= 0xFF
        Path(name).write_bytes(content)

    return damage


def halve(name: str) -> Callable[[], object]:
    """Preparation: a file of which the second half is missing."""
    return lambda: os.truncate(name, Path(name).stat().st_size // 2)


def ids(*lines: str) -> Callable[[], object]:
    """Preparation: `ids.jsonl.gz` with these lines."""
    return lambda: Path("ids.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def short_ids() -> None:
    """Half of a gzip file of token ids."""
    content = gzip.compress(b"[2, 5, 6, 3]\n" * 1000)
    Path("ids.jsonl.gz").write_bytes(content[: len(content) // 2])


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


def tokens_of_another_tokenizer() -> None:
    """Tokens whose manifest has the checksum of another vocabulary."""
    path = Path("tokens/manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tokenizer"] |= {"name": "another", "vocabulary_sha256": "0" * 64}
    path.write_text(json.dumps(manifest), encoding="utf-8")


MISTAKES_IN_OPTIONS = [
    Mistake("no teacher", "distill --student-config config.json", ("--teacher is missing", "teacher.name")),
    Mistake("no student", "distill --teacher teacher", ("--student-config is missing", "student.config")),
    Mistake("unknown option", DISTILL + "--stepps 3", ("--stepps", "--steps")),
    Mistake("an argument too many", DISTILL + "tokens", ("tokens",)),
    Mistake("option without value", "distill --teacher", ("--teacher",)),
    Mistake("no steps", DISTILL + "--steps 0", ("training.steps", "greater than 0")),
    Mistake("steps that are a word", DISTILL + "--steps many", ("--steps", "integer")),
    Mistake("steps and epochs", DISTILL + "--epochs 2", ("training", "either steps or epochs")),
    Mistake(
        "no epochs",
        "distill --teacher teacher --student-config config.json --epochs 0",
        ("training.epochs", "greater than 0"),
    ),
    Mistake("no batch", DISTILL + "--batch-size 0", ("training.batch_size", "greater than 0")),
    Mistake("no micro-batch", DISTILL + "--micro-batch-tokens 0", ("training.micro_batch_tokens", "0")),
    Mistake(
        "micro-batch that is a word", DISTILL + "--micro-batch-tokens some", ("training.micro_batch_tokens", "auto")
    ),
    Mistake("max length of one", DISTILL + "--max-length 1", ("data.max_length", "2")),
    Mistake("learning rate of zero", DISTILL + "--lr 0", ("optimizer.lr", "greater than 0")),
    Mistake("learning rate not a number", DISTILL + "--lr nan", ("optimizer.lr",)),
    Mistake("endless learning rate", DISTILL + "--lr inf", ("optimizer.lr", "finite")),
    Mistake("warm-up below zero", DISTILL + "--warmup-steps -1", ("schedule.warmup_steps", "-1")),
    Mistake("unknown schedule", DISTILL + "--schedule step", ("schedule.kind", "linear", "cosine", "constant")),
    Mistake("weight decay below zero", DISTILL + "--weight-decay -0.1", ("optimizer.weight_decay", "-0.1")),
    Mistake("clipping to zero", DISTILL + "--clip-norm 0", ("optimizer.clip_norm", "greater than 0")),
    Mistake("unknown precision", DISTILL + "--precision fp16", ("training.precision", "bf16", "fp32", "fp16")),
    Mistake("unknown device", DISTILL + "--device abacus", ("training.device", "abacus")),
    Mistake("device without hardware", DISTILL + "--device xpu", ("training.device", "xpu")),
    Mistake("seed below zero", DISTILL + "--seed -1", ("training.seed", "-1")),
    Mistake("all held out", DISTILL + "--eval-fraction 1", ("evaluation.fraction", "less than 1")),
    Mistake("evaluation every zero steps", DISTILL + "--eval-every 0", ("evaluation.every", "greater than 0")),
    Mistake("checkpoint every zero steps", DISTILL + "--save-every 0", ("checkpoint.every", "greater than 0")),
    Mistake("no checkpoint kept", DISTILL + "--keep 0", ("checkpoint.keep", "greater than 0")),
    Mistake("metrics every zero steps", DISTILL + "--log-every 0", ("reporting.log_every", "greater than 0")),
    Mistake("unknown sink", DISTILL + "--report-to excel", ("reporting.sinks", "tensorboard", "wandb", "excel")),
    Mistake("relation of unknown letters", DISTILL + "--relations qx=1", ("relations", "'qx'", "q, k and v")),
    Mistake("relation of three letters", DISTILL + "--relations qkv=1", ("relations", "'qkv'")),
    Mistake("relation twice", DISTILL + "--relations qq=1,qq=2", ("relations.weights", "'qq'", "twice")),
    Mistake("relation weight of zero", DISTILL + "--relations qq=0", ("relations.weights", "greater than 0")),
    Mistake("relation weight that is a word", DISTILL + "--relations qq=much", ("relations.weights", "much")),
    Mistake("no relation", DISTILL + "--relations ''", ("relations", "such as qq")),
    Mistake("no relation heads", DISTILL + "--relation-heads 0", ("relations.heads", "0")),
    Mistake("relation heads that are a word", DISTILL + "--relation-heads most", ("relations.heads", "auto")),
    Mistake(
        "relation heads that do not divide",
        DISTILL + "--relation-heads 7",
        ("relations.heads", "7 does not divide", "48", "nearest", "8"),
    ),
    Mistake("teacher layer zero", DISTILL + "--teacher-layer 0", ("teacher.layer", "counted from 1")),
    Mistake("teacher layer that is a word", DISTILL + "--teacher-layer top", ("teacher.layer", "auto", "top")),
    Mistake("teacher layer too high", DISTILL + "--teacher-layer 5", ("teacher.layer", "no layer 5", "4")),
    Mistake("teacher layer too low", DISTILL + "--teacher-layer -5", ("teacher.layer", "no layer -5", "4")),
    Mistake("student layer zero", DISTILL + "--student-layer 0", ("student.layer", "counted from 1")),
    Mistake("student layer too high", DISTILL + "--student-layer 3", ("student.layer", "no layer 3", "2")),
    Mistake("unknown init", DISTILL + "--init copy", ("student.init", "random", "teacher", "copy")),
    Mistake("init from a wider teacher", DISTILL + "--init teacher", ("--init teacher", "24", "48", "--init random")),
    Mistake(
        "init from another family",
        DISTILL + "--init teacher",
        ("--init teacher", "'electra'", "'bert'", "--init random"),
        edit("config.json", model_type="electra"),
    ),
    Mistake("output exists", DISTILL + "-o tokens", ("tokens", "exists already", "--force")),
    Mistake("output below a file", DISTILL + "-o corpus.txt/run", ("corpus.txt",)),
]

MISTAKES_IN_SETTINGS = [
    Mistake("set without value", DISTILL + "--set optimizer.lr", ("--set", "KEY=VALUE", "'optimizer.lr'")),
    Mistake("set without key", DISTILL + "--set =3", ("--set", "KEY=VALUE", "'=3'")),
    Mistake("set of a name without section", DISTILL + "--set lr=1", ("no setting lr", "optimizer.lr")),
    Mistake(
        "set of a misspelt name",
        DISTILL + "--set optimizer.weight_decy=0.1",
        ("no setting optimizer.weight_decy", "Did you mean optimizer.weight_decay?"),
    ),
    Mistake("set of an unlike name", DISTILL + "--set colour=red", ("no setting colour", "Settings")),
    Mistake("set below a setting", DISTILL + "--set optimizer.lr.peak=1", ("optimizer.lr",)),
    Mistake("set of a section", DISTILL + "--set optimizer=3", ("optimizer", "3")),
    Mistake("set twice", DISTILL + "--set training.seed=1 --set training.seed=2", ("training.seed", "twice")),
    Mistake(
        "flag and set",
        DISTILL + "--set training.steps=5",
        ("training.steps", "by its flag and by --set", "once"),
    ),
    Mistake("set to a wrong type", DISTILL + "--set optimizer.betas=often", ("optimizer.betas", "often")),
    Mistake("set to a wrong range", DISTILL + "--set optimizer.betas='[0.9, 1.5]'", ("optimizer.betas", "1.5")),
    Mistake("set of a mapping", DISTILL + "--set training.seed='{a: 1}'", ("training.seed",)),
    Mistake("settings file missing", DISTILL + "--config nowhere.yaml", ("nowhere.yaml", "no such settings file")),
    Mistake(
        "settings file of another kind",
        DISTILL + "--config run.ini",
        ("run.ini", ".yaml, .toml or .json"),
        write("run.ini", ""),
    ),
    Mistake("settings folder", DISTILL + "--config run.yaml", ("run.yaml",), lambda: Path("run.yaml").mkdir()),
    Mistake(
        "settings not YAML",
        DISTILL + "--config run.yaml",
        ("run.yaml", "parsed", "line 2"),
        write("run.yaml", "training:\n  steps: [1\n"),
    ),
    Mistake(
        "settings not TOML",
        DISTILL + "--config run.toml",
        ("run.toml", "parsed", "line 1"),
        write("run.toml", "steps = = 3\n"),
    ),
    Mistake(
        "settings not JSON", DISTILL + "--config run.json", ("run.json", "parsed", "line 1"), write("run.json", "{")
    ),
    Mistake(
        "settings not UTF-8",
        DISTILL + "--config run.yaml",
        ("run.yaml", "read"),
        lambda: Path("run.yaml").write_bytes(b"output: caf\xe9\n"),
    ),
    Mistake(
        "settings that are a list", DISTILL + "--config run.yaml", ("run.yaml", "mapping"), write("run.yaml", "- 1")
    ),
    Mistake(
        "settings with an unknown name",
        DISTILL + "--config run.yaml",
        ("run.yaml", "no setting training.step", "Did you mean training.steps?"),
        write("run.yaml", "training: {step: 5}"),
    ),
    Mistake(
        "settings with a wrong type",
        DISTILL + "--config run.yaml",
        ("run.yaml", "optimizer.lr", "fast"),
        write("run.yaml", "optimizer: {lr: fast}"),
    ),
    Mistake(
        "settings with a value for a section",
        DISTILL + "--config run.yaml",
        ("run.yaml", "optimizer"),
        write("run.yaml", "optimizer: adam"),
    ),
    Mistake(
        "settings with steps and epochs",
        "distill --teacher teacher --student-config config.json --config run.yaml",
        ("run.yaml", "training", "either steps or epochs"),
        write("run.yaml", "training: {steps: 5, epochs: 1}"),
    ),
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
        lambda: (ids("[2, 5, 3]", "[2, 5, 6, 3]")(), remove("teacher/tokenizer.json")()),
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
        ("teacher", "weights do not fill", "layer.4"),
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
        edit("config.json", hiden_size=24, hidden_size=None),
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

MISTAKES_IN_TOKENS = [
    Mistake("tokens missing", DISTILL + "--data nowhere", ("nowhere", "no such token store", "minilm tokenize")),
    Mistake("folder that is no store", DISTILL + "--data teacher", ("teacher", "not a token store", "manifest.json")),
    Mistake("text as tokens", DISTILL + "--data corpus.txt", ("corpus.txt", "token store", ".jsonl.gz")),
    Mistake("manifest not JSON", DISTILL, ("manifest.json", "JSON"), write("tokens/manifest.json", "{")),
    Mistake(
        "manifest with an entry missing",
        DISTILL,
        ("manifest.json", "damaged", "shards", "minilm tokenize"),
        edit("tokens/manifest.json", shards=None),
    ),
    Mistake(
        "manifest that does not add up",
        DISTILL,
        ("manifest.json", "damaged"),
        edit("tokens/manifest.json", sequences=7),
    ),
    Mistake(
        "store of a later version",
        DISTILL,
        ("manifest.json", "format 99", "Upgrade minilm"),
        edit("tokens/manifest.json", format_version=99),
    ),
    Mistake(
        "shard with a wrong byte",
        DISTILL,
        ("shard-00000.npy", "damaged", "checksum", "minilm tokenize"),
        flip("tokens/shard-00000.npy"),
    ),
    Mistake("shard cut short", DISTILL, ("shard-00000.npy", "damaged"), halve("tokens/shard-00000.npy")),
    Mistake("shard missing", DISTILL, ("shard-00000.npy", "missing"), remove("tokens/shard-00000.npy")),
    Mistake(
        "offsets with a wrong byte",
        DISTILL,
        ("shard-00000.offsets.npy", "damaged"),
        flip("tokens/shard-00000.offsets.npy"),
    ),
    Mistake(
        "tokens of another tokenizer",
        DISTILL,
        ("tokens", "tokenizer another", "--tokenizer"),
        tokens_of_another_tokenizer,
    ),
    Mistake(
        "id lists missing",
        DISTILL + "--data nowhere.jsonl.gz",
        ("nowhere.jsonl.gz", "no such file"),
    ),
    Mistake(
        "id beyond the vocabulary",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz, line 2", "70000", "vocabulary", "tokenizer"),
        ids("[2, 5, 3]", "[2, 70000, 3]"),
    ),
    Mistake(
        "id below zero", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz, line 1", "-5"), ids("[2, -5, 3]", "[2, 3]")
    ),
    Mistake(
        "empty id list",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz, line 3", "list of token ids"),
        ids("[2, 3]", "[2, 3]", "[]"),
    ),
    Mistake(
        "ids that are words",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz, line 1", "list of token ids"),
        ids('["the", "of"]'),
    ),
    Mistake(
        "ids that are not JSON", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz, line 1", "not JSON"), ids("2 5 3")
    ),
    Mistake("no id lists", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz", "no sequence"), ids()),
    Mistake("id lists cut short", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz", "cut short"), short_ids),
    Mistake(
        "sequences too long for the teacher",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz", "teacher reads at most 128", "300", "--max-length 128"),
        ids(json.dumps([5] * 300), "[2, 5, 3]"),
    ),
    Mistake(
        "max length too long for the teacher",
        DISTILL + "--data ids.jsonl.gz --max-length 200",
        ("teacher reads at most 128", "200", "--max-length 128"),
        ids(json.dumps([5] * 300), "[2, 5, 3]"),
    ),
    Mistake(
        "sequences too long for the student",
        DISTILL,
        ("student reads at most 16", "32", "--max-length 16"),
        edit("config.json", max_position_embeddings=16),
    ),
]


@pytest.mark.parametrize(
    "mistake", [*MISTAKES_IN_OPTIONS, *MISTAKES_IN_SETTINGS, *MISTAKES_IN_MODELS, *MISTAKES_IN_TOKENS], ids=str
)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_told_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.usefixtures("workplace")
def test_a_missing_optional_package_is_named_with_its_remedy(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    is_told(
        Mistake("no wandb", DISTILL + "--report-to wandb", ("--report-to wandb", "pip install 'minilm-cli[wandb]'")),
        minilm,
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, ("WORLD_SIZE", "'two'", "not a number")),
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE is 2", "RANK", "MASTER_ADDR", "MASTER_PORT", "torchrun")),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, ("MASTER_PORT", "torchrun")),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ("RANK is 2", "torchrun")),
        ({"WORLD_SIZE": "0", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ("WORLD_SIZE 0",)),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_a_launcher_that_talks_nonsense_is_told(
    environment: dict[str, str], said: tuple[str, ...], minilm: Minilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    is_told(Mistake("nonsense", DISTILL, said), minilm)


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_refuses_what_a_run_refuses(minilm: Minilm) -> None:
    is_told(Mistake("dry run", DISTILL + "--dry-run --data nowhere", ("nowhere", "no such token store")), minilm)
