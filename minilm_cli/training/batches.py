"""Which sequences a step sees, and in which micro-batches: a pure function of (stores, seed, step).

The order of an epoch is a keyed permutation, so a step is found in the same time and memory whatever the size of the
store, and resuming needs no state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minilm_cli.models.inputs import Inputs, Layout
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.split import held_out, split
from minilm_cli.tokens.store import Indices, TokenIds, TokenStore
from minilm_cli.training.micro_batches import MicroBatch, equal_sizes, packed_sizes, padded_sizes, share, work


@dataclass(frozen=True)
class Batch:
    """The sequences of an optimiser step, as seen by one of the processes that share them."""

    micro_batches: Sequence[MicroBatch]
    """This process's share."""
    sequences: int
    """Of the entire step."""
    tokens: int
    """Real tokens of the entire step."""
    imbalance: float
    """How much more work the busiest process has than the average: 0.02 is 2% more."""
    budget: int
    """Largest number of tokens in a micro-batch when the step was cut."""

    @property
    def padded_tokens(self) -> int:
        """Tokens of this process's share, padding included."""
        return sum(batch.padded_tokens for batch in self.micro_batches)


_SIZES = {"packed": packed_sizes, "padded": padded_sizes, "equal": equal_sizes}


class BatchStream:
    """The training steps of a run, and its held-out sequences."""

    def __init__(
        self,
        store: TokenStore | Mixture,
        *,
        seed: int,
        batch_size: int,
        micro_batch_tokens: int,
        max_length: int,
        layout: Layout = "padded",
        pin: bool = False,
        held_out_fraction: float = 0.0,
        held_out_limit: int = 10_000,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Steps of `batch_size` sequences, cut into micro-batches of at most `micro_batch_tokens` (padded) tokens.

        rank, ranks: which of how many processes that share each step this is.
        layout: how the sequences of a micro-batch are put together.
        pin: put tensors where a GPU can read them while it computes.
        """
        self.batch_size = batch_size
        self._store = store if isinstance(store, Mixture) else Mixture([store])
        self.micro_batch_tokens = micro_batch_tokens
        self.max_length = max_length
        self.layout, self._pin = layout, pin
        self._rank, self._ranks = rank, ranks
        self._parts = split(self._store, seed=seed, fraction=held_out_fraction, limit=held_out_limit)
        self.held_out_sequences = sum(part.held_out for part in self._parts)
        self.train_sequences = len(self._store) - self.held_out_sequences

    def step_indices(self, step: int) -> Indices:
        """Store indices of the sequences of `step` (1-based), in the order of the shuffled epochs."""
        first = (step - 1) * self.batch_size
        parts, places = self._store.deal(np.arange(first, first + self.batch_size))
        indices = np.empty_like(places)
        for part in np.unique(parts):
            here = parts == part
            indices[here] = self._parts[part].train(places[here])
        return indices

    def step(self, step: int) -> Batch:
        """The share of this process in `step` (1-based)."""
        indices = self.step_indices(step)
        lengths = self._store.lengths(indices, self.max_length)
        costs = work(lengths)
        owners = share(costs, self._ranks)
        mine = owners == self._rank
        loads = np.bincount(owners, weights=costs, minlength=self._ranks)
        budget = self.micro_batch_tokens  # another thread may lower it
        return Batch(
            micro_batches=list(self._cut(indices[mine], lengths[mine], budget)),
            sequences=len(indices),
            tokens=int(lengths.sum()),
            imbalance=float(loads.max() / loads.mean() - 1),
            budget=budget,
        )

    def sequence(self, index: int) -> TokenIds:
        """Token ids of one sequence of the store, cut as the models see it."""
        return self._store.sequence(index, self.max_length)

    def sample(self, tokens: int, longest: int) -> Iterator[TokenIds]:
        """Training sequences of so many tokens in all, or each of them once; cut to `longest` tokens."""
        steps = range(1, math.ceil(self.train_sequences / self.batch_size) + 1)
        indices = itertools.chain.from_iterable(map(self.step_indices, steps))
        for index in itertools.islice(indices, self.train_sequences):
            sequence = self._store.sequence(int(index), min(longest, self.max_length))
            yield sequence
            tokens -= len(sequence)
            if tokens <= 0:
                return

    def held_out(self) -> Iterator[MicroBatch]:
        """Micro-batches of this process's share of the held-out sequences, always the same ones."""
        indices = held_out(self._parts)
        # In parts, so that only one part's lengths are sorted and its ids held at a time.
        for begin in range(0, len(indices), 4096):
            part = indices[begin : begin + 4096]
            lengths = self._store.lengths(part, self.max_length)
            mine = share(work(lengths), self._ranks) == self._rank
            yield from self._cut(part[mine], lengths[mine], self.micro_batch_tokens)

    def _cut(self, indices: Indices, lengths: Indices, budget: int) -> Iterator[MicroBatch]:
        """Longest first, as many together as their (padded) tokens allow, at least one."""
        order = np.argsort(-lengths, kind="stable")
        indices, lengths = indices[order], lengths[order]
        begin = 0
        for size in _SIZES[self.layout](lengths, budget):
            some = indices[begin : begin + size]
            sequences = [self.sequence(int(index)) for index in some]
            inputs = Inputs.packed(sequences) if self.layout == "packed" else Inputs.padded(sequences)
            yield MicroBatch(some, inputs.pin_memory() if self._pin else inputs)
            begin += size
