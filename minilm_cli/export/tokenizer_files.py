"""The teacher's tokenizer, made to fit a student of any family."""

from __future__ import annotations

import inspect
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.models.families import family_of
from minilm_cli.models.hub import quiet


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Change a tokenizer so that a model reads all its outputs.

    Token types are left out if the model does not have several. Texts are cut to what the model reads. The padding
    token is the model's if the tokenizer has none.
    """
    if "token_type_ids" in tokenizer.model_input_names and not _has_token_types(model):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    # A model without a table of positions can read longer texts, but was not made for them.
    longest = family_of(model.config).longest_input(model) or getattr(model.config, "max_position_embeddings", None)
    if longest is not None:
        tokenizer.model_max_length = min(longest, tokenizer.model_max_length)
    padding = model.config.pad_token_id
    if tokenizer.pad_token is None and padding is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, longest: int | None) -> None:
    """Write a tokenizer so that every program cuts texts to `longest` tokens, and pads a batch to its longest text.

    Settings that remain from its last use are removed.
    """
    tokenizer.init_kwargs.pop("max_length", None)  # fastembed takes it for the limit
    if longest is not None:
        tokenizer.model_max_length = longest
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    with quiet():
        tokenizer.save_pretrained(folder)


def _has_token_types(model: PreTrainedModel) -> bool:
    """Whether the model tells the two texts of a pair apart by token types."""
    several = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return several and "token_type_ids" in inspect.signature(model.forward).parameters
