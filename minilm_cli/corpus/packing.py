"""From the token ids of lines to sequences: cut to the maximum length, packed, with special tokens. numpy only.

The sequences are the same, whatever number of lines a call gets.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from minilm_cli.tokens.store import Indices, TokenId, TokenIds

Overflow = Literal["split", "truncate", "drop"]


@dataclass(frozen=True)
class Units:
    """Successive lines (or sentences) as token ids without special tokens."""

    ids: TokenIds
    """Of all lines, one after the other."""
    lengths: Indices
    """Number of tokens of each line; a blank line has none."""
    continues: bool = False
    """This is a part of one line, alone, and the next `Units` is the next part of it."""
    replaced: int = 0
    """Characters that replace bytes which are not UTF-8."""
    ends: int = 0
    """Blank lines among these that were put in only to end a document; they are not counted."""


@dataclass
class Counts:
    """How many lines (or sentences) were skipped, cut and so on."""

    units: int = 0
    """All lines (or sentences)."""
    blank: int = 0
    """Without a token, and so skipped."""
    split: int = 0
    """Split into several sequences."""
    truncated: int = 0
    dropped: int = 0
    replaced: int = 0
    """Characters that replace bytes which are not UTF-8."""


@dataclass(frozen=True)
class State:
    """The state of a `Sequencer` between two calls, as plain values."""

    line: list[TokenId] | None
    """The last tokens of a line that comes in parts, which are in no sequence yet."""
    line_was_cut: bool
    open: list[TokenId]
    """The tokens of a packed sequence that may still grow."""
    counts: Counts


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass
class Sequencer:
    """Makes a sequence of each line or, with `pack`, of as many successive lines as fit.

    A blank line ends a document, and so does `end`: lines of two documents never share a sequence.
    """

    special: SpecialTokens
    max_length: int
    """Most tokens of a sequence, special tokens included."""
    overflow: Overflow
    """What to do with a longer line."""
    pack: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._room = self.max_length - len(self.special)
        assert self._room > 0, "no room for tokens other than the special ones"
        self._line: TokenIds | None = None
        self._line_was_cut = False
        self._open = np.zeros(0, dtype=np.uint32)

    def add(self, units: Units) -> tuple[TokenIds, Indices]:
        """The sequences that these lines complete: their ids, one after the other, and their lengths."""
        self.counts.replaced += units.replaced
        self.counts.units -= units.ends
        self.counts.blank -= units.ends
        if units.continues or self._line is not None:
            ids, lengths = self._take_part(units)
        else:
            ids, lengths = self._cut(units.ids, units.lengths)
        return self._with_special_tokens(*(self._packed(ids, lengths) if self.pack else (ids, lengths[lengths > 0])))

    def end(self) -> tuple[TokenIds, Indices]:
        """The sequences that the end of an input completes; it ends a document."""
        return self._with_special_tokens(*self._packed(self._open[:0], np.zeros(1, dtype=np.int64)))

    def snapshot(self) -> Callable[[], State]:
        """A function that gives the present state for `restore`, converted to lists only then: that takes time."""
        line, was_cut, opened, counts = self._line, self._line_was_cut, self._open, replace(self.counts)
        return lambda: State(None if line is None else line.tolist(), was_cut, opened.tolist(), counts)

    def restore(self, state: State) -> None:
        """Continue from this state."""
        self._line = None if state.line is None else np.array(state.line, dtype=np.uint32)
        self._line_was_cut = state.line_was_cut
        self._open = np.array(state.open, dtype=np.uint32)
        self.counts = replace(state.counts)

    def _take_part(self, part: Units) -> tuple[TokenIds, Indices]:
        """Cut a part of a long line into full sequences; keep the rest, at most a sequence, for the next part."""
        assert len(part.lengths) == 1, "a part of a line must come alone"
        line = part.ids if self._line is None else _joined(self._line, part.ids)
        whole = (len(line) - 1) // self._room if len(line) and self.overflow == "split" else 0
        cut, rest = np.split(line, [whole * self._room])
        lengths = np.full(whole, self._room)
        self._line_was_cut |= whole > 0
        if part.continues:
            self._line = rest[: self._room + 1]  # one token more shows that the line is too long
            return cut, lengths
        self.counts.split += self._line_was_cut
        self._line, self._line_was_cut = None, False
        rest, last = self._cut(rest, np.array([len(rest)]))
        return _joined(cut, rest), np.concatenate([lengths, last])

    def _cut(self, ids: TokenIds, lengths: Indices) -> tuple[TokenIds, Indices]:
        """Cut whole lines into pieces that fit; a blank line stays, with length 0."""
        self.counts.units += len(lengths)
        self.counts.blank += int((lengths == 0).sum())
        long = lengths > self._room
        count = int(long.sum())
        if not count:
            return ids, lengths
        match self.overflow:
            case "split":
                self.counts.split += count
                pieces = np.maximum(1, -(-lengths // self._room))
                cut = np.full(pieces.sum(), self._room)
                cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * self._room
                return ids, cut
            case "truncate":
                self.counts.truncated += count
                places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                return ids[places < self._room], np.minimum(lengths, self._room)
            case "drop":
                self.counts.dropped += count
                return ids[np.repeat(~long, lengths)], lengths[~long]

    def _packed(self, ids: TokenIds, lengths: Indices) -> tuple[TokenIds, Indices]:
        """Join as many successive pieces as fit, none across a blank line; the last sequence stays open."""
        # The open sequence is the first piece; piece n ends at `ends[n]`. A sequence takes the pieces from `first` to
        # before `last`, which is the next piece that does not fit or is a blank line. Blank lines are skipped.
        ids = _joined(self._open, ids)
        ends = [len(self._open), *(len(self._open) + np.cumsum(lengths)).tolist()]
        blank = [*(1 + np.flatnonzero(lengths == 0)).tolist(), len(ends)]
        packed, begin, first, document = [], 0, 0, 0
        while first < len(ends):
            while blank[document] < first:
                document += 1
            last = min(bisect.bisect_right(ends, begin + self._room), blank[document])
            if last == len(ends):
                break
            if ends[last - 1] > begin:
                packed.append(ends[last - 1] - begin)
            begin = ends[last - 1]
            first = last + (last == blank[document])
        self._open = ids[begin:]
        return ids[:begin], np.array(packed, dtype=np.int64)

    def _with_special_tokens(self, ids: TokenIds, lengths: Indices) -> tuple[TokenIds, Indices]:
        """Put each sequence between the special tokens."""
        before, after = len(self.special.before), len(self.special.after)
        framed = lengths + before + after
        ends = np.cumsum(framed)[:, None]
        out = np.empty(int(framed.sum()), dtype=ids.dtype)
        own = np.ones(len(out), dtype=bool)
        for places, special in (
            (ends - framed[:, None] + np.arange(before), self.special.before),
            (ends - after + np.arange(after), self.special.after),
        ):
            out[places], own[places] = special, False
        out[own] = ids
        return out, framed


def _joined(first: TokenIds, second: TokenIds) -> TokenIds:
    """One after the other, in the dtype of the second."""
    return np.concatenate([first.astype(second.dtype), second]) if len(first) else second
