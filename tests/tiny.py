"""Makes a tiny teacher, its tokenizer, text, tokens and a student's config."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

from minilm_cli.base.progress import NoProgress
from minilm_cli.settings.tokenize import TokenizeSettings

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


def save_tokenizer(folder: Path) -> None:
    """A lower-casing WordPiece tokenizer of about 200 tokens: every letter, and the most common words."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}).save_pretrained(folder)


def save_teacher(folder: Path, **overrides: Any) -> None:
    """A BERT of 4 layers, 48 wide, 4 heads, dropout 0.1, random weights, and its tokenizer; keywords override."""
    import torch
    from transformers import BertConfig, BertModel

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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Large weights: the relations of a newly initialised BERT are almost uniform.
        BertModel(BertConfig(**(values | {"initializer_range": 0.2} | overrides))).save_pretrained(folder)
    save_tokenizer(folder)


def write_corpus(path: Path) -> None:
    """A text file of 200 lines of 1 to 60 words, every tenth line blank."""
    pick = random.Random(0)
    lines = [" ".join(pick.choices(WORDS, k=pick.randint(1, 60))) + "." if n % 10 else "" for n in range(200)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_store(path: Path, *, corpus: Path, tokenizer: str) -> None:
    """A token store with at most 32 tokens a sequence, so that some lines of the tiny corpus are split."""
    from minilm_cli.corpus.tokenize import tokenize

    settings = TokenizeSettings(inputs=(str(corpus),), tokenizer=tokenizer, output=path, max_length=32, workers=1)
    tokenize(settings, NoProgress())


def write_student_config(path: Path) -> None:
    """A `config.json`: BERT, 2 layers, 24 wide, 4 heads, with the teacher's vocabulary."""
    values = {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
