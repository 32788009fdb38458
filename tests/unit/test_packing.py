from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.corpus.packing import Counts, Overflow, Sequencer, SpecialTokens, Units

BERT, T5 = SpecialTokens((101,), (102,)), SpecialTokens((), (1,))


def sequences(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    assert int(lengths.sum()) == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]


def units(*lines: list[int], continues: bool = False) -> Units:
    ids = np.array([token for line in lines for token in line], dtype=np.uint16)
    return Units(ids, np.array([len(line) for line in lines], dtype=np.int64), continues)


def plain_sequences(
    lines: list[list[int]], special: SpecialTokens, room: int, overflow: Overflow, pack: bool
) -> tuple[list[list[int]], Counts]:
    """The expected sequences and counts."""
    counts, pieces = Counts(units=len(lines)), []
    for line in lines:
        cut = [line[begin : begin + room] for begin in range(0, len(line), room)]
        counts.blank += not line
        if len(cut) > 1:
            counts.split += overflow == "split"
            counts.truncated += overflow == "truncate"
            counts.dropped += overflow == "drop"
            cut = {"split": cut, "truncate": cut[:1], "drop": []}[overflow]
        pieces += cut if line else [[]]
    bodies: list[list[int]] = [[]]
    for piece in pieces:
        if not pack or not piece or len(bodies[-1]) + len(piece) > room:
            bodies.append([])
        bodies[-1] += piece
    return [[*special.before, *body, *special.after] for body in bodies if body], counts


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[list[int]], list[Units]]:
    """Lines, and the same lines cut into calls at random; long lines come in parts."""
    lines = draw(st.lists(st.lists(st.integers(200, 900), max_size=25), max_size=25))
    parts: list[Units] = []
    waiting: list[list[int]] = []
    for line in lines:
        if line and draw(st.booleans()):
            cuts = sorted(draw(st.lists(st.integers(0, len(line)), min_size=1, max_size=4)))
            parts += [units(*waiting)] if waiting else []
            waiting = []
            for begin, end in itertools.pairwise([0, *cuts, len(line)]):
                parts.append(units(line[begin:end], continues=True))
            parts[-1] = units(line[cuts[-1] :])
        else:
            waiting.append(line)
            if draw(st.booleans()):
                parts.append(units(*waiting))
                waiting = []
    return lines, [*parts, units(*waiting)]


sequencer_settings = {
    "special": st.sampled_from([BERT, T5, SpecialTokens((), ()), SpecialTokens((7, 8), (9,))]),
    "room": st.integers(1, 12),
    "overflow": st.sampled_from(["split", "truncate", "drop"]),
    "pack": st.booleans(),
}


@given(calls=calls(), restored_after=st.integers(0, 10), **sequencer_settings)
def test_sequences_match_a_plain_implementation(
    calls: tuple[list[list[int]], list[Units]],
    restored_after: int,
    special: SpecialTokens,
    room: int,
    overflow: Overflow,
    pack: bool,
) -> None:
    lines, given_units = calls
    expected, counts = plain_sequences(lines, special, room, overflow, pack)
    sequencer = Sequencer(special, room + len(special), overflow, pack)
    actual = []
    for number, part in enumerate(given_units):
        if number == restored_after:
            state, before = sequencer.snapshot(), vars(sequencer.snapshot()())
            sequencer.add(Units(np.array([3, 4], dtype=np.uint16), np.array([2])))
            sequencer.end()
            assert vars(state()) == before
            sequencer = Sequencer(special, room + len(special), overflow, pack)
            sequencer.restore(state())
        actual += sequences(*sequencer.add(part))
    actual += sequences(*sequencer.end())
    assert (actual, sequencer.counts) == (expected, counts)


def test_packed_sequences_end_at_blank_lines_and_ends_of_inputs() -> None:
    sequencer = Sequencer(BERT, 100, "split", pack=True)
    first = sequences(*sequencer.add(units([5, 6], [7], [], [8])))
    assert first == [[101, 5, 6, 7, 102]]
    assert sequences(*sequencer.end()) == [[101, 8, 102]]
    assert sequences(*sequencer.add(units([9]))) == []
    assert sequences(*sequencer.end()) == [[101, 9, 102]]
    assert sequences(*sequencer.end()) == []


def test_line_that_only_ends_a_document_is_not_counted() -> None:
    sequencer = Sequencer(BERT, 100, "split", pack=True)
    rows = replace(units([5], [6], [], [], [], [7], []), ends=3)  # the second row is blank
    assert sequences(*sequencer.add(rows)) == [[101, 5, 6, 102], [101, 7, 102]]
    assert sequencer.counts == Counts(units=4, blank=1)


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
def test_memory_for_an_endless_line_is_bounded(overflow: Overflow) -> None:
    sequencer = Sequencer(BERT, 12, overflow)
    count = 0
    for _ in range(50):
        count += len(sequencer.add(units([5] * 1000, continues=True))[1])
        assert len(sequencer.snapshot()().line or ()) <= 11
    assert count == (4999 if overflow == "split" else 0)
