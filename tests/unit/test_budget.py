from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.budget import student_within
from minilm_cli.models.size import count_parameters
from minilm_cli.models.student import random_model
from minilm_cli.models.student_config import student_config

from .model_configs import small


@pytest.fixture
def tokenizer(tiny_teacher: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_teacher)
    return found


def teacher(tokenizer: PreTrainedTokenizerBase, **entries: Any) -> PreTrainedConfig:
    """12 layers, 384 wide."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
    return small("bert", **sizes | {"vocab_size": len(tokenizer), "pad_token_id": 0} | entries)


def within(parameters: int, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, **tokens: int) -> Any:
    """With all of the teacher's tokens, unless it is said otherwise."""
    everything = {"fewest_tokens": config.vocab_size, "most_tokens": config.vocab_size}
    return student_within(parameters, "student.max_params", config, tokenizer, **everything | tokens)


def size(name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    return count_parameters(random_model(student_config(name, config, tokenizer)))


@pytest.mark.parametrize(
    ("fits", "next_larger"),
    [("l6-h192", "l6-h240"), ("l6-h96", "l6-h144"), ("l4-h96", "l6-h96"), ("l2-h96", "l3-h96")],
)
def test_the_widest_student_that_fits_is_chosen(
    fits: str, next_larger: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = teacher(tokenizer)
    exactly, too_many = (size(name, config, tokenizer) for name in (fits, next_larger))
    for parameters in (exactly, too_many - 1):
        assert within(parameters, config, tokenizer) == (fits, config.vocab_size)


def test_a_large_budget_gives_half_of_the_layers(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert within(10**9, teacher(tokenizer), tokenizer) == ("l6-h384", len(tokenizer))
    tokens = f"{len(tokenizer)} of its {len(tokenizer)} tokens"
    assert f"6 of the teacher's 12 layers and {tokens}, as wide as fits" in caplog.text


def test_what_is_left_is_for_more_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    config = teacher(tokenizer, vocab_size=1000)
    whole = size("l6-h192", config, tokenizer)
    assert within(whole, config, tokenizer, fewest_tokens=300) == ("l6-h192", 1000)
    assert within(whole - 1, config, tokenizer, fewest_tokens=300) == ("l6-h192", 999)
    assert within(whole - 700 * 192, config, tokenizer, fewest_tokens=300) == ("l6-h192", 300)
    name, tokens = within(whole - 700 * 192 - 1, config, tokenizer, fewest_tokens=300)
    assert name == "l6-h144"
    assert tokens > 300
    assert within(whole, config, tokenizer, fewest_tokens=300, most_tokens=400) == ("l6-h192", 400)


def test_students_of_the_size_that_was_chosen_keep_within_it(tokenizer: PreTrainedTokenizerBase) -> None:
    config = teacher(tokenizer, vocab_size=5000)
    for parameters in (500_000, 1_500_000, 4_000_000, 9_000_000):
        name, tokens = within(parameters, config, tokenizer, fewest_tokens=200)
        chosen = student_config(name, config, tokenizer)
        chosen.vocab_size = tokens
        assert parameters - chosen.hidden_size < count_parameters(random_model(chosen)) <= parameters or tokens == 5000


def test_widths_follow_the_teachers(tokenizer: PreTrainedTokenizerBase) -> None:
    config = teacher(tokenizer, hidden_size=256, num_attention_heads=4, num_hidden_layers=1)
    parameters = size("l1-h192", config, tokenizer)
    assert within(parameters, config, tokenizer) == ("l1-h192", config.vocab_size)


def test_a_budget_that_nothing_fits_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    config = teacher(tokenizer)
    smallest = size("l2-h96", config, tokenizer)
    with pytest.raises(MinilmError, match=rf"student\.max_params: even l2-h96 is larger: {smallest:,} parameters"):
        within(smallest - 1, config, tokenizer)
