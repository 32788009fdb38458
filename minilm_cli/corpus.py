"""Text to tokens: readers, a pool of workers, writers. tokenizers and numpy, no torch.

Lines are read as bytes and handed in batches to workers, which decode and tokenise them and return arrays; results
are written in the order of the lines, so the output is the same whatever the number of workers or the batch size.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import multiprocessing
import os
import signal
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Protocol, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from minilm_cli.errors import MinilmError, RunError
from minilm_cli.files import refuse_existing, refuse_inputs, staged
from minilm_cli.hub import load_tokenizer, tokenizer_info
from minilm_cli.metrics import Progress
from minilm_cli.settings import TokenizeSettings
from minilm_cli.tokens import Indices, TokenIds, TokenizerInfo, TokenStoreWriter, count_lengths, id_dtype

#: Bytes of input that make up for the second or so that starting a worker takes.
WORTH_A_WORKER = 2**20

#: Bytes of a line of token ids: half a million of ids, far more than is learnt on at once. Parsing takes 20 times that.
LONGEST_LIST = 2**22

#: Bytes of a line of text; the tokenizer takes a hundred times that in memory.
LONGEST_LINE = 2**25

#: Bytes after which lines are handed to a worker, however few they are.
_BATCH_BYTES = 2**24

#: What would be taken for text, and is none.
_NOT_READ = frozenset(
    {".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".csv", ".tsv", ".parquet", ".arrow", ".npy", ".npz"}
)

#: What begins with these bytes is no UTF-8, and what to do then.
_BEGINNINGS = {
    b"\x1f\x8b": ("compressed with gzip", "Give it a name that ends in .gz."),
    b"\xff\xfe": ("UTF-16", "Convert it: iconv -f utf-16 -t utf-8"),
    b"\xfe\xff": ("UTF-16", "Convert it: iconv -f utf-16 -t utf-8"),
}

BOM = b"\xef\xbb\xbf"


@dataclass
class Counts:
    """What became of the lines."""

    lines: int = 0
    blank: int = 0
    """Lines without a token: skipped."""
    split: int = 0
    """Lines cut into several sequences."""
    truncated: int = 0
    dropped: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class TokenizeReport:
    """The outcome of `tokenize`."""

    path: Path
    counts: Counts
    sequences: int
    tokens: int
    length_histogram: npt.NDArray[np.int64]
    seconds: float

    def percentile(self, share: float) -> int:
        """The length in tokens that `share` (0 to 1) of the sequences do not exceed."""
        return int(np.searchsorted(np.cumsum(self.length_histogram), share * self.sequences))


@dataclass(frozen=True)
class _Lines:
    """Successive lines of one file."""

    file: Path
    first: int
    lines: list[bytes]
    consumed: int
    """Bytes of the file, as it lies on disk, that are behind these lines."""


@dataclass(frozen=True)
class _Tokenized:
    ids: TokenIds
    lengths: Indices
    counts: Counts


def tokenize(settings: TokenizeSettings, progress: Progress) -> TokenizeReport:
    """Tokenise text files into a token store, or a `.jsonl.gz` file of token-id lists.

    Raises `MinilmError` for input or settings that are wrong, naming file and line; nothing is left behind then.
    """
    refuse_existing(settings.output, force=settings.force)
    total = sum(_size(file) for file in settings.inputs)
    tokenizer, info = _load_tokenizer(settings)
    refuse_inputs(settings.output, *settings.inputs, settings.tokenizer)
    if settings.max_length <= tokenizer.num_special_tokens_to_add(False):
        raise MinilmError(f"--max-length {settings.max_length} leaves no room beside the tokenizer's special tokens")
    started = time.monotonic()
    counts = Counts()
    histogram = np.zeros(1, dtype=np.int64)
    with (
        staged(settings.output, force=settings.force) as built,
        _workers(settings, tokenizer, info, total) as run,
        _writing(built, settings, info) as writer,
    ):
        progress.start("Tokenising", total, unit="bytes")
        tokens = 0
        try:
            for lines, result in run(_batches(settings.inputs, settings.batch_size)):
                writer.add(result.ids, result.lengths)
                counts += result.counts
                tokens += len(result.ids)
                histogram = count_lengths(histogram, result.lengths)
                rate = tokens / max(time.monotonic() - started, 1e-9)
                progress.update(lines.consumed, {"tokens": tokens, "tokens_per_second": rate})
        finally:
            progress.stop()
        sequences = int(histogram.sum())
        if not sequences:
            raise MinilmError(
                f"there is no text in {', '.join(map(str, settings.inputs))}: not one line has a token",
                hint=f"Of {counts.lines} lines {counts.blank} are blank and {counts.dropped} were dropped as too long.",
            )
    return TokenizeReport(settings.output, counts, sequences, tokens, histogram, time.monotonic() - started)


def _load_tokenizer(settings: TokenizeSettings) -> tuple[Tokenizer, TokenizerInfo]:
    """The fast tokenizer that transformers loads for this name, and what the manifest says of it."""
    loaded = load_tokenizer(
        settings.tokenizer, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise MinilmError("this tokenizer has no fast version (tokenizer.json)", where=settings.tokenizer)
    return backend, tokenizer_info(loaded, settings.tokenizer, settings.revision)


# --- Reading -----------------------------------------------------------------------------------------------------


def _size(file: Path) -> int:
    """The bytes of an input on disk; raises `MinilmError` if they cannot be read, or are known to be no text."""
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise MinilmError("this is a folder; a text file is wanted", where=str(file))
        if not stat.S_ISREG(found.st_mode):
            raise MinilmError(
                "this is no file, but a pipe or a device", where=str(file), hint="Write the text to a file first."
            )
        with file.open("rb") as raw:
            beginning = raw.read(2)
    except FileNotFoundError:
        raise MinilmError("there is no such file", where=str(file)) from None
    except OSError as error:
        raise MinilmError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    kind = PurePath(file.name.lower().removesuffix(".gz")).suffix
    if kind in _NOT_READ:
        raise MinilmError(
            f"{kind} files are not read", where=str(file), hint="Text and JSON lines are, plain or as .gz."
        )
    if beginning in _BEGINNINGS and not _is_gzip(file):
        what, hint = _BEGINNINGS[beginning]
        raise MinilmError(f"this file is {what}, and plain UTF-8 is wanted", where=str(file), hint=hint)
    return found.st_size


def _batches(files: Iterable[Path], batch_size: int) -> Iterator[_Lines]:
    """The lines of the files, in order, `batch_size` at a time or fewer; no batch spans two files."""
    behind = 0
    for file in files:
        with file.open("rb") as raw:
            # A small gzip file may hold a line of gigabytes, and one that a crash left is all zeros.
            lines = _without_bom(iter(partial(_decompressed(file, raw).readline, LONGEST_LINE + 1), b""))
            number = 1
            while batch := _take(lines, batch_size, file, number):
                yield _Lines(file, number, batch, behind + raw.tell())
                number += len(batch)
            behind += raw.tell()


def _is_gzip(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


def _decompressed(file: Path, raw: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if _is_gzip(file) else raw


def _without_bom(lines: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line.removeprefix(BOM) if number == 0 else line


def _take(lines: Iterator[bytes], count: int, file: Path, number: int) -> list[bytes]:
    """The next lines, from line `number` on: `count` of them, or as many as make up 16 MiB."""
    batch: list[bytes] = []
    size = 0
    with _telling_of_damage(file):
        for line in itertools.islice(lines, count):
            if len(line) > LONGEST_LINE:
                raise MinilmError(
                    f"this line is longer than {LONGEST_LINE >> 20} MiB",
                    where=f"{file}, line {number + len(batch)}",
                    hint="A line is a sample. Is it text? Then break it into lines (fold -s -w 10000).",
                )
            batch.append(line)
            size += len(line)
            if size >= _BATCH_BYTES:
                break
    return batch


@contextmanager
def _telling_of_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise MinilmError(f"the file is damaged or cut short: {error}", where=str(file)) from None


# --- Tokenising --------------------------------------------------------------------------------------------------


class _Encoder:
    """Turns lines into sequences of token ids. Made anew in each worker, from plain values."""

    def __init__(self, tokenizer_json: str, settings: TokenizeSettings, vocabulary_size: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # A tokenizer's file may bring padding and truncation of its own.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_length)
        self._settings = settings
        self._dtype = id_dtype(vocabulary_size)

    def __call__(self, batch: _Lines) -> _Tokenized:
        is_json = batch.file.name.lower().removesuffix(".gz").endswith(".jsonl")
        texts = []
        for number, line in enumerate(batch.lines, start=batch.first):
            text = self._decode(line, batch.file, number)
            if is_json and text.strip():
                text = self._field(text, batch.file, number)
            texts.append(text)
        counts = Counts(lines=len(texts))
        sequences = []
        written = [text for text in texts if text.strip()]
        for encoding in self._tokenizer.encode_batch_fast(written):
            if sum(encoding.special_tokens_mask) == len(encoding):
                continue  # nothing but special tokens: the line is as good as blank
            parts = [encoding, *encoding.overflowing]
            match self._settings.overflow if len(parts) > 1 else "fits":
                case "truncate":
                    counts.truncated += 1
                    del parts[1:]
                case "drop":
                    counts.dropped += 1
                    continue
                case "split":
                    counts.split += 1
            sequences.append([part.ids for part in parts])
        counts.blank = counts.lines - counts.dropped - len(sequences)
        flat = [ids for parts in sequences for ids in parts]
        lengths = np.fromiter(map(len, flat), dtype=np.int64, count=len(flat))
        ids = np.fromiter(itertools.chain.from_iterable(flat), dtype=self._dtype, count=int(lengths.sum()))
        return _Tokenized(ids, lengths, counts)

    def _decode(self, line: bytes, file: Path, number: int) -> str:
        try:
            return line.rstrip(b"\r\n").decode("utf-8", errors=self._settings.errors)
        except UnicodeDecodeError as error:
            raise MinilmError(
                f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8",
                where=f"{file}, line {number}",
                hint="Convert the file (iconv -f latin1 -t utf-8), or replace such bytes with --errors replace.",
            ) from None

    def _field(self, line: str, file: Path, number: int) -> str:
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MinilmError(f"this line is not JSON: {error}", where=where) from None
        text = value.get(self._settings.text_field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise MinilmError(
                f"this line is not a JSON object with a string field {self._settings.text_field!r}",
                where=where,
                hint="Name the field that holds the text with --text-field.",
            )
        # A lone surrogate is valid in JSON and in no UTF-8.
        return text.encode("utf-8", errors="replace").decode("utf-8")


_Run = Callable[[Iterator[_Lines]], Iterator[tuple[_Lines, _Tokenized]]]


class _Worker:
    """The state of this worker process."""

    encoder: _Encoder


def _start_worker(tokenizer_json: str, settings: TokenizeSettings, vocabulary_size: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core; no threads within
    _Worker.encoder = _Encoder(tokenizer_json, settings, vocabulary_size)


def _encode(lines: _Lines) -> _Tokenized:
    return _Worker.encoder(lines)


@contextmanager
def _workers(settings: TokenizeSettings, tokenizer: Tokenizer, info: TokenizerInfo, size: int) -> Iterator[_Run]:
    """A function that maps batches of lines to tokens, in order, in as many processes as are worth starting."""
    arguments = (tokenizer.to_str(), settings, info.vocabulary_size)
    count = min(settings.workers, math.ceil(size / WORTH_A_WORKER))
    if count <= 1:
        encoder = _Encoder(*arguments)
        yield lambda batches: ((lines, encoder(lines)) for lines in batches)
        return
    # Spawned, not forked: forking a process that has threads (tokenizers, BLAS) may hang.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker, arguments)
    try:
        yield lambda batches: _in_order(pool, batches, window=2 * count)
    except BrokenProcessPool:
        raise RunError(
            "a worker process died", hint="Was memory short? Try fewer --workers or a smaller --batch-size."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Workers started inside hear no Ctrl-C and no SIGTERM: those are their parent's, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(pool: ProcessPoolExecutor, batches: Iterator[_Lines], window: int) -> Iterator[tuple[_Lines, _Tokenized]]:
    """Results in the order of the batches, at most `window` of them under way."""
    pending: deque[tuple[_Lines, Future[_Tokenized]]] = deque()
    for lines in batches:
        with _signals_blocked():
            future = pool.submit(_encode, lines)
        # What is still wanted of the lines is where they came from; their bytes are the worker's.
        pending.append((replace(lines, lines=[]), future))
        if len(pending) == window:
            done, future = pending.popleft()
            yield done, future.result()
    for done, future in pending:
        yield done, future.result()


# --- Writing -----------------------------------------------------------------------------------------------------


class _Writer(Protocol):
    def add(self, ids: TokenIds, lengths: Indices) -> None: ...


class JsonlWriter:
    """Writes gzipped JSON lines, one list of token ids a line; the same bytes for the same tokens."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        # Neither name nor time in the header, so that equal tokens give equal files.
        self._file = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", mtime=0)

    def add(self, ids: TokenIds, lengths: Indices) -> None:
        """Append sequences: their ids one after the other, and the length of each."""
        for sequence in np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else ():
            self._file.write(json.dumps(sequence.tolist()).encode() + b"\n")

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        finally:
            self._raw.close()


