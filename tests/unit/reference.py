"""The loss of MiniLMv2, as written in the paper: slow, plain, in float64.

Section 3 of arXiv 2012.15828. It shares no code with `minilm_cli.ops.relation_loss`, which is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def relation(left: Tensor, right: Tensor) -> list[Tensor]:
    """The rows of log softmax(A Bᵀ / √d_r), section 3.1; `left` and `right` are one relation head's (tokens, d_r)."""
    scale = math.sqrt(left.shape[1])
    rows = []
    for query in left:
        scores = torch.stack([query.dot(key) / scale for key in right])
        rows.append(scores - torch.logsumexp(scores, dim=0))
    return rows


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of two distributions, each given by the logarithms of its probabilities."""
    return (teacher.exp() * (teacher - student)).sum()


def relation_head(vectors: Tensor, head: int, heads: int) -> Tensor:
    """The columns of (tokens, width) that belong to relation head number `head`."""
    width = vectors.shape[1] // heads
    return vectors[:, head * width : (head + 1) * width]


def sequence_loss(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], *, heads: int, weights: Mapping[str, float]
) -> Tensor:
    """Equations 2 to 4 for one sequence; `teacher` and `student` have `q`, `k` and `v`, each (tokens, width)."""
    loss = torch.zeros((), dtype=torch.float64)
    for (left, right), weight in weights.items():
        for head in range(heads):
            of_teacher, of_student = (
                relation(relation_head(model[left], head, heads), relation_head(model[right], head, heads))
                for model in (teacher, student)
            )
            for teacher_row, student_row in zip(of_teacher, of_student, strict=True):
                loss = loss + weight * kl_divergence(teacher_row, student_row) / (heads * len(of_teacher))
    return loss


def relation_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    *,
    heads: int,
    weights: Mapping[str, float],
) -> Tensor:
    """The sum over the sequences; `spans` are their start and length among the positions of the tensors."""
    loss = torch.zeros((), dtype=torch.float64)
    for start, length in spans:
        of_teacher, of_student = (
            {letter: tensor[start : start + length].double() for letter, tensor in zip("qkv", model, strict=True)}
            for model in (teacher, student)
        )
        loss = loss + sequence_loss(of_teacher, of_student, heads=heads, weights=weights)
    return loss
