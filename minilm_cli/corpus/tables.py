"""The texts in one column of CSV, TSV, Parquet and data sets of the Hub, in a stream.

Whether the texts are UTF-8 is for the encoder to check.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.packages import missing_package
from minilm_cli.corpus.decompress import File
from minilm_cli.corpus.lines import whole_lines
from minilm_cli.models.hub import reason

#: What the name of a data set of the Hub begins with.
HUB = "hf://"

_HUB_NAMES = "A data set of the Hub is named hf://datasets/NAME:SPLIT or hf://datasets/NAME:CONFIG/SPLIT."

#: Bytes of a line of CSV or TSV, and of a text in it.
_LONGEST = 2**28

#: Bytes of a Parquet column that are read at a time.
_BUFFER = 2**20

#: Rows of Parquet that are read at a time: few, because each may be long.
_ROWS = 64

#: Types of text columns, as pyarrow writes them; a dictionary column has values of such a type.
_TEXT_TYPES = ("string", "large_string", "string_view")


#: A function from a number of rows to skip to the text of each row after them, and the bytes on disk read by then. It
#: raises `MinilmError`, with the row or line, for damage and for what is not a table.
Rows = Callable[[int], Iterator[tuple[bytes, int]]]


# --- CSV and TSV -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Dialect:
    """How the values of a row are written."""

    name: str
    delimiter: str
    quoting: Literal[0, 3]
    """One of csv's constants."""
    advice: str
    """For a row with a wrong number of values."""


COMMAS = Dialect(
    "CSV", ",", csv.QUOTE_MINIMAL, "Separate values by commas; put a text that contains commas in quotation marks."
)

#: Quotation marks are characters like any other: texts in such files have them unpaired.
TABS = Dialect(
    "TSV",
    "\t",
    csv.QUOTE_NONE,
    "Separate values by tabs. A text cannot have tabs or line ends, not even in quotation marks: use .csv for those.",
)


def csv_rows(file: File, field: str, dialect: Dialect) -> Rows:
    """The rows of a CSV or TSV file with a header; raises `MinilmError` if the header or the first row is wrong."""
    rows = partial(_csv_rows, file, field, dialect)
    next(rows(0), None)
    return rows


def _csv_rows(file: File, field: str, dialect: Dialect, at: int) -> Iterator[tuple[bytes, int]]:
    records = csv_records(file, dialect)
    _, header, _ = next(records, (0, [field], 0))
    if field not in header:
        raise _no_column(file.name, field, header)
    column = header.index(field)
    for line, row, bytes_read in itertools.islice(records, at, None):
        # A blank line is an empty row.
        if row and len(row) != len(header):
            raise MinilmError(
                f"the header has {len(header)} values, and this row has {len(row)}",
                where=f"{file.name}, line {line}",
                hint=dialect.advice,
            )
        yield (row[column] if row else "").encode("utf-8", "surrogateescape"), bytes_read


def csv_records(file: File, dialect: Dialect) -> Iterator[tuple[int, list[str], int]]:
    """The rows of a CSV or TSV file, with the header: the last line of each, its values, and the bytes on disk read.

    A blank line has no values. Bytes that are not UTF-8 are kept as lone surrogates. Raises `MinilmError`, with the
    line, for what is not of this dialect.
    """
    with file.open() as (stream, bytes_read):
        csv.field_size_limit(_LONGEST)
        lines = (line.decode("utf-8", "surrogateescape") for line in whole_lines(stream, file.name, _LONGEST))
        # Strict: otherwise a missing quotation mark makes a single text of all that follows.
        reader = csv.reader(lines, delimiter=dialect.delimiter, quoting=dialect.quoting, strict=True)
        try:
            for row in reader:
                yield reader.line_num, row, bytes_read()
        except csv.Error as error:
            where = f"{file.name}, line {reader.line_num}"
            if str(error).startswith("new-line character"):  # what follows is advice to programmers
                place = "inside a line" if dialect.quoting == csv.QUOTE_NONE else "outside quotation marks"
                raise MinilmError(
                    f"this is not {dialect.name}: there is a carriage return {place}",
                    where=where,
                    hint="If lines end in carriage returns alone, convert the file: tr '\\r' '\\n'",
                ) from None
            raise MinilmError(f"this is not {dialect.name}: {error}", where=where) from None


# --- Parquet -----------------------------------------------------------------------------------------------------
def parquet_rows(file: File, field: str) -> Rows:
    """The rows of a Parquet file; raises `MinilmError` if it is damaged or has no such column of text."""
    with _open_parquet(file.name) as (pa, parquet):
        schema = parquet.schema_arrow
        if field not in schema.names:
            raise _no_column(file.name, field, schema.names)
        found = schema.field(schema.names.index(field)).type
        if str(found.value_type if pa.types.is_dictionary(found) else found) not in _TEXT_TYPES:
            raise MinilmError(f"the column {field!r} has values of type {found}, not text", where=file.name)
    return partial(_parquet_rows, file, field)


