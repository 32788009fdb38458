"""The tokenizer's files of an export."""

from __future__ import annotations

import inspect
from pathlib import Path

from minilm_cli.export.source import Source
from minilm_cli.models.hub import load_tokenizer, quiet


def write_tokenizer(source: Source, folder: Path, *, sets_longest: bool = False) -> None:
    """Write the tokenizer; without token types if the model has none.

    sets_longest: make every program that reads the files cut texts to `source.longest` tokens, and pad a batch to its
    longest text, whatever the tokenizer was last used for.
    """
    tokenizer = load_tokenizer(str(source.folder))
    if "token_type_ids" in tokenizer.model_input_names and not takes_token_types(source):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    if sets_longest:
        tokenizer.init_kwargs.pop("max_length", None)  # fastembed takes it for the limit
        if source.longest is not None:
            tokenizer.model_max_length = source.longest
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
    with quiet():
        tokenizer.save_pretrained(folder)


def takes_token_types(source: Source) -> bool:
    """Whether the tokenizer gives, and the model uses, token types, which tell the two texts of a pair apart."""
    if "token_type_ids" not in source.tokenizer.model_input_names:
        return False
    has_types = (getattr(source.model.config, "type_vocab_size", None) or 0) > 1
    return has_types and "token_type_ids" in inspect.signature(source.model.forward).parameters
