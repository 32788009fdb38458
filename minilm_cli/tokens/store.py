"""The token store: sequences of token ids in memory-mapped shards under a checksummed manifest. numpy only.

Layout of the folder: `manifest.json`, and for shard 0 `shard-00000.npy` (token ids, one after the other, in the
smallest unsigned type that holds the vocabulary) and `shard-00000.offsets.npy` (where each sequence begins; one more
entry than there are sequences).
"""

from __future__ import annotations

import bisect
import itertools
import os
import resource
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minilm_cli import __version__
from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError, refuse_newer, remedy
from minilm_cli.base.jsonio import first_wrong, read_json, write_json

FORMAT_VERSION = 1

#: Tokens after which a shard is closed: 64 MB in the two-byte type of most vocabularies.
SHARD_TOKENS = 2**25

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
Indices = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=0, le=2**62)]
Positive = Annotated[int, Field(gt=0, le=2**62)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]

#: pydantic checks a bound on encodable text only, so a lone surrogate, which is valid in JSON, is refused.
Text = Annotated[str, Field(max_length=4096)]

#: Tokens that are counted together: numpy takes eight bytes for each.
_COUNTED_TOGETHER = 2**22

#: Characters that are shown of what numpy says about a damaged file.
_LONGEST_REASON = 200


class Respell(Protocol):
    """Writes sequences in the ids of another vocabulary."""

    def __call__(self, ids: TokenIds) -> TokenIds:
        """The new ids of a sequence."""

    def length(self, ids: TokenIds) -> int:
        """How many they are."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TokenizerInfo(_Part):
    """The tokenizer that made the ids, as far as known."""

    name: Text | None = None
    revision: Text | None = None
    vocabulary_sha256: Text | None = None
    vocabulary_size: Annotated[int, Field(gt=0, le=2**32)]
    special_ids: list[Count] = []


class Shard(_Part):
    """One pair of shard files."""

    file: Text
    sequences: Positive
    tokens: Positive
    sha256: Text
    offsets_sha256: Text

    @property
    def offsets_file(self) -> str:
        """The name of the file of offsets."""
        return self.file.replace(".npy", ".offsets.npy")

    @staticmethod
    def file_name(number: int) -> str:
        """The name of the file of ids of shard `number`, counted from 0."""
        return f"shard-{number:05}.npy"


class Manifest(_Part):
    """`manifest.json`: what the store holds, and the checksums of its files."""

    format_version: Annotated[int, Field(gt=0)]
    #: Version of minilm.
    written_by: Text | None = None
    tokenizer: TokenizerInfo
    max_length: Annotated[int, Field(gt=0)]
    sequences: Count
    tokens: Count
    #: `length_histogram[n]` sequences have n tokens.
    length_histogram: Annotated[list[Count], Field(min_length=2)]
    shards: list[Shard]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.length_histogram) - 1


def id_dtype(vocabulary_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds every id of a vocabulary of this size."""
    return np.min_scalar_type(vocabulary_size - 1)


def count_lengths(histogram: Indices, lengths: Indices) -> Indices:
    """Add these lengths to a histogram (`histogram[n]` sequences have n tokens), made longer where needed."""
    counts = np.bincount(lengths, minlength=len(histogram))
    counts[: len(histogram)] += histogram
    return counts


