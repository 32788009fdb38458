from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.settings.distill import CYCLE
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training.batches import BatchStream

from .stores import held_out, stream

#: Sequences of each store.
SIZES = (40, 7, 25)

#: The order of one store of 40 sequences, a tenth of them held out, recorded before there were mixtures.
RECORDED_HELD_OUT = [24, 2, 20, 0]
RECORDED = {
    1: [8, 15, 1, 25, 27, 26, 30, 9],
    5: [12, 31, 28, 16, 22, 21, 29, 38],
    1000: [10, 12, 15, 30, 36, 25, 3, 39],
}


def mixed_store(folder: Path, number: int, size: int) -> TokenStore:
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
    return [mixed_store(folder / str(number), number, size) for number, size in enumerate(SIZES)]


def order(steps: BatchStream, count: int) -> list[int]:
    """The first indices of the training order."""
    batches = (steps.step_indices(step).tolist() for step in itertools.count(1))
    return list(itertools.islice(itertools.chain.from_iterable(batches), count))


def origin(index: int) -> int:
    """The number of the store that an index of the mixture belongs to."""
    return int(np.searchsorted(np.cumsum(SIZES), index, side="right"))


def test_indices_run_over_all_stores(stores: list[TokenStore]) -> None:
    mixture = Mixture(stores)
    assert len(mixture) == sum(SIZES)
    expected = [store[i].tolist() for store in stores for i in range(len(store))]
    assert [mixture.sequence(index, 10).tolist() for index in range(len(mixture))] == expected
    indices = np.array([71, 0, 39, 40, 46, 47, 0])
    assert mixture.lengths(indices, 10).tolist() == [len(expected[index]) for index in indices]
    assert mixture.lengths(indices, 3).tolist() == [min(3, len(expected[index])) for index in indices]


def test_sequences_are_cut_with_the_special_tokens_of_their_store(stores: list[TokenStore]) -> None:
    mixture = Mixture(stores)
    assert [mixture.sequence(index, 2).tolist() for index in (4, 44, 51)] == [[0, 90], [1, 91], [2, 92]]


def test_mean_length_is_weighted_by_the_shares(stores: list[TokenStore]) -> None:
    means = [np.mean([min(4, len(store[i])) for i in range(len(store))]) for store in stores]
    assert Mixture(stores).mean_length(4) == pytest.approx(np.average(means, weights=SIZES))
    assert Mixture(stores, [6, 3, 1]).mean_length(4) == pytest.approx(np.average(means, weights=[6, 3, 1]))


def test_order_of_one_store_never_changes(stores: list[TokenStore]) -> None:
    # A run of an earlier version must be resumed with the same sequences.
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


WEIGHTS = st.lists(st.floats(0.01, 100), min_size=2, max_size=3)


@given(weights=WEIGHTS, first=st.integers(0, 10**12))
def test_shares_are_exact_over_each_cycle(stores: list[TokenStore], weights: list[float], first: int) -> None:
    mixture = Mixture(stores[: len(weights)], weights)
    parts, _ = mixture.deal(np.arange(first, first + CYCLE))
    exact = CYCLE * np.array(weights) / sum(weights)
    counts = np.bincount(parts, minlength=len(weights))
    assert (abs(counts - exact) < 1).all()
    assert (counts / CYCLE).tolist() == mixture.shares


@given(weights=WEIGHTS, count=st.integers(1, CYCLE))
def test_stores_are_evenly_interleaved(stores: list[TokenStore], weights: list[float], count: int) -> None:
    mixture = Mixture(stores[: len(weights)], weights)
    parts, _ = mixture.deal(np.arange(count))
    assert (abs(np.bincount(parts, minlength=len(weights)) - count * np.array(mixture.shares)) < len(weights)).all()


@given(weights=WEIGHTS)
def test_places_of_each_store_come_in_order(stores: list[TokenStore], weights: list[float]) -> None:
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
def test_turns_follow_the_weights(stores: list[TokenStore], weights: list[float], turns: list[int]) -> None:
    assert Mixture(stores[: len(weights)], weights).share_out(CYCLE) == turns


def test_each_store_is_shuffled_in_passes_of_its_own(stores: list[TokenStore]) -> None:
    steps = stream(Mixture(stores, [0.5, 0.3, 0.2]), batch_size=9, held_out_fraction=0.1)
    seen = order(steps, 900)
    excluded = set(held_out(steps))
    for number, first in enumerate(np.cumsum([0, *SIZES[:-1]]).tolist()):
        indices = [index for index in seen if origin(index) == number]
        trained = sorted(set(range(first, first + SIZES[number])) - excluded)
        passes = [indices[begin : begin + len(trained)] for begin in range(0, len(indices), len(trained))][:-1]
        assert len(passes) > 5
        assert all(sorted(chosen) == trained for chosen in passes)
        # Six sequences have few orders, so some are repeated.
        assert len({tuple(chosen) for chosen in passes}) > 0.8 * len(passes)
    assert Counter(map(origin, seen)) == {0: 450, 1: 270, 2: 180}


@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_step_depends_only_on_stores_weights_seed_and_step(
    stores: list[TokenStore], weights: list[float] | None
) -> None:
    mixture = Mixture(stores, weights)
    one, other = stream(mixture, batch_size=12), stream(Mixture(stores, weights), batch_size=4)
    expected = order(one, 480)
    batches = [expected[begin : begin + 12] for begin in range(0, 480, 12)]
    for step in (40, 1, 17, 17):
        assert one.step_indices(step).tolist() == batches[step - 1]
        assert np.concatenate([other.step_indices(3 * step - n) for n in (2, 1, 0)]).tolist() == batches[step - 1]
    assert order(stream(mixture, seed=2), 480) != expected
    assert order(stream(Mixture(stores, [0.6, 0.2, 0.2])), 480) != expected


def test_step_of_a_large_number_is_computed_directly(stores: list[TokenStore]) -> None:
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
def test_held_out_limit_is_shared_by_weight(
    stores: list[TokenStore], fraction: float, limit: int, of_each: tuple[int, ...]
) -> None:
    mixture = Mixture(stores, [0.5, 0.3, 0.2])
    steps = stream(mixture, held_out_fraction=fraction, held_out_limit=limit)
    chosen = held_out(steps)
    counts = Counter(map(origin, chosen))
    assert tuple(counts[number] for number in range(3)) == of_each
    assert len(set(chosen)) == len(chosen) == steps.held_out_sequences
    assert steps.train_sequences == 72 - len(chosen)
    assert not set(chosen) & set(order(steps, 1000))
