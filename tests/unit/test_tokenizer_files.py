"""A tokenizer made to fit a model of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoTokenizer, BertTokenizer

from minilm_cli.export.tokenizer_files import fit_tokenizer, write_tokenizer

from .model_configs import VOCABULARY, small

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(VOCABULARY - 5))]


def fitted(folder: Path, family: str, tokenizer: BertTokenizer | None = None, **overrides: Any) -> Any:
    """A tokenizer of BERT's kind that was fitted to a small model, written and loaded again."""
    tokenizer = tokenizer or BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)})
    fit_tokenizer(tokenizer, AutoModel.from_config(small(family, **overrides)))
    write_tokenizer(tokenizer, folder, None)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "types", "gives_types"),
    [
        ("bert", {"type_vocab_size": 2}, True),
        ("bert", {"type_vocab_size": 1}, False),  # the second text of a pair would have no embedding
        ("roberta", {"type_vocab_size": 2}, True),
        ("nomic_bert", {"type_vocab_size": 2}, True),
        ("distilbert", {}, False),
        ("modernbert", {}, False),
    ],
)
def test_token_types_are_given_to_a_model_that_has_several(
    tmp_path: Path, family: str, types: dict[str, int], gives_types: bool
) -> None:
    assert ("token_type_ids" in fitted(tmp_path, family, **types)("word1", "word2")) is gives_types


@pytest.mark.parametrize(
    ("family", "given", "limit"),
    [("bert", 10**30, 40), ("bert", 30, 30), ("roberta", 10**30, 38), ("modernbert", 10**30, 40)],
)
def test_texts_are_cut_to_what_the_model_reads(tmp_path: Path, family: str, given: int, limit: int) -> None:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)}, model_max_length=given)
    loaded = fitted(tmp_path, family, tokenizer)
    assert loaded.model_max_length == limit
    assert len(loaded("word1 " * 50, truncation=True)["input_ids"]) == limit


def test_the_models_padding_is_taken_if_the_tokenizer_has_none(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)})
    assert fitted(tmp_path, "bert", tokenizer, pad_token_id=7).pad_token == "[PAD]"
    tokenizer.pad_token = None
    assert fitted(tmp_path, "bert", tokenizer, pad_token_id=7).pad_token == "word2"


def test_what_a_tokenizer_was_used_for_is_not_written(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)})
    tokenizer(["word1 word2 word3", "word1"], truncation=True, padding="max_length", max_length=4)
    write_tokenizer(tokenizer, tmp_path, 20)
    backend = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 20
