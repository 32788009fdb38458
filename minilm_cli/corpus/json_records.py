"""The records of a `.json` file: the objects of a list, or objects one after the other, in a stream.

Records are found by their brackets, without parsing them: that is left to the encoder, and so to worker processes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.corpus.decompress import File
from minilm_cli.corpus.lines import BOM, DAMAGE
from minilm_cli.corpus.tables import Rows

#: Bytes of a record, which is in memory as a whole.
_LONGEST = 2**28

#: Bytes that are read at a time.
_BLOCK = 2**18

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")

#: All up to the next bracket that is not in a string. The quantifiers are possessive: they keep no places to come back
#: to, which would take memory for each character.
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+[{}\[\]]', re.DOTALL)

_FORMS = "A .json file is a list of objects, or has one object after the other."


def json_records(file: File) -> Rows:
    """The records of a JSON file, each as JSON; raises `MinilmError` if the first one is wrong."""
    records = partial(_json_records, file)
    next(records(0), None)
    return records


def _json_records(file: File, at: int) -> Iterator[tuple[bytes, int]]:
    with file.open() as (stream, bytes_read):
        for record in itertools.islice(_Reader(stream, file.name).records(), at, None):
            yield record, bytes_read()


class _Reader:
    """Reads a file to its end, with at most a record and a block of it in memory."""

    def __init__(self, stream: BufferedIOBase, name: str) -> None:
        self._stream, self._name = stream, name
        self._data = b""  # what has been read but not used, from `_at` on
        self._at = 0
        self._number = 1  # of the next record

    def records(self) -> Iterator[bytes]:
        """The records in order; raises `MinilmError` with the number of the record that is wrong."""
        self._read()
        self._at = len(BOM) if self._data.startswith(BOM) else 0
        if self._next() != b"[":
            while self._next():
                yield self._record()
            return
        self._at += 1
        if self._next() != b"]":
            yield self._record()
            while (separator := self._next()) == b",":
                self._at += 1
                yield self._record()
            if separator != b"]":
                raise self._wrong(separator, "a comma or the end of the list is expected")
        self._at += 1
        if found := self._next():
            raise self._wrong(found, "the list has ended")

    def _record(self) -> bytes:
        """The object that begins here."""
        if (begin := self._next()) != b"{":
            raise self._wrong(begin, "an object is expected")
        end, depth = self._at, 0
        while depth or end == self._at:
            if found := _TO_BRACKET.match(self._data, end):
                end = found.end()
                depth += 1 if self._data[end - 1] in b"{[" else -1
                continue
            end -= self._at
            if len(self._data) - self._at > _LONGEST:
                raise self._too_long()
            if not self._read():
                raise self._wrong(b"", "")
        record = self._data[self._at : end]
        if len(record) > _LONGEST:
            raise self._too_long()
        self._at = end
        self._number += 1
        return record

    def _next(self) -> bytes:
        """The next byte that is not white space, without using it up; nothing at the end of the file."""
        while True:
            if found := _NOT_SPACE.search(self._data, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._data)
            if not self._read():
                return b""

    def _read(self) -> bool:
        """Forget what is used up and read as much as is left, at least a block; returns whether there was more."""
        rest = self._data[self._at :]
        try:
            more = self._stream.read(max(_BLOCK, len(rest)))
        except DAMAGE as error:
            raise unreadable(error, self._where) from None
        self._data, self._at = rest + more, 0
        return bool(more)

    @property
    def _where(self) -> str:
        return f"{self._name}, record {self._number}"

    def _wrong(self, found: bytes, expected: str) -> MinilmError:
        if not found:
            return MinilmError("this file is not complete JSON: it ends too early", where=self._where)
        return MinilmError(f"{expected}, but here is {found.decode('latin-1')!a}", where=self._where, hint=_FORMS)

    def _too_long(self) -> MinilmError:
        return MinilmError(
            f"this record is longer than {_LONGEST >> 20} MiB",
            where=self._where,
            hint=f"{_FORMS} If the list is inside an object, write it to a file of its own.",
        )
