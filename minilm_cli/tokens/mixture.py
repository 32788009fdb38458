"""Several token stores as one, and the store that each position of the training order belongs to. numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from minilm_cli.settings.distill import CYCLE
from minilm_cli.tokens.store import Indices, Respell, TokenIds, TokenStore

#: Sequences whose mean length is near enough to that of all.
_ENOUGH = 2000


class Mixture:
    """Token stores one after the other, with one range of indices; with weights, each has its share of the training.

    `parts` are the ranges of indices that are shuffled separately: a single one, or with weights one for each store.
    """

    def __init__(
        self, stores: Sequence[TokenStore], weights: Sequence[float] | None = None, respell: Respell | None = None
    ) -> None:
        """respell: writes sequences in the ids of another vocabulary than that of the stores."""
        self._stores, self._respell = stores, respell
        ends = np.cumsum([len(store) for store in stores])
        self._first = np.concatenate([[0], ends[:-1]])
        self._size = int(ends[-1])
        self._weights = weights or [1.0]
        bounds = [0, *ends.tolist()] if weights else [0, self._size]
        self.parts = [range(begin, end) for begin, end in itertools.pairwise(bounds)]
        # Each part's turns are spread evenly over a cycle; every place in it has a part, and the number of its turn.
        self._turns = np.array(self.share_out(CYCLE) if weights else [1])
        parts = np.repeat(np.arange(len(self.parts)), self._turns)
        numbers = np.concatenate([np.arange(turns) for turns in self._turns])
        order = np.argsort((numbers + 0.5) / self._turns[parts], kind="stable")
        self._parts, self._numbers = parts[order], numbers[order]
        self.shares: list[float] = (
            (self._turns / CYCLE).tolist() if weights else [len(store) / self._size for store in stores]
        )
        """Share of each store in the sequences that are trained on."""

    def __len__(self) -> int:
        return self._size

    def share_out(self, total: int) -> list[int]:
        """Divide `total` among the parts by weight, the largest remainders rounded up."""
        weights = [Fraction(str(weight)) for weight in self._weights]  # as written: 0.1 is a tenth
        exact = [total * weight / sum(weights) for weight in weights]
        counts = [int(count) for count in exact]
        by_remainder = sorted(range(len(counts)), key=lambda part: counts[part] - exact[part])
        for part in by_remainder[: total - sum(counts)]:
            counts[part] += 1
        return counts

    def deal(self, positions: Indices) -> tuple[Indices, Indices]:
        """The part that each position of the training order belongs to, and the place in that part's own order."""
        cycles, within = np.divmod(positions, len(self._parts))
        parts = self._parts[within]
        return parts, cycles * self._turns[parts] + self._numbers[within]

    def sequence(self, index: int, max_length: int) -> TokenIds:
        """Sequence `index`, cut to `max_length` tokens as its store cuts it."""
        store = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._stores[store].sequence(index - int(self._first[store]), max_length, self._respell)

    def lengths(self, indices: Indices, max_length: int) -> Indices:
        """The lengths in tokens of these sequences, after cutting to `max_length`."""
        found = np.empty(len(indices), dtype=np.int64)
        stores = np.searchsorted(self._first, indices, side="right") - 1
        for store in np.unique(stores):
            here = stores == store
            found[here] = self._stores[store].lengths(indices[here] - self._first[store], max_length, self._respell)
        return found

    def mean_length(self, max_length: int) -> float:
        """Mean tokens of the sequences that are trained on, after cutting to `max_length`.

        Estimated from evenly spaced ones if they are written in another vocabulary.
        """
        return sum(
            share * self._mean_length(store, max_length) for share, store in zip(self.shares, self._stores, strict=True)
        )

    def _mean_length(self, store: TokenStore, max_length: int) -> float:
        if self._respell is not None:
            some = np.linspace(0, len(store) - 1, min(len(store), _ENOUGH), dtype=np.int64)
            return float(store.lengths(some, max_length, self._respell).mean())
        histogram = enumerate(store.manifest.length_histogram)
        return sum(min(length, max_length) * count for length, count in histogram) / len(store)
