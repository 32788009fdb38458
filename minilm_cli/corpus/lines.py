"""Blocks of bytes cut into lines, long lines into parts, and both gathered in batches that can be gone on from.

Ignores where the blocks come from and what the lines mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from minilm_cli.base.errors import MinilmError
from minilm_cli.corpus.decompress import unreadable

BOM = b"\xef\xbb\xbf"

#: A byte that goes on a character of UTF-8 is 0b10......
_CONTINUATION, _CONTINUATION_BITS = 0x80, 0xC0

#: Bytes of the longest character of UTF-8.
LONGEST_CHARACTER = 4


@dataclass(frozen=True)
class Place:
    """Where reading stands in an input."""

    at: int = 0
    """Bytes of the text, decompressed, before this; or rows of a table."""
    number: int = 1
    """Number of the next line or row, for messages; the header of a table is none."""
    skipped: int = 0
    """Bytes of that line that came before: of a long one that is handed over in parts."""

    @property
    def is_beginning(self) -> bool:
        """Whether nothing of the input but a byte order mark is before this."""
        return self.number == 1 and not self.skipped


BEGINNING = Place()


def parts(text: bytes, longest: int) -> Iterator[bytes]:
    """The text in parts of at most `longest` bytes, at least one.

    They are cut before the last space in the second half of a part, where there is one, else between two characters.
    """
    begin = 0
    while len(text) - begin > longest:
        end = _cut(text, begin, begin + longest)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _cut(text: bytes, begin: int, end: int) -> int:
    """Where to cut the text, which is longer than `end`, so that the part from `begin` ends there at the latest."""
    space = text.rfind(b" ", begin + (end - begin + 1) // 2, end + 1)
    if space != -1:
        return space
    for place in range(end, max(begin, end - LONGEST_CHARACTER), -1):
        if text[place] & _CONTINUATION_BITS != _CONTINUATION:
            return place
    return end  # no UTF-8


@dataclass(frozen=True)
class Run:
    """Whole lines in the order of the text, or alone a part of a long one."""

    lines: list[bytes]
    r"""A "\r" before a "\n" is left on them."""
    goes_on: bool = False
    """This is a part that another follows."""


class Splitter:
    r"""Splits blocks of text into lines, which end in "\n", "\r\n" or with the input.

    Lines longer than `longest` bytes come in parts if they may be `cut`. Blocks must not be longer than that.
    Raises `MinilmError` with the line for one that is too long, and for a file that turns out to be damaged.
    """

    def __init__(self, name: str, blocks: Iterator[bytes], place: Place, longest: int, *, cut: bool) -> None:
        self._name = name
        self._longest = longest
        self._may_cut = cut
        self._begun = place.skipped > 0
        self._number = place.number  # of the line under way
        self._blocks = self._telling_of_damage(blocks)
        self.start = place
        """Where the first line begins: behind a byte order mark."""
        if place.at == 0:
            self.start = replace(place, at=self._pass_over_bom())

    def __iter__(self) -> Iterator[Run]:
        head: list[bytes] = []  # of the line under way
        length = 0
        for block in self._blocks:
            lines = block.split(b"\n")
            rest = lines.pop()
            if lines:
                lines[0] = b"".join((*head, lines[0]))
                if self._begun or len(lines[0]) > self._longest:
                    yield from self._end(lines.pop(0))
                yield Run(lines)
                self._number += len(lines)
                head, length = [], 0
            head.append(rest)
            length += len(rest)
            if length > self._longest:
                text = b"".join(head)
                head.clear()
                head.append((yield from self._begin(text)))
                length = len(head[0])
        if length:
            yield from self._end(b"".join(head))

    def _telling_of_damage(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from blocks
        except OSError as error:
            raise unreadable(error, self._where) from None

    @property
    def _where(self) -> str:
        return f"{self._name}, line {self._number}"

    def _pass_over_bom(self) -> int:
        """Drop the byte order mark at the beginning; returns its bytes, 0 if there is none."""
        beginning = b""
        for block in self._blocks:
            beginning += block
            if len(beginning) >= len(BOM):
                break
        text = beginning.removeprefix(BOM)
        self._blocks = itertools.chain([text], self._blocks)
        return len(beginning) - len(text)

    def _begin(self, text: bytes) -> Generator[Run, None, bytes]:
        """The parts of a line that goes on, as far as they are certain; returns what is left of it."""
        certain = text.removesuffix(b"\r")
        *done, last = self._parts(certain)
        for part in done:
            self._begun = True
            yield Run([part], goes_on=True)
        return last + text[len(certain) :]

    def _end(self, text: bytes) -> Iterator[Run]:
        """What is left of a line that ends here: in parts, or the whole line if it is not too long after all."""
        line = text.removesuffix(b"\r")
        *done, last = self._parts(line)
        for part in done:
            yield Run([part], goes_on=True)
        yield Run([last + text[len(line) :]])
        self._begun = False
        self._number += 1

    def _parts(self, line: bytes) -> Iterator[bytes]:
        if not self._may_cut and len(line) > self._longest:
            raise MinilmError(
                f"this line is longer than {self._longest >> 20} MiB",
                where=self._where,
                hint="Each sample or row is wanted on a line of its own.",
            )
        return parts(line, self._longest)


class Batches:
    """Lines, `count` at a time or as many as take `most` bytes, with the place of the first; a part comes alone."""

    def __init__(self, splitter: Splitter, count: int, most: int) -> None:
        self._splitter = splitter
        self._count = count
        self._most = most
        self._place = splitter.start  # of the lines that wait
        self._lines: list[bytes] = []
        self._size = 0

    def __iter__(self) -> Iterator[tuple[Place, Run]]:
        r"""Without the "\r" at the ends of lines."""
        for run in self._splitter:
            if not run.goes_on:
                self._lines += run.lines
                self._size += _size(run.lines)
            yield from self._waiting(rest=run.goes_on or self._place.skipped > 0 or self._size >= self._most)
            if run.goes_on:
                yield self._place, run
                size = len(run.lines[0])
                self._place = replace(self._place, at=self._place.at + size, skipped=self._place.skipped + size)
        yield from self._waiting(rest=True)

    def _waiting(self, *, rest: bool) -> Iterator[tuple[Place, Run]]:
        """The batches of `count` lines there are; with `rest`, what is left too."""
        whole = len(self._lines) if rest else len(self._lines) // self._count * self._count
        for first in range(0, whole, self._count):
            lines = self._lines[first : min(first + self._count, whole)]
            size = _size(lines)
            if b"\r" in b"".join(lines):  # seldom, and found in a tenth of the time that looking at each takes
                lines = [line.removesuffix(b"\r") for line in lines]
            yield self._place, Run(lines)
            self._size -= size
            self._place = Place(self._place.at + size, self._place.number + len(lines))
        del self._lines[:whole]


def _size(lines: list[bytes]) -> int:
    """Bytes of the text that they take."""
    return sum(map(len, lines)) + len(lines)
