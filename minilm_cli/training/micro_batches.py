"""Micro-batches: sequences that go through the models together, and their share among processes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_cli.tokens.store import Indices

#: What a micro-batch costs besides its tokens, in tokens: what padding is weighed against.
MICRO_BATCH_COST = 64


#: Tokens of a sequence whose attention and relations, which grow with the square, cost as much as all the rest of it:
#: about six times the width of a model between teacher and student.
SQUARE_LENGTH = 3072


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the models together, the longest first.

    Packed, they stand one after the other in a single row without padding; otherwise each is a row of its own, padded
    to the longest.
    """

    indices: Indices
    """Where the sequences stand in the store."""
    lengths: tuple[int, ...]
    """Real tokens of each."""
    packed: bool
    tensors: Mapping[str, Tensor]
    """`input_ids`, and `position_ids` if packed, else `attention_mask`."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, (1, tokens) if packed, else (sequences, longest)."""
        return self.tensors["input_ids"]

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding."""
        return self.input_ids.numel()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, length) of each sequence among the flattened positions."""
        ends = itertools.accumulate(self.lengths) if self.packed else itertools.count(1)
        width = self.input_ids.shape[1]
        return [(end - n if self.packed else (end - 1) * width, n) for end, n in zip(ends, self.lengths, strict=False)]

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """What a `RelationTap` takes, on `device`."""
        inputs: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        if self.packed:
            inputs["lengths"] = self.lengths
        return inputs


def _work(lengths: Indices) -> Indices:
    """What sequences of these lengths cost, in a unit of its own."""
    return lengths * (SQUARE_LENGTH + lengths)


def share(work: Indices, among: int) -> Indices:
    """Which of `among` processes takes each piece of `work`, so that all have about as much to do.

    The largest first, each to whoever has least so far (Graham, "Bounds on multiprocessing timing anomalies", 1969).
    """
    owners = np.empty(len(work), dtype=np.int64)
    loads = [(0, rank) for rank in range(among)]
    for place in np.argsort(-work, kind="stable").tolist():
        load, rank = loads[0]
        owners[place] = rank
        heapq.heapreplace(loads, (load + int(work[place]), rank))
    return owners
