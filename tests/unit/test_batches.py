from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training.batches import BatchStream, permute
from minilm_cli.training.micro_batches import MICRO_BATCH_COST, MicroBatch, share, work

PAD = 9


def store_of(folder: Path, lengths: list[int], *, shard_tokens: int = 64) -> TokenStore:
    """Sequences of these lengths; the ids of each are 1, 2, 3 …, and the last is the special 99."""
    info = TokenizerInfo(vocabulary_size=100, special_ids=[99])
    writer = TokenStoreWriter(folder, info, 512, shard_tokens=shard_tokens)
    writer.add(np.array([token for length in lengths for token in (*range(1, length), 99)]), np.array(lengths))
    writer.close()
    return TokenStore(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """50 sequences of 1 to 30 tokens."""
    generator = np.random.default_rng(0)
    return store_of(tmp_path_factory.mktemp("store"), generator.integers(1, 31, size=50).tolist())


def stream(store: TokenStore, **options: Any) -> BatchStream:
    defaults = {"seed": 1, "batch_size": 8, "micro_batch_tokens": 64, "max_length": 30}
    return BatchStream(store, **defaults | options)


# --- The permutation ---------------------------------------------------------------------------------------------


@given(size=st.integers(1, 600), key=st.integers(0, 2**63 - 1))
def test_a_shuffle_puts_each_place_somewhere_else_than_every_other(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 255, 256, 257, 4095, 4096, 4097, 2**16])
def test_sizes_around_powers_of_two_are_shuffled_too(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key=3)), np.arange(size))


def test_a_shuffle_depends_on_its_key_and_on_nothing_else() -> None:
    places = np.arange(1000)
    one = permute(places, 1000, key=1)
    assert np.array_equal(one, permute(places, 1000, key=1))
    assert np.mean(one == permute(places, 1000, key=2)) < 0.01
    assert np.mean(one == places) < 0.01


def test_some_places_alone_go_where_they_go_among_all() -> None:
    everywhere = permute(np.arange(1000), 1000, key=5)
    some = np.array([999, 0, 17, 17])
    assert np.array_equal(permute(some, 1000, key=5), everywhere[some])
    assert some.tolist() == [999, 0, 17, 17]


def test_no_places_go_nowhere() -> None:
    assert permute(np.arange(0), 10, key=1).tolist() == []


