from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.tokens.permutation import permute


@given(size=st.integers(1, 600), key=st.integers(0, 2**63 - 1))
def test_result_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 2**16])
def test_result_is_a_permutation_for_sizes_near_powers_of_two(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key=3)), np.arange(size))


def test_permutation_depends_only_on_its_key() -> None:
    places = np.arange(1000)
    one = permute(places, 1000, key=1)
    assert np.array_equal(one, permute(places, 1000, key=1))
    assert np.mean(one == permute(places, 1000, key=2)) < 0.01
    assert np.mean(one == places) < 0.01


def test_some_places_are_permuted_like_all() -> None:
    every = permute(np.arange(1000), 1000, key=5)
    some = np.array([999, 0, 17, 17])
    assert np.array_equal(permute(some, 1000, key=5), every[some])
    assert some.tolist() == [999, 0, 17, 17]
    assert permute(np.arange(0), 1000, key=5).tolist() == []


def test_permutation_is_well_mixed() -> None:
    size = 10_000
    shuffled = permute(np.arange(size), size, key=11)
    # In a uniform permutation, half of any stretch comes from the lower half, and neighbours are uncorrelated.
    assert abs(np.mean(shuffled[: size // 2] < size / 2) - 0.5) < 0.02
    assert abs(np.mean(shuffled % 2 == np.arange(size) % 2) - 0.5) < 0.02
    assert abs(np.corrcoef(np.arange(size), shuffled)[0, 1]) < 0.05
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("size", [10**12, 2**62])
def test_huge_permutation_is_computed_only_where_needed(size: int) -> None:
    places = np.array([0, 1, 2, size // 2, size - 1])
    result = permute(places, size, key=1)
    assert len(set(result.tolist())) == len(places)
    assert ((result >= 0) & (result < size)).all()