def _parquet_rows(file: File, field: str, at: int) -> Iterator[tuple[bytes, int]]:
    with _open_parquet(file.name) as (pa, parquet):
        metadata = parquet.metadata
        group, skip = 0, at
        while group < metadata.num_row_groups and skip >= (rows := metadata.row_group(group).num_rows):
            group, skip = group + 1, skip - rows
        groups = list(range(group, metadata.num_row_groups))
        for batch in parquet.iter_batches(_ROWS, row_groups=groups, columns=[field]):
            # The column is found by name: a field of a struct may have the same path. As bytes: those that are not
            # UTF-8 are for the encoder to report.
            texts = batch.column(batch.schema.names.index(field)).cast(pa.large_binary())[skip:].to_pylist()
            skip = max(skip - len(batch), 0)
            for text in texts:
                at += 1
                yield text or b"", file.size * at // metadata.num_rows


@contextmanager
def _open_parquet(name: str) -> Iterator[tuple[Any, Any]]:
    """The package pyarrow and the open file."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise missing_package("datasets", "reading Parquet", where=name) from None  # it installs pyarrow
    try:
        # With a buffer, a column is read in a stream instead of at once.
        with parquet.ParquetFile(name, buffer_size=_BUFFER) as file:
            yield pa, file
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a column name that is not UTF-8
        raise MinilmError(f"the file is damaged or not Parquet: {reason(error)}", where=name) from None


# --- Data sets of the Hub ----------------------------------------------------------------------------------------
def hub_rows(name: str, field: str) -> tuple[dict[str, str | int], Rows]:
    """The identity and the rows of a split of a data set of the Hub, or of a local folder that `datasets` can read.

    Raises `MinilmError` if there is no such data set, split or column, or the Hub cannot be reached.
    """
    path, config, split = _hub_name(name)
    try:
        import datasets
    except ImportError:
        raise missing_package("datasets", "reading from the Hub", where=name) from None
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(path, config)
        dataset = builder.as_streaming_dataset(split=split)
        columns = dataset.column_names
    except Exception as error:  # only the library's code runs here, and it raises anything
        raise MinilmError(
            f"the data set cannot be loaded: {reason(error)}",
            where=name,
            hint=f"Check the name and the connection to the Hub (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME).\n{_HUB_NAMES}",
        ) from error
    if columns is not None:  # else they are unknown before reading
        if field not in columns:
            raise _no_column(name, field, columns)
        dataset = dataset.select_columns([field])
    # The hash of a data set of the Hub is its revision.
    return {"name": name, "revision": str(builder.hash)}, partial(_hub_rows, dataset, name, field)


def _hub_rows(dataset: Any, name: str, field: str, at: int) -> Iterator[tuple[bytes, int]]:
    for number, row in enumerate(_read_hub(dataset, name, at), at + 1):
        if field not in row:
            raise _no_column(name, field, row)
        text = row[field]
        if not isinstance(text, str | None):
            raise MinilmError(
                f"the value of column {field!r} is {type(text).__name__}, not text", where=f"{name}, row {number}"
            )
        # A lone surrogate is valid in JSON but not in UTF-8.
        yield (text or "").encode("utf-8", errors="replace"), 0


def _read_hub(dataset: Any, name: str, at: int) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.skip(at)
    except Exception as error:  # as above
        raise RunError(f"the data set cannot be read: {reason(error)}", where=name) from error


def _hub_name(name: str) -> tuple[str, str | None, str]:
    """The data set, its configuration if one is named, and the split."""
    found = re.fullmatch(r"hf://datasets/([^:]+)(?::(?:([^/]+)/)?([^/]+))?", name)
    if found is None:
        raise MinilmError("this is not the name of a data set", where=name, hint=_HUB_NAMES)
    path, config, split = found.groups()
    return path, config, split or "train"


def _no_column(name: str, field: str, columns: Iterable[str]) -> MinilmError:
    found = list(columns)
    hint = "Name the column that has the text with --text-field."
    if len(found) == 1 and re.search("[;\t|,]", found[0]):
        hint = "The columns may be separated by another character: .csv means commas, .tsv tabs."
    columns_found = f"its columns are {', '.join(map(repr, found))}" if found else "it has no columns"
    return MinilmError(f"there is no column {field!r}; {columns_found}", where=name, hint=hint)
