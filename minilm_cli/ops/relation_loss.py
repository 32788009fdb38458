"""The loss of MiniLMv2: KL divergence between the self-attention relations of teacher and student. Pure tensors.

With teacher scores t and student scores s of a relation, each row's loss is KL(softmax t ‖ softmax s), and its
gradient with respect to s is softmax s − softmax t. So loss and gradient are computed together in the forward pass,
chunk by chunk, and no score outlives its chunk: memory for scores does not grow with the batch. Padding is left out,
but for a little between sequences of nearly one length, and changes nothing. Ignores where queries, keys and values
come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilm_cli.ops.length_groups import Group, Span, groups

#: Scores in the chunks of all cores together, of which four are held in fp32: 16 MB, which stay in the last cache of
#: most CPUs; and the least that is worth a core's while.
CHUNK_SCORES, LEAST_CHUNK_SCORES = 2**20, 2**17


#: The share of a GPU's memory that they take there.
GPU_CHUNK_SHARE = 1 / 32


#: How many scores may be computed for a real one where sequences of unlike lengths go together.
RAGGEDNESS = 1.2


#: What is added to a hidden key's score: its probability is 0, and in teacher and student its score is the same.
_HIDDEN = -1e30


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
    chunk_scores: how many scores are held at a time, by each core of a CPU; the default suits the device.

    For one sequence of n tokens: Σ over relations of weight × mean over the heads and the n query rows of
    KL(teacher ‖ student), softmax over the n keys, scores scaled by 1/√(width of a relation head).

    Returns the sum, differentiable with respect to `student`, and each relation's own sum, unweighted and detached,
    in the order of `weights`. Both are fp32, or fp64 if the student is.
    """
    used = {"qkv".index(letter) for pair in weights for letter in pair}
    assert all(side[number].shape[1] % heads == 0 for side in (teacher, student) for number in used)
    if chunk_scores is None:
        chunk_scores = _chunk_scores(student.query.device)
    # A chunk holds at least one query's row of scores.
    chunk_scores = max(chunk_scores, *(length for _, length in spans))
    plan = _Plan(tuple(spans), heads, dict(weights), chunk_scores)
    loss, parts = _RelationLoss.apply(plan, *teacher, *student)  # type: ignore[no-untyped-call]  # torch has no types here
    return loss, parts


def _chunk_scores(device: torch.device) -> int:
    if device.type != "cuda":
        return max(LEAST_CHUNK_SCORES, CHUNK_SCORES // torch.get_num_threads())
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_CHUNK_SHARE) // (4 * 4)


