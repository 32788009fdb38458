"""Token ids as a smaller vocabulary has them. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minilm_cli.tokens.store import Indices, TokenIds, id_dtype


class Respelling:
    """Writes sequences in a smaller vocabulary: each token is one of it, or is spelt by several."""

    def __init__(self, spellings: Sequence[Sequence[int]]) -> None:
        """spellings: new ids, at least one, for each former id."""
        self._lengths: Indices = np.array([len(spelling) for spelling in spellings])
        assert self._lengths.min() > 0, "a token that is spelt by nothing"
        self._starts = np.cumsum(self._lengths) - self._lengths
        ids = np.concatenate([np.asarray(spelling, dtype=np.int64) for spelling in spellings])
        self._ids: TokenIds = ids.astype(id_dtype(int(ids.max()) + 1))

    def length(self, ids: TokenIds) -> int:
        """How many new ids a sequence has."""
        return int(self._lengths[ids].sum())

    def __call__(self, ids: TokenIds) -> TokenIds:
        """The new ids of a sequence."""
        lengths, places = self._lengths[ids], self._starts[ids]
        total = int(lengths.sum())
        if total > len(ids):
            within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            places = np.repeat(places, lengths) + within
        found: TokenIds = self._ids[places]
        return found
