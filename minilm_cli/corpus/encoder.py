"""Decode lines, find their text, and turn it into token ids. Needs tokenizers and numpy, not torch."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import parse_json
from minilm_cli.base.packages import missing_package
from minilm_cli.corpus.lines import LONGEST_CHARACTER, Place, parts
from minilm_cli.corpus.packing import SpecialTokens, Units
from minilm_cli.corpus.sources import Batch

#: Bytes of text that are tokenised at once: meanwhile a tokenizer needs about a hundred times that in memory.
_AT_ONCE = 2**20

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Recipe:
    """How a line becomes token ids; plain values, because worker processes get it."""

    tokenizer: str
    """The tokenizer as JSON, without padding and truncation."""
    dtype: str
    """numpy's name of the type of the ids."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8."""
    sentences: str | None = None
    """Language of the sentences, each of which is a sample; `None`: a line is a sample."""
    documents: bool = False
    """A row or JSON object is a document, whose lines (or sentences) are samples."""


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """The tokens that this tokenizer puts before and after a text; raises `MinilmError` if it does anything else."""
    wrong: MinilmError | None = None
    for text in ("a", "1", "的"):
        try:
            with _encoding(repr(text)):
                plain, full = tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.encode(text).ids
        except MinilmError as error:
            wrong = wrong or error
            continue
        for begin in range(len(full) - len(plain) + 1):
            end = begin + len(plain)
            if plain and full[begin:end] == plain:
                return SpecialTokens(tuple(full[:begin]), tuple(full[end:]))
        wrong = MinilmError("this tokenizer does not put its special tokens before and after the text")
    assert wrong is not None
    raise wrong


@contextmanager
def _encoding(where: str) -> Iterator[None]:
    """Report a text that cannot be encoded, for which the tokenizers library raises a plain `Exception`."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise MinilmError(
            f"the tokenizer cannot encode this text: {error}",
            where=where,
            hint="The tokenizer may lack an unknown token. Choose another with --tokenizer.",
        ) from None


class Encoder:
    """Turns lines into token ids, without special tokens."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = Tokenizer.from_str(recipe.tokenizer)
        self._split = sentence_splitter(recipe.sentences) if recipe.sentences else None

    def __call__(self, batch: Batch) -> Units:
        """The ids of each line, or of each sentence; raises `MinilmError` with the line that is wrong."""
        documents = self._recipe.documents and batch.is_records
        texts: list[str] = []
        begins: list[int] = []  # index of each unit's first text
        replaced = 0
        for index, line in enumerate(batch.lines):
            text, more_replaced = self._decoded(line, batch, index)
            replaced += more_replaced
            if batch.field is not None and text.strip():
                text = _field(text, batch.field, batch.unit, batch.where(index))
            for unit in self._document(text) if documents else self._units(text, batch):
                begins.append(len(texts))
                texts.extend(_short(unit))
        try:
            with _encoding(batch.where(0)):
                ids, lengths = self._encode(texts)
        except MinilmError:
            if len(batch.lines) > 1:  # one at a time, to find the line
                for index, line in enumerate(batch.lines):
                    self(replace(batch, place=Place(number=batch.place.number + index), lines=[line]))
            raise
        if len(begins) != len(texts):
            lengths = np.add.reduceat(lengths, begins)
        ends = len(batch.lines) if documents else 0
        return Units(ids, lengths, batch.continues and self._split is None, replaced, ends)

    def _units(self, text: str, batch: Batch) -> list[str]:
        """The line or its sentences; a blank line is one empty text, so that it is counted."""
        is_part = batch.continues or batch.place.skipped > 0
        if self._split is not None:
            return self._split(text) or ([] if is_part else [""])
        return [text if is_part or text.strip() else ""]  # some tokenizers have tokens for white space

    def _document(self, text: str) -> list[str]:
        """The lines or sentences of a row that is a document, and the empty text that ends it."""
        lines = self._split(text) if self._split is not None else text.replace("\r\n", "\n").split("\n")
        return [*([line for line in lines if line.strip()] or [""]), ""]

    def _decoded(self, line: bytes, batch: Batch, index: int) -> tuple[str, int]:
        """The text of a line, and how many characters replace bytes that are not UTF-8."""
        try:
            return line.decode(), 0
        except UnicodeDecodeError as error:
            if self._recipe.errors == "strict":
                raise _not_utf8(error, batch, index) from None
        text = line.decode(errors="replace")
        return text, text.count(_REPLACEMENT) - line.count(_REPLACEMENT.encode())

    def _encode(self, texts: list[str]) -> tuple[Any, Any]:
        """The ids of all texts, one after the other, and the number of tokens of each."""
        ids = [np.zeros(0, dtype=self._recipe.dtype)]
        lengths = [np.zeros(0, dtype=np.int64)]
        for some in _in_portions(texts):
            found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(some, add_special_tokens=False)]
            lengths.append(np.fromiter(map(len, found), dtype=np.int64, count=len(found)))
            flat = itertools.chain.from_iterable(found)
            ids.append(np.fromiter(flat, dtype=self._recipe.dtype, count=int(lengths[-1].sum())))
        return np.concatenate(ids), np.concatenate(lengths)


def _not_utf8(error: UnicodeDecodeError, batch: Batch, index: int) -> MinilmError:
    place = 1 + error.start + (0 if index else batch.place.skipped)
    return MinilmError(
        f"byte {place} of the {batch.unit}, 0x{error.object[error.start]:02x}, is not UTF-8",
        where=batch.where(index),
        hint="Convert the file (iconv -f latin1 -t utf-8), or replace such bytes with --errors replace.",
    )


def _short(text: str) -> list[str]:
    """The text in parts of at most `_AT_ONCE` bytes; nearly always a single one."""
    if len(text) * LONGEST_CHARACTER <= _AT_ONCE:
        return [text]
    return [part.decode() for part in parts(text.encode(), _AT_ONCE)]


def _in_portions(texts: list[str]) -> Iterator[list[str]]:
    """As many texts at a time as take `_AT_ONCE` bytes, at least one."""
    begin = size = 0
    for end, text in enumerate(texts):
        more = len(text) if text.isascii() else len(text.encode())
        if size + more > _AT_ONCE and end > begin:
            yield texts[begin:end]
            begin, size = end, 0
        size += more
    yield texts[begin:]


def _field(line: str, field: str, unit: str, where: str) -> str:
    """The text in a JSON object; null is an empty text, as in tables."""
    value = parse_json(line, kind=unit, where=where)
    if not isinstance(value, dict):
        raise MinilmError(
            f"this {unit} is not a JSON object, so it has no field {field!r}",
            where=where,
            hint="A file that is one list of objects must be named .json." if isinstance(value, list) else None,
        )
    if field not in value:
        raise MinilmError(
            f"this {unit} has no field {field!r}; its fields are {reprlib.repr(list(value))}",
            where=where,
            hint="Name the field that has the text with --text-field.",
        )
    text = value[field] if value[field] is not None else ""
    if not isinstance(text, str):
        raise MinilmError(f"the field {field!r} is not text, but {reprlib.repr(text)}", where=where)
    # A lone surrogate is valid in JSON but not in UTF-8.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def sentence_splitter(language: str) -> Callable[[str], list[str]]:
    """A function from a text to its sentences; raises `MinilmError` if the package sentencex is not installed."""
    try:
        segment = import_module("sentencex").segment
    except ImportError:
        raise missing_package("sentences", "--split-sentences") from None
    return lambda text: [sentence for found in segment(language, text) if (sentence := found.strip())]
