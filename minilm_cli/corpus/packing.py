"""Token ids of lines to sequences: cut to the maximum length, packed, and given their special tokens. numpy only.

A stream goes in and a stream comes out: what comes out is the same however the lines are cut into calls. Ignores where
the ids come from.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from minilm_cli.tokens.store import Indices, TokenIds

Overflow = Literal["split", "truncate", "drop"]


@dataclass(frozen=True)
class Units:
    """Successive lines (or sentences) as token ids without special tokens."""

    ids: TokenIds
    """Of all, one after the other."""
    lengths: Indices
    """Tokens of each; one without a token is a blank line."""
    goes_on: bool = False
    """This is a part of one line, alone, and the next `Units` is the next part of it."""
    replaced: int = 0
    """Characters that stand for bytes which are not UTF-8."""


@dataclass
class Counts:
    """What became of the lines (or sentences)."""

    units: int = 0
    """How many there were."""
    blank: int = 0
    """Without a token: skipped."""
    split: int = 0
    """Cut into several sequences."""
    truncated: int = 0
    dropped: int = 0
    replaced: int = 0
    """Characters that stand for bytes which are not UTF-8."""


@dataclass(frozen=True)
class State:
    """What a `Sequencer` holds between two calls, as plain values."""

    line: list[int] | None
    """Of a line that comes in parts, what is in no sequence yet."""
    line_was_cut: bool
    open: list[int]
    """Lines of a sequence that may take more of them."""
    counts: Counts


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts before and behind a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass
class Sequencer:
    """Makes sequences of lines: of each its own, or with `pack` of as many successive ones as fit.

    A line is never joined to the next across a blank line, which ends a document, nor across `end`.
    """

    special: SpecialTokens
    max_length: int
    """Tokens of a sequence at most, the special ones counted."""
    overflow: Overflow
    """What becomes of a line that is longer."""
    pack: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._room = self.max_length - len(self.special)
        assert self._room > 0, "no room beside the special tokens"
        self._line: TokenIds | None = None
        self._line_was_cut = False
        self._open = np.zeros(0, dtype=np.uint32)

    def add(self, units: Units) -> tuple[TokenIds, Indices]:
        """The sequences that these lines finish: their ids, one after the other, and their lengths."""
        self.counts.replaced += units.replaced
        if units.goes_on or self._line is not None:
            ids, lengths = self._take_part(units)
        else:
            ids, lengths = self._cut(units.ids, units.lengths)
        return self._framed(*(self._packed(ids, lengths) if self.pack else (ids, lengths[lengths > 0])))

    def end(self) -> tuple[TokenIds, Indices]:
        """The same at the end of an input, which is the end of a document."""
        return self._framed(*self._packed(self._open[:0], np.zeros(1, dtype=np.int64)))

    def keep(self) -> Callable[[], State]:
        """A function that gives all that `restore` needs to go on from here: as lists, which take time to make."""
        line, was_cut, opened, counts = self._line, self._line_was_cut, self._open, replace(self.counts)
        return lambda: State(None if line is None else line.tolist(), was_cut, opened.tolist(), counts)

    def restore(self, state: State) -> None:
        """Go on from where another had this state."""
        self._line = None if state.line is None else np.array(state.line, dtype=np.uint32)
        self._line_was_cut = state.line_was_cut
        self._open = np.array(state.open, dtype=np.uint32)
        self.counts = replace(state.counts)

    def _take_part(self, part: Units) -> tuple[TokenIds, Indices]:
        """A part of a long line: cut off what fills sequences, and keep no more of it than one takes."""
        assert len(part.lengths) == 1, "a part of a line comes alone"
        line = part.ids if self._line is None else _joined(self._line, part.ids)
        whole = (len(line) - 1) // self._room if len(line) and self.overflow == "split" else 0
        cut, rest = np.split(line, [whole * self._room])
        lengths = np.full(whole, self._room)
        self._line_was_cut |= whole > 0
        if part.goes_on:
            self._line = rest[: self._room + 1]  # one token too many tells that the line is too long
            return cut, lengths
        self.counts.split += self._line_was_cut
        self._line, self._line_was_cut = None, False
        rest, last = self._cut(rest, np.array([len(rest)]))
        return _joined(cut, rest), np.concatenate([lengths, last])

    def _cut(self, ids: TokenIds, lengths: Indices) -> tuple[TokenIds, Indices]:
        """Whole lines in pieces that fit; blank lines stay, of length 0."""
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
        """As many successive pieces together as fit, and none across a blank line; the last ones stay open."""
        # Pieces one after the other, what was open first: piece n ends at `ends[n]`. A sequence takes the pieces from
        # `first` to before `last`, the next that does not fit or is a blank line; a blank one is passed over.
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

    def _framed(self, ids: TokenIds, lengths: Indices) -> tuple[TokenIds, Indices]:
        """Each sequence between the special tokens."""
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
    """One after the other, in the type of the second."""
    return np.concatenate([first.astype(second.dtype), second]) if len(first) else second
