"""Examples and addresses in the help, and suggestions for what does not exist."""

from __future__ import annotations

import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from minilm_cli.cli import app, usage
from minilm_cli.cli.suggestions import COMMAND_WORDS, OPTION_WORDS

from .conftest import Minilm

ROOT = Path(__file__).parents[2]

GROUP: Any = typer.main.get_command(app.app)
COMMANDS: dict[str, Any] = GROUP.commands


def examples(command: Any) -> list[list[str]]:
    return [shlex.split(line) for line in command.epilog.splitlines()]


def options_of(name: str) -> set[str]:
    return {word for parameter in COMMANDS[name].params for word in parameter.opts}


@pytest.mark.parametrize("columns", [80, 250])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_ends_with_an_example_and_the_page(
    name: str, columns: int, minilm: Minilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = minilm(*name.split(), "--help").out
    command = COMMANDS.get(name, GROUP)
    title = "Examples:" if command is GROUP else "Example:"
    page = f"reference/{name}/" if name else ""
    lines = [title, *(f"  {line}" for line in command.epilog.splitlines())]
    lines += ["", f"Documentation: {usage.DOCUMENTATION}{page}"]
    assert printed.splitlines()[-len(lines) :] == lines


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_exists(name: str) -> None:
    assert usage.documentation(COMMANDS[name]) == f"{usage.DOCUMENTATION}reference/{name}/"
    assert (ROOT / "docs" / "reference" / f"{name}.md").is_file()


def test_the_address_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("urls", {}).get("Documentation", usage.DOCUMENTATION) == usage.DOCUMENTATION


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_parsed(name: str) -> None:
    for program, command, *words in examples(COMMANDS[name]):
        assert (program, command) == ("minilm", name)
        COMMANDS[name].make_context(name, words)


@pytest.mark.slow
def test_the_examples_run(minilm: Minilm, workplace: Path) -> None:
    (workplace / "bert-base-uncased").symlink_to("teacher")
    shutil.rmtree(workplace / "tokens")
    corpus = workplace / "corpus.txt"
    corpus.write_text("".join(corpus.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    rows = "".join(f"{n % 2}\tthe {word}\n" for n, word in enumerate(["good", "little"] * 20))
    (workplace / "reviews.tsv").write_text(f"label\ttext\n{rows}", encoding="utf-8")
    for name in ("tokenize", "distill", "export", "evaluate"):
        (words,) = examples(COMMANDS[name])
        outcome = minilm(*words[1:])
        assert outcome.status == 0, outcome.err
    first, *_ = examples(GROUP)
    assert minilm(*first[1:], "--force", "--tokenizer", "teacher").status == 0


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("train", "no such command: train", "Did you mean minilm distill?"),
        ("preprocess corpus.txt", "no such command: preprocess", "Did you mean minilm tokenize?"),
        ("convert", "no such command: convert", "Did you mean minilm export?"),
        ("continue", "no such command: continue", "Did you mean minilm resume?"),
        ("distill --learning-rate 1e-4", "no such option: --learning-rate", "Did you mean --lr?"),
        ("distill --learning_rate=1e-4", "no such option: --learning_rate", "Did you mean --lr?"),
        ("distill --per_device_train_batch_size 8", "no such option: --per_", "Did you mean --batch-size?"),
        ("distill --tokenizer a", "no such option: --tokenizer", "--tokenizer is an option of minilm tokenize."),
        ("distill --zzz", "no such option: --zzz", "See: minilm distill --help"),
        ("resume --max-steps 3", "no such option: --max-steps", "Did you mean --steps?"),
        ("tokenize a --max-seq-length 3", "no such option: --max-seq-length", "Did you mean --max-length?"),
        ("export --output_dir a", "no such option: --output_dir", "Did you mean --output?"),
        ("--versoin", "no such option: --versoin", "Did you mean --version?"),
    ],
)
def test_what_does_not_exist_gets_a_suggestion(typed: str, message: str, hint: str, minilm: Minilm) -> None:
    outcome = minilm(*typed.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Error: {message}")
    assert outcome.err.endswith(f"\n{hint}\n")


#: What users of other tools type, and the option of `minilm distill` that it means.
FOREIGN = {
    "--model": "--teacher",
    "--teacher-model": "--teacher",
    "--student": "--student-config",
    "--dataset": "--data",
    "--num-train-epochs": "--epochs",
    "--max-steps": "--steps",
    "--per-device-train-batch-size": "--batch-size",
    "--output-dir": "--output",
    "--max-seq-length": "--max-length",
    "--warmup": "--warmup-steps",
    "--fp16": "--precision",
    "--bf16": "--precision",
    "--gradient-clip-val": "--clip-norm",
}


@pytest.mark.parametrize(("word", "meant"), FOREIGN.items())
def test_words_of_other_tools_are_known(word: str, meant: str, minilm: Minilm) -> None:
    assert minilm("distill", word, "1").err == f"Error: no such option: {word}\nDid you mean {meant}?\n"


def test_words_are_for_options_and_commands_that_exist() -> None:
    assert COMMAND_WORDS.keys() <= COMMANDS.keys()
    assert not {word for words in COMMAND_WORDS.values() for word in words.split()} & COMMANDS.keys()
    every = set().union(*map(options_of, COMMANDS))
    assert OPTION_WORDS.keys() <= every
    for flag, words in OPTION_WORDS.items():
        for name in COMMANDS:
            if flag in options_of(name):
                assert not set(words.split()) & options_of(name), (flag, name)
