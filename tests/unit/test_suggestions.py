from __future__ import annotations

import pytest

from minilm_cli.cli.suggestions import command_hint, option_hint

KNOWN = ["--teacher", "--lr", "--batch-size", "--eval-every", "--eval-fraction", "--dtype", "--precision"]
COMMANDS = ["tokenize", "distill", "resume", "export", "demo"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--learning-rate", "Did you mean --lr?"),
        ("--learning_rate", "Did you mean --lr?"),
        ("--Learning-Rat", "Did you mean --lr?"),
        ("--batch_size", "Did you mean --batch-size?"),
        ("--model", "Did you mean --teacher?"),
        ("--modle", "Did you mean --teacher?"),
        ("--fp16", "Did you mean --precision or --dtype?"),
        ("--eval", "Did you mean --eval-every or --eval-fraction?"),
        ("--tokenizer", "--tokenizer is an option of minilm tokenize."),
        ("--force", "--force is an option of minilm tokenize and minilm export."),
        ("--max-length", None),
        ("--zzz", None),
    ],
)
def test_option_is_suggested(name: str, meant: str | None) -> None:
    elsewhere = {"tokenize": ["--tokenizer", "--force"], "export": ["--force"]}
    assert option_hint(name, KNOWN, elsewhere) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train", "Did you mean minilm distill?"),
        ("Fit", "Did you mean minilm distill?"),
        ("tran", "Did you mean minilm distill?"),
        ("exprt", "Did you mean minilm export?"),
        ("help", "Did you mean minilm --help?"),
        ("zzz", "The commands are tokenize, distill, resume, export, demo."),
    ],
)
def test_command_is_suggested(name: str, meant: str) -> None:
    assert command_hint(name, COMMANDS) == meant
