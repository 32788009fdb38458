"""Which columns of a labelled file have the texts and the labels: as given, else by their names, else by content."""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minilm_cli.base.errors import MinilmError
from minilm_cli.evaluate.labels import PAIR_KINDS, number
from minilm_cli.evaluate.tables import Table
from minilm_cli.settings.evaluate import LabelledData

#: Usual names, in lower case and without punctuation. The same for both texts of a pair, with 1 and 2 or a and b.
_TEXTS = (
    *("text", "sentence", "review", "content", "comment", "message", "sms", "tweet", "body", "document", "passage"),
    *("utterance", "query", "question", "premise", "description", "headline", "word"),
)
_PAIRS = (
    *((f"{stem}{first}", f"{stem}{second}") for stem in (*_TEXTS, "s") for first, second in ("12", "ab")),
    *(("premise", "hypothesis"), ("question", "sentence"), ("question", "answer"), ("1string", "2string")),
    *(("query", "passage"), ("query", "document"), ("question", "passage"), ("anchor", "positive")),
)
_LABELS = (
    *("label", "labels", "goldlabel", "class", "category", "target", "topic", "intent", "emotion", "sentiment"),
    *("stars", "rating", "isduplicate", "quality", "score", "similarity", "similarityscore", "relatedness"),
    *("relatednessscore", "grade"),
)

_A_PAIR = 2

#: A letter of Thai, Lao, Burmese, Japanese or Chinese.
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u9fff]")

#: A column with fewer different values than one in so many rows may have classes.
_ROWS_OF_A_CLASS = 4


