"""Split an input into lines, long lines into parts, and gather both in batches, each with the place where it begins."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.inputs import unreadable

BOM = b"\xef\xbb\xbf"

#: A continuation byte of UTF-8 is 0b10......
_CONTINUATION, _CONTINUATION_BITS = 0x80, 0xC0

#: Bytes of the longest character of UTF-8.
LONGEST_CHARACTER = 4

#: What reading raises for a file that cannot be read on, or is damaged.
DAMAGE = (OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Place:
    """A place in an input from where it can be read again."""

    at: int = 0
    """Bytes of the decompressed text before it, or rows of a table."""
    number: int = 1
    """Number of the next line or row, for messages; the header of a table does not count."""
    skipped: int = 0
    """In the middle of a long line: the bytes of this line before it."""

    @property
    def is_beginning(self) -> bool:
        """Whether it is the beginning of the input; a byte order mark may precede it."""
        return self.number == 1 and not self.skipped


BEGINNING = Place()


@dataclass(frozen=True)
class Run:
    """Successive lines, or a single part of a long line."""

    place: Place
    end: int
    """Bytes of the decompressed text before the next run."""
    lines: list[bytes]
    r"""Without "\n" or "\r\n"."""
    continues: bool = False
    """This is a part of a line, and the next run is the next part of it."""


def runs(
    file: BufferedIOBase, name: str, start: Place, *, count: int, most: int, longest: int, cut: bool
) -> Iterator[Run]:
    r"""The lines of a file from `start` on, `count` at a time or as many as take `most` bytes.

    A line ends with "\n", "\r\n" or with the file. One of more than `longest` bytes comes in parts, each in a run of
    its own, if it may be `cut`. Raises `MinilmError` with the line if it may not, and if the file is damaged there.
    """
    place, lines, size = start, list[bytes](), 0  # the lines that wait for more, and where they begin
    damage = None
    limit = longest + 2  # with "\r\n"
    try:
        _skip(file, start.at)
        text = file.readline(limit)
        if start.at == 0 and text.startswith(BOM):
            text = text[len(BOM) :] + (b"" if text.endswith(b"\n") else file.readline(len(BOM)))
            place = Place(len(BOM))
        while text:
            is_whole = len(text) < limit or text.endswith(b"\n")
            line = text.removesuffix(b"\n").removesuffix(b"\r")
            fits = is_whole and len(line) <= longest
            if fits and not place.skipped:
                lines.append(line)
                size += len(text)
                text = file.readline(limit)
                if len(lines) < count and size < most:
                    continue
            if lines:
                yield Run(place, place.at + size, lines)
                place, lines, size = Place(place.at + size, place.number + len(lines)), [], 0
            elif fits:  # the last part of a line
                yield Run(place, place.at + len(text), [line])
                place = Place(place.at + len(text), place.number + 1)
                text = file.readline(limit)
            elif not cut:
                raise too_long(name, place.number, longest)
            else:
                end = cut_before(text, longest)
                yield Run(place, place.at + end, [text[:end]], continues=True)
                place = Place(place.at + end, place.number, place.skipped + end)
                text = text[end:] + (b"" if is_whole else file.readline(end))
    except DAMAGE as error:
        damage = unreadable(error, f"{name}, line {place.number + len(lines)}")
    if lines:
        yield Run(place, place.at + size, lines)
    if damage is not None:  # after the lines before it, which may have an error of their own
        raise damage


def whole_lines(file: BufferedIOBase, name: str, longest: int) -> Iterator[bytes]:
    """The lines of a file with their ends; raises `MinilmError` as `runs` does."""
    number = 1
    try:
        while line := file.readline(longest + 2):
            if len(line.removesuffix(b"\n").removesuffix(b"\r")) > longest:
                raise too_long(name, number, longest)
            yield line.removeprefix(BOM) if number == 1 else line
            number += 1
    except DAMAGE as error:
        raise unreadable(error, f"{name}, line {number}") from None


def too_long(name: str, number: int, longest: int) -> MinilmError:
    """The error for a line that cannot be cut."""
    return MinilmError(
        f"this line is longer than {longest >> 20} MiB",
        where=f"{name}, line {number}",
        hint="Put each sample or row on a line of its own.",
    )


def _skip(file: BufferedIOBase, size: int) -> None:
    """Read so many bytes: a compressed file has no other way to get there."""
    while size > 0 and (block := file.read(min(size, 2**20))):
        size -= len(block)


def parts(text: bytes, longest: int) -> Iterator[bytes]:
    """The text in parts of at most `longest` bytes, at least one, cut as `cut_before` says."""
    begin = 0
    while len(text) - begin > longest:
        end = cut_before(text, begin + longest, begin)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def cut_before(text: bytes, end: int, begin: int = 0) -> int:
    """Where the part of a longer text that starts at `begin` has to stop, `end` at the latest.

    Before the last space in the second half of the part, where there is one, else between two characters.
    """
    space = text.rfind(b" ", begin + (end - begin + 1) // 2, end + 1)
    if space != -1:
        return space
    for place in range(end, max(begin, end - LONGEST_CHARACTER), -1):
        if text[place] & _CONTINUATION_BITS != _CONTINUATION:
            return place
    return end  # not UTF-8
