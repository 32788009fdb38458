"""Micro-batches: sequences that go through the models together, how a step is cut into them, and who computes which."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minilm_cli.models.inputs import Inputs
from minilm_cli.tokens.store import Indices

#: What a micro-batch costs besides its tokens, in tokens: the weight of padding against the number of micro-batches.
MICRO_BATCH_COST = 64

#: The length at which attention and relations, which grow with its square, cost as much as all the rest of a sequence:
#: about six times the width of a model between teacher and student.
SQUARE_LENGTH = 3072


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the models together, the longest first."""

    indices: Indices
    """Indices of the sequences in the store."""
    inputs: Inputs

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(self.inputs.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens, padding included."""
        return self.inputs.ids.numel()


def packed_sizes(lengths: Indices, budget: int) -> Iterator[int]:
    """How many sequences each packed micro-batch takes: as many as fit into `budget` tokens, at least one."""
    begin, ends = 0, np.cumsum(lengths)
    while begin < len(lengths):
        before = ends[begin] - lengths[begin]
        size = max(1, int(np.searchsorted(ends[begin:], before + budget, side="right")))
        yield size
        begin += size


def padded_sizes(lengths: Indices, budget: int, *, cost: int = MICRO_BATCH_COST) -> Iterator[int]:
    """The same for padded ones, whose cost the longest decides: the cut with least padding and fewest micro-batches.

    lengths: falling. cost: of a micro-batch besides its tokens, in tokens.
    """
    least = np.zeros(len(lengths) + 1)  # the cost of the sequences from each one on
    sizes = np.ones(len(lengths), dtype=np.int64)
    for begin in reversed(range(len(lengths))):
        most = max(1, budget // int(lengths[begin]))
        choices = np.arange(1, min(most, len(lengths) - begin) + 1)
        costs = cost + choices * lengths[begin] + least[begin + choices]
        sizes[begin], least[begin] = choices[costs.argmin()], costs.min()
    begin = 0
    while begin < len(lengths):
        yield int(sizes[begin])
        begin += int(sizes[begin])


def equal_sizes(lengths: Indices, budget: int) -> Iterator[int]:
    """The same for sequences of one length each time, so that nothing is padded; lengths: falling."""
    _, counts = np.unique(-lengths, return_counts=True)
    for length, count in zip(lengths[np.cumsum(counts) - 1].tolist(), counts.tolist(), strict=True):
        most = max(1, budget // length)
        yield from (min(most, count - begin) for begin in range(0, count, most))


def work(lengths: Indices) -> Indices:
    """The cost of sequences of these lengths, in an arbitrary unit."""
    return lengths * (SQUARE_LENGTH + lengths)


def share(costs: Indices, among: int) -> Indices:
    """The process, of `among`, that takes each piece of work, so that all have about the same to do.

    The largest first, each to the process with least so far (Graham, "Bounds on multiprocessing timing anomalies",
    1969).
    """
    owners = np.empty(len(costs), dtype=np.int64)
    loads = [(0, rank) for rank in range(among)]
    for place in np.argsort(-costs, kind="stable").tolist():
        load, rank = loads[0]
        owners[place] = rank
        heapq.heapreplace(loads, (load + int(costs[place]), rank))
    return owners
