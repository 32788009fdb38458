from __future__ import annotations

import itertools

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


def plainly(
    lines: list[list[int]], special: SpecialTokens, room: int, overflow: Overflow, pack: bool
) -> tuple[list[list[int]], Counts]:
    """What is to come out, piece by piece."""
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
    made: list[list[int]] = [[]]
    for piece in pieces:
        if not pack or not piece or len(made[-1]) + len(piece) > room:
            made.append([])
        made[-1] += piece
    return [[*special.before, *body, *special.after] for body in made if body], counts


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[list[int]], list[Units]]:
    """Lines, and some way of cutting them into calls, with long lines in parts."""
    lines = draw(st.lists(st.lists(st.integers(200, 900), max_size=25), max_size=25))
    made: list[Units] = []
    waiting: list[list[int]] = []
    for line in lines:
        if line and draw(st.booleans()):
            cuts = sorted(draw(st.lists(st.integers(0, len(line)), min_size=1, max_size=4)))
            made += [units(*waiting)] if waiting else []
            waiting = []
            for begin, end in itertools.pairwise([0, *cuts, len(line)]):
                made.append(units(line[begin:end], continues=True))
            made[-1] = units(line[cuts[-1] :])
        else:
            waiting.append(line)
            if draw(st.booleans()):
                made.append(units(*waiting))
                waiting = []
    return lines, [*made, units(*waiting)]


settings_of_sequences = {
    "special": st.sampled_from([BERT, T5, SpecialTokens((), ()), SpecialTokens((7, 8), (9,))]),
    "room": st.integers(1, 12),
    "overflow": st.sampled_from(["split", "truncate", "drop"]),
    "pack": st.booleans(),
}


@given(calls=calls(), restored_after=st.integers(0, 10), **settings_of_sequences)
def test_sequences_do_not_depend_on_the_calls(
    calls: tuple[list[list[int]], list[Units]],
    restored_after: int,
    special: SpecialTokens,
    room: int,
    overflow: Overflow,
    pack: bool,
) -> None:
    lines, given_units = calls
    wanted, counts = plainly(lines, special, room, overflow, pack)
    sequencer = Sequencer(special, room + len(special), overflow, pack)
    found = []
    for number, some in enumerate(given_units):
        if number == restored_after:
            state, as_it_was = sequencer.snapshot(), vars(sequencer.snapshot()())
            sequencer.add(Units(np.array([3, 4], dtype=np.uint16), np.array([2])))
            sequencer.end()
            assert vars(state()) == as_it_was
            sequencer = Sequencer(special, room + len(special), overflow, pack)
            sequencer.restore(state())
        found += sequences(*sequencer.add(some))
    found += sequences(*sequencer.end())
    assert (found, sequencer.counts) == (wanted, counts)


def test_packed_lines_do_not_cross_a_blank_line_nor_the_end_of_an_input() -> None:
    sequencer = Sequencer(BERT, 100, "split", pack=True)
    first = sequences(*sequencer.add(units([5, 6], [7], [], [8])))
    assert first == [[101, 5, 6, 7, 102]]
    assert sequences(*sequencer.end()) == [[101, 8, 102]]
    assert sequences(*sequencer.add(units([9]))) == []
    assert sequences(*sequencer.end()) == [[101, 9, 102]]
    assert sequences(*sequencer.end()) == []


def test_a_packed_sequence_holds_as_many_whole_lines_as_fit() -> None:
    sequencer = Sequencer(BERT, 8, "split", pack=True)
    made = sequences(*sequencer.add(units([1, 2], [3, 4], [5, 6], [7, 8, 9, 10, 11], [12])))
    assert made == [[101, 1, 2, 3, 4, 5, 6, 102]]
    assert sequences(*sequencer.end()) == [[101, 7, 8, 9, 10, 11, 12, 102]]


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
def test_no_more_of_an_endless_line_is_kept_than_a_sequence_holds(overflow: Overflow) -> None:
    sequencer = Sequencer(BERT, 12, overflow)
    made = 0
    for _ in range(50):
        made += len(sequencer.add(units([5] * 1000, continues=True))[1])
        assert len(sequencer.snapshot()().line or ()) <= 11
    assert made == (4999 if overflow == "split" else 0)