@lru_cache(maxsize=1)
def _buffers(cores: int, chunk_scores: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each core two pairs of chunks, always the same ones: memory that is freshly mapped is slow to write to."""
    with torch.inference_mode(False):
        return torch.empty((cores, 2, 2 * chunk_scores), dtype=dtype, device=device)


#: Tensors of queries, keys and values, or of some of them, by letter.
_Letters = dict[str, Tensor]


@dataclass(frozen=True)
class _Plan:
    spans: tuple[Span, ...]
    heads: int
    weights: dict[str, float]
    chunk_scores: int


class _RelationLoss(torch.autograd.Function):
    """`backward` only scales what `forward` found, and gives it away: it can be asked for once."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        teacher, student = dict(zip("qkv", tensors[:3], strict=True)), dict(zip("qkv", tensors[3:], strict=True))
        wanted = dict(zip("qkv", ctx.needs_input_grad[4:], strict=True))
        # One row more than there are positions: what is computed for padding within a group is written there.
        gradients = {
            letter: student[letter].new_zeros((student[letter].shape[0] + 1, student[letter].shape[1]))
            for letter in {letter for pair in plan.weights for letter in pair}
            if wanted[letter]
        }
        dtype = torch.float64 if student["q"].dtype == torch.float64 else torch.float32
        parts = _on_all_cores(plan, teacher, student, gradients, dtype)
        ctx.gradients = [gradients[letter][:-1] if letter in gradients else None for letter in "qkv"]
        ctx.mark_non_differentiable(parts)
        weights = torch.tensor(list(plan.weights.values()), dtype=parts.dtype)
        return torch.dot(parts, weights.to(parts.device, non_blocking=True)), parts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        assert found is not None, "the gradient of a relation loss can be asked for once"
        return (None, None, None, None, *(None if gradient is None else gradient.mul_(outer[0]) for gradient in found))


def _on_all_cores(plan: _Plan, teacher: _Letters, student: _Letters, gradients: _Letters, dtype: torch.dtype) -> Tensor:
    """Each relation's loss; every core of a CPU takes some of the heads, from the first product to the last.

    So none waits for the others at the end of each small operation, and none reads what another has just written,
    which takes three times as long where cores do not share a cache.
    """
    device = student["q"].device
    cores = min(torch.get_num_threads(), plan.heads) if device.type == "cpu" else 1
    buffers = _buffers(cores, plan.chunk_scores, dtype, device)
    bounds = [plan.heads * core // cores for core in range(cores + 1)]

    def share(core: int) -> Tensor:
        first, last = bounds[core], bounds[core + 1]

        def own(tensors: _Letters) -> _Letters:
            widths = {letter: tensor.shape[1] // plan.heads for letter, tensor in tensors.items()}
            return {letter: tensors[letter][:, first * width : last * width] for letter, width in widths.items()}

        with torch.inference_mode():  # which each thread has for itself
            return _of_heads(plan, last - first, own(teacher), own(student), own(gradients), buffers[core])

    shares = map(share, range(cores)) if cores == 1 else _threads(cores).map(share, range(cores))
    return torch.stack(list(shares)).sum(0)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads whose operations take one core."""
    return ThreadPoolExecutor(count, "relations", initializer=torch.set_num_threads, initargs=(1,))


def _of_heads(
    plan: _Plan,
    heads: int,
    teacher: _Letters,
    student: _Letters,
    gradients: _Letters,
    buffers: Tensor,
) -> Tensor:
    """The share of some heads in each relation's loss; writes theirs of the gradients."""
    used = {letter for pair in plan.weights for letter in pair}
    parts = buffers.new_zeros(len(plan.weights))
    # A group's heads take up to half as much memory as a chunk's scores.
    most = buffers.numel() / 2 / sum(teacher[letter].shape[1] + 2 * student[letter].shape[1] for letter in used)
    for group in groups(plan.spans, parts.device, most=most, raggedness=RAGGEDNESS):
        split = _Heads(group, heads, plan.heads, buffers.dtype)
        teacher_heads = {letter: split.split(teacher[letter]) for letter in used}
        student_heads = {letter: split.split(student[letter]) for letter in used}
        gradient_heads = {letter: torch.zeros_like(student_heads[letter]) for letter in gradients}
        for number, (pair, weight) in enumerate(plan.weights.items()):
            left, right = pair[0], pair[1]
            parts[number] += _relation(
                split,
                (teacher_heads[left], teacher_heads[right]),
                (student_heads[left], student_heads[right]),
                (gradient_heads.get(left), gradient_heads.get(right)),
                buffers,
                weight,
            )
        for letter, gradient in gradient_heads.items():
            split.join(gradient, gradients[letter])
    return parts


@dataclass(frozen=True)
class _Heads:
    """Splits a group's tensors into relation heads, and puts their gradients together again.

    The shorter sequences of a group are padded with zeros. A padded key is hidden from both softmaxes; a padded query
    has the same scores, zeros, in teacher and student, and so neither loss nor gradient.
    """

    group: Group
    heads: int
    all_heads: int
    dtype: torch.dtype

    @cached_property
    def hidden(self) -> Tensor | None:
        """What is added to the scores of each key, (sequences × heads, 1, longest)."""
        real = self.group.real
        return None if real is None else torch.where(real, 0.0, _HIDDEN).repeat_interleave(self.heads, 0)[:, None, :]

    @cached_property
    def coefficients(self) -> Tensor:
        """1 / (heads × length), which makes a sum over heads and rows a mean; (sequences × heads,)."""
        return (1 / (self.all_heads * self.group.lengths.to(self.dtype))).repeat_interleave(self.heads)

    def split(self, tensor: Tensor) -> Tensor:
        """(positions, width) into relation heads (MiniLMv2, section 3.2): (sequences × heads, head width, longest).

        With the narrow side first, matrix products are several times faster than the other way round. Each side of a
        scaled product takes half of its scale, head width^(-1/4).
        """
        found = self.group.gather(tensor)
        found = found.view(*found.shape[:2], self.heads, -1).permute(0, 2, 3, 1)
        split = torch.empty(found.shape, dtype=self.dtype, device=found.device).copy_(found)
        if self.group.real is not None:
            split.masked_fill_(~self.group.real[:, None, None, :], 0)
        return split.flatten(0, 1).mul_(found.shape[2] ** -0.25)

    def join(self, gradient: Tensor, into: Tensor) -> None:
        """Write the gradient of what `split` gave into `into`, (positions + 1, width), as that of what it took."""
        _, width, longest = gradient.shape
        scaled = gradient * (self.coefficients * width**-0.25)[:, None, None]
        joined = scaled.view(-1, self.heads, width, longest).permute(0, 3, 1, 2)
        self.group.scatter(joined, into.view(into.shape[0], self.heads, width))


def _relation(
    split: _Heads,
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    gradients: tuple[Tensor | None, Tensor | None],
    buffers: Tensor,
    weight: float,
) -> Tensor:
    """Sum over the group's sequences of one relation's KL divergence, the mean over heads and rows.

    Adds `weight` × its gradient, but for `split.coefficients`, to `gradients`. All tensors are as `_Heads.split` gives
    them; `buffers` are two pairs of chunks of scores.
    """
    count, _, length = student[0].shape
    divergence = student[0].new_zeros(count)
    # As many heads as fit, or some query rows of one: the softmax is over keys, so rows are independent.
    chunk_scores = buffers.shape[1] // 2
    rows = min(length, max(1, chunk_scores // length))
    together = min(count, max(1, chunk_scores // (rows * length)))
    for begin in range(0, count, together):
        some = slice(begin, begin + together)
        for first in range(0, length, rows):
            here = slice(first, first + rows)
            shape = (min(together, count - begin), min(rows, length - first), length)
            # Teacher and student beside each other, so that what is done to both is done at once.
            scores, p = (buffer[: 2 * math.prod(shape)].view(2, *shape) for buffer in buffers)
            torch.bmm(teacher[0][some, :, here].transpose(1, 2), teacher[1][some], out=scores[0])
            torch.bmm(student[0][some, :, here].transpose(1, 2), student[1][some], out=scores[1])
            if split.hidden is not None:
                scores.add_(split.hidden[some])
            torch.softmax(scores, dim=-1, out=p)
            # KL = Σ p_t (log p_t - log p_s), where log p = score - logsumexp. The logsumexp of a row comes from its
            # softmax, without an `exp`: score - log p at the likeliest key.
            of_teacher, of_student = scores.amax(dim=-1).sub_(p.amax(dim=-1).log_())
            teacher_p, student_p = p
            expected = scores[0].sub_(scores[1]).mul_(teacher_p).sum((1, 2))
            divergence[some] += expected.sub_(of_teacher.sub_(of_student).sum(-1))
            score_gradient = student_p.sub_(teacher_p)
            if gradients[0] is not None:
                gradients[0][some, :, here].baddbmm_(student[1][some], score_gradient.transpose(1, 2), alpha=weight)
            if gradients[1] is not None:
                gradients[1][some].baddbmm_(student[0][some, :, here], score_gradient, alpha=weight)
    return torch.dot(divergence, split.coefficients)
