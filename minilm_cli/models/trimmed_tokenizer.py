"""A tokenizer with fewer tokens, which gives the same tokens on text that needs no others.

The tokenizer's own description, `tokenizer.json`, is edited. WordPiece takes the longest token that fits, and Unigram
the most probable split: both still find the tokens that they chose before. With BPE, the merges that make a token are
kept with it.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.hub import load_tokenizer, quiet

Description = dict[str, Any]
"""What `tokenizer.json` holds."""

_KINDS = ("WordPiece", "BPE", "Unigram")

#: A byte that a text is split into where nothing else fits.
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def describe(tokenizer: PreTrainedTokenizerBase) -> Description:
    """The description of a tokenizer; of one that has none, a model without a kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found: Description = {"model": {"type": None}} if backend is None else json.loads(backend.to_str())
    return found


def can_trim(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `trim` knows this kind of tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.model).__name__ in _KINDS


def trim(
    tokenizer: PreTrainedTokenizerBase, preferred: Iterable[int], limit: int | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens that it cannot do without, and the preferred ones, numbered anew in their order.

    Never left out: special and added tokens, single characters, bytes, and in BPE what a kept token is merged of.
    preferred: ids. limit: most tokens in all; the first of those preferred are taken then.
    Raises `MinilmError` for a tokenizer that is neither WordPiece nor BPE nor Unigram, and a limit that is too low.
    """
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder, quiet():
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        description = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"model": {"type": None}}
        model = TokenModel(description, type(tokenizer).__name__)
        _trim(description, model, model.choose(preferred, limit))
        file.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder)


class TokenModel:
    """The part of a tokenizer that splits words into tokens."""

    def __init__(self, description: Description, name: str = "") -> None:
        """description: of a whole tokenizer, of the class `name`; raises `MinilmError` for an unknown kind of model."""
        self.values = description["model"]
        self.kind: str = self.values["type"]
        if self.kind not in _KINDS:
            raise MinilmError(
                f"student.keep_vocab: a tokenizer of the kind {self.kind or name} cannot be trimmed",
                hint="Leave it out: the student then has the teacher's vocabulary.",
            )
        self.prefix: str = self.values.get("continuing_subword_prefix") or ""
        """Of the tokens that continue a word."""
        self._suffix: str = self.values.get("end_of_word_suffix") or ""
        found = self.values["vocab"]
        own = {token: number for number, (token, _) in enumerate(found)} if self.kind == "Unigram" else found
        self.own: Mapping[str, int] = own
        """The ids of its own tokens."""
        self.added = {entry["content"]: entry["id"] for entry in description["added_tokens"]}
        """The ids of special tokens and of those that were added, which may be among its own."""
        self._always = {*self.added, *_named(description["post_processor"])}
        self._ranks = {(left, right): rank for rank, (left, right, _) in enumerate(self.merges())}
        least = min(found, key=lambda entry: entry[1])[0] if self.kind == "Unigram" else None
        # By a fixed factor, Unigram takes the unknown token for less probable than the least probable one.
        self._needed = {self.values.get("unk_token"), least}

    def choose(self, preferred: Iterable[int], limit: int | None) -> list[str]:
        """The tokens to keep, in the order of their ids; raises `MinilmError` if more than `limit` are needed."""
        kept = {*self._always}
        for token in filter(self._is_needed, self.own):
            kept |= self._with_parts(token)
        if limit is not None and limit < len(kept):
            raise MinilmError(
                f"student.keep_vocab: {limit:,} tokens are too few: {len(kept):,} are always kept (special tokens,"
                " single characters, bytes)",
                hint=f"Keep {len(kept):,} or more.",
            )
        tokens = {number: token for token, number in self.own.items()}
        for token in (tokens[number] for number in preferred if number in tokens):
            if len(kept) == limit:
                break
            more = self._with_parts(token) - kept
            if limit is None or len(kept) + len(more) <= limit:
                kept |= more
        # Those that are only added follow the model's own.
        return sorted(kept, key=lambda token: (token not in self.own, self.own.get(token, self.added.get(token))))

    def splitter(self, trimmed: PreTrainedTokenizerBase) -> Callable[[str], Sequence[str]]:
        """A function that splits a token of this model into those that a trimmed tokenizer has, if it can."""
        backend, kept = trimmed.backend_tokenizer.model, trimmed.get_vocab()
        if self.kind == "BPE":
            ranks = {pair: rank for pair, rank in self._ranks.items() if {*pair, self._joined(*pair)} <= kept.keys()}
            return lambda token: self._merged(token, ranks)[-1]
        if self.kind == "Unigram":
            return lambda token: [part.value for part in backend.tokenize(token)]
        # WordPiece would take a token for the begin of a word, so those that continue one get a model of their own.
        unknown = self.values["unk_token"]
        inside = {token.removeprefix(self.prefix) for token in trimmed.get_vocab() if token.startswith(self.prefix)}
        continuing = WordPiece(
            {token: number for number, token in enumerate([unknown, *sorted(inside)])},
            unk_token=unknown,
            continuing_subword_prefix="",
        )

        def split(token: str) -> Sequence[str]:
            if not token.startswith(self.prefix):
                return [part.value for part in backend.tokenize(token)]
            return [self.prefix + part.value for part in continuing.tokenize(token.removeprefix(self.prefix))]

        return split

    def _is_needed(self, token: str) -> bool:
        """Whether a token is a single character, a byte, or one that splitting depends on."""
        rest = token.removeprefix(self.prefix).removeprefix("▁").removesuffix(self._suffix)
        unknown = self.own[token] == self.values.get("unk_id")
        return len(rest) <= 1 or unknown or _BYTE.fullmatch(token) is not None or token in self._needed

    def merges(self) -> Iterator[tuple[str, str, str]]:
        """Of each merge of BPE the two tokens, and the token that they become."""
        for merge in self.values.get("merges", ()):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            yield left, right, self._joined(left, right)

    def _joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.prefix)

    def _with_parts(self, token: str) -> set[str]:
        """A token and all that BPE merges on its way to it; no other model needs any."""
        states = self._merged(token, self._ranks) if self.kind == "BPE" else []
        # One that no merges lead to is never given to a text.
        reached = bool(states) and states[-1] == [token]
        return {token, *(part for state in states for part in state)} if reached else {token}

    def _merged(self, token: str, ranks: Mapping[tuple[str, str], int]) -> list[list[str]]:
        """The parts of a token from its characters to what merges of these ranks leave, after each merge."""
        whole = token.removeprefix(self.prefix)
        inside = [*whole.removesuffix(self._suffix)]
        if self._suffix and whole.endswith(self._suffix):
            inside[-1:] = [f"{inside[-1]}{self._suffix}"] if inside else [self._suffix]
        parts = [f"{self.prefix}{part}" if number or token != whole else part for number, part in enumerate(inside)]
        states = [parts]
        while found := [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]:
            _, place = min(found)
            parts = [*parts[:place], self._joined(*parts[place : place + 2]), *parts[place + 2 :]]
            states.append(parts)
        return states


def _named(processor: Description | None) -> set[str]:
    """The tokens that are put around a text."""
    if processor is None:
        return set()
    found = {processor[name][0] for name in ("cls", "sep") if name in processor}
    if isinstance(special := processor.get("special_tokens"), dict):
        found |= {token for entry in special.values() for token in entry["tokens"]}
    return found.union(*map(_named, processor.get("processors", ())))


def _trim(description: Description, model: TokenModel, tokens: Sequence[str]) -> None:
    """Leave these tokens in a description."""
    new = {token: number for number, token in enumerate(tokens)}
    values = description["model"]
    if model.kind == "Unigram":
        if (unknown := values.get("unk_id")) is not None:
            values["unk_id"] = new[values["vocab"][unknown][0]]
        values["vocab"] = [[token, score] for token, score in values["vocab"] if token in new]
    else:
        values["vocab"] = {token: new[token] for token in tokens if token in model.own}
    if model.kind == "BPE":
        merges = zip(values["merges"], model.merges(), strict=True)
        values["merges"] = [merge for merge, parts in merges if {*parts} <= new.keys()]
    for entry in description["added_tokens"]:
        entry["id"] = new[entry["content"]]
    _renumber(description["post_processor"], new)
    description["padding"] = description["truncation"] = None  # what was set for the last call


def _renumber(processor: Description | None, new: Mapping[str, int]) -> None:
    """Give the special tokens that are put around a text their new ids."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new)
    for name in ("cls", "sep"):
        if name in processor:
            processor[name] = [processor[name][0], new[processor[name][0]]]
    if isinstance(special := processor.get("special_tokens"), dict):
        for entry in special.values():
            entry["ids"] = [new[token] for token in entry["tokens"]]
