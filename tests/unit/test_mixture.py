from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.settings.distill import CYCLE
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training.batches import BatchStream

#: Sequences of each store.
SIZES = (40, 7, 25)

#: What one store of 40 sequences, a tenth of them held out, was shuffled to before there were mixtures.
RECORDED_HELD_OUT = [24, 2, 20, 0]
RECORDED = {
    1: [8, 15, 1, 25, 27, 26, 30, 9],
    5: [12, 31, 28, 16, 22, 21, 29, 38],
    1000: [10, 12, 15, 30, 36, 25, 3, 39],
}


def store_of(folder: Path, number: int, size: int) -> TokenStore:
    """Sequences of 2 to 6 tokens: the store's number, their place, and the store's own special token, 90 and more."""
    special = 90 + number
    writer = TokenStoreWriter(folder, TokenizerInfo(vocabulary_size=100, special_ids=[special]), 512, shard_tokens=32)
    for place in range(size):
        ids = np.array([number, place, 3, 3, 3, special])[[*range(1 + place % 5), 5]]
        writer.add(ids, np.array([len(ids)]))
    writer.close()
    return TokenStore(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStore]:
    """Three stores, of 40, 7 and 25 sequences."""
    folder = tmp_path_factory.mktemp("stores")
    return [store_of(folder / str(number), number, size) for number, size in enumerate(SIZES)]


def stream(mixture: Mixture | TokenStore, **options: Any) -> BatchStream:
    defaults = {"seed": 1, "batch_size": 8, "micro_batch_tokens": 64, "max_length": 30}
    return BatchStream(mixture, **defaults | options)


def order(steps: BatchStream, count: int) -> list[int]:
    """The first indices of the training order."""
    batches = (steps.step_indices(step).tolist() for step in itertools.count(1))
    return list(itertools.islice(itertools.chain.from_iterable(batches), count))


def held_out(steps: BatchStream) -> list[int]:
    return [index for batch in steps.held_out() for index in batch.indices.tolist()]


def origin(index: int) -> int:
    """Which store the index of the mixture is one of."""
    return int(np.searchsorted(np.cumsum(SIZES), index, side="right"))


# --- One range of indices ----------------------------------------------------------------------------------------


def test_the_sequences_of_all_stores_have_one_range_of_indices(stores: list[TokenStore]) -> None:
    mixture = Mixture(stores)
    assert len(mixture) == sum(SIZES)
    whole = [store[i].tolist() for store in stores for i in range(len(store))]
    assert [mixture.sequence(index, 10).tolist() for index in range(len(mixture))] == whole
    indices = np.array([71, 0, 39, 40, 46, 47, 0])
    assert mixture.lengths(indices, 10).tolist() == [len(whole[index]) for index in indices]
    assert mixture.lengths(indices, 3).tolist() == [min(3, len(whole[index])) for index in indices]


def test_each_store_cuts_with_its_own_special_tokens(stores: list[TokenStore]) -> None:
    mixture = Mixture(stores)
    assert [mixture.sequence(index, 2).tolist() for index in (4, 44, 51)] == [[0, 90], [1, 91], [2, 92]]


def test_the_mean_length_is_weighted_by_the_shares(stores: list[TokenStore]) -> None:
    means = [np.mean([min(4, len(store[i])) for i in range(len(store))]) for store in stores]
    assert Mixture(stores).mean_length(4) == pytest.approx(np.average(means, weights=SIZES))
    assert Mixture(stores, [6, 3, 1]).mean_length(4) == pytest.approx(np.average(means, weights=[6, 3, 1]))


# --- Without weights ---------------------------------------------------------------------------------------------


def test_one_store_is_shuffled_as_in_earlier_versions(stores: list[TokenStore]) -> None:
    # A run that was begun by an earlier version goes on with the sequences it would have seen then.
    for one in (stores[0], Mixture(stores[:1])):
        steps = stream(one, held_out_fraction=0.1)
        assert held_out(steps) == RECORDED_HELD_OUT
        assert {step: steps.step_indices(step).tolist() for step in RECORDED} == RECORDED


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_stores_without_weights_are_like_one_store(tmp_path: Path, stores: list[TokenStore], fraction: float) -> None:
    writer = TokenStoreWriter(tmp_path, TokenizerInfo(vocabulary_size=100), 512)
    for ids in (store[i] for store in stores for i in range(len(store))):
        writer.add(ids, np.array([len(ids)]))
    writer.close()
    mixed, one = (stream(data, held_out_fraction=fraction) for data in (Mixture(stores), TokenStore(tmp_path)))
    assert held_out(mixed) == held_out(one)
    assert order(mixed, 200) == order(one, 200)


def test_without_weights_each_sequence_is_seen_once_an_epoch(stores: list[TokenStore]) -> None:
    steps = stream(Mixture(stores), batch_size=7, held_out_fraction=0.2)
    trained = set(range(72)) - set(held_out(steps))
    seen = order(steps, 3 * steps.train_sequences)
    for epoch in range(3):
        assert sorted(seen[epoch * len(trained) :][: len(trained)]) == sorted(trained)


# --- With weights ------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=2, max_size=3)


@given(weights=WEIGHTS, first=st.integers(0, 10**12))
def test_each_store_has_its_share_of_ten_thousand_positions_wherever_they_begin(
    stores: list[TokenStore], weights: list[float], first: int
) -> None:
    mixture = Mixture(stores[: len(weights)], weights)
    parts, _ = mixture.deal(np.arange(first, first + CYCLE))
    exact = CYCLE * np.array(weights) / sum(weights)
    counts = np.bincount(parts, minlength=len(weights))
    assert (abs(counts - exact) < 1).all()
    assert (counts / CYCLE).tolist() == mixture.shares


