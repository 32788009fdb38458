from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minilm_cli.ops.length_groups import Group, Span, groups

CPU = torch.device("cpu")
LENGTHS = (7, 1, 7, 12, 3, 5, 1, 5, 7)


def spans_of(lengths: tuple[int, ...], *, gap: int = 0) -> list[Span]:
    starts = itertools.accumulate(lengths, lambda end, length: end + length + gap, initial=gap)
    return list(zip(starts, lengths, strict=False))


def grouped(spans: list[Span], *, most: float = math.inf, raggedness: float = 1.25) -> list[Group]:
    return list(groups(spans, CPU, most=most, raggedness=raggedness))


def spans_in(group: Group) -> list[Span]:
    return list(zip(group.rows[:, 0].tolist(), group.lengths.tolist(), strict=True))


def fits(spans: list[Span], *, most: float, raggedness: float) -> bool:
    lengths = [length for _, length in spans]
    squares = [length**2 for length in lengths]
    return len(lengths) * max(lengths) <= most and len(squares) * max(squares) <= raggedness * sum(squares)


def positions(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_the_longest_come_first_and_those_of_one_length_in_their_order() -> None:
    found = [span for group in grouped(spans_of(LENGTHS)) for span in spans_in(group)]
    assert found == sorted(spans_of(LENGTHS), key=lambda span: (-span[1], span[0]))


def test_lengths_that_are_near_go_together_and_others_do_not() -> None:
    found = [group.lengths.tolist() for group in grouped(spans_of(LENGTHS))]
    assert found == [[12], [7, 7, 7, 5, 5], [3], [1, 1]]


def test_without_raggedness_only_those_of_one_length_go_together() -> None:
    found = grouped(spans_of(LENGTHS), raggedness=1.0)
    assert [group.lengths.tolist() for group in found] == [[12], [7, 7, 7], [5, 5], [3], [1, 1]]
    assert all(group.real is None for group in found)


def test_a_group_holds_no_more_than_asked_for() -> None:
    found = grouped(spans_of((4,) * 5), most=2 * 4)
    assert [group.lengths.tolist() for group in found] == [[4, 4], [4, 4], [4]]
    assert [len(group.lengths) for group in grouped(spans_of((4,) * 5), most=2 * 4 - 1)] == [1] * 5


@pytest.mark.parametrize("most", [0, 1, 9])
def test_a_sequence_larger_than_a_group_may_be_has_one_of_its_own(most: int) -> None:
    found = grouped(spans_of((5, 5, 5)), most=most)
    assert [spans_in(group) for group in found] == [[span] for span in spans_of((5, 5, 5))]


def test_a_group_of_one_length_has_no_padding_to_tell() -> None:
    (group,) = grouped(spans_of((4, 4, 4), gap=2))
    assert group.real is None
    assert group.rows.tolist() == [[2, 3, 4, 5], [8, 9, 10, 11], [14, 15, 16, 17]]
    assert group.lengths.tolist() == [4, 4, 4]


def test_in_the_place_of_padding_stands_the_sequences_last_position() -> None:
    (group,) = grouped(spans_of((2, 4, 3)), raggedness=2.0)
    assert group.rows.tolist() == [[2, 3, 4, 5], [6, 7, 8, 8], [0, 1, 1, 1]]
    assert group.real is not None
    assert group.real.tolist() == [[True] * 4, [True, True, True, False], [True, True, False, False]]
    assert group.lengths.tolist() == [4, 3, 2]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_what_is_gathered_and_scattered_is_as_it_was(shape: tuple[int, ...]) -> None:
    spans = spans_of(LENGTHS, gap=1)
    count = sum(spans[-1]) + 1
    before, after = positions(count, *shape), torch.zeros(count + 1, *shape)
    for group in grouped(spans):
        gathered = group.gather(before)
        assert gathered.shape == (*group.rows.shape, *shape)
        group.scatter(gathered, after)
    for place in range(count):
        in_a_span = any(start <= place < start + length for start, length in spans)
        assert torch.equal(after[place], before[place] if in_a_span else torch.zeros(shape))


def test_what_was_computed_for_padding_is_written_to_the_last_row_alone() -> None:
    (group,) = grouped(spans_of((2, 4, 3)), raggedness=2.0)
    assert group.real is not None
    found = torch.where(group.real, 1.0, -1.0)
    into = torch.zeros(9 + 1)
    group.scatter(found, into)
    assert into.tolist() == [1.0] * 9 + [-1.0]


def test_a_group_without_padding_leaves_the_last_row_alone() -> None:
    (group,) = grouped(spans_of((3, 3)))
    into = torch.zeros(6 + 1)
    group.scatter(torch.ones(2, 3), into)
    assert into.tolist() == [1.0] * 6 + [0.0]


def test_the_gradient_of_what_is_gathered_and_scattered_is_that_of_the_real_positions() -> None:
    before = positions(sum(LENGTHS), 2).requires_grad_()
    into, outer = torch.zeros(sum(LENGTHS) + 1, 2), positions(sum(LENGTHS), 2, seed=1)
    for group in grouped(spans_of(LENGTHS)):
        group.scatter(group.gather(before) * 3, into)
    into[:-1].backward(outer)
    torch.testing.assert_close(before.grad, 3 * outer)


def test_everything_is_on_the_device_asked_for() -> None:
    device = torch.device("meta")
    for group in groups(spans_of(LENGTHS), device, most=math.inf, raggedness=1.25):
        tensors = [group.rows, group.lengths, *([] if group.real is None else [group.real])]
        assert all(tensor.device == device for tensor in tensors)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    gap=st.integers(0, 2),
    most=st.one_of(st.integers(0, 400), st.just(math.inf)),
    raggedness=st.floats(1, 3),
    seed=st.integers(0, 2**16),
)
def test_any_lengths_are_grouped_once_within_the_limits_and_as_many_as_fit(
    lengths: list[int], gap: int, most: float, raggedness: float, seed: int
) -> None:
    spans = spans_of(tuple(lengths), gap=gap)
    random.Random(seed).shuffle(spans)
    found = grouped(spans, most=most, raggedness=raggedness)
    held = [spans_in(group) for group in found]
    assert sorted(itertools.chain.from_iterable(held)) == sorted(spans)
    flat = [length for some in held for _, length in some]
    assert flat == sorted(flat, reverse=True)
    for some, following in itertools.pairwise([*held, []]):
        assert len(some) == 1 or fits(some, most=most, raggedness=raggedness)
        assert not following or not fits([*some, following[0]], most=most, raggedness=raggedness)
    for group, some in zip(found, held, strict=True):
        longest = some[0][1]
        assert group.rows.tolist() == [
            [start + min(place, length - 1) for place in range(longest)] for start, length in some
        ]
        real = [[place < length for place in range(longest)] for _, length in some]
        assert (group.real is None) == all(itertools.chain.from_iterable(real))
        assert group.real is None or group.real.tolist() == real