@contextmanager
def _writing(built: Path, settings: TokenizeSettings, info: TokenizerInfo) -> Iterator[_Writer]:
    """A writer of what the output's name asks for, finished when the block ends well."""
    if settings.output.name.endswith(".jsonl.gz"):
        with closing(JsonlWriter(built)) as writer:
            yield writer
    else:
        store = TokenStoreWriter(built, info, settings.max_length)
        yield store
        store.close()


def convert_token_lists(file: Path, output: Path, info: TokenizerInfo) -> None:
    """Write the token-id lists of a `.jsonl.gz` file as a token store into the folder `output`, in a stream.

    Raises `MinilmError` with the line for what is not a list of ids of the vocabulary, and for a damaged file.
    """
    _size(file)
    writer = TokenStoreWriter(output, info, max_length=2**31)
    found = 0
    for sequences in _id_arrays(file, info):
        writer.add(np.concatenate(sequences), np.array([len(ids) for ids in sequences], dtype=np.int64))
        found += len(sequences)
    if not found:
        raise MinilmError("the file holds no sequence", where=str(file))
    writer.close()


def _id_arrays(file: Path, info: TokenizerInfo) -> Iterator[list[TokenIds]]:
    """The lists of a file in order, as many at a time as make up a megabyte."""
    dtype = id_dtype(info.vocabulary_size)
    batch: list[TokenIds] = []
    size = 0
    for number, line in enumerate(_lines_of_ids(file), 1):
        batch.append(np.array(_id_list(line, info, f"{file}, line {number}"), dtype=dtype))
        size += len(line)
        if size >= 2**20:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _lines_of_ids(file: Path) -> Iterator[bytes]:
    """The lines of a file of token-id lists; raises `MinilmError` for one too long to be read at once."""
    with file.open("rb") as raw, _telling_of_damage(file):
        lines = iter(partial(_decompressed(file, raw).readline, LONGEST_LIST + 1), b"")
        for number, line in enumerate(_without_bom(lines), 1):
            if len(line) > LONGEST_LIST:  # a small gzip file may hold a line of gigabytes
                raise MinilmError(
                    f"this line is longer than {LONGEST_LIST >> 20} MiB",
                    where=f"{file}, line {number}",
                    hint="A list of token ids is wanted on each line, a sequence each.",
                )
            yield line


def _id_list(line: bytes, info: TokenizerInfo, where: str) -> list[int]:
    try:
        ids = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MinilmError(f"this line is not JSON: {error}", where=where) from None
    if not isinstance(ids, list) or not ids or not all(type(value) is int for value in ids):
        raise MinilmError("a list of token ids is wanted on each line, such as [101, 7592, 102]", where=where)
    if min(ids) < 0 or max(ids) >= info.vocabulary_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise MinilmError(
            f"the token id {wrong} is outside the teacher's vocabulary of {info.vocabulary_size}",
            where=where,
            hint="Was the file made with the tokenizer of another model?",
        )
    return ids
