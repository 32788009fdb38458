"""The loss of MiniLMv2: KL divergence between the self-attention relations of teacher and student. Pure tensors.

With teacher scores t and student scores s of a relation, each row's loss is KL(softmax t ‖ softmax s), and its
gradient with respect to s is softmax s − softmax t. So loss and gradient are computed together in the forward pass,
chunk by chunk, and no score outlives its chunk: memory for scores does not grow with the batch. Each sequence is cut
to its real tokens, so padding costs nothing and changes nothing. Ignores where queries, keys and values come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Scores in one chunk, which has four buffers of them: on a CPU they stay in its last cache; on a GPU they fill it.
CHUNK_SCORES = {"cpu": 2**19, "cuda": 2**25, "mps": 2**23}

Span = tuple[int, int]


class Projections(NamedTuple):
    """A layer's queries, keys and values, heads side by side, each (positions, width)."""

    query: Tensor
    key: Tensor
    value: Tensor


def relation_loss(
    teacher: Projections,
    student: Projections,
    spans: Sequence[Span],
    *,
    heads: int,
    weights: Mapping[str, float],
    chunk_scores: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over sequences of the multi-head self-attention relation loss (MiniLMv2, section 3.1).

    teacher, student: queries, keys and values as (positions, width); the widths of the two models may differ.
    spans: (start, length) of each sequence among the positions; positions in no span are padding.
    heads: relation heads; divides the width of every tensor in use.
    weights: weight of each relation, a pair of `q`, `k`, `v`.
    chunk_scores: how many scores are held at a time; the default suits the device.

    For one sequence of n tokens: Σ over relations of weight × mean over the heads and the n query rows of
    KL(teacher ‖ student), softmax over the n keys, scores scaled by 1/√(width of a relation head).

    Returns the sum, differentiable with respect to `student`, and each relation's own sum, unweighted and detached,
    in the order of `weights`. Both are fp32, or fp64 if the student is.
    """
    used = {"qkv".index(letter) for pair in weights for letter in pair}
    assert all(side[number].shape[1] % heads == 0 for side in (teacher, student) for number in used)
    if chunk_scores is None:
        chunk_scores = CHUNK_SCORES.get(student.query.device.type, CHUNK_SCORES["cuda"])
    # A chunk holds at least one query's row of scores.
    chunk_scores = max(chunk_scores, *(length for _, length in spans))
    plan = _Plan(tuple(spans), heads, dict(weights), chunk_scores)
    loss, parts = _RelationLoss.apply(plan, *teacher, *student)  # type: ignore[no-untyped-call]  # torch has no types here
    return loss, parts


@dataclass(frozen=True)
class _Plan:
    spans: tuple[Span, ...]
    heads: int
    weights: dict[str, float]
    chunk_scores: int


class _RelationLoss(torch.autograd.Function):
    """`backward` only scales what `forward` found."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        teacher, student = dict(zip("qkv", tensors[:3], strict=True)), dict(zip("qkv", tensors[3:], strict=True))
        dtype = torch.float64 if tensors[3].dtype == torch.float64 else torch.float32
        wanted = dict(zip("qkv", ctx.needs_input_grad[4:], strict=True))
        used = {letter for pair in plan.weights for letter in pair}
        gradients = {
            letter: torch.zeros_like(student[letter], dtype=dtype, memory_format=torch.contiguous_format)
            for letter in used
            if wanted[letter]
        }
        parts = torch.zeros(len(plan.weights), dtype=dtype, device=tensors[3].device)
        buffers = tensors[3].new_empty((4, plan.chunk_scores), dtype=dtype)
        for rows, length in _groups(plan.spans, plan.chunk_scores // plan.heads, parts.device):
            split = _Heads(rows, length, plan.heads, dtype)
            teacher_heads = {letter: split.gather(teacher[letter]) for letter in used}
            student_heads = {letter: split.gather(student[letter]) for letter in used}
            gradient_heads = {letter: torch.zeros_like(student_heads[letter]) for letter in gradients}
            for number, (pair, weight) in enumerate(plan.weights.items()):
                left, right = pair[0], pair[1]
                coefficient = 1 / (plan.heads * length)
                parts[number] += coefficient * _relation(
                    (teacher_heads[left], teacher_heads[right]),
                    (student_heads[left], student_heads[right]),
                    (gradient_heads.get(left), gradient_heads.get(right)),
                    buffers,
                    weight * coefficient,
                )
            for letter, gradient in gradient_heads.items():
                split.scatter(gradient, gradients[letter])
        ctx.gradients = [
            gradients[letter].to(student[letter].dtype) if letter in gradients else None for letter in "qkv"
        ]
        ctx.mark_non_differentiable(parts)
        weights = torch.tensor(list(plan.weights.values()), dtype=dtype, device=parts.device)
        return (parts * weights).sum(), parts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if found is None else found * outer[0].to(found.dtype) for found in ctx.gradients]
        return (None, None, None, None, *gradients)


def _groups(spans: Sequence[Span], scores_per_head: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """Positions (sequences, length) of sequences of one length, as many together as a chunk holds, at least one."""
    for length, group in groupby(sorted(spans, key=lambda span: span[1]), key=lambda span: span[1]):
        starts = torch.tensor([start for start, _ in group], device=device)
        rows = starts[:, None] + torch.arange(length, device=device)
        for part in torch.split(rows, max(1, scores_per_head // length**2)):
            yield part, length


@dataclass(frozen=True)
class _Heads:
    """Splits sequences of one length into relation heads (MiniLMv2, section 3.2), and puts them together again.

    Split, a tensor is (sequences × heads, head width, length): with the narrow side first, matrix products are several
    times faster than the other way round. Each side of a scaled product takes half of its scale, head width^(-1/4).
    """

    rows: Tensor
    length: int
    heads: int
    dtype: torch.dtype

    def gather(self, tensor: Tensor) -> Tensor:
        """(positions, width) to scaled (sequences × heads, head width, length)."""
        width = tensor.shape[1] // self.heads
        split = tensor[self.rows].to(self.dtype).view(-1, self.length, self.heads, width)
        return split.permute(0, 2, 3, 1).reshape(-1, width, self.length).contiguous().mul_(width**-0.25)

    def scatter(self, gradient: Tensor, into: Tensor) -> None:
        """Write the gradient of what `gather` gave into `into`, as the gradient of what it took."""
        width = gradient.shape[1]
        joined = gradient.view(-1, self.heads, width, self.length).permute(0, 3, 1, 2)
        into[self.rows] = joined.reshape(*self.rows.shape, into.shape[1]).mul_(width**-0.25)


def _relation(
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    gradients: tuple[Tensor | None, Tensor | None],
    buffers: Tensor,
    coefficient: float,
) -> Tensor:
    """Sum over heads and rows of one relation's KL divergence; adds `coefficient` × its gradient to `gradients`.

    All tensors are as `_Heads` splits them; `buffers` are four chunks of scores.
    """
    count, _, length = student[0].shape
    total = student[0].new_zeros(())
    # Whole heads while they fit, else some query rows of a head: the softmax is over keys, so rows are independent.
    rows = min(length, max(1, buffers.shape[1] // length))
    group = max(1, buffers.shape[1] // (rows * length))
    for begin in range(0, count, group):
        some = slice(begin, begin + group)
        for first in range(0, length, rows):
            here = slice(first, first + rows)
            shape = (min(group, count - begin), min(rows, length - first), length)
            teacher_scores, teacher_p, student_scores, student_p = (
                buffer[: math.prod(shape)].view(shape) for buffer in buffers
            )
            torch.bmm(teacher[0][some, :, here].transpose(1, 2), teacher[1][some], out=teacher_scores)
            torch.bmm(student[0][some, :, here].transpose(1, 2), student[1][some], out=student_scores)
            torch.softmax(teacher_scores, dim=-1, out=teacher_p)
            torch.softmax(student_scores, dim=-1, out=student_p)
            # KL = Σ p_t (log p_t - log p_s), where log p = score - logsumexp.
            total -= (_logsumexp(teacher_scores, teacher_p) - _logsumexp(student_scores, student_p)).sum()
            total += torch.dot(teacher_p.view(-1), teacher_scores.sub_(student_scores).view(-1))
            score_gradient = student_p.sub_(teacher_p)
            if gradients[0] is not None:
                gradients[0][some, :, here].baddbmm_(
                    student[1][some], score_gradient.transpose(1, 2), alpha=coefficient
                )
            if gradients[1] is not None:
                gradients[1][some].baddbmm_(student[0][some, :, here], score_gradient, alpha=coefficient)
    return total


def _logsumexp(scores: Tensor, probabilities: Tensor) -> Tensor:
    """The logsumexp of each row, from its softmax: score - log(probability) at the likeliest key, without an `exp`."""
    return scores.amax(dim=-1) - probabilities.amax(dim=-1).log_()
