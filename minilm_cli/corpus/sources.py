"""From the names of inputs to batches of samples, as bytes: text, JSON and tables.

Inputs are read in a stream, in bounded memory, and can be read again from the place of any batch. Whether samples are
UTF-8 or JSON is for the encoder to check.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.corpus.decompress import STANDARD_INPUT, find_file, standard_input
from minilm_cli.corpus.json_records import json_records
from minilm_cli.corpus.lines import BEGINNING, Place, runs
from minilm_cli.corpus.tables import COMMAS, HUB, TABS, Rows, csv_rows, hub_rows, parquet_rows

#: Bytes of a line of text that are handed over at once; a longer line comes in parts.
LONGEST_PART = 2**20

#: Bytes of a line of JSON, which cannot be cut.
LONGEST_JSON = 2**28

#: Bytes after which a batch is handed over, however few samples it has.
_BATCH_BYTES = 2**22

#: Default name of the text column of a table, and of the text field of a JSON object.
_FIELD = "text"

_JSON_LINES = frozenset({".jsonl", ".ndjson"})

_TABLES = {".csv": COMMAS, ".tsv": TABS}

#: Kinds of files that could be mistaken for text.
_NOT_READ = frozenset({".7z", ".arrow", ".npy", ".npz", ".rar", ".tar", ".tgz", ".zip"})

_Opened = Callable[[], AbstractContextManager[tuple[BufferedIOBase, Callable[[], int] | None]]]


@dataclass(frozen=True)
class Batch:
    """Successive samples of one input."""

    source: str
    """The input's name, for messages."""
    place: Place
    """Of the first sample."""
    lines: list[bytes]
    """Without their ends; perhaps not UTF-8. A row of a table may contain line ends."""
    bytes_read: int
    """Of the input, as it is on disk, so far; 0 of a Hub data set."""
    continues: bool = False
    """This is a part of one line, alone, and the next batch is the next part of it."""
    field: str | None = None
    """The lines are JSON objects, and this field has the text."""
    unit: str = "line"
    """What a sample is: "line", "row" or "record"."""

    @property
    def is_records(self) -> bool:
        """Whether the samples are rows or JSON objects, not lines of text."""
        return self.unit != "line" or self.field is not None

    def where(self, index: int) -> str:
        """The input and number of the sample at `index`, for messages."""
        return f"{self.source}, {self.unit} {self.place.number + index}"


@dataclass(frozen=True)
class Source:
    """One input. Each call of `batches` reads it again, except standard input."""

    name: str
    """For messages."""
    size: int | None
    """Bytes on disk; `None` if unknown."""
    identity: dict[str, str | int] | None
    """Plain values that change when the content does; `None` if it cannot be read twice."""
    field: str | None
    """The field or column that has the text; `None` for plain text."""
    read: Callable[[int, Place], Iterator[Batch]]

    def batches(self, count: int, start: Place = BEGINNING) -> Iterator[Batch]:
        """The samples from `start` on, `count` at a time, or as many as take some 4 MiB.

        Raises `MinilmError`, with the line or row, for what is damaged or not what the input's name says.
        """
        return self.read(count, start)


def find_sources(inputs: Sequence[str], text_field: str | None) -> list[Source]:
    """The inputs in order: files, patterns of files, `-` for standard input, `hf://datasets/NAME:SPLIT`.

    text_field: the column or field of the text in JSON, CSV, TSV, Parquet and Hub data sets. If it is `None`, it is
    "text", and standard input is plain text. Raises `MinilmError` for whatever is wrong and can be seen before reading.
    """
    field = text_field or _FIELD
    sources: list[Source] = []
    for given in inputs:
        if given == "-":
            if inputs.count(given) > 1:
                raise MinilmError("standard input can be read only once", where=given)
            sources.append(_standard_input_source(text_field))
        elif given.startswith(HUB):
            identity, rows = hub_rows(given, field)
            sources.append(_table(given, None, identity, field, rows))
        else:
            sources.extend(_file_source(name, field) for name in _expanded(given))
    if text_field and all(source.field is None for source in sources):
        raise MinilmError(
            "--text-field: none of the inputs has fields",
            where=inputs[0],
            hint="JSON (.jsonl, .json), CSV, TSV, Parquet and data sets of the Hub have fields.",
        )
    return sources


def _standard_input_source(field: str | None) -> Source:
    file = standard_input()
    read = partial(_read_lines, lambda: nullcontext((file, None)), STANDARD_INPUT, field)
    return Source(STANDARD_INPUT, None, None, field, read)


def _expanded(given: str) -> list[str]:
    """The names of the files that a name or pattern stands for."""
    try:
        if not glob.has_magic(given) or Path(given).exists():
            return [given]
        found = glob.glob(given, recursive=True)  # noqa: PTH207  # Path's finds hidden files too
        files = sorted(name for name in found if not Path(name).is_dir())
    except OSError as error:
        raise unreadable(error, given) from None
    if not files:
        raise MinilmError("no file matches this pattern", where=given)
    return files


def _file_source(name: str, field: str) -> Source:
    """The file, read as its name says."""
    file = find_file(name)
    if file.kind in _NOT_READ or (file.kind == ".parquet" and file.compression):
        raise MinilmError(
            f"{file.kind}{file.compression} files are not supported",
            where=name,
            hint="Give text, JSON (.jsonl, .json), CSV or TSV, plain or as .gz, .bz2, .xz or .zst, or Parquet.",
        )
    if file.kind == ".parquet":
        return _table(file.name, file.size, file.identity, field, parquet_rows(file, field))
    file.check()
    if file.kind in _TABLES:
        return _table(file.name, file.size, file.identity, field, csv_rows(file, field, _TABLES[file.kind]))
    if file.kind == ".json":
        read = partial(_read_rows, json_records(file), file.name, json_field=field)
        return Source(file.name, file.size, file.identity, field, read)
    json_field = field if file.kind in _JSON_LINES else None
    return Source(
        file.name, file.size, file.identity, json_field, partial(_read_lines, file.open, file.name, json_field)
    )


def _read_lines(opened: _Opened, name: str, field: str | None, count: int, start: Place) -> Iterator[Batch]:
    """Lines of text, long ones in parts; or JSON lines, if there is a `field`."""
    longest = LONGEST_JSON if field else LONGEST_PART
    with opened() as (file, bytes_read):
        for run in runs(file, name, start, count=count, most=_BATCH_BYTES, longest=longest, cut=field is None):
            so_far = bytes_read() if bytes_read is not None else run.end
            yield Batch(name, run.place, run.lines, so_far, run.continues, field)


def _table(name: str, size: int | None, identity: dict[str, str | int], field: str, rows: Rows) -> Source:
    return Source(name, size, identity, field, partial(_read_rows, rows, name))


def _read_rows(rows: Rows, name: str, count: int, start: Place, *, json_field: str | None = None) -> Iterator[Batch]:
    """Rows of text; or JSON objects, if there is a `json_field`."""
    unit = "row" if json_field is None else "record"
    at = start.at
    texts: list[bytes] = []
    size = bytes_read = 0
    for text, bytes_read in rows(at):
        texts.append(text)
        size += len(text)
        if len(texts) == count or size >= _BATCH_BYTES:
            yield Batch(name, Place(at, at + 1), texts, bytes_read, field=json_field, unit=unit)
            at += len(texts)
            texts, size = [], 0
    if texts:
        yield Batch(name, Place(at, at + 1), texts, bytes_read, field=json_field, unit=unit)
