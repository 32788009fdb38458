"""Lines to token ids, in worker processes. tokenizers and numpy, no torch.

Batches of lines go to the workers, which decode and tokenise them and give back arrays. Ignores where lines come from
and what becomes of the ids.
"""

from __future__ import annotations

import itertools
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeVar

import numpy as np
from tokenizers import Tokenizer

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import parse_json
from minilm_cli.corpus.lines import LONGEST_CHARACTER, Place, parts
from minilm_cli.corpus.packing import SpecialTokens, Units
from minilm_cli.corpus.sources import Lines
from minilm_cli.corpus.tokenizer_pool import workers

#: Bytes of text that are tokenised at once: while it is at work, a tokenizer takes a hundred times that in memory.
_AT_ONCE = 2**20

#: Fields that are named where the wanted one is missing.
_NAMES_SHOWN = 8

#: What stands for bytes that are not UTF-8.
_REPLACEMENT = "\ufffd"

#: The environment variable by which the tokenizers library is told whether to use threads.
_THREADS = "TOKENIZERS_PARALLELISM"


Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Recipe:
    """How a line becomes token ids; plain values, for it goes to the workers."""

    tokenizer: str
    """The tokenizer, as `Tokenizer.to_str` writes it, without padding and truncation."""
    dtype: str
    """numpy's name of the type of the ids."""
    errors: Literal["strict", "replace"] = "strict"
    """What becomes of bytes that are not UTF-8."""
    sentences: str | None = None
    """The language whose sentences are samples, each; none: a line is a sample."""


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """What this tokenizer puts before and behind a text; raises `MinilmError` if it does anything else."""
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
        wrong = MinilmError("this tokenizer does not put its special tokens before and behind the text")
    assert wrong is not None
    raise wrong


@contextmanager
def _encoding(where: str) -> Iterator[None]:
    """Tell of a text that has no ids, for which the tokenizers library raises a plain `Exception`."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise MinilmError(
            f"the tokenizer cannot encode this text: {error}",
            where=where,
            hint="Has it no token for what is unknown? Name one that has with --tokenizer.",
        ) from None


class Encoder:
    """Turns lines into token ids, without special tokens."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = Tokenizer.from_str(recipe.tokenizer)
        self._split = _sentence_splitter(recipe.sentences) if recipe.sentences else None

    def __call__(self, lines: Lines) -> Units:
        """The ids of each line, or of each sentence; raises `MinilmError` naming the line that has none."""
        is_part = lines.goes_on or lines.place.skipped > 0
        texts: list[str] = []
        begins: list[int] = []  # where each unit's texts begin
        replaced = 0
        for index, line in enumerate(lines.lines):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                if self._recipe.errors == "strict":
                    raise _not_utf8(error, lines, index) from None
                text = line.decode(errors="replace")
                replaced += text.count(_REPLACEMENT) - line.count(_REPLACEMENT.encode())
            if lines.field is not None and text.strip():
                text = _field(text, lines.field, lines.where(index))
            if self._split is not None:
                units = self._split(text) or ([] if is_part else [""])
            else:  # for some tokenizers white space is made of tokens
                units = [text if is_part or text.strip() else ""]
            for unit in units:
                begins.append(len(texts))
                texts.extend(_short(unit))
        try:
            with _encoding(lines.where(0)):
                ids, lengths = self._encode(texts)
        except MinilmError:
            if len(lines.lines) > 1:  # one after the other, to tell which it is
                for index, line in enumerate(lines.lines):
                    self(replace(lines, place=Place(number=lines.place.number + index), lines=[line]))
            raise
        if len(begins) != len(texts):
            lengths = np.add.reduceat(lengths, begins)
        return Units(ids, lengths, lines.goes_on and self._split is None, replaced)

    def _encode(self, texts: list[str]) -> tuple[Any, Any]:
        """The ids of all texts, one after the other, and how many each has."""
        ids = [np.zeros(0, dtype=self._recipe.dtype)]
        lengths = [np.zeros(0, dtype=np.int64)]
        for some in _in_portions(texts):
            found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(some, add_special_tokens=False)]
            lengths.append(np.fromiter(map(len, found), dtype=np.int64, count=len(found)))
            flat = itertools.chain.from_iterable(found)
            ids.append(np.fromiter(flat, dtype=self._recipe.dtype, count=int(lengths[-1].sum())))
        return np.concatenate(ids), np.concatenate(lengths)


def _not_utf8(error: UnicodeDecodeError, lines: Lines, index: int) -> MinilmError:
    place = 1 + error.start + (0 if index else lines.place.skipped)
    return MinilmError(
        f"byte {place} of the {lines.unit}, 0x{error.object[error.start]:02x}, is not UTF-8",
        where=lines.where(index),
        hint="Convert the file (iconv -f latin1 -t utf-8), or replace such bytes with --errors replace.",
    )


def _short(text: str) -> list[str]:
    """The text in parts that a tokenizer has memory for: nearly always itself."""
    if len(text) * LONGEST_CHARACTER <= _AT_ONCE:
        return [text]
    return [part.decode() for part in parts(text.encode(), _AT_ONCE)]


def _in_portions(texts: list[str]) -> Iterator[list[str]]:
    """As many at a time as a tokenizer has memory for, at least one."""
    begin = size = 0
    for end, text in enumerate(texts):
        more = len(text) if text.isascii() else len(text.encode())
        if size + more > _AT_ONCE and end > begin:
            yield texts[begin:end]
            begin, size = end, 0
        size += more
    yield texts[begin:]


def _field(line: str, field: str, where: str) -> str:
    """The text in a JSON object; none is what is null, as it is in tables."""
    value = parse_json(line, kind="line", where=where)
    if not isinstance(value, dict):
        raise MinilmError(f"this line is no JSON object, so it has no field {field!r}", where=where)
    if field not in value:
        raise MinilmError(
            f"this line has no field {field!r}; it has {_names(value)}",
            where=where,
            hint="Name the field that holds the text with --text-field.",
        )
    text = value[field] if value[field] is not None else ""
    if not isinstance(text, str):
        raise MinilmError(f"the field {field!r} holds no text, but {reprlib.repr(text)}", where=where)
    # A lone surrogate is valid in JSON and in no UTF-8.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _names(value: dict[str, Any]) -> str:
    shown = [reprlib.repr(name) for name in itertools.islice(value, _NAMES_SHOWN)]
    return ", ".join(shown) + (", …" if len(value) > len(shown) else "") or "none"


def _sentence_splitter(language: str) -> Callable[[str], list[str]]:
    try:
        segment = import_module("sentencex").segment
    except ImportError:
        raise MinilmError(
            "--split-sentences needs the package sentencex", hint="pip install 'minilm-cli[sentences]'"
        ) from None
    return lambda text: [sentence for found in segment(language, text) if (sentence := found.strip())]


# --- Workers -----------------------------------------------------------------------------------------------------
Encode = Callable[[Iterable[tuple[Tag, Lines]]], Iterator[tuple[Tag, Units]]]


@contextmanager
def encoders(recipe: Recipe, count: int) -> Iterator[Encode[Any]]:
    """A function that turns batches of lines into ids, in order, in that many processes; in this one if it is one."""
    if recipe.sentences:
        _sentence_splitter(recipe.sentences)  # its package is missed here, and not in each worker
    with _one_thread():  # one process a core
        if count <= 1:
            encoder = Encoder(recipe)
            yield lambda batches: ((tag, encoder(lines)) for tag, lines in batches)
        else:
            with workers(partial(Encoder, recipe), count) as encode:
                yield encode


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
