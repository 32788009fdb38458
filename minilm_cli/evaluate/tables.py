"""The rows of a labelled file: TSV, CSV or JSON lines, also compressed, read as a whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.base.jsonio import parse_json
from minilm_cli.corpus.decompress import File, find_file
from minilm_cli.corpus.lines import whole_lines
from minilm_cli.corpus.tables import COMMAS, TABS, csv_records

_DIALECTS = {".csv": COMMAS, ".tsv": TABS}

_JSON_LINES = (".jsonl", ".ndjson")

#: Suffixes of files that can be read, without those of compressions.
SUFFIXES = (*_DIALECTS, *_JSON_LINES)

FORMS = "Labelled files are .tsv, .csv or .jsonl, each also .gz, .bz2, .xz or .zst."

#: Bytes of a line of JSON.
_LONGEST = 2**28


@dataclass(frozen=True)
class Table:
    """The rows of a file."""

    name: str
    """The file, as it was given."""
    columns: tuple[str, ...]
    """Names from the header or of the keys; without a header, numbers from 1."""
    has_header: bool
    rows: list[list[str]]
    """Values in the order of the columns; a missing one is empty."""
    lines: list[int]
    """By row: the number of its (last) line in the file."""
    nested: Mapping[str, int] = field(default_factory=dict)
    """Columns that have a list or an object in JSON, and the line of the first one."""

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.name}, line {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """The values of a column; raises `MinilmError` if they are not all text or numbers."""
        if name in self.nested:
            raise MinilmError(
                f"{name!r} is a list or an object here, not a text or a number",
                where=f"{self.name}, line {self.nested[name]}",
            )
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def with_header(self) -> Table:
        """The same table, its first row taken as the header, in which a column without a name gets its number.

        Raises `MinilmError` if two columns have the same name, or if no other row follows.
        """
        header = tuple(value.strip() or number for value, number in zip(self.rows[0], self.columns, strict=True))
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise MinilmError(f"two columns are named {repeated[0]!r}", where=self.where(0))
        if len(self.rows) == 1:
            raise MinilmError("this file has no rows but the header", where=self.name)
        return Table(self.name, header, True, self.rows[1:], self.lines[1:])


def find_table(folder: Path, stems: Collection[str], *suffixes: str) -> Path | None:
    """The file of a folder with one of these stems and suffixes (by default all that can be read), if there is one.

    Raises `MinilmError` if there are several, or the folder cannot be read.
    """
    kinds = "|".join(map(re.escape, suffixes or SUFFIXES))
    pattern = re.compile(rf"({'|'.join(stems)})({kinds})(\.gz|\.bz2|\.xz|\.zst)?", re.IGNORECASE)
    try:
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []
    except OSError as error:
        raise unreadable(error, str(folder)) from None
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise MinilmError(f"{names} could both be meant", where=str(folder), hint="Keep one of them here.")
    return found[0] if found else None


def read_table(name: str) -> Table:
    """The rows of a file; a header of TSV or CSV is still the first row.

    Raises `MinilmError`, with file and line, for what cannot be read as the file's name says, and if there is no row.
    """
    if Path(name).exists() and not Path(name).is_file():
        raise MinilmError("this is not a file", where=name, hint=FORMS)
    file = find_file(name)
    if file.kind not in SUFFIXES:
        raise MinilmError("the name does not say how this file is to be read", where=name, hint=FORMS)
    file.check()
    table = _json_lines(file) if file.kind in _JSON_LINES else _separated(file)
    if not table.rows:
        raise MinilmError("this file has no rows", where=name)
    return table


def _separated(file: File) -> Table:
    dialect = _DIALECTS[file.kind]
    rows: list[list[str]] = []
    lines: list[int] = []
    for line, row, _ in csv_records(file, dialect):
        if not any(row):
            continue
        where = f"{file.name}, line {line}"
        if rows and len(row) != len(rows[0]):
            raise MinilmError(
                f"the first row has {len(rows[0])} values, and this row has {len(row)}",
                where=where,
                hint=dialect.advice,
            )
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            raise _not_utf8(where) from None
        rows.append(row)
        lines.append(line)
    columns = tuple(str(number + 1) for number in range(len(rows[0]) if rows else 0))
    return Table(file.name, columns, False, rows, lines)


def _json_lines(file: File) -> Table:
    columns: dict[str, None] = {}
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    nested: dict[str, int] = {}
    for number, found in json_objects(file):
        columns |= dict.fromkeys(found)
        for key, value in found.items():
            if isinstance(value, list | dict):
                nested.setdefault(key, number)
        objects.append(found)
        lines.append(number)
    rows = [[_as_text(found.get(column)) for column in columns] for found in objects]
    return Table(file.name, tuple(columns), True, rows, lines, nested)


def json_objects(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, with the line's number.

    Raises `MinilmError`, with file and line, for a line that is not a JSON object in UTF-8.
    """
    for number, line in text_lines(file):
        where = f"{file.name}, line {number}"
        value = parse_json(line, kind="line", where=where)
        if not isinstance(value, dict):
            raise MinilmError("this line is not a JSON object", where=where)
        yield number, value


def text_lines(file: File) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; raises `MinilmError` for one that is not UTF-8."""
    with file.open() as (stream, _):
        for number, line in enumerate(whole_lines(stream, file.name, _LONGEST), 1):
            try:
                text = line.decode().strip("\r\n")
            except UnicodeDecodeError:
                raise _not_utf8(f"{file.name}, line {number}") from None
            if text.strip():
                yield number, text


def _as_text(value: Any) -> str:
    match value:
        case None | list() | dict():
            return ""
        case bool():
            return str(value).lower()
        case str():
            # A lone surrogate is valid in JSON but not in UTF-8.
            return value.encode("utf-8", errors="replace").decode()
    return str(value)


def _not_utf8(where: str) -> MinilmError:
    return MinilmError("this line is not UTF-8", where=where, hint="Convert the file: iconv -f latin1 -t utf-8")
