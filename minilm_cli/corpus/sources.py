"""From the names of inputs to batches of samples, as bytes: text, JSON lines and tables.

Everything is read in a stream, in bounded memory, and can be gone on with from the place of any batch. Ignores what
becomes of the samples: neither their encoding is checked here nor the JSON that some are.
"""

from __future__ import annotations

import glob
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus.decompress import STANDARD_INPUT, File, StandardInput, find_file, standard_input, unreadable
from minilm_cli.corpus.lines import BEGINNING, Batches, Place, Splitter
from minilm_cli.corpus.tables import HUB, Csv, HubDataset, Parquet, Table

#: Bytes of text handed over at a time; a longer line comes in parts.
PIECE = 2**20

#: Bytes of a line of JSON, which cannot be cut.
JSON_LONGEST = 2**28

#: Bytes after which samples are handed over, however few they are.
_BATCH_BYTES = 2**22

#: What a table's column of text is called, and a JSON line's field, unless another is named.
_FIELD = "text"

#: What has a JSON object on each line.
_JSON_LINES = frozenset({".jsonl", ".ndjson"})

#: What would be taken for text, and is none.
_NOT_READ = frozenset({".7z", ".arrow", ".json", ".npy", ".npz", ".rar", ".tar", ".tgz", ".tsv", ".zip"})


@dataclass(frozen=True)
class Lines:
    """Successive samples of one input."""

    source: str
    """The input's name, for messages."""
    place: Place
    """Of the first of them."""
    lines: list[bytes]
    """Without their ends; whether they are UTF-8 is not known yet. A row of a table may hold line ends."""
    behind: int
    """Bytes of the input, as it lies on disk, that are read so far; 0 of a Hub data set."""
    goes_on: bool = False
    """This is a part of one line, alone, and another follows."""
    field: str | None = None
    """The lines are JSON objects, and this field holds the text."""
    unit: str = "line"
    """What a sample is: "line" or "row"."""

    def where(self, index: int) -> str:
        """Where sample `index` of these came from, for messages."""
        return f"{self.source}, {self.unit} {self.place.number + index}"


class Source(ABC):
    """One input. Each call of `batches` reads it anew, except standard input."""

    def __init__(self, origin: File | StandardInput | Table, field: str | None) -> None:
        self.field = field
        """The field or column that holds the text; None if all of it is."""
        self.name = origin.name
        """For messages."""
        self.size = origin.size
        """Bytes on disk; None if that is not known."""
        self.identity: dict[str, str | int] | None = origin.identity
        """Plain values that change when the content does; None for what cannot be gone back to."""

    @abstractmethod
    def batches(self, count: int, start: Place = BEGINNING) -> Iterator[Lines]:
        """The samples from `start` on, `count` at a time, or as many as make up some 4 MiB.

        Raises `MinilmError` for what is damaged or is not what its name says, with the line or row.
        """


def find_sources(inputs: Sequence[str], text_field: str | None) -> list[Source]:
    """The inputs in order: files, patterns of files, `-` for standard input, `hf://datasets/NAME:SPLIT`.

    text_field: the column or field of the text in JSON lines, CSV, Parquet and Hub data sets; None if none was named:
    then it is "text", and standard input is plain text. Raises `MinilmError` for whatever is wrong and can be known
    before all is read.
    """
    if inputs.count(STANDARD_INPUT) > 1:
        raise MinilmError("standard input can be read only once", where=STANDARD_INPUT)
    field = text_field or _FIELD
    sources: list[Source] = []
    for given in inputs:
        if given == STANDARD_INPUT:
            found = standard_input()
            sources.append(_LineSource(found, text_field))
        elif given.startswith(HUB):
            sources.append(_Rows(HubDataset(given, field)))
        else:
            sources.extend(_file_source(name, field) for name in _expanded(given))
    if text_field and all(source.field is None for source in sources):
        raise MinilmError(
            "--text-field: none of the inputs has fields",
            where=inputs[0],
            hint="JSON lines have them (.jsonl), and so have CSV, Parquet and data sets of the Hub.",
        )
    return sources


def json_lines(path: Path, longest: int) -> Source:
    """The lines of a file, whatever its name says but for its compression; raises `MinilmError` as `find_sources`.

    longest: bytes of a line; for a longer one `batches` raises `MinilmError`, without reading it to its end.
    """
    file = find_file(str(path))
    file.check()
    return _LineSource(file, longest=longest)


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
    """The file as its name says it is to be read; raises `MinilmError` if it cannot be, or is known to be no text."""
    file = find_file(name)
    if file.kind in _NOT_READ or (file.kind == ".parquet" and file.compression):
        raise MinilmError(
            f"{file.kind}{file.compression} files are not read",
            where=name,
            hint="Text, JSON lines (.jsonl) and CSV are, plain or as .gz, .bz2, .xz and .zst, and Parquet.",
        )
    if file.kind == ".parquet":
        return _Rows(Parquet(file, field))
    file.check()
    if file.kind == ".csv":
        return _Rows(Csv(file, field))
    return _LineSource(file, field if file.kind in _JSON_LINES else None)


class _LineSource(Source):
    """Text, whose long lines come in parts; or what is whole in each line, of `longest` bytes at most."""

    def __init__(self, file: File | StandardInput, field: str | None = None, *, longest: int | None = None) -> None:
        super().__init__(file, field)
        self._file = file
        self._longest = longest or (JSON_LONGEST if field else None)

    def batches(self, count: int, start: Place = BEGINNING) -> Iterator[Lines]:
        longest = self._longest or PIECE
        with self._file.open(start.at, longest) as stream:
            splitter = Splitter(self.name, stream.blocks, start, longest, cut=self._longest is None)
            for place, run in Batches(splitter, count, _BATCH_BYTES):
                yield Lines(self.name, place, run.lines, stream.behind, run.goes_on, self.field)


class _Rows(Source):
    """The texts of a table."""

    def __init__(self, table: Table) -> None:
        super().__init__(table, table.field)
        self._table = table

    def batches(self, count: int, start: Place = BEGINNING) -> Iterator[Lines]:
        at = start.at
        batch: list[bytes] = []
        size = behind = 0
        for text, behind in self._table.rows(at):
            batch.append(text)
            size += len(text)
            if len(batch) == count or size >= _BATCH_BYTES:
                yield Lines(self.name, Place(at, at + 1), batch, behind, unit="row")
                at += len(batch)
                batch, size = [], 0
        if batch:
            yield Lines(self.name, Place(at, at + 1), batch, behind, unit="row")
