"""What the relation loss is computed from, and what a backend of it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minilm_cli.ops.length_groups import Span


class Projections(NamedTuple):
    """Queries, keys and values of a layer, heads concatenated, each (positions, width)."""

    query: Tensor
    key: Tensor
    value: Tensor


#: Some of the projections, or tensors of their shapes, by letter: `q`, `k`, `v`.
ByLetter = dict[str, Tensor]


@dataclass(frozen=True)
class Relations:
    """Which relations to compare, on which sequences (MiniLMv2, section 3.1)."""

    spans: tuple[Span, ...]
    """(start, length) of each sequence among the positions."""
    heads: int
    """Relation heads."""
    weights: Mapping[str, float]
    """Weight of each relation, by its pair of letters."""
    chunk_scores: int
    """Scores held at a time (on a CPU: by each core)."""

    @property
    def letters(self) -> list[str]:
        """The projections that the relations use."""
        return sorted({letter for pair in self.weights for letter in pair})


class Backend(Protocol):
    """Computes loss and gradient of some relations together."""

    def __call__(
        self, relations: Relations, teacher: ByLetter, student: ByLetter, gradients: ByLetter, dtype: torch.dtype
    ) -> Tensor:
        """Each relation's loss, summed over the sequences and unweighted, (relations,), of type `dtype`.

        Adds weight × gradient with respect to the student's projections to `gradients`, whose tensors are zero, of the
        student's type and (positions + 1, width): the last row may be written to and is ignored.
        """
