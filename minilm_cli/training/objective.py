"""What the student is trained to minimise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Protocol

import torch
from torch import Tensor

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import untrained_parameters, widths
from minilm_cli.ops.length_groups import Span
from minilm_cli.ops.relation_loss import relation_loss
from minilm_cli.ops.relations import Projections

#: Relation heads in the paper (MiniLMv2, section 4.1), by the teacher's width.
_HEADS, _LARGE_WIDTH, _HEADS_OF_LARGE = 48, 1024, 64

#: The narrowest relation head that `auto` chooses. A head of width 1 or 2 says little about how two tokens relate.
NARROWEST_HEAD = 4


class Objective(Protocol):
    """A sum over sequences, so that the way a step is cut into micro-batches does not change it."""

    parts: Sequence[str]
    """Names of the terms of the loss."""

    def __call__(
        self, teacher: Sequence[Projections], student: Sequence[Projections], spans: Sequence[Span]
    ) -> tuple[Tensor, Tensor]:
        """The loss, differentiable with respect to the student, and its parts, unweighted and detached, (parts,).

        teacher, student: the projections of each tapped layer, in pairs.
        """

    def untrained(self, student: Tap) -> list[str]:
        """Names of the student's parameters that the loss does not reach."""


class RelationObjective:
    """The multi-head self-attention relation loss (MiniLMv2, section 3.1), its mean over the pairs of layers."""

    def __init__(self, weights: Mapping[str, float], heads: int) -> None:
        """`weights` of the relations, pairs of `q`, `k`, `v`; `heads`: relation heads."""
        self.parts: Sequence[str] = tuple(weights)
        self._weights, self._heads = dict(weights), heads

    def __call__(
        self, teacher: Sequence[Projections], student: Sequence[Projections], spans: Sequence[Span]
    ) -> tuple[Tensor, Tensor]:
        """As every objective; see `ops.relation_loss.relation_loss`. The parts are means over the pairs too."""
        pairs = zip(teacher, student, strict=True)
        found = [relation_loss(*pair, spans, heads=self._heads, weights=self._weights) for pair in pairs]
        losses, parts = zip(*found, strict=True)
        return torch.stack(losses).mean(), torch.stack(parts).mean(0)

    def untrained(self, student: Tap) -> list[str]:
        """As every objective: the loss ends at the projections in use."""
        return untrained_parameters(student, sorted({letter for pair in self.parts for letter in pair}))


def used_widths(tap: Tap, relations: Mapping[str, float]) -> set[int]:
    """Widths of the projections that the relations use; raises `MinilmError` if a relation pairs two widths."""
    each = widths(tap)
    for (left, right), found in itertools.product(map(tuple, relations), each):
        if found[left] != found[right]:
            raise MinilmError(
                f"relations.weights: {left}{right} pairs {left}, {found[left]} wide, with {right}, {found[right]}"
                f" wide, in {tap.family.name} (grouped-query attention)",
                hint="Pair projections of one width, such as qq, kk and vv.",
            )
    return {found[letter] for found in each for pair in relations for letter in pair}


def relation_heads(wanted: int | str, teacher_widths: set[int], student_widths: set[int]) -> int:
    """The number of relation heads (MiniLMv2, section 4.1: 48, or 64 for a 1024-wide teacher).

    The widths are those of the projections in use; heads divide every one. `auto` takes the divisor nearest to the
    paper's number, with heads at least `NARROWEST_HEAD` wide. Raises `MinilmError` if a wanted number does not divide.
    """
    common = gcd(*teacher_widths, *student_widths)
    if wanted == "auto":
        most = max(1, min(*teacher_widths, *student_widths) // NARROWEST_HEAD)
        return _nearest_divisor(common, _HEADS_OF_LARGE if _LARGE_WIDTH in teacher_widths else _HEADS, most)
    heads = int(wanted)
    if common % heads:
        sides = (("teacher", teacher_widths), ("student", student_widths))
        side, width = next((s, w) for s, widths in sides for w in sorted(widths) if w % heads)
        raise MinilmError(
            f"relations.heads: {heads} does not divide the {side}'s width of {width}",
            hint=_valid_numbers(common, heads),
        )
    return heads


def _valid_numbers(common: int, heads: int) -> str:
    """The divisors of `common` next to `heads`, below and above, in words."""
    divisors = [divisor for divisor in range(1, common + 1) if common % divisor == 0]
    below = max(divisor for divisor in divisors if divisor < heads)
    above = min((divisor for divisor in divisors if divisor > heads), default=None)
    return f"The nearest valid number is {below}." if above is None else f"Valid numbers near it: {below} and {above}."


def _nearest_divisor(number: int, target: int, most: int) -> int:
    """The divisor, up to `most`, nearest to `target`; of two, the larger."""
    divisors = [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: (abs(divisor - target), -divisor))
