"""What a student's configuration takes from its teacher, because both read the same tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.models.families import family_of
from minilm_cli.models.size import weightless
from minilm_cli.models.vocabulary import SPECIAL_IDS


def inherited_entries(teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """The entries of a student that must fit the teacher's tokens; `None` for a special token that the teacher lacks.

    The default of the student's family would be the id of another token.
    """
    entries: dict[str, Any] = {name: _special_id(name, teacher, tokenizer) for name in SPECIAL_IDS}
    others = {
        "vocab_size": teacher.vocab_size,
        "max_position_embeddings": tokens_read(teacher),
        # A family without token types may say that it has 0 of them.
        "type_vocab_size": getattr(teacher, "type_vocab_size", None) or None,
    }
    return entries | {name: value for name, value in others.items() if value is not None}


def tokens_read(teacher: PreTrainedConfig) -> int | None:
    """The most tokens that the teacher reads by its table of positions, or by its configuration if it has none."""
    model = weightless(teacher)
    longest = None if model is None else family_of(teacher).longest_input(model)
    return getattr(teacher, "max_position_embeddings", None) if longest is None else longest


def read_as_many(tokens: int, config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """Make a student's table of positions, if it has one, long enough for so many tokens.

    RoBERTa and its relatives count from behind the padding id. model: of `config`, without weights.
    """
    longest = family_of(config).longest_input(model)
    if longest is not None:
        config.max_position_embeddings += tokens - longest


def _special_id(name: str, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The id of a special token by the teacher's tokenizer, else by its configuration; `None` if neither names one.

    The configuration may only have its family's default, so the id it names must be a special token of the tokenizer.
    """
    found = getattr(teacher, name, None)
    if tokenizer is not None:
        named = getattr(tokenizer, name)
        if named is not None or found not in {*tokenizer.all_special_ids} - {tokenizer.pad_token_id}:
            found = named
    # Several tokens, or one that the model has no embedding for, are not taken over.
    return found if isinstance(found, int) and 0 <= found < teacher.vocab_size else None
