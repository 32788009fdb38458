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


def groups_of(spans: list[Span], *, most: float = math.inf, raggedness: float = 1.25) -> list[Group]:
    return list(groups(spans, CPU, most=most, raggedness=raggedness))


def spans_in(group: Group) -> list[Span]:
    return list(zip(group.rows[:, 0].tolist(), group.lengths.tolist(), strict=True))


def fits(spans: list[Span], *, most: float, raggedness: float) -> bool:
    lengths = [length for _, length in spans]
    squares = [length**2 for length in lengths]
    return len(lengths) * max(lengths) <= most and len(squares) * max(squares) <= raggedness * sum(squares)


def positions(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_longest_come_first_and_equal_lengths_keep_their_order() -> None:
    spans = [span for group in groups_of(spans_of(LENGTHS)) for span in spans_in(group)]
    assert spans == sorted(spans_of(LENGTHS), key=lambda span: (-span[1], span[0]))


def test_only_similar_lengths_share_a_group() -> None:
    lengths = [group.lengths.tolist() for group in groups_of(spans_of(LENGTHS))]
    assert lengths == [[12], [7, 7, 7, 5, 5], [3], [1, 1]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_scatter_reverses_gather(shape: tuple[int, ...]) -> None:
    spans = spans_of(LENGTHS, gap=1)
    count = sum(spans[-1]) + 1
    before, after = positions(count, *shape), torch.zeros(count + 1, *shape)
    for group in groups_of(spans):
        gathered = group.gather(before)
        assert gathered.shape == (*group.rows.shape, *shape)
        group.scatter(gathered, after)
    for place in range(count):
        in_a_span = any(start <= place < start + length for start, length in spans)
        assert torch.equal(after[place], before[place] if in_a_span else torch.zeros(shape))


def test_padding_is_written_only_to_the_last_row() -> None:
    (group,) = groups_of(spans_of((2, 4, 3)), raggedness=2.0)
    assert group.real is not None
    target = torch.zeros(9 + 1)
    group.scatter(torch.where(group.real, 1.0, -1.0), target)
    assert target.tolist() == [1.0] * 9 + [-1.0]


def test_gradient_flows_through_gather_and_scatter() -> None:
    before = positions(sum(LENGTHS), 2).requires_grad_()
    target, gradient = torch.zeros(sum(LENGTHS) + 1, 2), positions(sum(LENGTHS), 2, seed=1)
    for group in groups_of(spans_of(LENGTHS)):
        group.scatter(group.gather(before) * 3, target)
    target[:-1].backward(gradient)
    torch.testing.assert_close(before.grad, 3 * gradient)


def test_groups_are_on_the_given_device() -> None:
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
def test_groups_hold_each_sequence_once_and_as_many_as_fit(
    lengths: list[int], gap: int, most: float, raggedness: float, seed: int
) -> None:
    spans = spans_of(tuple(lengths), gap=gap)
    random.Random(seed).shuffle(spans)
    result = groups_of(spans, most=most, raggedness=raggedness)
    spans_by_group = [spans_in(group) for group in result]
    assert sorted(itertools.chain.from_iterable(spans_by_group)) == sorted(spans)
    all_lengths = [length for group_spans in spans_by_group for _, length in group_spans]
    assert all_lengths == sorted(all_lengths, reverse=True)
    for group_spans, next_spans in itertools.pairwise([*spans_by_group, []]):
        assert len(group_spans) == 1 or fits(group_spans, most=most, raggedness=raggedness)
        assert not next_spans or not fits([*group_spans, next_spans[0]], most=most, raggedness=raggedness)
    for group, group_spans in zip(result, spans_by_group, strict=True):
        longest = group_spans[0][1]
        assert group.rows.tolist() == [
            [start + min(place, length - 1) for place in range(longest)] for start, length in group_spans
        ]
        real = [[place < length for place in range(longest)] for _, length in group_spans]
        assert (group.real is None) == all(itertools.chain.from_iterable(real))
        assert group.real is None or group.real.tolist() == real