class TokenStore:
    """A store opened for reading. `len(store)` sequences; `store[i]` is one, as an array of ids."""

    def __init__(self, path: Path) -> None:
        """Open the store in folder `path`; raises `MinilmError` if it is not a complete store."""
        self.path = path
        self.manifest = _read_manifest(path)
        self._check_counts()
        dtype = id_dtype(self.manifest.tokenizer.vocabulary_size)
        allow_open_files(2 * len(self.manifest.shards))  # a mapped file stays open
        opened = [_open_shard(path, number, shard, dtype) for number, shard in enumerate(self.manifest.shards)]
        self._ids = [ids for ids, _ in opened]
        self._offsets = [offsets for _, offsets in opened]
        self._first = [0, *itertools.accumulate(shard.sequences for shard in self.manifest.shards)]
        self._check_lengths()
        self._special = frozenset(self.manifest.tokenizer.special_ids)

    def __len__(self) -> int:
        return self.manifest.sequences

    def __getitem__(self, index: int) -> TokenIds:
        shard, offset = self._locate(index)
        begin, end = self._offsets[shard][offset : offset + 2]
        return self._ids[shard][begin:end]

    def sequence(self, index: int, max_length: int, respell: Respell | None = None) -> TokenIds:
        """Sequence `index`, cut to `max_length` tokens if longer, its last token kept if that is a special one.

        respell: writes it in another vocabulary, before it is cut.
        """
        ids = self[index]
        ends_special = int(ids[-1]) in self._special
        if respell is not None:
            ids = respell(ids)
        if len(ids) <= max_length:
            return ids
        return np.concatenate([ids[: max_length - 1], ids[-1:]]) if ends_special else ids[:max_length]

    def lengths(self, indices: Indices, max_length: int, respell: Respell | None = None) -> Indices:
        """The lengths in tokens of these sequences, as `sequence` gives them."""
        if respell is not None:
            return np.array([min(respell.length(self[index]), max_length) for index in indices.tolist()])
        found = np.empty(len(indices), dtype=np.int64)
        shards = np.searchsorted(self._first, indices, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            offset = indices[here] - self._first[shard]
            offsets = self._offsets[shard]
            found[here] = offsets[offset + 1] - offsets[offset]
        return np.minimum(found, max_length)

    def token_counts(self) -> Indices:
        """How often each token of the vocabulary occurs; this reads everything."""
        counts: Indices = np.zeros(self.manifest.tokenizer.vocabulary_size, dtype=np.int64)
        for ids in self._ids:
            for begin in range(0, len(ids), _COUNTED_TOGETHER):
                counts += np.bincount(ids[begin : begin + _COUNTED_TOGETHER], minlength=len(counts))
        return counts

    def verify(self) -> None:
        """Read every shard and compare its checksums; raises `MinilmError` naming the first that differs."""
        for shard, ids in zip(self.manifest.shards, self._ids, strict=True):
            for name, expected in ((shard.file, shard.sha256), (shard.offsets_file, shard.offsets_sha256)):
                try:
                    found = sha256(self.path / name)
                except OSError as error:
                    raise _unreadable(self.path / name, error) from None
                if found != expected:
                    raise _corrupt(self.path / name, "its checksum is wrong")
            if int(ids.max()) >= self.manifest.tokenizer.vocabulary_size:
                raise _corrupt(self.path / shard.file, f"the token id {ids.max()} is outside its vocabulary")

    def _check_counts(self) -> None:
        """Check that the manifest's counts agree with each other."""
        manifest = self.manifest
        histogram = manifest.length_histogram
        counts = {
            "sequences": (manifest.sequences, sum(shard.sequences for shard in manifest.shards), sum(histogram)),
            "tokens": (
                manifest.tokens,
                sum(shard.tokens for shard in manifest.shards),
                sum(length * count for length, count in enumerate(histogram)),
            ),
        }
        for name, found in counts.items():
            if len(set(found)) > 1:
                raise _corrupt(self.path / "manifest.json", f"its counts of {name} differ: {found}")
        if not manifest.sequences or not histogram[-1]:
            raise _corrupt(self.path / "manifest.json", "no sequence has the greatest length of its length_histogram")

    def _check_lengths(self) -> None:
        """Check the histogram, which memory and time are estimated from, against the sequences."""
        longest = self.manifest.longest
        counts: Indices = np.zeros(longest + 1, dtype=np.int64)
        for shard, offsets in zip(self.manifest.shards, self._offsets, strict=True):
            counts = _count_in(counts, offsets, longest, self.path / shard.offsets_file)
        if counts.tolist() != self.manifest.length_histogram:
            raise _corrupt(self.path / "manifest.json", "its length_histogram is not that of its sequences")

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._first, index) - 1
        return shard, index - self._first[shard]


