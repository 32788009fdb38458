"""What all tests share: a tiny teacher, its tokenizer, text, tokens and a student's config, all made here.

The session's fixtures are for reading: a test that changes a file copies it first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from minilm_cli.metrics import NoProgress
from tests import tiny

# The same examples in every run, and no clock: a busy machine is no failure.
hypothesis_settings.register_profile("minilm", derandomize=True, deadline=None, max_examples=40)
hypothesis_settings.load_profile("minilm")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run beside each other, not each on all cores."""
    import torch

    torch.set_num_threads(1)


# A shell ignores it for what it runs in the background, and processes hand that down.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def silent() -> NoProgress:
    return NoProgress()


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with a random BERT and the tiny tokenizer; keywords override its config."""

    def make(**overrides: Any) -> Path:
        folder = tmp_path_factory.mktemp("teacher")
        tiny.save_teacher(folder, **overrides)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_teacher(make_teacher: Callable[..., Path]) -> Path:
    """A folder with a BERT of 4 layers, 48 wide, 4 heads, dropout 0.1, random weights, and its tokenizer."""
    return make_teacher()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 200 lines of 1 to 60 words, every tenth line blank."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    tiny.write_corpus(path)
    return path


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    """The token store of the tiny corpus: at most 32 tokens a sequence, so that some lines are split."""
    path = tmp_path_factory.mktemp("store") / "tokens"
    tiny.write_store(path, corpus=tiny_corpus, tokenizer=str(tiny_teacher))
    return path


@pytest.fixture(scope="session")
def tiny_student_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json`: BERT, 2 layers, 24 wide, 4 heads; its vocabulary is left to the teacher."""
    path = tmp_path_factory.mktemp("student") / "config.json"
    tiny.write_student_config(path)
    return path
