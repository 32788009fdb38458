"""Files of token-id lists, `.jsonl.gz`: a JSON list of token ids a line. Written, and converted to a token store."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.base.jsonio import parse_json
from minilm_cli.tokens.store import Indices, TokenIds, TokenizerInfo, TokenStoreWriter, count_lengths, id_dtype

#: Bytes of a line: half a million ids, far more than a model reads at once. Parsing takes 20 times that in memory.
LONGEST_LIST = 2**22

#: Compression level: higher ones take several times as long, for a few percent less.
_COMPRESSION = 6

#: Lists that are converted at once.
_BATCH = 1000

_GZIP = b"\x1f\x8b"


def is_id_lists(path: Path) -> bool:
    """Whether this is the name of a file of token-id lists, and not of a token store."""
    return path.name.endswith(".jsonl.gz")


def converted_store(first: Path, number: int) -> Path:
    """Where the token store is that is made from the `number`-th file, from 1; `first`: that of the first."""
    return first if number == 1 else first.with_name(f"{first.name}-{number}")


class IdListWriter:
    """Writes a list of token ids a line; equal tokens give equal bytes."""

    def __init__(self, path: Path) -> None:
        self.length_histogram = np.zeros(1, dtype=np.int64)
        """`length_histogram[n]` sequences had n tokens."""
        self._raw = path.open("wb")
        # Neither name nor time in the header, so that equal tokens give equal files.
        self._file = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", compresslevel=_COMPRESSION, mtime=0)

    def add(self, ids: TokenIds, lengths: Indices) -> None:
        """Append sequences: their ids one after the other, and the length of each."""
        self.length_histogram = count_lengths(self.length_histogram, lengths)
        for sequence in np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else ():
            self._file.write(json.dumps(sequence.tolist()).encode() + b"\n")

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        finally:
            self._raw.close()


def convert_token_lists(file: Path, output: Path, info: TokenizerInfo) -> None:
    """Write the token-id lists of a file as a token store into the folder `output`, in a stream.

    Raises `MinilmError`, with the line, for what is not a list of ids of the vocabulary and for a damaged file.
    """
    lists = _read_lists(file, info)
    with TokenStoreWriter(output, info, max_length=2**31) as writer:
        while some := list(islice(lists, _BATCH)):
            writer.add(np.concatenate(some), np.array([len(ids) for ids in some], dtype=np.int64))
        if not writer.length_histogram.any():
            raise MinilmError("the file has no sequence", where=str(file))
        writer.close()


def _read_lists(file: Path, info: TokenizerInfo) -> Iterator[TokenIds]:
    dtype = id_dtype(info.vocabulary_size)
    number = 0
    with _open(file) as lines:
        try:
            # Of a line that is too long, no more is read than shows that.
            while line := lines.readline(LONGEST_LIST + 2):
                number += 1
                yield np.array(_id_list(line, info, f"{file}, line {number}"), dtype=dtype)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(error, f"{file}, line {number + 1}") from None


def _open(file: Path) -> gzip.GzipFile:
    try:
        if file.exists() and not file.is_file():  # a pipe may never end
            raise MinilmError("this is a folder, a pipe or a device, not a file", where=str(file))
        with file.open("rb") as raw:
            beginning = raw.read(len(_GZIP))
    except OSError as error:
        raise unreadable(error, str(file)) from None
    if beginning != _GZIP:
        raise MinilmError("this file is damaged, or not compressed with gzip as its name says", where=str(file))
    return gzip.GzipFile(file)


def _id_list(line: bytes, info: TokenizerInfo, where: str) -> list[int]:
    if len(line.rstrip(b"\r\n")) > LONGEST_LIST:
        raise MinilmError(
            f"this line is longer than {LONGEST_LIST >> 20} MiB",
            where=where,
            hint="Put each list on a line of its own.",
        )
    ids = parse_json(line, kind="line", where=where)
    if ids == []:
        raise MinilmError("this list of token ids is empty", where=where, hint="Remove the line.")
    if not isinstance(ids, list) or not all(type(value) is int for value in ids):
        raise MinilmError("this line is not a list of token ids, such as [101, 7592, 102]", where=where)
    if min(ids) < 0 or max(ids) >= info.vocabulary_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise MinilmError(
            f"the token id {wrong} is outside the teacher's vocabulary of {info.vocabulary_size}",
            where=where,
            hint="The file may have been made with the tokenizer of another model.",
        )
    return ids
