"""What all tests share: a tiny teacher, its tokenizer, text, tokens and a student's config, all made here.

The session's fixtures are for reading: a test that changes a file copies it first.
"""

from __future__ import annotations

import json
import os
import random
import signal
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from minilm_cli.metrics import NoProgress
from minilm_cli.settings import TokenizeSettings

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COMMON = (
    "the of and to in is was it that he for on as with his at be by this had not are but from or have an they which"
    " one you were her all she there would their we him been has when who will more no if out so said what up its"
    " about into than them can only other new some could time these two may then do first any my now such like our"
    " over man me even most made after also did many before must through back years where much your way well down"
    " should because each just those people how too little state good very make world still own see men work long"
)
WORDS = COMMON.split()
LETTERS = (*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase))
VOCABULARY = tuple(dict.fromkeys((*SPECIAL_TOKENS, *LETTERS, *".,;!?", *WORDS)))

# The same examples in every run, and no clock: a busy machine is no failure.
hypothesis_settings.register_profile("minilm", derandomize=True, deadline=None, max_examples=40)
hypothesis_settings.load_profile("minilm")


def save_tokenizer(folder: Path) -> None:
    """A lower-casing WordPiece tokenizer of about 200 tokens: every letter, and the commonest words."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}).save_pretrained(folder)


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

    import torch
    from transformers import BertConfig, BertModel

    def make(**overrides: Any) -> Path:
        values = {
            "vocab_size": len(VOCABULARY),
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 128,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        }
        folder = tmp_path_factory.mktemp("teacher")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            # Wide weights: the relations of a freshly initialised BERT are all but uniform.
            BertModel(BertConfig(**(values | {"initializer_range": 0.2} | overrides))).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_teacher(make_teacher: Callable[..., Path]) -> Path:
    """A folder with a BERT of 4 layers, 48 wide, 4 heads, dropout 0.1, random weights, and its tokenizer."""
    return make_teacher()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 200 lines of 1 to 60 words, every tenth line blank."""
    pick = random.Random(0)
    lines = [" ".join(pick.choices(WORDS, k=pick.randint(1, 60))) + "." if n % 10 else "" for n in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    """The token store of the tiny corpus: at most 32 tokens a sequence, so that some lines are split."""
    from minilm_cli.corpus import tokenize

    path = tmp_path_factory.mktemp("store") / "tokens"
    settings = TokenizeSettings(
        inputs=(tiny_corpus,), tokenizer=str(tiny_teacher), output=path, max_length=32, workers=1
    )
    tokenize(settings, NoProgress())
    return path


@pytest.fixture(scope="session")
def tiny_student_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json`: BERT, 2 layers, 24 wide, 4 heads; its vocabulary is left to the teacher."""
    values = {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    path = tmp_path_factory.mktemp("student") / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
