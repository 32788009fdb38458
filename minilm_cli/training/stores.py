"""The token stores of a run: opened, converted from token-id lists if need be, and checked against the teacher."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minilm_cli.base.atomic import restore
from minilm_cli.base.errors import MinilmError
from minilm_cli.models.tap import Tap
from minilm_cli.runs.plan import changed
from minilm_cli.tokens.id_lists import convert_token_lists, converted_store, is_id_lists
from minilm_cli.tokens.store import TokenizerInfo, TokenStore

logger = logging.getLogger(__name__)

#: Tokens of a store that take more than a moment to read.
_LARGE = 2**30


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a run must fit."""

    tokenizer: TokenizerInfo
    """The teacher's."""
    embeddings: int
    """Token ids that the teacher has embeddings for."""


def open_stores(paths: Sequence[Path], converted: Path, vocabulary: Vocabulary) -> dict[Path, TokenStore]:
    """The token store at each path, each once.

    converted: where the store is, or is put, that is made from a file of token-id lists, the first of several. Raises
    `MinilmError` if one is damaged or of another vocabulary.
    """
    real = [os.path.realpath(path) for path in paths]
    for number, path in enumerate(paths):
        if real[number] in real[:number]:
            raise MinilmError("this token store is given twice", where=str(path), hint="Give each token store once.")
    return {
        path: _open(path, converted_store(converted, number), vocabulary) for number, path in enumerate(paths, start=1)
    }


def verify_stores(stores: Mapping[Path, TokenStore]) -> None:
    """Compare the checksums of all shards, which reads them; raises `MinilmError` for a damaged one."""
    for path, store in stores.items():
        if store.manifest.tokens > _LARGE:
            logger.info("Comparing the checksums of %s.", path)
        store.verify()


def refuse_missing(paths: Sequence[Path]) -> None:
    """Raise `MinilmError` if a token store that a run began with is missing (id lists were converted then)."""
    for path in paths:
        restore(path)
        if not is_id_lists(path) and not path.exists():
            raise changed("this token store, used when the run began, is missing", path)


def choose_max_length(wanted: int | None, stores: Mapping[Path, TokenStore], taps: Mapping[str, Tap]) -> int:
    """Tokens of the longest sequence that will be seen, which all models, by side, must be able to read."""
    path, longest = max(((path, store.manifest.longest) for path, store in stores.items()), key=lambda found: found[1])
    max_length = min(wanted or longest, longest)
    for side, tap in taps.items():
        limit = tap.family.longest_input(tap.model)
        if limit is not None and max_length > limit:
            raise MinilmError(
                f"the {side} reads at most {limit} tokens, but the data has sequences of {max_length}",
                where=str(path),
                hint=f"Cut them with --max-length {limit}.",
            )
    return max_length


def _open(path: Path, converted: Path, vocabulary: Vocabulary) -> TokenStore:
    restore(path)
    if is_id_lists(path):
        if not converted.exists():
            logger.info("Converting %s to a token store.", path)
            special = vocabulary.tokenizer.special_ids
            convert_token_lists(
                path, converted, TokenizerInfo(vocabulary_size=vocabulary.embeddings, special_ids=special)
            )
        path = converted
    elif path.is_file():
        raise MinilmError("a token store (a folder) or a .jsonl.gz of token-id lists is expected", where=str(path))
    store = TokenStore(path)
    made_with = store.manifest.tokenizer
    if made_with.vocabulary_sha256 not in (None, vocabulary.tokenizer.vocabulary_sha256):
        raise MinilmError(
            f"these tokens were made with the tokenizer {made_with.name}, whose vocabulary is not the teacher's",
            where=str(path),
            hint="Tokenise again with --tokenizer set to the teacher.",
        )
    if made_with.vocabulary_size > vocabulary.embeddings:
        raise MinilmError(
            f"the tokens' vocabulary has {made_with.vocabulary_size} ids, but the teacher has embeddings for"
            f" {vocabulary.embeddings}",
            where=str(path),
        )
    return store