@dataclass(frozen=True)
class Columns:
    """Names of columns of a table."""

    text: str
    pair: str | None
    label: str

    @property
    def all(self) -> list[str]:
        """The names in this order."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]


def find_header(table: Table, data: LabelledData) -> Table:
    """The table with its header, if its first row is one."""
    if table.has_header:
        return table
    given = [name for name in (data.text, data.pair, data.label) if name is not None and not name.isdecimal()]
    return table.with_header() if given or _has_header(table) else table


def find_columns(table: Table, data: LabelledData) -> Columns:
    """The columns of texts and labels.

    Raises `MinilmError` if a given column does not exist, if the columns do not fit the given kind, and if there is no
    or more than one choice.
    """
    if len(table.columns) == 1:
        raise MinilmError(
            "this file has a single column, but texts and labels are needed",
            where=table.name,
            hint="The columns may be separated by another character: .csv means commas, .tsv tabs.",
        )
    text, pair, label = (_given(table, name) for name in (data.text, data.pair, data.label))
    is_pair = data.kind in PAIR_KINDS if data.kind else None
    if pair and is_pair is False:
        raise MinilmError(f"--text-pair does not fit --kind {data.kind}", where=table.name, hint=_listed(table))
    if text is None and is_pair is not False:
        text, pair = _named_pair(table, {label}, pair)
    label = label or _named(table, _LABELS, {text, pair}, "label", "--label")
    text = text or _named(table, _TEXTS, {pair, label}, "text", "--text")

    free = [name for name in table.columns if name not in {text, pair, label} and name not in table.nested]
    texts = [name for name in free if _has_words(table.column(name))]
    if label is None:
        label = _single(table, _with_labels(table, free, texts), "label", "--label")
        free = [name for name in free if name != label]
    if text is None:
        texts = texts if len(free) > 1 else free
        # Headers with unusual names do not tell a pair from, say, a title and a text.
        takes_pair = is_pair or (is_pair is None and not table.has_header)
        if pair is None and takes_pair and len(texts) == _A_PAIR:
            text, pair = texts
        else:
            option = "--text" if is_pair is False else "--text, and the second text of a pair with --text-pair"
            text = _single(table, texts, "text", option)
    if is_pair and pair is None and (others := [name for name in texts if name != text]):
        pair = _single(table, others, "second text of a pair", "--text-pair")
    return _checked(Columns(text, pair, label), table, data)


def _checked(found: Columns, table: Table, data: LabelledData) -> Columns:
    if len(set(found.all)) < len(found.all):
        raise MinilmError("--text, --text-pair and --label must name different columns", where=table.name)
    if data.kind in PAIR_KINDS and found.pair is None:
        raise MinilmError(
            f"--kind {data.kind} needs two texts, but only one column has text",
            where=table.name,
            hint=f"Give another --kind, or name the second text with --text-pair. {_listed(table)}",
        )
    return found


def _has_header(table: Table) -> bool:
    """Whether the first row is a header: a usual name, or a value unlike all others of its column."""
    known = {*_TEXTS, *_LABELS, *itertools.chain.from_iterable(_PAIRS)}
    for name in table.columns:
        first, *others = table.column(name)
        if first in others:
            continue
        all_numbers = all(number(value) is not None for value in others)
        if _plain(first) in known or (all_numbers and number(first) is None):
            return True
        if not all_numbers and _are_few(others):
            return True
    return False


def _given(table: Table, name: str | None) -> str | None:
    """The column of this name, or of this number from 1."""
    if name is None or name in table.columns:
        return name
    if name.isdecimal() and 1 <= int(name) <= len(table.columns):
        return table.columns[int(name) - 1]
    raise MinilmError(f"there is no column {name!r}", where=table.name, hint=_listed(table))


def _named_pair(table: Table, taken: Collection[str | None], pair: str | None) -> tuple[str | None, str | None]:
    """The columns of a pair with usual names; nothing but the given `pair` if there are none."""
    names = {_plain(name): name for name in table.columns if name not in taken}
    for first, second in _PAIRS:
        if first in names and second in names and pair in (None, names[second]):
            return names[first], names[second]
    return None, pair


def _named(table: Table, usual: Collection[str], taken: Collection[str | None], what: str, option: str) -> str | None:
    """The column with a usual name, if there is one; the plainest name comes first."""
    found = [name for name in table.columns if name not in taken and _plain(name) in usual]
    plainest = [name for name in found if _plain(name) == what]
    return _single(table, plainest or found, what, option) if found else None


def _single(table: Table, found: Sequence[str], what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    message = (
        f"several columns could be the {what}: {', '.join(found)}" if found else f"no column looks like the {what}"
    )
    raise MinilmError(message, where=table.name, hint=f"Name it with {option}. {_listed(table)}")


def _listed(table: Table) -> str:
    first = table.rows[0] if table.rows else [""] * len(table.columns)
    shown = [f"{name} ({reprlib.repr(value)})" for name, value in zip(table.columns, first, strict=True)]
    return f"The columns, with their first values: {', '.join(shown)}."


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _has_words(values: Sequence[str]) -> bool:
    """Whether at least half of the values have several words, or a script that has no spaces, and most differ."""
    texts = sum(" " in value.strip() or _NO_SPACES.search(value) is not None for value in values)
    return 2 * texts >= len(values) and not _are_few(values)


def _with_labels(table: Table, columns: Sequence[str], texts: Collection[str]) -> list[str]:
    """The columns that may have classes or scores; one with a single value only if there is no other."""
    others = [name for name in columns if name not in texts] if len(columns) > 1 else columns
    found = [name for name in others if len(others) == 1 or _may_be_labels(table.column(name))]
    return [name for name in found if len(set(table.column(name))) > 1] or found


def _may_be_labels(values: Sequence[str]) -> bool:
    if "" in values:
        return False
    numbers = [number(value) for value in values]
    if None in numbers:
        return _are_few(values)
    # Whole numbers that all differ number the rows.
    return len(set(numbers)) < len(numbers) or any(value % 1 for value in numbers if value is not None)


def _are_few(values: Sequence[str]) -> bool:
    return _ROWS_OF_A_CLASS * len(set(values)) <= len(values)
