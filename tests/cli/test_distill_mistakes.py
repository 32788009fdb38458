"""The message of `minilm distill` for each mistake in its options, settings and tokens, and for unusable models."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2Model

from .conftest import Minilm
from .mistakes import (
    DISTILL,
    REMOVED,
    Mistake,
    Preparation,
    all_of,
    edit,
    flip,
    folder,
    halve,
    is_told,
    link,
    mode,
    pipe,
    remove,
    write,
)


def ids(*lines: str) -> Preparation:
    """Preparation: `ids.jsonl.gz` with these lines."""
    return lambda: Path("ids.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def short_ids() -> None:
    """Half of a gzip file of token ids."""
    content = gzip.compress(b"[2, 5, 6, 3]\n" * 1000)
    Path("ids.jsonl.gz").write_bytes(content[: len(content) // 2])


def tokens_of_another_tokenizer() -> None:
    """Tokens whose manifest has the checksum of another vocabulary."""
    path = Path("tokens/manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tokenizer"] |= {"name": "another", "vocabulary_sha256": "0" * 64}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def causal_teacher() -> None:
    """A teacher of a family whose tokens see only what is before them."""
    vocabulary = json.loads(Path("teacher/config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = GPT2Config(vocab_size=vocabulary, n_embd=24, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=3)
    GPT2Model(config).save_pretrained("teacher")


SHARD = "tokens/shard-00000.npy"

MISTAKES_IN_OPTIONS = [
    Mistake("no teacher", "distill --student-config config.json", ("--teacher is missing", "teacher.name")),
    Mistake("no student", "distill --teacher teacher", ("--student-config is missing", "student.config")),
    Mistake("unknown option", DISTILL + "--stepps 3", ("--stepps", "--steps")),
    Mistake("an argument too many", DISTILL + "tokens", ("tokens",)),
    Mistake("option without value", "distill --teacher", ("--teacher",)),
    Mistake("no steps", DISTILL + "--steps 0", ("--steps: ", "greater than 0")),
    Mistake("steps that are a word", DISTILL + "--steps many", ("--steps: ", "integer")),
    Mistake("steps and epochs", DISTILL + "--epochs 2", ("--epochs: ", "either steps or epochs")),
    Mistake(
        "no epochs",
        "distill --teacher teacher --student-config config.json --epochs 0",
        ("--epochs: ", "greater than 0"),
    ),
    Mistake("no batch", DISTILL + "--batch-size 0", ("--batch-size: ", "greater than 0")),
    Mistake("no micro-batch", DISTILL + "--micro-batch-tokens 0", ("--micro-batch-tokens: ", "0")),
    Mistake("micro-batch that is a word", DISTILL + "--micro-batch-tokens some", ("--micro-batch-tokens: ", "auto")),
    Mistake("max length of one", DISTILL + "--max-length 1", ("--max-length: ", "2")),
    Mistake("learning rate of zero", DISTILL + "--lr 0", ("--lr: ", "greater than 0")),
    Mistake("learning rate not a number", DISTILL + "--lr nan", ("--lr: ",)),
    Mistake("endless learning rate", DISTILL + "--lr inf", ("--lr: ", "finite")),
    Mistake("warm-up below zero", DISTILL + "--warmup-steps -1", ("--warmup-steps: ", "-1")),
    Mistake("unknown schedule", DISTILL + "--schedule step", ("--schedule: ", "linear", "cosine", "constant")),
    Mistake("weight decay below zero", DISTILL + "--weight-decay -0.1", ("--weight-decay: ", "-0.1")),
    Mistake("clipping to zero", DISTILL + "--clip-norm 0", ("--clip-norm: ", "greater than 0")),
    Mistake("unknown precision", DISTILL + "--precision fp16", ("--precision: ", "bf16", "fp32", "fp16")),
    Mistake("unknown device", DISTILL + "--device abacus", ("--device: ", "abacus")),
    Mistake("device without hardware", DISTILL + "--device xpu", ("--device: ", "xpu")),
    Mistake("seed below zero", DISTILL + "--seed -1", ("--seed: ", "-1")),
    Mistake("all held out", DISTILL + "--eval-fraction 1", ("--eval-fraction: ", "less than 1")),
    Mistake("evaluation every zero steps", DISTILL + "--eval-every 0", ("--eval-every: ", "greater than 0")),
    Mistake("checkpoint every zero steps", DISTILL + "--save-every 0", ("--save-every: ", "greater than 0")),
    Mistake("no checkpoint kept", DISTILL + "--keep 0", ("--keep: ", "greater than 0")),
    Mistake("metrics every zero steps", DISTILL + "--log-every 0", ("--log-every: ", "greater than 0")),
    Mistake("unknown sink", DISTILL + "--report-to excel", ("--report-to: ", "tensorboard", "wandb", "excel")),
    Mistake("relation of unknown letters", DISTILL + "--relations qx=1", ("relations", "'qx'", "q, k and v")),
    Mistake("relation of three letters", DISTILL + "--relations qkv=1", ("relations", "'qkv'")),
    Mistake("relation twice", DISTILL + "--relations qq=1,qq=2", ("--relations: ", "'qq'", "twice")),
    Mistake("relation weight of zero", DISTILL + "--relations qq=0", ("--relations: ", "greater than 0")),
    Mistake("relation weight that is a word", DISTILL + "--relations qq=much", ("--relations: ", "much")),
    Mistake("no relation", DISTILL + "--relations ''", ("relations", "such as qq")),
    Mistake("no relation heads", DISTILL + "--relation-heads 0", ("--relation-heads: ", "0")),
    Mistake("relation heads that are a word", DISTILL + "--relation-heads most", ("--relation-heads: ", "auto")),
    Mistake(
        "relation heads that do not divide",
        DISTILL + "--relation-heads 7",
        ("--relation-heads: ", "7 does not divide", "48", "nearest", "8"),
    ),
    Mistake("teacher layer zero", DISTILL + "--teacher-layer 0", ("--teacher-layer: ", "counted from 1")),
    Mistake("teacher layer that is a word", DISTILL + "--teacher-layer top", ("--teacher-layer: ", "auto", "top")),
    Mistake("teacher layer too high", DISTILL + "--teacher-layer 5", ("--teacher-layer: ", "no layer 5", "4")),
    Mistake("teacher layer too low", DISTILL + "--teacher-layer -5", ("--teacher-layer: ", "no layer -5", "4")),
    Mistake("student layer zero", DISTILL + "--student-layer 0", ("--student-layer: ", "counted from 1")),
    Mistake("student layer too high", DISTILL + "--student-layer 3", ("--student-layer: ", "no layer 3", "2")),
    Mistake("unknown init", DISTILL + "--init copy", ("--init: ", "random", "teacher", "copy")),
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

MISTAKES_IN_NUMBERS = [
    Mistake("batch beyond memory", DISTILL + f"--batch-size {10**12}", ("--batch-size: ",)),
    Mistake("epochs beyond counting", DISTILL.replace("--steps 4", "--epochs 1e30"), ("--epochs: ",)),
    Mistake("relation weight beyond fp32", DISTILL + "--relations qq=1e300", ("--relations: ",)),
    Mistake("device without memory", DISTILL + "--device meta", ("--device: ", "meta")),
    Mistake("device without its package", DISTILL + "--device hpu", ("--device: ", "hpu")),
    Mistake("steps beyond counting", DISTILL.replace("--steps 4", f"--steps {10**30}"), ("--steps: ", "less than")),
    Mistake("steps of 5000 digits", DISTILL + f"--steps {'9' * 5000}", ("--steps", "exceeded maximum size")),
    Mistake("steps in hexadecimal", DISTILL + "--steps 0x10", ("--steps", "integer")),
    Mistake("steps in exponents", DISTILL + "--steps 1e3", ("--steps", "integer")),
    Mistake("steps in Arabic digits", DISTILL + "--steps ٤", ("--steps", "integer")),
    Mistake("steps without a number", DISTILL + "--steps=", ("--steps", "integer")),
    Mistake("epochs below zero", DISTILL.replace("--steps 4", "--epochs -1"), ("--epochs: ", "-1")),
    Mistake("epochs not a number", DISTILL.replace("--steps 4", "--epochs nan"), ("--epochs: ", "finite")),
    Mistake("endless epochs", DISTILL.replace("--steps 4", "--epochs 1e400"), ("--epochs: ", "finite")),
    Mistake("batch beyond counting", DISTILL + f"--batch-size {2**64}", ("--batch-size: ", "less than")),
    Mistake("micro-batch of too many", DISTILL + f"--micro-batch-tokens {2**24 + 1}", ("equal to 16777216",)),
    Mistake(
        "micro-batch beyond counting", DISTILL + f"--micro-batch-tokens {10**30}", ("--micro-batch-tokens: ", "auto")
    ),
    Mistake("max length beyond counting", DISTILL + f"--max-length {10**30}", ("--max-length: ", "less than")),
    Mistake("warm-up beyond counting", DISTILL + f"--warmup-steps {10**30}", ("--warmup-steps: ", "less than")),
    Mistake("seed beyond counting", DISTILL + f"--seed {2**64}", ("--seed: ", "less than")),
    Mistake("seed of 5000 digits", DISTILL + f"--seed {'9' * 5000}", ("--seed", "exceeded maximum size")),
    Mistake("learning rate beyond counting", DISTILL + "--lr 1e400", ("--lr: ", "finite")),
    Mistake("learning rate with a comma", DISTILL + "--lr 0,001", ("--lr", "number")),
    Mistake("learning rate of minus zero", DISTILL + "--lr -0.0", ("--lr: ", "greater than 0")),
    Mistake("relation heads beyond counting", DISTILL + f"--relation-heads {10**30}", ("--relation-heads: ", "auto")),
    Mistake("many relation heads", DISTILL + "--relation-heads 48000", ("--relation-heads: ", "48000", "is 24")),
    Mistake("relation weight beyond counting", DISTILL + "--relations qq=1e400", ("--relations: ", "finite")),
    Mistake("relation weight not a number", DISTILL + "--relations qq=nan", ("--relations: ", "finite")),
    Mistake("relation with two weights", DISTILL + "--relations qq=1=2", ("--relations: ", "1=2")),
    Mistake("relation without a name", DISTILL + "--relations =1", ("--relations: ", "'' is not a relation")),
    Mistake("relation in capitals", DISTILL + "--relations QQ=1", ("--relations: ", "'QQ' is not a relation")),
    Mistake("teacher layer beyond counting", DISTILL + f"--teacher-layer -{10**30}", ("--teacher-layer: ", "of 4")),
    Mistake("student layer beyond counting", DISTILL + f"--student-layer {10**30}", ("--student-layer: ", "of 2")),
    Mistake("one beta", DISTILL + "--set optimizer.betas=[0.9]", ("optimizer.betas",)),
    Mistake("three betas", DISTILL + "--set optimizer.betas=[0.9,0.9,0.9]", ("optimizer.betas", "2 items")),
    Mistake("beta below zero", DISTILL + "--set optimizer.betas=[-0.1,0.9]", ("optimizer.betas", "-0.1")),
    Mistake("beta not a number", DISTILL + "--set optimizer.betas=[.nan,0.9]", ("optimizer.betas", "finite")),
    Mistake("beta that is true", DISTILL + "--set optimizer.betas=[true,0.9]", ("optimizer.betas", "a number")),
    Mistake("betas that are lists", DISTILL + "--set optimizer.betas=[[0.1],0.9]", ("optimizer.betas", "number")),
    Mistake("betas that are a mapping", DISTILL + "--set optimizer.betas='{a: 1}'", ("optimizer.betas",)),
    Mistake("no betas", DISTILL + "--set optimizer.betas=null", ("optimizer.betas",)),
]

MISTAKES_IN_SETTINGS = [
    Mistake("steps set to zero", DISTILL.replace("--steps 4", "--set training.steps=0"), ("Error: training.steps: ",)),
    Mistake(
        "steps set to a word", DISTILL.replace("--steps 4", "--set training.steps=x"), ("Error: training.steps: ",)
    ),
    Mistake(
        "steps of zero in a file",
        DISTILL.replace("--steps 4", "--config run.yaml"),
        ("Error: run.yaml: training.steps: ",),
        write("run.yaml", "training: {steps: 0}"),
    ),
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
        ("--steps: given both by its own option and by --set", "once"),
    ),
    Mistake("set to a wrong type", DISTILL + "--set optimizer.betas=often", ("optimizer.betas", "often")),
    Mistake("set to a wrong range", DISTILL + "--set optimizer.betas='[0.9, 1.5]'", ("optimizer.betas", "1.5")),
    Mistake("set of a mapping", DISTILL + "--set training.seed='{a: 1}'", ("training.seed",)),
    Mistake("set of dots", DISTILL + "--set ...=1", ("--set", "KEY=VALUE", "'...=1'")),
    Mistake("set of nothing", DISTILL + "--set ''", ("--set", "KEY=VALUE", "''")),
    Mistake("set of a dot too many", DISTILL + "--set optimizer.=1", ("no setting optimizer.", "optimizer.lr")),
    Mistake("set of what Python has", DISTILL + "--set __class__=1", ("no setting __class__", "Settings")),
    Mistake("set of a Japanese name", DISTILL + "--set 日本=1", ("no setting 日本",)),
    Mistake("set to broken YAML", DISTILL + "--set 'optimizer.lr=[1'", ("optimizer.lr", "[1")),
    Mistake("set to a YAML tag", DISTILL + "--set optimizer.lr=!!python/name:os.system", ("optimizer.lr", "python")),
    Mistake("set to a date", DISTILL + "--set optimizer.lr=2020-01-01", ("optimizer.lr", "number")),
    Mistake("set of the teacher to nothing", DISTILL + "--set teacher=null", ("--teacher is missing",)),
    Mistake("set of an output to a number", DISTILL + "--set output=3", ("output", "path")),
    Mistake("set of relations to a list", DISTILL + "--set relations.weights=[qq]", ("relations.weights",)),
    Mistake("set of sinks to a mapping", DISTILL + "--set 'reporting.sinks={a: b}'", ("reporting.sinks",)),
    Mistake("set of a layer to a list", DISTILL + "--set teacher.layer=[1]", ("teacher.layer", "integer")),
    Mistake("set of a layer to a fraction", DISTILL + "--set teacher.layer=1.5", ("teacher.layer", "1.5")),
    Mistake("set of a layer to true", DISTILL + "--set teacher.layer=true", ("teacher.layer", "True")),
    Mistake("set of a switch to a word", DISTILL + "--set training.compile=perhaps", ("training.compile", "perhaps")),
    Mistake("set of a device to a number", DISTILL + "--set training.device=3", ("training.device", "3")),
    Mistake("no device", DISTILL + "--device ''", ("--device: ", "''")),
    Mistake("device that is not there", DISTILL + "--device cuda:99", ("--device: ", "cuda:99")),
    Mistake("device with a negative number", DISTILL + "--device cuda:-1", ("--device: ", "cuda:-1")),
    Mistake(
        "device with a long number", DISTILL + f"--device cuda:{'9' * 50}", ("--device: ", "is not available", "999")
    ),
    Mistake("no sink", DISTILL + "--report-to ''", ("--report-to: ", "tensorboard")),
    Mistake("settings link to nothing", DISTILL + "--config run.yaml", ("run.yaml",), link("run.yaml", "nowhere")),
    Mistake(
        "settings link to itself", DISTILL + "--config run.yaml", ("run.yaml", "links"), link("run.yaml", "run.yaml")
    ),
    Mistake("settings name too long", DISTILL + f"--config {'x' * 300}.yaml", ("name too long",)),
    Mistake("settings without a name", DISTILL + "--config ''", (".", ".yaml, .toml or .json")),
    Mistake("settings on a device", DISTILL + "--config /dev/null", ("/dev/null", ".yaml, .toml or .json")),
    Mistake("settings below a file", DISTILL + "--config corpus.txt/run.yaml", ("corpus.txt/run.yaml",)),
    Mistake("settings of zero bytes", DISTILL + "--config run.yaml", ("run.yaml",), write("run.yaml", bytes(9))),
    Mistake(
        "settings that run code",
        DISTILL + "--config run.yaml",
        ("run.yaml", "parsed", "os.mkdir"),
        write("run.yaml", "training: !!python/object/apply:os.mkdir [harmed]\n"),
    ),
    Mistake("settings named by a number", DISTILL + "--config run.yaml", ("run.yaml",), write("run.yaml", "3: 4\n")),
    Mistake("settings nested deeply", DISTILL + "--config run.json", ("run.json",), write("run.json", "[" * 100_000)),
    Mistake(
        "settings with a number of 5000 digits",
        DISTILL + "--config run.toml",
        ("run.toml", "digits"),
        write("run.toml", f"training.seed = {'9' * 5000}\n"),
    ),
    Mistake(
        "settings that are two documents",
        DISTILL + "--config run.yaml",
        ("run.yaml", "parsed", "document"),
        write("run.yaml", "training: {}\n---\noptimizer: {}\n"),
    ),
    Mistake(
        "settings that are a student config",
        DISTILL + "--config config.json",
        ("config.json", "no setting model_type"),
    ),
    Mistake("settings file missing", DISTILL + "--config nowhere.yaml", ("nowhere.yaml", "no such settings file")),
    Mistake(
        "settings file of another kind",
        DISTILL + "--config run.ini",
        ("run.ini", ".yaml, .toml or .json"),
        write("run.ini", ""),
    ),
    Mistake("settings folder", DISTILL + "--config run.yaml", ("run.yaml",), folder("run.yaml")),
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
        write("run.yaml", b"output: caf\xe9\n"),
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

MISTAKES_IN_TOKENS = [
    Mistake("tokens missing", DISTILL + "--data nowhere", ("nowhere", "no such token store", "minilm tokenize")),
    Mistake("folder that is no store", DISTILL + "--data teacher", ("teacher", "not a token store", "manifest.json")),
    Mistake("text as tokens", DISTILL + "--data corpus.txt", ("corpus.txt", "token store", ".jsonl.gz")),
    Mistake("manifest not JSON", DISTILL, ("manifest.json", "JSON"), write("tokens/manifest.json", "{")),
    Mistake(
        "manifest with an entry missing",
        DISTILL,
        ("manifest.json", "damaged", "shards", "minilm tokenize"),
        edit("tokens/manifest.json", shards=REMOVED),
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
        ("ids.jsonl.gz, line 3", "list of token ids is empty"),
        ids("[2, 3]", "[2, 3]", "[]"),
    ),
    Mistake(
        "ids that are words",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz, line 1", "list of token ids"),
        ids('["the", "of"]'),
    ),
    Mistake(
        "ids that are not JSON", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz, line 1", "as JSON"), ids("2 5 3")
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

#: Beside the second store, `more`, there is `link`, which is the first.
MIXED = DISTILL + "--data tokens:0.7 "

MISTAKES_IN_MIXTURES = [
    Mistake("weight below zero", MIXED + "--data more:-1", ("--data: ", "weight of more", "greater than 0", "-1")),
    Mistake("weight of zero", MIXED + "--data more:0", ("--data: ", "weight of more", "greater than 0")),
    Mistake("weight not a number", MIXED + "--data more:nan", ("--data: ", "weight of more", "finite", "nan")),
    Mistake("endless weight", MIXED + "--data more:1e400", ("--data: ", "weight of more", "finite", "inf")),
    Mistake("wrong weight of one store", DISTILL + "--data tokens:0", ("--data: ", "weight of tokens")),
    Mistake("weight that is a word", MIXED + "--data more:much", ("--data: more:much", "'much' is not a weight")),
    Mistake(
        "weight missing", MIXED + "--data more", ("--data: more has no weight", "for each token store, or for none")
    ),
    Mistake("share too small", MIXED + "--data more:0.00001", ("weight of more, 1e-05", "less than 1 in 10,000")),
    Mistake("store of a mixture missing", MIXED + "--data nowhere:1", ("nowhere: there is no such token store",)),
    Mistake("store twice with weights", MIXED + "--data ./tokens/:1", ("tokens is given twice", "once")),
    Mistake("store twice without", DISTILL + "--data tokens --data tokens", ("--data: tokens is given twice", "once")),
    Mistake("store twice by a link", MIXED + "--data link:1", ("link: this token store is given twice",)),
    Mistake(
        "stores by flag and set",
        MIXED + "--set data.path=[a,b]",
        ("--data: given both by its own option and by --set",),
    ),
    Mistake(
        "stores in settings twice",
        DISTILL + "--config run.yaml",
        ("run.yaml", "data.path", "tokens is given twice"),
        write("run.yaml", "data: {path: [tokens, more, tokens]}"),
    ),
    Mistake(
        "stores of two vocabularies",
        DISTILL + "--data more --data tokens",
        ("tokens: these tokens were made with the tokenizer another", "--tokenizer"),
        tokens_of_another_tokenizer,
    ),
    Mistake(
        "second store damaged",
        MIXED + "--data more:1",
        ("more/shard-00000.npy", "damaged", "checksum"),
        flip("more/shard-00000.npy"),
    ),
    Mistake(
        "second store of id lists wrong",
        MIXED + "--data ids.jsonl.gz:1",
        ("ids.jsonl.gz, line 2", "70000", "vocabulary"),
        ids("[2, 5, 3]", "[2, 70000, 3]"),
    ),
    Mistake(
        "second store too long for the teacher",
        MIXED + "--data ids.jsonl.gz:1",
        ("ids.jsonl.gz: the teacher reads at most 128", "300", "--max-length 128"),
        ids(json.dumps([5] * 300), "[2, 5, 3]"),
    ),
    Mistake("output in place of the second store", MIXED + "--data more:1 --force -o more", ("would replace more",)),
]


MISTAKES_IN_FILES = [
    Mistake("output in place of the tokens", DISTILL + "--force -o tokens", ("would replace tokens",)),
    Mistake("output in place of the teacher", DISTILL + "--force -o teacher", ("teacher: ",)),
    Mistake("output to a folder and back", DISTILL + "-o a/..", ("a/..", "a name of its own")),
    Mistake("output that is this folder", DISTILL + "--force -o .", ("a name of its own", "--output")),
    Mistake("output in place of a pipe", DISTILL + "--force -o p", ("p: ", "a pipe"), pipe("p")),
    Mistake("output of a long name", DISTILL + f"-o {'x' * 300}", ("name too long",)),
    Mistake("settings from a pipe", DISTILL + "--config run.yaml", ("run.yaml",), pipe("run.yaml")),
    Mistake("shard that is a pipe", DISTILL, ("shard-00000.npy",), pipe(SHARD)),
    Mistake("tokens without a name", DISTILL + "--data ''", (".: this is not a token store",)),
    Mistake("tokens that are a run", DISTILL + "--data run", ("run: this is not a token store",), folder("run")),
    Mistake(
        "tokens that are a manifest", DISTILL + "--data tokens/manifest.json", ("tokens/manifest.json", ".jsonl.gz")
    ),
    Mistake("tokens that are a shard", DISTILL + "--data tokens/shard-00000.npy", ("a token store (a folder)",)),
    Mistake("tokens that are a device", DISTILL + "--data /dev/null", ("/dev/null: this is not a token store",)),
    Mistake("tokens that are a pipe", DISTILL + "--data pipe", ("pipe: this is not a token store",), pipe("pipe")),
    Mistake("tokens of a name in two lines", DISTILL + "--data 'a\nb'", ("a\nb: there is no such token store",)),
    Mistake(
        "tokens that are a link to nothing",
        DISTILL + "--data link",
        ("link: there is no such token store", "minilm tokenize"),
        link("link", "nowhere"),
    ),
    Mistake(
        "tokens that are a link to itself",
        DISTILL + "--data link",
        ("link: there is no such token store", "minilm tokenize"),
        link("link", "link"),
    ),
    Mistake(
        "id lists from a pipe",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz: ", "a pipe or a device, not a file"),
        pipe("ids.jsonl.gz"),
    ),
    Mistake(
        "id lists that are a folder",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz", "folder"),
        folder("ids.jsonl.gz"),
    ),
    Mistake(
        "id lists that are a link to itself",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz: the file cannot be read", "links"),
        link("ids.jsonl.gz", "ids.jsonl.gz"),
    ),
    Mistake("empty id lists", DISTILL + "--data ids.jsonl.gz", ("damaged",), write("ids.jsonl.gz", "")),
    Mistake(
        "no id lists", DISTILL + "--data ids.jsonl.gz", ("no sequence",), write("ids.jsonl.gz", gzip.compress(b""))
    ),
    Mistake(
        "id lists not compressed", DISTILL + "--data ids.jsonl.gz", ("damaged",), write("ids.jsonl.gz", "[2, 5, 3]\n")
    ),
    *(
        Mistake(
            f"manifest that is {what}", DISTILL, ("tokens/manifest.json", said), write("tokens/manifest.json", text)
        )
        for what, text, said in (
            ("empty", "", "JSON"),
            ("zero bytes", "\0" * 100, "JSON"),
            ("a list", "[]", "damaged"),
            ("null", "null", "damaged"),
            ("nested deeply", "[" * 100_000, "JSON"),
        )
    ),
    *(
        Mistake(f"manifest with {key} {value!r}", DISTILL, ("manifest.json", "damaged", key), prepare)
        for key, value, prepare in (
            (key, value, edit("tokens/manifest.json", **{key: value}))
            for key, value in (
                ("max_length", 0),
                ("format_version", "1"),
                ("format_version", 0),
                ("format_version", True),
                ("length_histogram", [0, 10**30]),
                ("sequences", -1),
                ("tokens", 1.5),
                ("shards", {}),
                ("tokenizer", None),
            )
        )
    ),
    *(
        Mistake(f"{file} that is {what}", DISTILL, (f"tokens/{file}.npy", "damaged"), prepare(f"tokens/{file}.npy"))
        for file in ("shard-00000", "shard-00000.offsets")
        for what, prepare in (
            ("empty", lambda name: write(name, "")),
            ("text", lambda name: write(name, "one two three\n" * 100)),
            ("a folder", folder),
            ("a link to nothing", lambda name: link(name, "nowhere")),
            ("a device", lambda name: link(name, "/dev/null")),
        )
    ),
]

MISTAKES_IN_MODELS = [
    Mistake(
        "student that is endless",
        "distill --teacher teacher --student-config /dev/zero",
        ("/dev/zero: this student config", "not a file"),
    ),
    Mistake("student from a pipe", DISTILL, ("config.json: this student config", "not a file"), pipe("config.json")),
    *(
        Mistake(f"{side} of {what} beyond counting", DISTILL, (f"{where}: num_labels is", "at most"), prepare)
        for side, where, file in (
            ("teacher", "teacher", "teacher/config.json"),
            ("student", "config.json", "config.json"),
        )
        for what, prepare in (
            ("labels", edit(file, num_labels=10**9)),
            ("labels within", edit(file, model_type="clip", text_config={"num_labels": 10**9})),
        )
    ),
    *(
        Mistake(
            f"{side} set to be a decoder",
            DISTILL,
            (
                f"{where}: is_decoder is true",
                f"the {side} is a causal model and not an encoder",
                "Set is_decoder to false",
            ),
            edit(file, is_decoder=True),
        )
        for side, where, file in (
            ("teacher", "teacher", "teacher/config.json"),
            ("student", "config.json", "config.json"),
        )
    ),
    Mistake(
        "teacher of a causal family",
        DISTILL,
        ("teacher: the teacher (gpt2) is a causal model and not an encoder", "such as BERT"),
        causal_teacher,
    ),
    Mistake(
        "student of a causal family",
        DISTILL,
        ("config.json: the student (gpt2) is a causal model and not an encoder", "such as BERT"),
        write("config.json", '{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4}'),
    ),
]

MISTAKES_IN_RIGHTS = [
    *(
        Mistake(f"{file} to be read by nobody", DISTILL, (f"tokens/{file}", "denied"), mode(f"tokens/{file}", 0))
        for file in ("manifest.json", "shard-00000.npy", "shard-00000.offsets.npy")
    ),
    Mistake(
        "id lists to be read by nobody",
        DISTILL + "--data ids.jsonl.gz",
        ("ids.jsonl.gz", "denied"),
        all_of(ids("[2, 5, 3]"), mode("ids.jsonl.gz", 0)),
    ),
    Mistake(
        "settings to be read by nobody",
        DISTILL + "--config run.yaml",
        ("run.yaml", "denied"),
        all_of(write("run.yaml", ""), mode("run.yaml", 0)),
    ),
    Mistake(
        "settings in a folder to be searched by nobody",
        DISTILL + "--config tokens/run.yaml",
        ("tokens/run.yaml", "denied"),
        mode("tokens", 0),
    ),
    *(
        Mistake(
            f"output {what} in a folder not to be written",
            DISTILL + f"-o {output}",
            (said, "denied"),
            mode("tokens", 0o500),
        )
        for what, output, said in (("right", "tokens/run", "tokens: "), ("deep", "tokens/a/b/run", "tokens: "))
    ),
    Mistake("current folder not to be written", DISTILL, (".: nothing can be written", "denied"), mode(".", 0o500)),
]


@pytest.mark.parametrize(
    "mistake",
    [
        *MISTAKES_IN_OPTIONS,
        *MISTAKES_IN_NUMBERS,
        *MISTAKES_IN_SETTINGS,
        *MISTAKES_IN_TOKENS,
        *MISTAKES_IN_FILES,
        *MISTAKES_IN_MODELS,
    ],
    ids=str,
)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_told_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_MIXTURES, ids=str)
def test_a_mistake_in_several_stores_is_told_and_leaves_nothing_behind(
    mistake: Mistake, minilm: Minilm, workplace: Path
) -> None:
    shutil.copytree(workplace / "tokens", workplace / "more")
    link("link", "tokens")()
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("workplace", "ordinary_user")
def test_what_may_not_be_read_or_written_is_told(mistake: Mistake, minilm: Minilm) -> None:
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
        ({"WORLD_SIZE": "0", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ("WORLD_SIZE is 0",)),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
            ("MASTER_PORT", "'99999'", "65,535", "torchrun"),
        ),
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
