"""Gzipped JSON lines of token-id lists, `.jsonl.gz`: written, and turned into a token store. Ignores tokenizers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import parse_json
from minilm_cli.corpus.sources import json_lines
from minilm_cli.tokens.store import Indices, TokenIds, TokenizerInfo, TokenStoreWriter, count_lengths, id_dtype

#: Bytes of a line of token ids: half a million of ids, far more than is learnt on at once. Parsing takes 20 times that.
LONGEST_LIST = 2**22

#: How hard gzip tries, in the one process that writes: more takes several times as long, for a few percent less.
_COMPRESSION = 6

#: Lines that are read at once.
_BATCH = 1000


def is_id_lists(path: Path) -> bool:
    """Whether this names a file of token-id lists, and not a token store."""
    return path.name.endswith(".jsonl.gz")


class IdListWriter:
    """Writes one list of token ids a line; the same bytes for the same tokens."""

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

    Raises `MinilmError` with the line for what is not a list of ids of the vocabulary, and for a damaged file.
    """
    with TokenStoreWriter(output, info, max_length=2**31) as writer:
        for sequences in _id_arrays(file, info):
            writer.add(np.concatenate(sequences), np.array([len(ids) for ids in sequences], dtype=np.int64))
        if not writer.length_histogram.any():
            raise MinilmError("the file holds no sequence", where=str(file))
        writer.close()


def _id_arrays(file: Path, info: TokenizerInfo) -> Iterator[list[TokenIds]]:
    """The lists of a file in order, some at a time."""
    dtype = id_dtype(info.vocabulary_size)
    for batch in json_lines(file, LONGEST_LIST).batches(_BATCH):
        yield [
            np.array(_id_list(line, info, batch.where(index)), dtype=dtype) for index, line in enumerate(batch.lines)
        ]


def _id_list(line: bytes, info: TokenizerInfo, where: str) -> list[int]:
    ids = parse_json(line, kind="line", where=where)
    if ids == []:
        raise MinilmError("this list of token ids is empty", where=where, hint="Take the line out.")
    if not isinstance(ids, list) or not all(type(value) is int for value in ids):
        raise MinilmError("a list of token ids is wanted on each line, such as [101, 7592, 102]", where=where)
    if min(ids) < 0 or max(ids) >= info.vocabulary_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise MinilmError(
            f"the token id {wrong} is outside the teacher's vocabulary of {info.vocabulary_size}",
            where=where,
            hint="Was the file made with the tokenizer of another model?",
        )
    return ids
