"""Messages of `minilm distill` for mistakes in options, settings files, tokens and permissions."""

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
    NOT_A_FILE,
    REMOVED,
    Mistake,
    Preparation,
    all_of,
    check_mistake,
    edit,
    flip,
    folder,
    folder_with,
    in_options,
    link,
    mode,
    pipe,
    remove,
    write,
)

NAMES = "distill --teacher teacher --student-config config.json"
EPOCHS = NAMES + " --batch-size 4"
MANIFEST, SHARD, OFFSETS = "tokens/manifest.json", "tokens/shard-00000.npy", "tokens/shard-00000.offsets.npy"
DIGITS = "9" * 5000


def ids(*lines: str) -> Preparation:
    """Write `ids.jsonl.gz` with these lines."""
    return write("ids.jsonl.gz", gzip.compress("".join(f"{line}\n" for line in lines).encode()))


LONG_IDS = ids(json.dumps([5] * 300), "[2, 5, 3]")


def tokens_of_another_tokenizer() -> None:
    """Change the name and the checksum of the tokenizer in the manifest."""
    manifest = json.loads(Path(MANIFEST).read_text(encoding="utf-8"))
    manifest["tokenizer"] |= {"name": "another", "vocabulary_sha256": "0" * 64}
    Path(MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def causal_teacher() -> None:
    """Replace the teacher with a GPT-2."""
    vocabulary = json.loads(Path("teacher/config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = GPT2Config(vocab_size=vocabulary, n_embd=24, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=3)
    GPT2Model(config).save_pretrained("teacher")


MISTAKES_IN_OPTIONS = [
    Mistake("no teacher", "distill --student-config config.json", ("--teacher is missing", "teacher.name")),
    Mistake("no student", "distill --teacher teacher", ("--student-config is missing", "student.config", "--max-mb")),
    Mistake("a size too small", "distill --teacher teacher --max-params 10", ("--max-params: ", "larger", "Raise it")),
    Mistake("no size", "distill --teacher teacher --max-mb 0", ("--max-mb: ", "greater than 0")),
    Mistake("no tokens", NAMES + " --keep-vocab 0", ("--keep-vocab: ",)),
    Mistake(
        "few tokens", NAMES + " --keep-vocab 9", ("--keep-vocab: ", "9 tokens are too few", "always kept", "Keep ")
    ),
    Mistake(
        "rare tokens",
        NAMES + " --keep-vocab tokens --keep-count 1000000",
        ("--keep-count: ", "no token 1,000,000 times", "The most frequent one occurs"),
    ),
    Mistake("no such list", NAMES + " --keep-vocab toknes", ("--keep-vocab: ", "no such file", "Did you mean tokens?")),
    Mistake(
        "unknown tokens",
        NAMES + " --keep-vocab kept.txt",
        ("kept.txt: ", "'peaple' is no token of the teacher's, nor 1 others", "Did you mean 'people'?"),
        prepare=write("kept.txt", "the\npeaple\nof\n##zz\n"),
    ),
    Mistake("an empty list", NAMES + " --keep-vocab kept.txt", ("is empty",), prepare=write("kept.txt", "\n\n")),
    Mistake("no text", NAMES + " --keep-vocab kept.txt", ("not UTF-8",), prepare=write("kept.txt", b"\xff\xfe")),
    Mistake("not a size", "distill --teacher teacher --max-params 20Q", ("--max-params: ", "whole number", "20Q")),
    Mistake("option without value", "distill --teacher", ("--teacher",)),
    *in_options(
        DISTILL,
        {
            "--stepps 3": ("--stepps", "--steps"),
            "tokens": ("tokens",),
            "--steps 0": ("--steps: ", "greater than 0"),
            "--steps many": ("--steps: ", "must be a whole number"),
            "--steps 0x10": ("--steps", "must be a whole number"),
            "--steps 1e3": ("--steps", "must be a whole number"),
            "--steps ٤": ("--steps", "must be a whole number"),
            "--steps=": ("--steps", "must be a whole number"),
            f"--steps {10**30}": ("--steps: ", "less than"),
            f"--steps {DIGITS}": ("--steps", "exceeded maximum size"),
            "--epochs 2": ("--epochs: ", "either steps or epochs"),
            "--batch-size 0": ("--batch-size: ", "greater than 0"),
            f"--batch-size {10**12}": ("--batch-size: ",),
            f"--batch-size {2**64}": ("--batch-size: ", "less than"),
            "--micro-batch-tokens 0": ("--micro-batch-tokens: ", "0"),
            "--micro-batch-tokens some": ("--micro-batch-tokens: ", "auto"),
            f"--micro-batch-tokens {2**24 + 1}": ("--micro-batch-tokens: ", "equal to 16777216"),
            f"--micro-batch-tokens {10**30}": ("--micro-batch-tokens: ", "auto"),
            "--max-length 1": ("--max-length: ", "2"),
            f"--max-length {10**30}": ("--max-length: ", "less than"),
            "--lr 0": ("--lr: ", "greater than 0"),
            "--lr -0.0": ("--lr: ", "greater than 0"),
            "--lr nan": ("--lr: ",),
            "--lr inf": ("--lr: ", "finite"),
            "--lr 1e400": ("--lr: ", "finite"),
            "--lr 0,001": ("--lr", "number"),
            "--warmup-steps -1": ("--warmup-steps: ", "-1"),
            f"--warmup-steps {10**30}": ("--warmup-steps: ", "less than"),
            "--schedule step": ("--schedule: ", "linear", "cosine", "constant"),
            "--weight-decay -0.1": ("--weight-decay: ", "-0.1"),
            "--clip-norm 0": ("--clip-norm: ", "greater than 0"),
            "--precision fp16": ("--precision: ", "bf16", "fp32", "fp16"),
            "--device abacus": ("--device: ", "abacus"),
            "--device xpu": ("--device: ", "xpu"),
            "--device hpu": ("--device: ", "hpu"),
            "--device meta": ("--device: ", "meta"),
            "--device ''": ("--device: ", "''"),
            "--device cuda:99": ("--device: ", "cuda:99"),
            "--device cuda:-1": ("--device: ", "cuda:-1"),
            f"--device cuda:{'9' * 50}": ("--device: ", "is not available", "999"),
            "--seed -1": ("--seed: ", "-1"),
            f"--seed {2**64}": ("--seed: ", "less than"),
            f"--seed {DIGITS}": ("--seed", "exceeded maximum size"),
            "--eval-fraction 1": ("--eval-fraction: ", "less than 1"),
            "--eval-every 0": ("--eval-every: ", "greater than 0"),
            "--save-every 0": ("--save-every: ", "greater than 0"),
            "--keep 0": ("--keep: ", "greater than 0"),
            "--log-every 0": ("--log-every: ", "greater than 0"),
            "--report-to excel": ("--report-to: ", "tensorboard", "wandb", "excel"),
            "--report-to ''": ("--report-to: ", "tensorboard"),
            "--relations qx=1": ("--relations: ", "'qx'", "q, k and v"),
            "--relations qkv=1": ("--relations: ", "'qkv'"),
            "--relations QQ=1": ("--relations: ", "'QQ' is not a relation"),
            "--relations =1": ("--relations: ", "'' is not a relation"),
            "--relations qq=1,qq=2": ("--relations: ", "'qq'", "twice"),
            "--relations qq=1=2": ("--relations: ", "1=2"),
            "--relations qq=0": ("--relations: ", "greater than 0"),
            "--relations qq=much": ("--relations: ", "much"),
            "--relations qq=nan": ("--relations: ", "finite"),
            "--relations qq=1e400": ("--relations: ", "finite"),
            "--relations qq=1e300": ("--relations: ",),
            "--relations ''": ("--relations: ", "such as qq"),
            "--relation-heads 0": ("--relation-heads: ", "0"),
            "--relation-heads most": ("--relation-heads: ", "auto"),
            "--relation-heads 7": ("--relation-heads: ", "7 does not divide", "48", "near it: 6 and 8"),
            "--relation-heads 48000": ("--relation-heads: ", "48000", "is 24"),
            f"--relation-heads {10**30}": ("--relation-heads: ", "auto"),
            "--teacher-layer 0": ("--teacher-layer: ", "counted from 1"),
            "--teacher-layer top": ("--teacher-layer: ", "auto", "top"),
            "--teacher-layer 5": ("--teacher-layer: ", "no layer 5", "4"),
            "--teacher-layer -5": ("--teacher-layer: ", "no layer -5", "4"),
            f"--teacher-layer -{10**30}": ("--teacher-layer: ", "of 4"),
            "--teacher-layer 2,4": ("student.layer", "teacher.layer has 2", "student.layer 1", "3,6 and 6,12"),
            "--student-layer 1,2": ("--student-layer: ", "teacher.layer has 1", "student.layer 2", "3,6 and 6,12"),
            "--teacher-layer 4,2 --student-layer 1,2": ("--teacher-layer: ", "4,2 does not rise", "once", "6,12"),
            "--teacher-layer 2,4 --student-layer 2,-1": ("--student-layer: ", "2,-1 does not rise", "of 2"),
            "--teacher-layer 2,5 --student-layer 1,2": ("--teacher-layer: ", "no layer 5", "4"),
            "--teacher-layer 2,0": ("--teacher-layer: ", "counted from 1", "2,0"),
            "--student-layer 0": ("--student-layer: ", "counted from 1"),
            "--student-layer 3": ("--student-layer: ", "no layer 3", "2"),
            f"--student-layer {10**30}": ("--student-layer: ", "of 2"),
            "--keep-count 5": ("student: ", "keep_count needs keep_vocab=tokens"),
            "--max-mb 50": ("student: ", "give one of config, max_mb and max_params"),
            "--init ''": ("--init: ", "at least 1 character"),
            "--init teachr": ("--init: ", "teachr", "Did you mean teacher?"),
            "--init nobody/nothing": ("nobody/nothing", "cannot be loaded"),
            "--init tokens": ("tokens", "config.json"),
            "--dry-run --data nowhere": ("nowhere", "no such token store"),
            "-o tokens": ("tokens", "exists already", "--force"),
            "-o corpus.txt/run": ("corpus.txt",),
            f"-o {'x' * 300}": ("name too long",),
            "--force -o tokens": ("would replace tokens",),
            "--force -o teacher": ("teacher: ",),
            "--force -o .": ("a name of its own", "--output"),
        },
    ),
    *in_options(
        EPOCHS,
        {
            "--epochs 0": ("--epochs: ", "greater than 0"),
            "--epochs -1": ("--epochs: ", "-1"),
            "--epochs nan": ("--epochs: ", "finite"),
            "--epochs 1e400": ("--epochs: ", "finite"),
            "--epochs 1e30": ("--epochs: ",),
            "--set training.steps=0": ("Error: training.steps: ",),
            "--set training.steps=x": ("Error: training.steps: ",),
        },
    ),
    *in_options(
        DISTILL + "--set",
        {
            "optimizer.lr": ("--set", "KEY=VALUE", "'optimizer.lr'"),
            "...=1": ("--set", "KEY=VALUE", "'...=1'"),
            "optimizer.weight_decy=0.1": (
                "no setting optimizer.weight_decy",
                "Did you mean optimizer.weight_decay?",
            ),
            "optimizer.=1": ("no setting optimizer.", "optimizer.lr"),
            "__class__=1": ("no setting __class__", "Settings"),
            "optimizer=3": ("optimizer", "3"),
            "training.steps=5": ("--steps: given both by its own option and by --set", "once"),
            "training.seed='{a: 1}'": ("training.seed",),
            "'optimizer.lr=[1'": ("optimizer.lr", "[1"),
            "optimizer.lr=!!python/name:os.system": ("optimizer.lr", "python"),
            "optimizer.lr=2020-01-01": ("optimizer.lr", "number"),
            "optimizer.betas=[0.9,0.9,0.9]": ("optimizer.betas", "2 items"),
            "optimizer.betas=[-0.1,0.9]": ("optimizer.betas", "-0.1"),
            "optimizer.betas=[.nan,0.9]": ("optimizer.betas", "finite"),
            "optimizer.betas=[true,0.9]": ("optimizer.betas", "a number"),
            "optimizer.betas=[[0.1],0.9]": ("optimizer.betas", "number"),
            "optimizer.betas='{a: 1}'": ("optimizer.betas",),
            "optimizer.betas=null": ("optimizer.betas",),
            "teacher=null": ("--teacher is missing",),
            "teacher.layer=[a]": ("teacher.layer", "whole number"),
            "teacher.layer=[]": ("teacher.layer", "at least one"),
            "teacher.layer=true": ("teacher.layer", "True"),
            "output=3": ("output", "path"),
            "'reporting.sinks={a: b}'": ("reporting.sinks",),
            "training.device=3": ("training.device", "3"),
        },
    ),
    Mistake(
        "init from another family",
        DISTILL + "--init teacher",
        ("--init teacher", "'electra'", "'bert'", "--init random"),
        edit("config.json", model_type="electra"),
    ),
    *(
        Mistake(
            f"output in place of a file, {option or 'run'}",
            DISTILL + f"{option} --force -o notes.txt",
            ("notes.txt: this is a file, and the output is a folder", "--force does not replace it", "--output"),
            write("notes.txt", "mine"),
        )
        for option in ("", "--dry-run")
    ),
]

MISTAKES_IN_SETTINGS_FILES = [
    *in_options(
        DISTILL + "--config",
        {
            "nowhere.yaml": ("nowhere.yaml", "no such settings file"),
            "''": (".", ".yaml, .toml or .json"),
            "corpus.txt/run.yaml": ("corpus.txt/run.yaml",),
            f"{'x' * 300}.yaml": ("name too long",),
        },
    ),
    *(
        Mistake(f"settings file that is {what}", DISTILL + "--config run.yaml", ("run.yaml", *message), prepare)
        for what, message, prepare in (
            ("a pipe", (), pipe("run.yaml")),
            ("a link to itself", ("links",), link("run.yaml", "run.yaml")),
        )
    ),
    *(
        Mistake(
            f"settings file with {what}", f"{EPOCHS} --config {name}", (f"{name}: ", *message), write(name, content)
        )
        for what, name, content, message in (
            ("zero steps", "run.yaml", "training: {steps: 0}", ("Error: run.yaml: training.steps: ",)),
            ("steps and epochs", "run.yaml", "training: {steps: 5, epochs: 1}", ("training", "either steps or epochs")),
            ("zero bytes", "run.yaml", bytes(9), ()),
            ("a number as a key", "run.yaml", "3: 4\n", ()),
            ("two documents", "run.yaml", "training: {}\n---\noptimizer: {}\n", ("parsed", "document")),
            ("open brackets", "run.yaml", "training:\n  steps: [1\n", ("parsed", "line 2")),
            ("two equals signs", "run.toml", "steps = = 3\n", ("parsed", "line 1")),
            ("a number of 5000 digits", "run.toml", f"training.seed = {DIGITS}\n", ("digits",)),
            ("an open brace", "run.json", "{", ("parsed", "line 1")),
        )
    ),
]

MISTAKES_IN_TOKENS = [
    *in_options(
        DISTILL + "--data",
        {
            "nowhere": ("nowhere", "no such token store", "minilm tokenize"),
            "teacher": ("teacher", "not a token store", "manifest.json"),
            "corpus.txt": ("corpus.txt", "token store", ".jsonl.gz"),
            "''": (".: this is not a token store",),
            SHARD: ("a token store (a folder)",),
            "/dev/null": ("/dev/null: this is not a token store",),
            "'a\nb'": ("a\nb: there is no such token store",),
            "tokens:0": ("--data: ", "weight of tokens"),
        },
    ),
    *(
        Mistake(f"token store that is {what}", DISTILL + "--data odd", ("odd: ", *message), prepare)
        for what, message, prepare in (
            ("a pipe", ("this is not a token store",), pipe("odd")),
            ("a broken link", ("there is no such token store", "minilm tokenize"), link("odd", "nowhere")),
            ("a link to itself", ("there is no such token store", "minilm tokenize"), link("odd", "odd")),
        )
    ),
    Mistake("manifest not JSON", DISTILL, ("manifest.json", "JSON"), write(MANIFEST, "{")),
    Mistake(
        "manifest with an entry missing",
        DISTILL,
        ("manifest.json", "damaged", "shards", "minilm tokenize"),
        edit(MANIFEST, shards=REMOVED),
    ),
    *(
        Mistake(
            f"manifest with {key} {value!r}", DISTILL, ("manifest.json", "damaged", key), edit(MANIFEST, **{key: value})
        )
        for key, value in (
            ("max_length", 0),
            ("format_version", True),
            ("tokens", 1.5),
            ("shards", {}),
            ("tokenizer", None),
        )
    ),
    Mistake(
        "store of a later version",
        DISTILL,
        ("manifest.json", "format 99", "Upgrade minilm"),
        edit(MANIFEST, format_version=99),
    ),
    Mistake(
        "shard with a wrong byte",
        DISTILL,
        ("shard-00000.npy", "damaged", "checksum", "minilm tokenize"),
        flip(SHARD),
    ),
    Mistake("shard missing", DISTILL, ("shard-00000.npy", "missing"), remove(SHARD)),
    *(
        Mistake(f"{name} that is {what}", DISTILL, (name,), damage(name))
        for name in (SHARD, OFFSETS)
        for what, damage in NOT_A_FILE.items()
    ),
    Mistake(
        "tokens of another tokenizer",
        DISTILL,
        ("tokens", "tokenizer another", "--tokenizer"),
        tokens_of_another_tokenizer,
    ),
    Mistake(
        "sequences too long for the student",
        DISTILL,
        ("student reads at most 16", "32", "--max-length 16"),
        edit("config.json", max_position_embeddings=16),
    ),
    Mistake(
        "max length too long for the teacher",
        DISTILL + "--data ids.jsonl.gz --max-length 200",
        ("teacher reads at most 128", "200", "--max-length 128"),
        LONG_IDS,
    ),
    *(
        Mistake(f"id lists {what}", DISTILL + "--data ids.jsonl.gz", ("ids.jsonl.gz", *message), prepare)
        for what, message, prepare in (
            (
                "beyond the vocabulary",
                (", line 2", "70000", "vocabulary", "tokenizer"),
                ids("[2, 5, 3]", "[2, 70000, 3]"),
            ),
            ("cut short", ("cut short",), write("ids.jsonl.gz", gzip.compress(b"[2, 5, 6, 3]\n" * 1000)[:-20])),
            ("too long for the teacher", ("teacher reads at most 128", "300", "--max-length 128"), LONG_IDS),
            ("from a pipe", (": ", "a pipe or a device, not a file"), pipe("ids.jsonl.gz")),
            ("that are a folder", ("folder",), folder("ids.jsonl.gz")),
            (
                "that are a link to itself",
                (": the file cannot be read", "links"),
                link("ids.jsonl.gz", "ids.jsonl.gz"),
            ),
        )
    ),
]

#: The second store is `more`; `link` is a link to the first.
MIXED = DISTILL + "--data tokens:0.7 "

MISTAKES_IN_MIXTURES = [
    *in_options(
        MIXED + "--data",
        {
            "more:0": ("--data: ", "weight of more", "greater than 0"),
            "more:nan": ("--data: ", "weight of more", "finite", "nan"),
            "more:much": ("--data: more:much", "'much' is not a weight"),
            "more": ("--data: more has no weight", "for each token store, or for none"),
            "nowhere:1": ("nowhere: there is no such token store",),
            "./tokens/:1": ("tokens is given twice", "once"),
            "link:1": ("link: this token store is given twice",),
            "more:1 --force -o more": ("would replace more",),
        },
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
        "second store with an id beyond the vocabulary",
        MIXED + "--data ids.jsonl.gz:1",
        ("ids.jsonl.gz, line 2", "70000", "vocabulary"),
        ids("[2, 5, 3]", "[2, 70000, 3]"),
    ),
    Mistake(
        "second store too long for the teacher",
        MIXED + "--data ids.jsonl.gz:1",
        ("ids.jsonl.gz: the teacher reads at most 128", "300", "--max-length 128"),
        LONG_IDS,
    ),
]

MISTAKES_IN_CAUSAL_MODELS = [
    *(
        Mistake(
            f"{side} with is_decoder",
            DISTILL,
            (f"{where}: is_decoder is true", f"the {side} is a causal model", "Set is_decoder to false"),
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
        ("teacher: the teacher (gpt2) is a causal language model", "such as BERT"),
        causal_teacher,
    ),
    Mistake(
        "student of a causal family",
        DISTILL,
        ("config.json: the student (gpt2) is a causal language model", "such as BERT"),
        write("config.json", '{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4}'),
    ),
]

CHECK = ("Check the permissions", "ls -ld sub\n")

MISSING_PERMISSIONS = [
    *(Mistake(f"{name} unreadable", DISTILL, (name, "denied"), mode(name, 0)) for name in (MANIFEST, SHARD, OFFSETS)),
    *(
        Mistake(name, DISTILL + words, (*message, "denied"), prepare)
        for name, words, message, prepare in (
            (
                "id lists unreadable",
                "--data ids.jsonl.gz",
                ("ids.jsonl.gz",),
                all_of(ids("[2, 5, 3]"), mode("ids.jsonl.gz", 0)),
            ),
            (
                "settings file unreadable",
                "--config run.yaml",
                ("run.yaml",),
                all_of(write("run.yaml", ""), mode("run.yaml", 0)),
            ),
            (
                "settings file in an unsearchable folder",
                "--config tokens/run.yaml",
                ("tokens/run.yaml",),
                mode("tokens", 0),
            ),
            (
                "token store unreadable",
                "--data sub",
                ("Check the permissions", "ls -ld sub\n"),
                folder_with("sub", bits=0),
            ),
            (
                "output in an unsearchable folder",
                "-o sub/x",
                ("Check the permissions", "ls -ld sub\n"),
                folder_with("sub", bits=0),
            ),
            ("output in an unwritable folder", "-o sub/a/b/run", ("sub: ",), folder_with("sub", bits=0o500)),
            ("current folder unwritable", "", (".: nothing can be written",), mode(".", 0o500)),
        )
    ),
]


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES_IN_OPTIONS, *MISTAKES_IN_SETTINGS_FILES, *MISTAKES_IN_TOKENS, *MISTAKES_IN_CAUSAL_MODELS],
    ids=str,
)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_reported_and_changes_no_file(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_MIXTURES, ids=str)
def test_a_mistake_in_several_stores_is_reported_and_changes_no_file(
    mistake: Mistake, minilm: Minilm, workplace: Path
) -> None:
    shutil.copytree(workplace / "tokens", workplace / "more")
    link("link", "tokens")()
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISSING_PERMISSIONS, ids=str)
@pytest.mark.usefixtures("workplace", "ordinary_user")
def test_a_missing_permission_is_reported(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.usefixtures("workplace")
def test_a_missing_optional_package_is_reported_with_its_remedy(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    message = ("--report-to wandb", "pip install wandb")
    check_mistake(Mistake("no wandb", DISTILL + "--report-to wandb", message), minilm)


@pytest.mark.usefixtures("workplace")
def test_wrong_variables_of_a_launcher_are_reported(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = ("WORLD_SIZE is 2", "RANK", "MASTER_ADDR", "MASTER_PORT", "torchrun")
    check_mistake(Mistake("no rank", DISTILL, message), minilm)
