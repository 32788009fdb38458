"""The rows of one column of text: of CSV, Parquet and data sets of the Hub, in a stream.

Ignores what the texts hold, and whether they are UTF-8.
"""

from __future__ import annotations

import csv
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.corpus.decompress import File
from minilm_cli.corpus.lines import BEGINNING, Splitter
from minilm_cli.models.hub import reason

#: What the name of a data set of the Hub begins with.
HUB = "hf://"


_HUB_NAMES = "A data set of the Hub is named hf://datasets/NAME:SPLIT or hf://datasets/NAME:CONFIG/SPLIT."

#: Bytes of a line of CSV, and of a text in it.
_LONGEST = 2**28

#: Bytes of a column of Parquet that are read at a time.
_BUFFER = 2**20

#: Rows of it that are read at a time: as many as take that, but at least and at most so many. More than a few hundred
#: gain nothing, and in a column where few texts come again and again each may be far longer than its share on disk.
_FEWEST_ROWS, _MOST_ROWS = 16, 256

#: The types of a column of text, as pyarrow writes them; one of categories has values of such a type.
_TEXT_TYPES = ("string", "large_string", "string_view")


class Table(ABC):
    """Where texts are in rows. Each call of `rows` reads them anew."""

    def __init__(self, name: str, size: int | None, identity: dict[str, str | int], field: str) -> None:
        self.field = field
        """The column that holds the text."""
        self.name = name
        """For messages."""
        self.size = size
        """Bytes on disk; None if that is not known."""
        self.identity = identity
        """Plain values that change when the content does."""

    @abstractmethod
    def rows(self, at: int) -> Iterator[tuple[bytes, int]]:
        """The text of each row after the first `at`, and the bytes on disk that are read by then.

        Raises `MinilmError` with the row or line for what is damaged or no such table.
        """


class Csv(Table):
    """A file of CSV with a header."""

    def __init__(self, file: File, field: str) -> None:
        """Raises `MinilmError` if the header or the first row shows that this cannot be read."""
        super().__init__(file.name, file.size, file.identity, field)
        self._file = file
        next(self.rows(0), None)

    def rows(self, at: int) -> Iterator[tuple[bytes, int]]:
        """As of any table."""
        with self._file.open(0, _LONGEST) as stream:
            csv.field_size_limit(_LONGEST)
            splitter = Splitter(self.name, stream.blocks, BEGINNING, _LONGEST, cut=False)
            # Strict, or a quotation mark that is missing makes one text of all that follows.
            reader = csv.reader(_text_lines(splitter), strict=True)
            try:
                header = next(reader, [self.field])
                if self.field not in header:
                    raise _no_column(self.name, self.field, header)
                for row in itertools.islice(reader, at, None):
                    # A blank line is an empty row.
                    if row and len(row) != len(header):
                        raise MinilmError(
                            f"the header has {len(header)} values, and this row {len(row)}",
                            where=f"{self.name}, line {reader.line_num}",
                            hint="Values stand between commas; a text that has commas is put in quotation marks.",
                        )
                    text = row[header.index(self.field)] if row else ""
                    yield text.encode("utf-8", "surrogateescape"), stream.behind
            except csv.Error as error:
                where = f"{self.name}, line {reader.line_num}"
                if str(error).startswith("new-line character"):  # what follows is advice to programmers
                    raise MinilmError(
                        "this is not CSV: a carriage return stands outside quotation marks",
                        where=where,
                        hint="Do lines end in carriage returns alone? Convert the file: tr '\\r' '\\n'",
                    ) from None
                raise MinilmError(f"this is not CSV: {error}", where=where) from None


def _text_lines(splitter: Splitter) -> Iterator[str]:
    """The lines with their ends; what is not UTF-8 is kept as it is, to be told by those who decode the texts."""
    for run in splitter:
        for line in run.lines:
            yield line.decode("utf-8", "surrogateescape") + "\n"


