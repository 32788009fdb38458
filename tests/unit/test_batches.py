from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilm_cli.models.inputs import Layout
from minilm_cli.tokens.store import TokenStore

from .stores import held_out, store_of, stream


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """50 sequences of 1 to 30 tokens."""
    generator = np.random.default_rng(0)
    return store_of(tmp_path_factory.mktemp("store"), generator.integers(1, 31, size=50).tolist())


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_each_epoch_has_each_sequence_once_in_a_new_order(store: TokenStore, batch_size: int) -> None:
    steps = stream(store, batch_size=batch_size)
    indices = itertools.chain.from_iterable(steps.step_indices(step).tolist() for step in range(1, 400))
    epochs = [list(itertools.islice(indices, 50)) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("fraction", "limit", "count"),
    [(0.0, 10, 0), (0.01, 10, 1), (0.2, 4, 4), (0.2, 100, 10), (0.9, 100, 45), (0.999, 100, 49)],
)
def test_held_out_sequences_are_limited_and_never_trained_on(
    store: TokenStore, fraction: float, limit: int, count: int
) -> None:
    steps = stream(store, held_out_fraction=fraction, held_out_limit=limit)
    trained = {index for step in range(1, 30) for index in steps.step_indices(step).tolist()}
    assert len(held_out(steps)) == steps.held_out_sequences == count
    assert steps.train_sequences == 50 - count
    assert not trained & set(held_out(steps))
    assert trained | set(held_out(steps)) == set(range(50))


def test_held_out_sequences_depend_only_on_the_seed(store: TokenStore) -> None:
    def chosen(**options: Any) -> list[int]:
        steps = stream(store, held_out_fraction=0.3, **options)
        steps.step(3)
        return sorted(held_out(steps))

    assert chosen() == chosen() == chosen(batch_size=3, micro_batch_tokens=1000)
    assert chosen() != chosen(seed=2)


def test_store_of_one_sequence_has_nothing_held_out(tmp_path: Path) -> None:
    steps = stream(store_of(tmp_path, [3]), batch_size=2, held_out_fraction=0.5)
    assert steps.held_out_sequences == 0
    assert steps.step_indices(5).tolist() == [0, 0]
    assert list(steps.held_out()) == []


def test_padded_micro_batch_is_sorted_padded_and_masked(store: TokenStore) -> None:
    for batch in stream(store).step(1).micro_batches:
        assert not batch.inputs.is_packed
        assert list(batch.inputs.lengths) == sorted(batch.inputs.lengths, reverse=True)
        assert batch.inputs.ids.shape == (len(batch.inputs.lengths), batch.inputs.lengths[0])
        assert batch.inputs.mask is not None
        for row, mask, length in zip(batch.inputs.ids, batch.inputs.mask, batch.inputs.lengths, strict=True):
            assert mask.tolist() == [1] * length + [0] * (batch.inputs.lengths[0] - length)
            assert (row[length:] == 0).all()


def test_packed_micro_batch_is_one_row_without_padding(store: TokenStore) -> None:
    for batch in stream(store, layout="packed").step(1).micro_batches:
        assert batch.inputs.is_packed
        assert batch.inputs.ids.shape == (1, batch.tokens)
        assert batch.inputs.mask is None
        assert batch.inputs.positions is not None
        assert batch.inputs.positions.tolist() == [
            [place for length in batch.inputs.lengths for place in range(length)]
        ]


def test_many_held_out_sequences_come_exactly_once(tmp_path: Path) -> None:
    store = store_of(tmp_path, [1] * 10_000, shard_tokens=10**6)
    steps = stream(store, held_out_fraction=0.9, held_out_limit=9000, micro_batch_tokens=1000)
    indices = held_out(steps)
    assert len(indices) == len(set(indices)) == 9000


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 8), (3, 8), (4, 3), (64, 8)])
def test_ranks_share_each_step(store: TokenStore, ranks: int, batch_size: int, layout: Layout) -> None:
    alone = stream(store, batch_size=batch_size, layout=layout)
    shared = [stream(store, batch_size=batch_size, layout=layout, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(1, 12):
        expected, parts = alone.step(step), [part.step(step) for part in shared]
        indices = [i for part in parts for batch in part.micro_batches for i in batch.indices.tolist()]
        assert sorted(indices) == sorted(alone.step_indices(step).tolist())
        assert {(part.sequences, part.tokens) for part in parts} == {(expected.sequences, expected.tokens)}
        assert len({part.imbalance for part in parts}) == 1
        assert expected.imbalance == 0


@pytest.mark.parametrize("ranks", [2, 3, 64])
def test_ranks_share_the_held_out_sequences(store: TokenStore, ranks: int) -> None:
    shared = [stream(store, held_out_fraction=0.5, rank=rank, ranks=ranks) for rank in range(ranks)]
    indices = [index for part in shared for index in held_out(part)]
    assert sorted(indices) == sorted(held_out(stream(store, held_out_fraction=0.5)))
