from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.respelling import Respelling
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter

#: Token 9 is special; 3 is spelt by two tokens, and 4 by three.
SPELLINGS = [[0], [1], [2], [0, 1], [2, 2, 1], [0], [1], [2], [300], [3]]
SEQUENCES = [[0, 3, 9], [4, 4, 1, 9], [3], [8, 2, 1, 0, 9]]
RESPELT = [[0, 0, 1, 3], [2, 2, 1, 2, 2, 1, 1, 3], [0, 1], [300, 2, 1, 0, 3]]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    writer = TokenStoreWriter(tmp_path, TokenizerInfo(vocabulary_size=10, special_ids=[9]), 5, shard_tokens=4)
    for ids in SEQUENCES:
        writer.add(np.array(ids), np.array([len(ids)]))
    writer.close()
    return TokenStore(tmp_path)


@given(st.lists(st.integers(0, 9)))
def test_tokens_are_replaced_by_their_spellings(former: list[int]) -> None:
    found = Respelling(SPELLINGS)(np.array(former, dtype=np.uint8))
    assert found.tolist() == [new for number in former for new in SPELLINGS[number]]
    assert found.dtype == np.uint16
    assert Respelling(SPELLINGS).length(np.array(former, dtype=np.uint8)) == len(found)


def test_a_token_must_be_spelt_by_something() -> None:
    with pytest.raises(AssertionError, match="spelt by nothing"):
        Respelling([[0], []])


@pytest.mark.parametrize("weights", [None, [1.0]])
def test_a_mixture_gives_sequences_and_lengths_of_the_new_vocabulary(
    store: TokenStore, weights: list[float] | None
) -> None:
    mixture = Mixture([store], weights, Respelling(SPELLINGS))
    assert [mixture.sequence(index, 10).tolist() for index in range(4)] == RESPELT
    cut = [[0, 0, 3], [2, 2, 3], [0, 1], [300, 2, 3]]
    assert [mixture.sequence(index, 3).tolist() for index in range(4)] == cut
    for longest in (3, 4, 10):
        lengths = [min(len(ids), longest) for ids in RESPELT]
        assert mixture.lengths(np.arange(4), longest).tolist() == lengths
        assert mixture.mean_length(longest) == np.mean(lengths)


def test_tokens_are_counted_over_all_shards(store: TokenStore) -> None:
    assert len(store.manifest.shards) > 1
    assert store.token_counts().tolist() == [2, 2, 1, 2, 2, 0, 0, 0, 1, 3]