class Parquet(Table):
    """A Parquet file with a column of text."""

    def __init__(self, file: File, field: str) -> None:
        """Raises `MinilmError` if this is not Parquet, or has no such column of text."""
        super().__init__(file.name, file.size, file.identity, field)
        self._file = file
        with self._opened() as (pa, parquet):
            schema = parquet.schema_arrow
            if field not in schema.names:
                raise _no_column(self.name, field, schema.names)
            found = schema.field(schema.names.index(field)).type
            if str(found.value_type if pa.types.is_dictionary(found) else found) not in _TEXT_TYPES:
                raise MinilmError(f"the column {field!r} holds no text, but {found}", where=self.name)

    def rows(self, at: int) -> Iterator[tuple[bytes, int]]:
        """As of any table."""
        with self._opened() as (pa, parquet):
            total = parquet.metadata.num_rows
            group, skipped = 0, at
            while group < parquet.num_row_groups and skipped >= (rows := parquet.metadata.row_group(group).num_rows):
                group, skipped = group + 1, skipped - rows
            groups = list(range(group, parquet.num_row_groups))
            for batch in parquet.iter_batches(self._at_once(parquet.metadata), row_groups=groups, columns=[self.field]):
                # By its name: a field of a struct may have the same path. As bytes: those who decode the texts tell
                # what is not UTF-8.
                texts = batch.column(batch.schema.names.index(self.field)).cast(pa.large_binary())[skipped:].to_pylist()
                skipped = max(skipped - len(batch), 0)
                for text in texts:
                    at += 1
                    yield text or b"", self._file.size * at // total

    def _at_once(self, metadata: Any) -> int:
        """Rows that are read at a time: few large ones, for memory, or many small ones, for each batch takes time."""
        columns = [n for n in range(metadata.num_columns) if metadata.schema.column(n).path == self.field]
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        size = sum(group.column(n).total_uncompressed_size for group in groups for n in columns)
        return int(min(max(_BUFFER * metadata.num_rows // max(size, 1), _FEWEST_ROWS), _MOST_ROWS))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The package and the open file."""
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise MinilmError(
                "reading Parquet needs the package pyarrow", where=self.name, hint="pip install 'minilm-cli[datasets]'"
            ) from None
        try:
            # With a buffer, a column is read in a stream, and not at once.
            with parquet.ParquetFile(self.name, buffer_size=_BUFFER) as file:
                yield pa, file
        except (pa.ArrowException, ValueError, OSError) as error:  # the name of a column may be no UTF-8
            raise MinilmError(f"the file is damaged, or no Parquet: {reason(error)}", where=self.name) from None


class HubDataset(Table):
    """A split of a data set of the Hub, or of a folder that `datasets` reads likewise."""

    def __init__(self, name: str, field: str) -> None:
        """Raises `MinilmError` if there is no such data set, split or column, or the Hub is not in reach."""
        path, config, split = _hub_name(name)
        try:
            import datasets
        except ImportError:
            raise MinilmError(
                "reading from the Hub needs the package datasets",
                where=name,
                hint="pip install 'minilm-cli[datasets]'",
            ) from None
        datasets.disable_progress_bars()
        try:
            builder = datasets.load_dataset_builder(path, config)
            self._dataset = builder.as_streaming_dataset(split=split)
            columns = self._dataset.column_names
        except Exception as error:  # nothing of ours runs inside, and what may be raised is anything
            raise MinilmError(
                f"the data set cannot be loaded: {reason(error)}",
                where=name,
                hint=f"Is the name right, and the Hub in reach? (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME)\n{_HUB_NAMES}",
            ) from error
        # The hash of a data set of the Hub is its revision.
        super().__init__(name, None, {"name": name, "revision": str(builder.hash)}, field)
        if columns is not None:  # else they are not known before reading
            if field not in columns:
                raise _no_column(name, field, columns)
            self._dataset = self._dataset.select_columns([field])

    def rows(self, at: int) -> Iterator[tuple[bytes, int]]:
        """As of any table."""
        for number, row in enumerate(self._read(at), at + 1):
            if self.field not in row:
                raise _no_column(self.name, self.field, row)
            text = row[self.field]
            if not isinstance(text, str | None):
                raise MinilmError(
                    f"the column {self.field!r} holds no text here, but {type(text).__name__}",
                    where=f"{self.name}, row {number}",
                )
            # A lone surrogate is valid in JSON and in no UTF-8.
            yield (text or "").encode("utf-8", errors="replace"), 0

    def _read(self, at: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self._dataset.skip(at)
        except Exception as error:  # as above
            raise RunError(f"the data set cannot be read: {reason(error)}", where=self.name) from error


def _hub_name(name: str) -> tuple[str, str | None, str]:
    """The data set, its configuration if one is named, and the split."""
    found = re.fullmatch(r"hf://datasets/([^:]+)(?::(?:([^/]+)/)?([^/]+))?", name)
    if found is None:
        raise MinilmError("this names no data set", where=name, hint=_HUB_NAMES)
    path, config, split = found.groups()
    return path, config, split or "train"


def _no_column(name: str, field: str, columns: Iterable[str]) -> MinilmError:
    there = list(columns)
    hint = "Name the column that holds the text with --text-field."
    if len(there) == 1 and re.search("[;\t|]", there[0]):
        hint = "Are columns separated by something else? Commas are wanted."
    return MinilmError(
        f"there is no column {field!r}; there are {', '.join(map(repr, there)) or 'no columns'}", where=name, hint=hint
    )