@given(weights=WEIGHTS, count=st.integers(1, CYCLE))
def test_the_stores_are_evenly_interleaved(stores: list[TokenStore], weights: list[float], count: int) -> None:
    mixture = Mixture(stores[: len(weights)], weights)
    parts, _ = mixture.deal(np.arange(count))
    assert (abs(np.bincount(parts, minlength=len(weights)) - count * np.array(mixture.shares)) < len(weights)).all()


@given(weights=WEIGHTS)
def test_each_place_in_a_store_s_order_comes_once_and_in_turn(stores: list[TokenStore], weights: list[float]) -> None:
    parts, places = Mixture(stores[: len(weights)], weights).deal(np.arange(3 * CYCLE + 77))
    for part in range(len(weights)):
        assert places[parts == part].tolist() == list(range(np.count_nonzero(parts == part)))


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([0.7, 0.3], [7000, 3000]),
        ([7, 3], [7000, 3000]),
        ([1, 1, 1], [3334, 3333, 3333]),
        ([0.0001, 0.9999], [1, 9999]),
        ([1e-300, 1e-300], [5000, 5000]),
        ([1e300, 3e300], [2500, 7500]),
    ],
)
def test_shares_are_those_of_the_weights_as_they_are_written(
    stores: list[TokenStore], weights: list[float], turns: list[int]
) -> None:
    assert Mixture(stores[: len(weights)], weights).share_out(CYCLE) == turns


def test_each_store_goes_through_shuffled_passes_of_its_own(stores: list[TokenStore]) -> None:
    steps = stream(Mixture(stores, [0.5, 0.3, 0.2]), batch_size=9, held_out_fraction=0.1)
    seen = order(steps, 900)
    kept_back = set(held_out(steps))
    for number, first in enumerate(np.cumsum([0, *SIZES[:-1]]).tolist()):
        mine = [index for index in seen if origin(index) == number]
        trained = sorted(set(range(first, first + SIZES[number])) - kept_back)
        passes = [mine[begin : begin + len(trained)] for begin in range(0, len(mine), len(trained))][:-1]
        assert len(passes) > 5
        assert all(sorted(found) == trained for found in passes)
        # Of six sequences there are few orders, and some come again.
        assert len({tuple(found) for found in passes}) > 0.8 * len(passes)
    assert Counter(map(origin, seen)) == {0: 450, 1: 270, 2: 180}


@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_a_step_is_a_pure_function_of_stores_weights_seed_and_step(
    stores: list[TokenStore], weights: list[float] | None
) -> None:
    mixture = Mixture(stores, weights)
    one, other = stream(mixture, batch_size=12), stream(Mixture(stores, weights), batch_size=4)
    whole = order(one, 480)
    wanted = [whole[begin : begin + 12] for begin in range(0, 480, 12)]
    for step in (40, 1, 17, 17):
        assert one.step_indices(step).tolist() == wanted[step - 1]
        assert np.concatenate([other.step_indices(3 * step - n) for n in (2, 1, 0)]).tolist() == wanted[step - 1]
    assert order(stream(mixture, seed=2), 480) != whole
    assert order(stream(Mixture(stores, [0.6, 0.2, 0.2])), 480) != whole


def test_a_step_far_away_is_found_at_once(stores: list[TokenStore]) -> None:
    steps = stream(Mixture(stores, [0.7, 0.2, 0.1]), batch_size=20)
    assert Counter(map(origin, steps.step_indices(10**15).tolist())) == {0: 14, 1: 4, 2: 2}


@pytest.mark.parametrize(
    ("fraction", "limit", "of_each"),
    [
        (0.1, 1000, (4, 1, 3)),
        (0.5, 10, (5, 3, 2)),
        (0.5, 1, (1, 0, 0)),
        (0.999, 1000, (39, 6, 24)),
        (0.0, 10, (0, 0, 0)),
    ],
)
def test_a_fraction_of_each_store_is_held_out_and_the_limit_shared_by_weight(
    stores: list[TokenStore], fraction: float, limit: int, of_each: tuple[int, ...]
) -> None:
    mixture = Mixture(stores, [0.5, 0.3, 0.2])
    steps = stream(mixture, held_out_fraction=fraction, held_out_limit=limit)
    found = held_out(steps)
    counts = Counter(map(origin, found))
    assert tuple(counts[number] for number in range(3)) == of_each
    assert len(set(found)) == len(found) == steps.held_out_sequences
    assert steps.train_sequences == 72 - len(found)
    assert not set(found) & set(order(steps, 1000))


def test_processes_share_each_step_of_a_mixture(stores: list[TokenStore]) -> None:
    mixture = Mixture(stores, [0.5, 0.3, 0.2])
    shared = [stream(mixture, rank=rank, ranks=3, held_out_fraction=0.2) for rank in range(3)]
    for step in (1, 2, 30):
        seen = [i for part in shared for batch in part.step(step).micro_batches for i in batch.indices.tolist()]
        assert sorted(seen) == sorted(shared[0].step_indices(step).tolist())
    assert sorted(i for part in shared for i in held_out(part)) == sorted(
        held_out(stream(mixture, held_out_fraction=0.2))
    )