class TokenStoreWriter:
    """Writes a store into a folder, shard by shard; it can be opened only after `close`.

    The files depend on the sequences alone, not on how many of them a call of `add` gets. Nothing is kept in memory.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: TokenizerInfo,
        max_length: int,
        *,
        shards: Sequence[Shard] = (),
        shard_tokens: int | None = None,
    ) -> None:
        """Continue after `shards`, which an earlier writer with the same tokenizer completed in this folder.

        shard_tokens: tokens after which a shard is closed, `SHARD_TOKENS` by default. Raises `MinilmError` if a shard
        is missing or damaged.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.shards = list(shards)
        """The complete ones, which are flushed to disk."""
        self._path, self._tokenizer, self._max_length = path, tokenizer, max_length
        self._shard_tokens = shard_tokens or SHARD_TOKENS
        self.length_histogram: Indices = np.zeros(1, dtype=np.int64)
        """`length_histogram[n]` sequences have n tokens, those of the earlier shards included."""
        for number, shard in enumerate(shards):
            _, offsets = _open_shard(path, number, shard, id_dtype(tokenizer.vocabulary_size))
            file = path / shard.offsets_file
            self.length_histogram = _count_in(self.length_histogram, offsets, max_length, file)
        self._open: _OpenShard | None = None

    def add(self, ids: TokenIds, lengths: Indices) -> None:
        """Append sequences: their ids one after the other, and the length of each."""
        assert int(lengths.sum()) == len(ids), "the lengths do not add up to the number of ids"
        assert (lengths > 0).all(), "an empty sequence"
        self.length_histogram = count_lengths(self.length_histogram, lengths)
        ends = np.cumsum(lengths)
        first, begin = 0, 0
        while first < len(lengths):
            if self._open is None:
                self._open = _OpenShard(self._path, len(self.shards), id_dtype(self._tokenizer.vocabulary_size))
            # A shard closes after the sequence that fills it, whatever the number of sequences in a call.
            last = int(np.searchsorted(ends, begin + self._shard_tokens - self._open.tokens)) + 1
            end = int(ends[min(last, len(lengths)) - 1])
            self._open.add(ids[begin:end], lengths[first:last])
            if last <= len(lengths):
                self._close_shard()
            first, begin = last, end

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest."""
        self._close_shard()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            written_by=__version__,
            tokenizer=self._tokenizer,
            max_length=self._max_length,
            sequences=sum(shard.sequences for shard in self.shards),
            tokens=sum(shard.tokens for shard in self.shards),
            length_histogram=self.length_histogram.tolist(),
            shards=self.shards,
        )
        write_json(self._path / "manifest.json", manifest.model_dump())
        return manifest

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, *_ended: object) -> None:
        """Without `close` there is no store, but complete shards stay."""
        if self._open is not None:
            self._open.abandon()

    def _close_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.close())
            self._open = None


class _OpenShard:
    """A shard that grows on disk."""

    def __init__(self, path: Path, number: int, dtype: np.dtype[np.unsignedinteger[Any]]) -> None:
        self.tokens = 0
        self._path, self._name = path, Shard.file_name(number)
        file = path / self._name
        with ExitStack() as opened:
            self._ids = opened.enter_context(_GrowingArray(file, dtype))
            self._offsets = opened.enter_context(_GrowingArray(file.with_suffix(".offsets.npy"), np.dtype(np.int64)))
            self._offsets.append(np.zeros(1))
            self._opened = opened.pop_all()

    def add(self, ids: TokenIds, lengths: Indices) -> None:
        self._ids.append(ids)
        self._offsets.append(self.tokens + np.cumsum(lengths))
        self.tokens += len(ids)

    def close(self) -> Shard:
        self._ids.close()
        self._offsets.close()
        return Shard(
            file=self._name,
            sequences=len(self._offsets) - 1,
            tokens=self.tokens,
            sha256=sha256(self._ids.path),
            offsets_sha256=sha256(self._offsets.path),
        )

    def abandon(self) -> None:
        self._opened.close()


class _GrowingArray:
    """A one-dimensional `.npy` file that is appended to."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self._dtype, self._length = path, dtype, 0
        self._file = path.open("wb")
        self._write_header()

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> _GrowingArray:
        return self

    def __exit__(self, *_ended: object) -> None:
        """Without `close` the file is useless, so it does not matter whether the rest can be written."""
        with suppress(OSError):
            self._file.close()

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        """Write the final length into the header, where numpy leaves room for it, and flush the file to disk."""
        with self._file:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _corrupt(path: Path, what: str) -> MinilmError:
    return MinilmError(f"this token store is damaged: {what}", where=str(path), hint="Make it again: minilm tokenize.")


