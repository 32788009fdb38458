from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import BertConfig, BertTokenizer

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.student_config import student_config
from minilm_cli.models.vocabulary import first_difference, refuse_other_tokens

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


def tokenizer(tokens: list[str]) -> BertTokenizer:
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


@pytest.mark.parametrize(
    ("tokens", "difference"),
    [
        (TOKENS, None),
        ([*TOKENS[:5], "b", "a"], (5, "a", "b")),
        (TOKENS[:6], (6, "b", None)),
        ([*TOKENS, "c"], (7, None, "c")),
    ],
)
def test_the_first_token_that_differs_is_found(tokens: list[str], difference: tuple[int, str, str] | None) -> None:
    assert first_difference(tokenizer(TOKENS), tokenizer(tokens)) == difference


def test_a_student_with_another_vocabulary_of_the_same_size_is_refused_by_its_first_token(tmp_path: Path) -> None:
    teacher, config = tokenizer(TOKENS), BertConfig(vocab_size=7, hidden_size=24, num_attention_heads=4)
    tokenizer([*TOKENS[:5], "b", "a"]).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(MinilmError, match="token 5 is 'b', and 'a' in the teacher's") as caught:
            student_config(str(source), config, teacher)
        assert caught.value.where == str(tmp_path)
        assert "copy its config.json to a folder without tokenizer files" in (caught.value.hint or "")
    teacher.save_pretrained(tmp_path)
    assert student_config(str(tmp_path), config, teacher).vocab_size == 7


def test_tokens_are_compared_before_the_sizes_of_the_vocabularies(tmp_path: Path) -> None:
    tokenizer(["<s>", *TOKENS]).save_pretrained(tmp_path)
    BertConfig(vocab_size=8, hidden_size=24, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(MinilmError, match=r"token 0 is '<s>', and '\[PAD\]' in the teacher's"):
        student_config(str(tmp_path), BertConfig(vocab_size=7), tokenizer(TOKENS))


def test_a_missing_token_is_said_to_be_missing(tmp_path: Path) -> None:
    tokenizer(TOKENS[:6]).save_pretrained(tmp_path)
    with pytest.raises(MinilmError, match="token 6 is missing, and 'b' in the teacher's"):
        refuse_other_tokens(tokenizer(TOKENS), tmp_path)


@pytest.mark.parametrize("with_config", [True, False])
def test_a_tokenizer_that_cannot_be_loaded_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, with_config: bool
) -> None:
    if with_config:
        BertConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with caplog.at_level(logging.WARNING, logger="minilm_cli"):
        refuse_other_tokens(tokenizer(TOKENS), tmp_path)
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}: its tokenizer is not compared with the teacher's: ")


def test_a_folder_without_a_tokenizer_has_nothing_to_compare(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BertConfig().save_pretrained(tmp_path)
    refuse_other_tokens(tokenizer(TOKENS), tmp_path)
    assert caplog.messages == []
