"""Files and standard input as blocks of plain bytes, decompressed if the file's name says so, in bounded memory.

What is damaged, or begins like something else than its name says, is refused. Ignores what the bytes mean.
"""

from __future__ import annotations

import bz2
import logging
import lzma
import os
import re
import shlex
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path, PurePath
from typing import Any, Protocol, cast

from minilm_cli.base.errors import InputChanged, MinilmError, remedy

logger = logging.getLogger(__name__)


STANDARD_INPUT = "-"

#: Bytes of a block at most, plain or compressed.
_BLOCK = 2**20


_PACKED_BLOCK = 2**16

#: Bytes that undoing xz may take, four times what `xz -9` wants; zstd's limit of its own is half of it.
_MOST_MEMORY = 2**28

#: By the end of a file's name: the compression, what a file of it begins with, and the command that undoes it.
_COMPRESSIONS = {
    ".gz": ("gzip", rb"\x1f\x8b", "zcat"),
    ".bz2": ("bzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzcat"),
    ".xz": ("xz", rb"\xfd7zXZ\x00", "xzcat"),
    ".zst": ("zstd", rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstdcat"),
}


#: Bytes that are enough to know those by.
_BEGINNING = 10


_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Stream:
    """An input that is being read."""

    def __init__(self, read: Callable[[int], bytes], size: int, behind: int = 0) -> None:
        self.behind = behind
        """Bytes read so far, as they lie on disk."""
        self.blocks: Iterator[bytes] = self._counted(read, size)
        """What is left to read; raises `OSError` for damage."""

    def _counted(self, read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
        while block := read(size):
            self.behind += len(block)
            yield block


@dataclass(frozen=True)
class File:
    """A file on disk, as it was when it was found."""

    name: str
    size: int
    mtime_ns: int
    beginning: bytes
    """As it lies on disk."""
    compression: str
    """The end of the name that tells it, in small letters, or ""."""
    kind: str
    """The end of the name before that."""

    @property
    def identity(self) -> dict[str, str | int]:
        """Plain values that change when the content does."""
        return {"name": str(Path(self.name).absolute()), "size": self.size, "mtime_ns": self.mtime_ns}

    def check(self) -> None:
        """Raise `MinilmError` if it begins like no text, or is compressed in another way than its name says."""
        found = _compression(self.beginning)
        if self.compression == ".zst":
            _zstd(self.name)
        if self.compression not in ("", found):
            what = _COMPRESSIONS[self.compression][0]
            raise MinilmError(f"this file is damaged, or not compressed with {what} as its name says", where=self.name)
        if found and not self.compression:
            raise _not_plain("this file", found, where=self.name, hint=f"Give it a name that ends in {found}.")
        if self.beginning.startswith(_UTF_16):
            raise _not_plain("this file", found, where=self.name, hint="Convert it: iconv -f utf-16 -t utf-8")

    @contextmanager
    def open(self, at: int, size: int) -> Iterator[Stream]:
        """What comes after the first `at` bytes, decompressed, in blocks of at most `size` bytes.

        When all is read, raises `MinilmError` if the file has become shorter meanwhile, and warns if it has changed.
        """
        size = min(size, _BLOCK)
        with _opened(self.name) as raw:
            if self.compression:
                stream = Stream(raw.read, _PACKED_BLOCK)
                stream.blocks = _after(_decompressed(stream.blocks, self, size), at)
            else:
                stream = Stream(raw.read, size, behind=raw.seek(at))
            yield stream
            now = os.fstat(raw.fileno())
        if now.st_size < self.size:
            raise InputChanged(
                f"the file became shorter while it was read: it had {self.size:,} bytes, and has {now.st_size:,}",
                where=self.name,
                hint="Begin anew when nobody writes to it.",
            )
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            logger.warning("%s was changed while it was read.", self.name)


@dataclass(frozen=True)
class StandardInput:
    """What has neither a size nor anything to know it by."""

    raw: BufferedReader
    name: str = "standard input"
    size: None = None
    identity: None = None

    @contextmanager
    def open(self, at: int, size: int) -> Iterator[Stream]:
        """As of a file, from the beginning."""
        assert not at, "standard input cannot be gone on with"
        yield Stream(self.raw.read1, min(size, _BLOCK))


def find_file(name: str) -> File:
    """Look at a file; raises `MinilmError` if it cannot be read, or is no regular one."""
    try:
        found = Path(name).stat()
    except OSError as error:
        raise unreadable(error, name) from None
    if stat.S_ISDIR(found.st_mode):
        raise MinilmError(
            "this is a folder; a text file is wanted",
            where=name,
            hint=f"Name its files: {shlex.quote(f'{Path(name)}/*.txt')}",
        )
    if not stat.S_ISREG(found.st_mode):
        # What the shell makes of <(COMMAND) is gone with the command line.
        typed = f"minilm tokenize - < {shlex.quote(name)}"
        hint = "COMMAND | minilm tokenize -" if name.startswith(("/dev/fd/", "/proc/")) else typed
        raise MinilmError("this is no file, but a pipe or a device", where=name, hint=hint)
    with _opened(name) as raw:
        beginning = raw.read(_BEGINNING)
    path = PurePath(name.lower())
    compression = path.suffix if path.suffix in _COMPRESSIONS else ""
    kind = PurePath(path.name.removesuffix(compression)).suffix
    return File(name, found.st_size, found.st_mtime_ns, beginning, compression, kind)


def standard_input() -> StandardInput:
    """Standard input; raises `MinilmError` if there is none, or it begins like no text."""
    if sys.stdin is None:
        raise MinilmError("there is no standard input", where=STANDARD_INPUT)
    found = StandardInput(cast(BufferedReader, sys.stdin.buffer))
    try:
        beginning = found.raw.peek(_BEGINNING)
    except OSError as error:
        raise unreadable(error, found.name) from None
    compression = _compression(beginning)
    if compression or beginning.startswith(_UTF_16):
        convert = _COMPRESSIONS[compression][2] if compression else "iconv -f utf-16 -t utf-8"
        raise _not_plain("it", compression, where=found.name, hint=f"{convert} FILE | minilm tokenize -")
    return found


def unreadable(error: OSError, where: str) -> MinilmError:
    """What to raise for an input that cannot be read, or not on."""
    if isinstance(error, FileNotFoundError):
        return MinilmError("there is no such file", where=where)
    if error.strerror:
        return MinilmError(f"the file cannot be read: {error.strerror}", where=where, hint=remedy(error))
    return MinilmError(f"the file is damaged or cut short: {error}", where=where)


def _opened(name: str) -> FileIO:
    try:
        return Path(name).open("rb", buffering=0)
    except OSError as error:
        raise unreadable(error, name) from None


def _compression(beginning: bytes) -> str:
    """The end of the name of a file that begins like this and is compressed, else ""."""
    return next((end for end, (_, begins, _) in _COMPRESSIONS.items() if re.match(begins, beginning)), "")


def _not_plain(what: str, compression: str, *, where: str, hint: str) -> MinilmError:
    found = f"compressed with {_COMPRESSIONS[compression][0]}" if compression else "UTF-16"
    return MinilmError(f"{what} is {found}, and plain UTF-8 is wanted", where=where, hint=hint)


def _after(blocks: Iterator[bytes], at: int) -> Iterator[bytes]:
    """What comes after the first `at` bytes."""
    for block in blocks:
        if at < len(block):
            yield block[at:]
        at = max(at - len(block), 0)


# --- Decompressing -----------------------------------------------------------------------------------------------
class _Decompressor(Protocol):
    """What `bz2`, `lzma` and `zstd` call so: it reads one member of a file."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gunzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _zstd(name: str) -> Any:
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise MinilmError(
                "reading .zst files needs the package backports.zstd",
                where=name,
                hint="pip install 'minilm-cli[zstd]'",
            ) from None
    return zstd


def _decompression(file: File) -> tuple[Callable[[], _Decompressor], type[Exception]]:
    """What makes a decompressor for each member of the file, and what it raises for a damaged one."""
    match file.compression:
        case ".gz":
            return _Gunzip, zlib.error
        case ".bz2":
            return bz2.BZ2Decompressor, OSError
        case ".xz":
            return partial(lzma.LZMADecompressor, memlimit=_MOST_MEMORY), lzma.LZMAError
        case _:
            zstd = _zstd(file.name)
            return zstd.ZstdDecompressor, zstd.ZstdError


def _decompressed(blocks: Iterator[bytes], file: File, size: int) -> Iterator[bytes]:
    """What is packed in the blocks of a file, at most `size` bytes at a time; raises `OSError` for damage.

    Members one after the other are read like one; there may be zeros between and behind them.
    """
    new, damage = _decompression(file)
    packed = next(blocks, b"")
    while packed:
        member = new()
        while not member.eof:
            if not packed and member.needs_input and not (packed := next(blocks, b"")):
                raise OSError("it ends too early")
            try:
                block = member.decompress(packed, size)
            except damage as error:
                if "memory" in str(error).lower():  # neither xz nor zstd has a name for it
                    raise MinilmError(
                        "reading this file takes too much memory, the way it was packed",
                        where=file.name,
                        hint="Unpack it first: xz -d, or zstd -d --long=31",
                    ) from None
                raise OSError(str(error)) from None
            packed = b""
            if block:
                yield block
        packed = member.unused_data.lstrip(b"\0")
        while not packed and (more := next(blocks, b"")):
            packed = more.lstrip(b"\0")
