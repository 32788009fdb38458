"""Which sequences a step sees, and how they are cut into micro-batches: a pure function of (stores, seed, step).

The order of an epoch is a keyed permutation, computed where it is asked for and never stored, so a step is found in
the same time and memory whatever the size of the store, and resuming needs no state. Ignores models and devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minilm_cli.base.seeding import derive
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import Indices, TokenIds, TokenStore
from minilm_cli.training.micro_batches import MICRO_BATCH_COST, MicroBatch, _work, share

_ROUNDS = 8


@dataclass(frozen=True)
class Batch:
    """The sequences of an optimiser step, as one of the processes that share them sees it."""

    micro_batches: Sequence[MicroBatch]
    """This process's share."""
    sequences: int
    """Of the whole step."""
    tokens: int
    """Real tokens of the whole step."""
    imbalance: float
    """How much more the busiest process has to do than they have on average: 0.02 is 2% more."""
    budget: int
    """Tokens that its micro-batches were cut to."""

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding, of this process's share."""
        return sum(batch.padded_tokens for batch in self.micro_batches)


@dataclass(frozen=True)
class _Source:
    """Sequences that are shuffled among themselves: the first places of a fixed shuffle are held out."""

    indices: range
    held_out: int
    seed: int

    @property
    def trained(self) -> int:
        """How many are trained on."""
        return len(self.indices) - self.held_out

    def shuffled(self, places: Indices) -> Indices:
        """The indices at these places of the fixed shuffle."""
        return self.indices.start + permute(places, len(self.indices), derive(self.seed, "held-out"))

    def train(self, places: Indices) -> Indices:
        """The indices at these places of the endless order of shuffled epochs."""
        epochs, places = np.divmod(places, self.trained)
        order = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = permute(places[here], self.trained, derive(self.seed, "epoch", int(epoch)))
        return self.shuffled(order + self.held_out)


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
        pad_id: int,
        pack: bool = False,
        pin: bool = False,
        held_out_fraction: float = 0.0,
        held_out_limit: int = 10_000,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Steps of `batch_size` sequences, cut into micro-batches of at most `micro_batch_tokens` (padded) tokens.

        rank, ranks: which of how many processes that share each step this is.
        pack: put the sequences of a micro-batch one after the other instead of padding them with `pad_id`.
        pin: put tensors where a GPU can fetch them while it computes.
        """
        self.batch_size = batch_size
        self._store = store if isinstance(store, Mixture) else Mixture([store])
        self.micro_batch_tokens = micro_batch_tokens
        self._max_length, self._pad_id, self._pack, self._pin = max_length, pad_id, pack, pin
        self._rank, self._ranks = rank, ranks
        parts, limits = self._store.parts, self._store.share_out(held_out_limit)
        self._sources = [
            _Source(
                part,
                # At least one sequence is left to train on.
                held_out=min(math.ceil(len(part) * held_out_fraction), limit, len(part) - 1),
                seed=seed if len(parts) == 1 else derive(seed, "part", number),
            )
            for number, (part, limit) in enumerate(zip(parts, limits, strict=True))
        ]
        self.held_out_sequences = sum(source.held_out for source in self._sources)
        self.train_sequences = len(self._store) - self.held_out_sequences

    def step_indices(self, step: int) -> Indices:
        """Store indices of the sequences of `step` (1-based), in the order of the shuffled epochs."""
        first = (step - 1) * self.batch_size
        parts, places = self._store.deal(np.arange(first, first + self.batch_size))
        indices = np.empty_like(places)
        for part in np.unique(parts):
            here = parts == part
            indices[here] = self._sources[part].train(places[here])
        return indices

    def step(self, step: int) -> Batch:
        """What this process does of `step` (1-based)."""
        indices = self.step_indices(step)
        lengths = self._store.lengths(indices, self._max_length)
        work = _work(lengths)
        owners = share(work, self._ranks)
        mine = owners == self._rank
        loads = np.bincount(owners, weights=work, minlength=self._ranks)
        budget = self.micro_batch_tokens  # which may become another meanwhile
        return Batch(
            micro_batches=list(self._cut(indices[mine], lengths[mine])),
            sequences=len(indices),
            tokens=int(lengths.sum()),
            imbalance=float(loads.max() / loads.mean() - 1),
            budget=budget,
        )

    def sequence(self, index: int) -> TokenIds:
        """Token ids of one sequence of the store, as the models see it."""
        return self._store.sequence(index, self._max_length)

    def held_out(self) -> Iterator[MicroBatch]:
        """Micro-batches of this process's share of the held-out sequences, always the same ones."""
        indices = np.concatenate([source.shuffled(np.arange(source.held_out)) for source in self._sources])
        # In parts, so that only a part's lengths are sorted and its ids held at a time.
        for begin in range(0, len(indices), 4096):
            part = indices[begin : begin + 4096]
            lengths = self._store.lengths(part, self._max_length)
            mine = share(_work(lengths), self._ranks) == self._rank
            yield from self._cut(part[mine], lengths[mine])

    def _cut(self, indices: Indices, lengths: Indices) -> Iterator[MicroBatch]:
        """Longest first, as many together as their (padded) tokens allow, at least one."""
        order = np.argsort(-lengths, kind="stable")
        indices, lengths = indices[order], lengths[order]
        begin = 0
        for size in self._packed_sizes(lengths) if self._pack else self._padded_sizes(lengths):
            yield self._collate(indices[begin : begin + size], lengths[begin : begin + size])
            begin += size

    def _packed_sizes(self, lengths: Indices) -> Iterator[int]:
        """How many sequences each micro-batch takes: as many as fit."""
        begin, ends = 0, np.cumsum(lengths)
        while begin < len(lengths):
            before = ends[begin] - lengths[begin]
            size = max(1, int(np.searchsorted(ends[begin:], before + self.micro_batch_tokens, side="right")))
            yield size
            begin += size

    def _padded_sizes(self, lengths: Indices) -> Iterator[int]:
        """The same where the longest decides: the cut with the least padding and the fewest micro-batches."""
        least = np.zeros(len(lengths) + 1)  # the cost of the sequences from each one on
        sizes = np.ones(len(lengths), dtype=np.int64)
        for begin in reversed(range(len(lengths))):
            most = max(1, self.micro_batch_tokens // int(lengths[begin]))
            choices = np.arange(1, min(most, len(lengths) - begin) + 1)
            costs = MICRO_BATCH_COST + choices * lengths[begin] + least[begin + choices]
            sizes[begin], least[begin] = choices[costs.argmin()], costs.min()
        begin = 0
        while begin < len(lengths):
            yield int(sizes[begin])
            begin += int(sizes[begin])

    def _collate(self, indices: Indices, lengths: Indices) -> MicroBatch:
        sequences = [self.sequence(int(index)) for index in indices]
        if self._pack:
            arrays = {
                "input_ids": np.concatenate(sequences)[None],
                "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
            }
        else:
            places = np.arange(lengths[0])
            input_ids = np.full((len(indices), len(places)), self._pad_id)
            for row, ids in zip(input_ids, sequences, strict=True):
                row[: len(ids)] = ids
            arrays = {"input_ids": input_ids, "attention_mask": places < lengths[:, None]}
        tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        if self._pin:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return MicroBatch(indices, tuple(lengths.tolist()), self._pack, tensors)


def permute(places: Indices, size: int, key: int) -> Indices:
    """Where a shuffle of `range(size)`, chosen by `key`, puts each of `places`: a bijection, in O(1) memory.

    A Feistel network over the bits of `size`, walked until it lands below `size` (cycle walking: Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). It mixes well; it is no cipher.
    """
    assert size > 0
    bits = max(2, (size - 1).bit_length())
    low_bits = bits // 2
    high_bits = bits - low_bits
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    keys = [np.uint64(derive(key, number)) for number in range(_ROUNDS)]

    def once(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low, high = values & low_mask, values >> np.uint64(low_bits)
        for number, round_key in enumerate(keys):
            if number % 2:
                high = high ^ (_mix(low ^ round_key) & high_mask)
            else:
                low = low ^ (_mix(high ^ round_key) & low_mask)
        return (high << np.uint64(low_bits)) | low

    values = once(places.astype(np.uint64))
    while (outside := values >= size).any():
        values[outside] = once(values[outside])
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: every input bit changes every output bit about half the time."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
