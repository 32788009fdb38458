from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.models.inputs import Layout
from minilm_cli.training.micro_batches import MICRO_BATCH_COST, MicroBatch, share, work

from .stores import store_of, stream


def rows(batch: MicroBatch) -> list[list[int]]:
    """The real tokens of each sequence, taken by the spans as the loss does."""
    flat = batch.inputs.ids.flatten()
    return [flat[start : start + length].tolist() for start, length in batch.inputs.spans]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    tokens=st.integers(1, 60),
    batch_size=st.integers(1, 30),
    layout=st.sampled_from(["packed", "padded", "equal"]),
    max_length=st.integers(2, 25),
)
def test_micro_batches_hold_the_step_within_the_budget(
    lengths: list[int], tokens: int, batch_size: int, layout: Layout, max_length: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), lengths)
        steps = stream(
            store,
            batch_size=batch_size,
            micro_batch_tokens=tokens,
            layout=layout,
            max_length=max_length,
        )
        batches = steps.step(2).micro_batches
        indices = [index for batch in batches for index in batch.indices.tolist()]
        assert sorted(indices) == sorted(steps.step_indices(2).tolist())
        for batch in batches:
            assert batch.inputs.ids.numel() <= tokens or len(batch.inputs.lengths) == 1
            assert batch.tokens == sum(batch.inputs.lengths)
            for index, row, length in zip(batch.indices.tolist(), rows(batch), batch.inputs.lengths, strict=True):
                assert row == store.sequence(index, max_length).tolist()
                assert len(row) == length == min(max_length, lengths[index])


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=8), tokens=st.integers(1, 900))
def test_padded_micro_batches_have_the_lowest_cost(lengths: list[int], tokens: int) -> None:
    def cost(sizes: list[int]) -> float:
        """The cost of cutting the sorted lengths like this; infinite if it breaks the budget."""
        left, total = sorted(lengths, reverse=True), 0.0
        for size in sizes:
            padded = size * left[0]
            total += MICRO_BATCH_COST + padded if size == 1 or padded <= tokens else float("inf")
            left = left[size:]
        return total

    def cuts(count: int) -> Iterator[list[int]]:
        if not count:
            yield []
        for size in range(1, count + 1):
            yield from ([size, *rest] for rest in cuts(count - size))

    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), lengths)
        steps = stream(store, batch_size=len(lengths), micro_batch_tokens=tokens, max_length=200)
        sizes = [len(batch.inputs.lengths) for batch in steps.step(1).micro_batches]
        assert cost(sizes) == min(map(cost, cuts(len(lengths))))


def text_lengths(count: int) -> list[int]:
    """Lengths as in the benchmarks: log-normal, median 40, at most 128."""
    normal = np.random.default_rng(0).normal(np.log(40), 0.6, count)
    return [int(length) for length in np.clip(np.round(np.exp(normal)), 4, 128)]


def test_padding_stays_below_eight_percent(tmp_path: Path) -> None:
    store = store_of(tmp_path, text_lengths(2560), shard_tokens=10**6)
    steps = stream(store, batch_size=256, max_length=128)
    for tokens in (1024, 2048, 16384):
        steps.micro_batch_tokens = tokens
        for step in range(1, 11):
            batches = steps.step(step).micro_batches
            assert 1 - sum(batch.tokens for batch in batches) / sum(batch.padded_tokens for batch in batches) < 0.08
            assert len(batches) < 20


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60), ranks=st.integers(1, 9))
def test_work_of_ranks_differs_by_at_most_one_sequence(lengths: list[int], ranks: int) -> None:
    costs = work(np.array(lengths))
    owners = share(costs, ranks)
    loads = np.bincount(owners, weights=costs, minlength=ranks)
    assert loads.sum() == costs.sum()
    assert loads.max() - loads.min() <= costs.max()


@pytest.mark.parametrize(
    ("batch_size", "ranks", "most"), [(32, 2, 0.03), (32, 4, 0.05), (256, 8, 0.01), (2048, 64, 0.01)]
)
def test_work_is_balanced_on_real_lengths(tmp_path: Path, batch_size: int, ranks: int, most: float) -> None:
    store = store_of(tmp_path, text_lengths(4000), shard_tokens=10**6)
    steps = stream(store, batch_size=batch_size, max_length=128, ranks=ranks)
    imbalances = [steps.step(step).imbalance for step in range(1, 40)]
    assert np.mean(imbalances) < most
    assert max(imbalances) < 0.05 if batch_size > 32 else np.mean(np.array(imbalances) < 0.05) > 0.9