def _unreadable(path: Path, error: OSError) -> MinilmError:
    message = f"this file of a token store cannot be read: {error.strerror}"
    return MinilmError(message, where=str(path), hint=remedy(error))


def _read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    if not path.exists():
        raise MinilmError("there is no such token store", where=str(path), hint="Make one: minilm tokenize.")
    if not file.is_file():
        raise MinilmError("this is not a token store: it has no manifest.json", where=str(path))
    value = read_json(file, kind="manifest")
    refuse_newer("token store", value, FORMAT_VERSION, where=str(file))
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise _corrupt(file, first_wrong(error)) from None


def _open_shard(
    path: Path, number: int, shard: Shard, dtype: np.dtype[np.unsignedinteger[Any]]
) -> tuple[TokenIds, Indices]:
    if shard.file != Shard.file_name(number):
        raise _corrupt(path / "manifest.json", f"the file of shard {number} is not {Shard.file_name(number)}")
    ids: TokenIds = _map(path / shard.file, dtype, shard.tokens)
    offsets: Indices = _map(path / shard.offsets_file, np.dtype(np.int64), shard.sequences + 1)
    if offsets[0] != 0 or offsets[-1] != shard.tokens:
        raise _corrupt(path / shard.offsets_file, "its offsets do not start at 0 and end at the number of tokens")
    return ids, offsets


def _count_in(histogram: Indices, offsets: Indices, longest: int, file: Path) -> Indices:
    """Add the lengths of a shard's sequences to a histogram; raises `MinilmError` for an impossible length."""
    lengths = np.diff(offsets)
    shortest, most = int(lengths.min()), int(lengths.max())
    if shortest < 1 or most > longest:  # checked first, because counting takes memory for `most` numbers
        wrong = shortest if shortest < 1 else most
        raise _corrupt(file, f"by its offsets a sequence has {wrong} tokens; 1 to {longest} are possible")
    return count_lengths(histogram, lengths)


def _map(path: Path, dtype: np.dtype[np.generic], size: int) -> npt.NDArray[Any]:
    """Memory-map a `.npy` file of `size` values; raises `MinilmError` if it holds anything else."""
    if path.exists() and not path.is_file():  # a pipe may never end
        raise _corrupt(path, "it is not a file")
    try:
        # Unlike `np.load`, this reads neither pickles nor archives.
        array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="r")
        file_size = path.stat().st_size
    except FileNotFoundError:
        raise _corrupt(path, "the file is missing") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # noqa: BLE001  # numpy raises anything for a damaged header
        raise _corrupt(path, f"it is not a .npy file: {str(error)[:_LONGEST_REASON]}") from None
    if (array.dtype, array.shape) != (dtype, (size,)):
        raise _corrupt(path, f"it has {array.dtype} values of shape {array.shape}, not {dtype} of shape ({size},)")
    if file_size != array.offset + array.nbytes:
        raise _corrupt(path, f"it has {file_size} bytes instead of {array.offset + array.nbytes}")
    return array


def allow_open_files(more: int) -> None:
    """Raise the limit on open files by `more`, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