def test_a_shuffle_mixes() -> None:
    size = 10_000
    shuffled = permute(np.arange(size), size, key=11)
    # Of uniformly shuffled places, half come from the lower half of any stretch, and neighbours are strangers.
    assert abs(np.mean(shuffled[: size // 2] < size / 2) - 0.5) < 0.02
    assert abs(np.mean(shuffled % 2 == np.arange(size) % 2) - 0.5) < 0.02
    assert abs(np.corrcoef(np.arange(size), shuffled)[0, 1]) < 0.05
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("size", [10**12, 2**62])
def test_a_few_places_of_a_huge_shuffle_are_found_without_the_others(size: int) -> None:
    places = np.array([0, 1, 2, size // 2, size - 1])
    found = permute(places, size, key=1)
    assert len(set(found.tolist())) == len(places)
    assert ((found >= 0) & (found < size)).all()


# --- Steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_each_epoch_sees_each_sequence_once_and_in_another_order(store: TokenStore, batch_size: int) -> None:
    steps = stream(store, batch_size=batch_size)
    epochs = 3
    seen = itertools.chain.from_iterable(steps.step_indices(step).tolist() for step in range(1, 400))
    orders = [list(itertools.islice(seen, 50)) for _ in range(epochs)]
    assert [sorted(order) for order in orders] == [list(range(50))] * epochs
    assert len({tuple(order) for order in orders}) == epochs


def test_the_order_does_not_depend_on_how_it_is_cut_into_steps(store: TokenStore) -> None:
    by_four, by_six = stream(store, batch_size=4), stream(store, batch_size=6)
    fours = np.concatenate([by_four.step_indices(step) for step in range(1, 31)])
    sixes = np.concatenate([by_six.step_indices(step) for step in range(1, 21)])
    assert np.array_equal(fours, sixes)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_what_is_held_out_is_never_trained_on(store: TokenStore, fraction: float) -> None:
    steps = stream(store, held_out_fraction=fraction)
    held_out = {index for batch in steps.held_out() for index in batch.indices.tolist()}
    trained = {index for step in range(1, 30) for index in steps.step_indices(step).tolist()}
    assert len(held_out) == steps.held_out_sequences == int(np.ceil(50 * fraction))
    assert not held_out & trained
    assert held_out | trained == set(range(50))


def test_the_held_out_sequences_are_chosen_by_the_seed_and_are_always_the_same(store: TokenStore) -> None:
    def held_out(**options: Any) -> list[int]:
        steps = stream(store, held_out_fraction=0.3, **options)
        steps.step(3)
        return sorted(index for batch in steps.held_out() for index in batch.indices.tolist())

    assert held_out() == held_out() == held_out(batch_size=3, micro_batch_tokens=1000)
    assert held_out() != held_out(seed=2)


@pytest.mark.parametrize(("fraction", "limit", "count"), [(0.0, 10, 0), (0.2, 4, 4), (0.2, 100, 10), (0.999, 100, 49)])
def test_at_most_the_limit_is_held_out_and_something_left_to_train_on(
    store: TokenStore, fraction: float, limit: int, count: int
) -> None:
    steps = stream(store, held_out_fraction=fraction, held_out_limit=limit)
    assert (steps.held_out_sequences, steps.train_sequences) == (count, 50 - count)
    assert sum(len(batch.inputs.lengths) for batch in steps.held_out()) == count


def test_a_store_of_one_sequence_is_all_trained_on(tmp_path: Path) -> None:
    steps = stream(store_of(tmp_path, [3]), batch_size=2, held_out_fraction=0.5)
    assert steps.held_out_sequences == 0
    assert steps.step_indices(5).tolist() == [0, 0]
    assert list(steps.held_out()) == []


@pytest.mark.parametrize("pack", [False, True])
def test_a_step_is_the_same_whatever_the_micro_batches(store: TokenStore, pack: bool) -> None:
    cuts = [stream(store, micro_batch_tokens=tokens, pack=pack).step(4).micro_batches for tokens in (1, 40, 100, 10**6)]
    assert [len(cut) for cut in cuts] == sorted((len(cut) for cut in cuts), reverse=True)
    assert len(cuts[0]) == 8
    assert len(cuts[-1]) <= 2  # padded, the short ones may go by themselves
    wanted = stream(store).step_indices(4)
    for cut in cuts:
        assert sorted(index for batch in cut for index in batch.indices.tolist()) == sorted(wanted.tolist())


def test_a_step_is_the_same_whatever_came_before_it(store: TokenStore) -> None:
    straight, jumping = stream(store), stream(store)
    for step in range(1, 9):
        straight.step(step)
    for one, other in zip(straight.step(9).micro_batches, jumping.step(9).micro_batches, strict=True):
        assert torch.equal(one.inputs.ids, other.inputs.ids)
        assert one.inputs.lengths == other.inputs.lengths


def test_the_seed_decides_the_order(store: TokenStore) -> None:
    assert stream(store).step_indices(1).tolist() != stream(store, seed=2).step_indices(1).tolist()


# --- Micro-batches -----------------------------------------------------------------------------------------------


def rows(batch: MicroBatch) -> list[list[int]]:
    """The real tokens of each sequence, found as the loss finds them: by the spans."""
    flat = batch.inputs.ids.flatten()
    return [flat[start : start + length].tolist() for start, length in batch.inputs.spans]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    tokens=st.integers(1, 60),
    batch_size=st.integers(1, 30),
    pack=st.booleans(),
    max_length=st.integers(2, 25),
)
def test_micro_batches_hold_the_whole_step_within_the_budget(
    lengths: list[int], tokens: int, batch_size: int, pack: bool, max_length: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), lengths)
        steps = stream(store, batch_size=batch_size, micro_batch_tokens=tokens, pack=pack, max_length=max_length)
        batches = steps.step(2).micro_batches
        indices = [index for batch in batches for index in batch.indices.tolist()]
        assert sorted(indices) == sorted(steps.step_indices(2).tolist())
        for batch in batches:
            assert batch.inputs.ids.numel() <= tokens or len(batch.inputs.lengths) == 1
            assert batch.tokens == sum(batch.inputs.lengths)
            for index, found, length in zip(batch.indices.tolist(), rows(batch), batch.inputs.lengths, strict=True):
                assert found == store.sequence(index, max_length).tolist()
                assert len(found) == length == min(max_length, lengths[index])


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=8), tokens=st.integers(1, 900))
def test_padded_micro_batches_are_the_cheapest_cut(lengths: list[int], tokens: int) -> None:
    def cost(sizes: list[int]) -> float:
        """Of a cut of the sorted lengths: infinite if it breaks the budget."""
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
        assert cost([len(batch.inputs.lengths) for batch in steps.step(1).micro_batches]) == min(
            map(cost, cuts(len(lengths)))
        )


def test_padding_stays_below_eight_percent(tmp_path: Path) -> None:
    lengths = np.clip(np.round(np.exp(np.random.default_rng(0).normal(np.log(40), 0.6, 2560))), 4, 128)
    store = store_of(tmp_path, lengths.astype(int).tolist(), shard_tokens=10**6)
    steps = stream(store, batch_size=256, max_length=128)
    for tokens in (1024, 2048, 16384):
        steps.micro_batch_tokens = tokens
        for step in range(1, 11):
            batches = steps.step(step).micro_batches
            assert 1 - sum(batch.tokens for batch in batches) / sum(batch.padded_tokens for batch in batches) < 0.08
            assert len(batches) < 20  # and not by taking each sequence alone


def test_a_padded_micro_batch_is_sorted_padded_and_masked(store: TokenStore) -> None:
    for batch in stream(store).step(1).micro_batches:
        assert not batch.inputs.is_packed
        assert list(batch.inputs.lengths) == sorted(batch.inputs.lengths, reverse=True)
        assert batch.inputs.ids.shape == (len(batch.inputs.lengths), batch.inputs.lengths[0])
        assert batch.inputs.mask is not None
        for row, mask, length in zip(batch.inputs.ids, batch.inputs.mask, batch.inputs.lengths, strict=True):
            assert mask.tolist() == [1] * length + [0] * (batch.inputs.lengths[0] - length)
            assert (row[length:] == 0).all()


def test_a_packed_micro_batch_is_one_row_without_padding(store: TokenStore) -> None:
    for batch in stream(store, pack=True).step(1).micro_batches:
        assert batch.inputs.is_packed
        assert batch.inputs.ids.shape == (1, batch.tokens)
        assert batch.inputs.mask is None
        assert batch.inputs.positions is not None
        assert batch.inputs.positions.tolist() == [
            [place for length in batch.inputs.lengths for place in range(length)]
        ]


def test_a_batch_may_be_larger_than_the_store(tmp_path: Path) -> None:
    store = store_of(tmp_path, [2, 3, 4])
    indices = stream(store, batch_size=10).step_indices(1).tolist()
    assert [sorted(indices[begin : begin + 3]) for begin in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert sum(len(batch.inputs.lengths) for batch in stream(store, batch_size=10).step(1).micro_batches) == 10


def test_a_sequence_longer_than_the_budget_goes_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path, [20, 2, 2])
    batches = stream(store, batch_size=3, micro_batch_tokens=5).step(1).micro_batches
    assert [batch.inputs.lengths for batch in batches] == [(20,), (2, 2)]


def test_a_cut_sequence_keeps_its_last_special_token(tmp_path: Path) -> None:
    store = store_of(tmp_path, [12])
    for pack in (False, True):
        [batch] = stream(store, batch_size=1, max_length=5, pack=pack).step(1).micro_batches
        assert batch.inputs.ids.tolist() == [[1, 2, 3, 4, 99]]


def test_many_held_out_sequences_come_in_parts_that_make_the_whole(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, TokenizerInfo(vocabulary_size=9), 512)
    writer.add(np.ones(10_000, dtype=np.int64), np.ones(10_000, dtype=np.int64))
    writer.close()
    steps = stream(TokenStore(tmp_path), held_out_fraction=0.9, held_out_limit=9000, micro_batch_tokens=1000)
    found = [index for batch in steps.held_out() for index in batch.indices.tolist()]
    assert len(found) == len(set(found)) == 9000


# --- Several processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 8), (3, 8), (4, 3), (64, 8)])
def test_processes_share_each_step_and_leave_nothing_out(
    store: TokenStore, ranks: int, batch_size: int, pack: bool
) -> None:
    alone = stream(store, batch_size=batch_size, pack=pack)
    shared = [stream(store, batch_size=batch_size, pack=pack, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(1, 12):
        whole, parts = alone.step(step), [part.step(step) for part in shared]
        seen = [i for part in parts for batch in part.micro_batches for i in batch.indices.tolist()]
        assert sorted(seen) == sorted(alone.step_indices(step).tolist())
        assert {(part.sequences, part.tokens) for part in parts} == {(whole.sequences, whole.tokens)}
        assert len({part.imbalance for part in parts}) == 1
        assert whole.imbalance == 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_processes_share_what_is_held_out(store: TokenStore, ranks: int) -> None:
    shared = [stream(store, held_out_fraction=0.5, rank=rank, ranks=ranks) for rank in range(ranks)]
    seen = [index for part in shared for batch in part.held_out() for index in batch.indices.tolist()]
    assert len(seen) == shared[0].held_out_sequences
    alone = stream(store, held_out_fraction=0.5)
    assert sorted(seen) == sorted(index for batch in alone.held_out() for index in batch.indices.tolist())


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60), ranks=st.integers(1, 9))
def test_no_process_has_more_to_do_than_one_sequence_above_the_least(lengths: list[int], ranks: int) -> None:
    costs = work(np.array(lengths))
    owners = share(costs, ranks)
    loads = np.bincount(owners, weights=costs, minlength=ranks)
    assert loads.sum() == costs.sum()
    assert loads.max() - loads.min() <= costs.max()


@pytest.mark.parametrize(
    ("batch_size", "ranks", "most"), [(32, 2, 0.03), (32, 4, 0.05), (256, 8, 0.01), (2048, 64, 0.01)]
)
def test_work_is_balanced_on_text_as_it_is(tmp_path: Path, batch_size: int, ranks: int, most: float) -> None:
    # Log-normal, median 40, at most 128: as in the benchmarks.
    generator = np.random.default_rng(0)
    lengths = np.clip(np.round(np.exp(generator.normal(np.log(40), 0.6, 4000))), 4, 128).astype(int)
    store = store_of(tmp_path, lengths.tolist(), shard_tokens=10**6)
    steps = stream(store, batch_size=batch_size, max_length=128, ranks=ranks)
    found = [steps.step(step).imbalance for step in range(1, 40)]
    assert np.mean(found) < most
    assert max(found) < 0.05 if batch_size > 32 else np.mean(np.array(found) < 0.05) > 0.9
