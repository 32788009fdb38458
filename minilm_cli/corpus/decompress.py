"""Open text files and standard input; decompress by the file's name, in a stream and in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, cast

from minilm_cli.base.errors import InputChanged, MinilmError
from minilm_cli.base.inputs import unreadable
from minilm_cli.base.packages import missing_package

logger = logging.getLogger(__name__)

#: The name of standard input in messages.
STANDARD_INPUT = "standard input"

#: Bytes of plain text to read at a time, and of compressed data.
_BLOCK, _COMPRESSED_BLOCK = 2**18, 2**16

#: Bytes of memory for decompressing xz, four times what `xz -9` needs. zstd has a limit of its own, half of this.
_XZ_MEMORY = 2**28

#: By file suffix: the compression, how a file of it begins, and the command that decompresses it.
_COMPRESSIONS = {
    ".gz": ("gzip", rb"\x1f\x8b", "zcat"),
    ".bz2": ("bzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzcat"),
    ".xz": ("xz", rb"\xfd7zXZ\x00", "xzcat"),
    ".zst": ("zstd", rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstdcat"),
}

#: Bytes that are enough to recognise these and UTF-16.
_BEGINNING = 10

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class File:
    """A regular file, as it was when it was found."""

    name: str
    size: int
    mtime_ns: int
    beginning: bytes
    """The first bytes on disk."""
    compression: str
    """The suffix of a compression, in lower case, or ""."""
    kind: str
    """The suffix before that."""

    @property
    def identity(self) -> dict[str, str | int]:
        """Plain values that change when the content does."""
        return {"name": str(Path(self.name).absolute()), "size": self.size, "mtime_ns": self.mtime_ns}

    def check(self) -> None:
        """Raise `MinilmError` if the first bytes are not UTF-8 text, compressed as the name says."""
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
    def open(self) -> Iterator[tuple[io.BufferedIOBase, Callable[[], int]]]:
        """The decompressed content, and a function that gives the bytes on disk that have been read.

        On a normal exit, raises `InputChanged` if the file became shorter meanwhile, and warns if it changed otherwise.
        """
        with _open(self.name) as raw:
            yield self._decompressed(raw), raw.tell
            now = os.fstat(raw.fileno())
        if now.st_size < self.size:
            raise InputChanged(
                f"the file became shorter while it was read: it had {self.size:,} bytes, and has {now.st_size:,}",
                where=self.name,
                hint="Start again when no program writes to it.",
            )
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            logger.warning("%s changed while it was read.", self.name)

    def _decompressed(self, raw: io.FileIO) -> io.BufferedIOBase:
        match self.compression:
            case "":
                return io.BufferedReader(raw, _BLOCK)
            case ".gz":
                return gzip.GzipFile(fileobj=raw)
            case ".bz2":
                members = _Members(raw, bz2.BZ2Decompressor, OSError, self.name)
            case ".xz":
                xz = partial(lzma.LZMADecompressor, memlimit=_XZ_MEMORY)
                members = _Members(raw, xz, lzma.LZMAError, self.name)
            case _:
                zstd = _zstd(self.name)
                members = _Members(raw, zstd.ZstdDecompressor, zstd.ZstdError, self.name)
        return io.BufferedReader(members, _BLOCK)


def find_file(name: str) -> File:
    """Look at a file; raises `MinilmError` if it cannot be read or is not a regular file."""
    try:
        found = Path(name).stat()
    except OSError as error:
        raise unreadable(error, name) from None
    if stat.S_ISDIR(found.st_mode):
        raise MinilmError(
            "this is a folder, not a text file",
            where=name,
            hint=f"Name the files in it: {shlex.quote(f'{Path(name)}/*.txt')}",
        )
    if not stat.S_ISREG(found.st_mode):
        # The shell's <(COMMAND) names a pipe that exists only for this command line.
        typed = f"minilm tokenize - < {shlex.quote(name)}"
        hint = "COMMAND | minilm tokenize -" if name.startswith(("/dev/fd/", "/proc/")) else typed
        raise MinilmError("this is a pipe or a device, not a file", where=name, hint=hint)
    with _open(name) as raw:
        beginning = raw.read(_BEGINNING)
    path = PurePath(name.lower())
    compression = path.suffix if path.suffix in _COMPRESSIONS else ""
    kind = PurePath(path.name.removesuffix(compression)).suffix
    return File(name, found.st_size, found.st_mtime_ns, beginning, compression, kind)


def standard_input() -> io.BufferedIOBase:
    """Standard input; raises `MinilmError` if it is closed, compressed or UTF-16."""
    if sys.stdin is None:
        raise MinilmError("there is no standard input", where="-")
    file: Any = sys.stdin.buffer
    try:
        beginning = file.peek(_BEGINNING)
    except OSError as error:
        raise unreadable(error, STANDARD_INPUT) from None
    compression = _compression(beginning)
    if compression or beginning.startswith(_UTF_16):
        convert = _COMPRESSIONS[compression][2] if compression else "iconv -f utf-16 -t utf-8"
        raise _not_plain("it", compression, where=STANDARD_INPUT, hint=f"{convert} FILE | minilm tokenize -")
    return cast("io.BufferedIOBase", file)


def _open(name: str) -> io.FileIO:
    try:
        return Path(name).open("rb", buffering=0)
    except OSError as error:
        raise unreadable(error, name) from None


def _compression(beginning: bytes) -> str:
    """The suffix of the compression that a file begins with, or ""."""
    return next((suffix for suffix, (_, begins, _) in _COMPRESSIONS.items() if re.match(begins, beginning)), "")


def _not_plain(what: str, compression: str, *, where: str, hint: str) -> MinilmError:
    found = f"compressed with {_COMPRESSIONS[compression][0]}" if compression else "UTF-16"
    return MinilmError(f"{what} is {found}, not plain UTF-8", where=where, hint=hint)


def _zstd(name: str) -> Any:
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise missing_package("zstd", "reading .zst files", where=name) from None
    return zstd


class _Members(io.RawIOBase):
    """The content of a bzip2, xz or zstd file: its members joined, with zeros after a member skipped.

    The standard library's `open` functions silently ignore whatever follows the first member if it is damaged, and
    `lzma.open` has no limit on memory.
    """

    def __init__(self, raw: io.FileIO, new: Callable[[], Any], damage: type[Exception], name: str) -> None:
        self._raw, self._new, self._damage, self._name = raw, new, damage, name
        self._member = new()

    def readable(self) -> bool:
        """As every file that is open for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Decompress into `buffer`; returns the number of bytes, 0 at the end. Raises `OSError` for damage."""
        while True:
            packed = b""
            if self._member.eof:
                packed = self._member.unused_data.lstrip(b"\0")
                while not packed and (block := self._raw.read(_COMPRESSED_BLOCK)):
                    packed = block.lstrip(b"\0")
                if not packed:
                    return 0
                self._member = self._new()
            elif self._member.needs_input and not (packed := self._raw.read(_COMPRESSED_BLOCK)):
                raise OSError("it ends too early")
            try:
                data = self._member.decompress(packed, len(buffer))
            except self._damage as error:
                if "memory" in str(error).lower():  # neither xz nor zstd has an exception of its own for it
                    raise MinilmError(
                        "decompressing this file takes too much memory, because of how it was compressed",
                        where=self._name,
                        hint="Decompress it first: xz -d, or zstd -d --long=31",
                    ) from None
                raise OSError(str(error)) from None
            if data:
                buffer[: len(data)] = data
                return len(data)
