"""The loss of MiniLMv2: KL divergence between the self-attention relations of teacher and student.

With teacher scores t and student scores s of a relation, each row's loss is KL(softmax t ‖ softmax s), and its
gradient with respect to s is softmax s − softmax t. So a backend computes both in the forward pass, and no score is
kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minilm_cli.ops import relation_chunks
from minilm_cli.ops.length_groups import Span
from minilm_cli.ops.relation_backend import choose_backend
from minilm_cli.ops.relations import Backend, Projections, Relations


def relation_loss(
    teacher: Projections,
    student: Projections,
    spans: Sequence[Span],
    *,
    heads: int,
    weights: Mapping[str, float],
    chunk_scores: int | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over sequences of the multi-head self-attention relation loss (MiniLMv2, section 3.1).

    teacher, student: queries, keys and values as (positions, width); the widths of the two models may differ.
    spans: (start, length) of each sequence among the positions; positions in no span are padding.
    heads: relation heads; divides the width of every tensor in use.
    weights: weight of each relation, a pair of `q`, `k`, `v`.
    chunk_scores: scores held at a time, by each core of a CPU; the default suits the device.
    backend: what computes it; by default, what `relation_backend.choose_backend` chooses.

    For one sequence of n tokens: Σ over relations of weight × mean over the heads and the n query rows of
    KL(teacher ‖ student), softmax over the n keys, scores scaled by 1/√(width of a relation head).

    Returns the sum, differentiable with respect to `student`, and each relation's own sum, unweighted and detached,
    in the order of `weights`. Both are fp32, or fp64 if the student is.
    """
    if chunk_scores is None:
        chunk_scores = relation_chunks.default_chunk_scores(student.query.device)
    longest = max(length for _, length in spans)
    # A chunk holds at least one query's row of scores.
    relations = Relations(tuple(spans), heads, dict(weights), max(chunk_scores, longest))
    sides = [dict(zip("qkv", side, strict=True)) for side in (teacher, student)]
    assert all(side[letter].shape[1] % heads == 0 for side in sides for letter in relations.letters)
    backend = backend or choose_backend(relations, *sides)
    loss, parts = _RelationLoss.apply(backend, relations, *teacher, *student)  # type: ignore[no-untyped-call]  # torch has no types here
    return loss, parts


class _RelationLoss(torch.autograd.Function):
    """`backward` scales the gradient that `forward` computed and gives it away: it can be asked for once."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, relations: Relations, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        teacher, student = dict(zip("qkv", tensors[:3], strict=True)), dict(zip("qkv", tensors[3:], strict=True))
        needed = dict(zip("qkv", ctx.needs_input_grad[5:], strict=True))
        gradients = {
            letter: student[letter].new_zeros((student[letter].shape[0] + 1, student[letter].shape[1]))
            for letter in relations.letters
            if needed[letter]
        }
        dtype = torch.float64 if student["q"].dtype == torch.float64 else torch.float32
        parts = backend(relations, teacher, student, gradients, dtype)
        ctx.gradients = [gradients[letter][:-1] if letter in gradients else None for letter in "qkv"]
        ctx.mark_non_differentiable(parts)
        weights = torch.tensor(list(relations.weights.values()), dtype=parts.dtype)
        return torch.dot(parts, weights.to(parts.device, non_blocking=True)), parts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        assert found is not None, "the gradient of a relation loss can be asked for once"
        scaled = (None if gradient is None else gradient.mul_(outer[0]) for gradient in found)
        return (None, None, None, None, None, *scaled)
